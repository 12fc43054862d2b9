"""Names for several benchmarks at once."""

from __future__ import annotations

from collections.abc import Sequence

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.errors import UsageError

LEADERBOARD9 = tuple(sorted(sorted(BENCHMARKS, key=lambda task: BENCHMARKS[task].train_rows)[:9]))
"""The nine catalogued benchmarks with the fewest training rows: the cheapest board."""


def expand(name: str, corpora: Sequence[str]) -> list[str]:
    """Return the tasks that ``name`` stands for: those of a suite, or itself.

    Args:
        name: paper24, leaderboard9, perplexity, or a task.
        corpora: files of the user's own texts, which the suite perplexity stands for.

    Raises:
        UsageError: perplexity without corpora.
    """
    if name == "perplexity":
        if not corpora:
            raise UsageError("corpora: the suite perplexity needs texts of your own. List their files under corpora.")
        return [f"corpus:{path}" for path in corpora]
    return {"paper24": list(BENCHMARKS), "leaderboard9": list(LEADERBOARD9)}.get(name, [name])
