"""The preparedness audit: models whose direct rank is better than their trained rank by more than both errors.

A model that has seen a benchmark's task, or has practised its format, does better without fine-tuning than its ability explains.
Train-before-test prepares every model alike, so that this lead shrinks. The audit compares the rank by PC1 of the direct scores
with that of the trained scores, on the same models and benchmarks. The error of each is the standard deviation of the rank over
bootstrap draws (``bootstrap``). z is the difference of the ranks divided by the root of the sum of both squared errors.

A flag says that the direct ranking favours a model, not why: practice on the benchmark, instruction tuning, and a prompt format
that suits the model look the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lm_harmony.analysis.bootstrap import rank_errors
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import base_of
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.significance import Z_THRESHOLD
from lm_harmony.errors import UsageError, counted

DRAWS = 10_000
"""Number of bootstrap draws of a rank's error, which make z exact to about 0.03. With 1,000 draws, the seed of the draws decided
whether two of 61 models of the paper's matrix were marked. Large boards have fewer draws, and at least a tenth."""
_MOST_DRAWN = 20_000_000
"""Largest number of scores that are drawn while there are more draws than a tenth; it limits the time to about two seconds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """Direct ranks beside trained ranks."""

    models: tuple[str, ...]
    """Models that have both kinds of scores on all benchmarks of the comparison."""
    benchmarks: tuple[str, ...]
    """Benchmarks of the comparison."""
    table: pd.DataFrame
    """Models, largest z first, x (direct, trained, difference, error, z, flagged): both ranks by PC1, trained minus direct rank,
    its standard error, their ratio, and whether z is above 1.96."""
    flips: float
    """Share of pairs of models that PC1 of the trained scores orders otherwise than PC1 of the direct scores."""
    leads: pd.DataFrame | None
    """Pairs of a base model and its instruct model, x (direct, trained): whether the instruct model leads by PC1; None: there is
    no such pair."""

    def sentences(self) -> list[str]:
        """Return the results as sentences."""
        flagged = ", ".join(self.table.index[self.table["flagged"]]) or "none"
        lines = [
            f"audit: direct rank better than trained rank by more than both errors: {flagged}",
            f"audit: {self.flips:.1%} of the pairs of models have another order by PC1 after training",
        ]
        if self.leads is not None:
            direct, trained = self.leads["direct"].mean(), self.leads["trained"].mean()
            lines.append(
                f"audit: the instruct model leads its base model by PC1 in {direct:.0%} of {counted(len(self.leads), 'pair')} "
                f"directly, and in {trained:.0%} after training"
            )
        return lines


def audit(matrix: ScoreMatrix) -> Audit:
    """Compare direct and trained ranks on the models and benchmarks that have both scores. Text corpora are left out.

    Raises:
        UsageError: fewer than three models or two benchmarks have both scores.
    """
    part = matrix.downstream()
    # Models without any direct score, such as the published ones, must not cost the others their benchmarks.
    has_both = part.direct.values.notna().any(axis=1) & part.trained.values.notna().any(axis=1)
    part = part.subset(models=[str(name) for name in has_both.index[has_both]])
    for preparation in ("trained", "direct", "trained"):
        part, _ = part.complete(preparation)
    if len(part.models) < 3 or len(part.benchmarks) < 2:
        raise UsageError(
            f"audit: {matrix.source} has direct and trained scores of {counted(len(part.models), 'model')} on "
            f"{counted(len(part.benchmarks), 'benchmark')}, "
            f"but 3 models and 2 benchmarks are needed. Run more, with direct scores (direct: true; not --no-eval_before_train)."
        )
    pc1 = {name: components(part, name).pc1 for name in ("direct", "trained")}
    ranks = {name: scores.rank(ascending=False, method="min") for name, scores in pc1.items()}
    draws = max(DRAWS // 10, min(DRAWS, _MOST_DRAWN // part.direct.values.size))
    errors = {name: rank_errors(part, name, draws=draws) for name in ("direct", "trained")}
    difference = ranks["trained"] - ranks["direct"]
    error = np.hypot(errors["direct"], errors["trained"])
    # A rank is a whole number: below half a place, an error from draws is not resolved.
    z = difference / np.maximum(error, 0.5)
    table = pd.DataFrame({**ranks, "difference": difference, "error": error, "z": z, "flagged": z > Z_THRESHOLD})
    return Audit(
        models=part.model_names,
        benchmarks=part.benchmark_names,
        table=table.sort_values("z", ascending=False, kind="stable"),
        flips=flips(pc1["direct"], pc1["trained"]),
        leads=_leads(pc1["direct"], pc1["trained"]),
    )


def flips(first: pd.Series[float], second: pd.Series[float]) -> float:
    """Return the share of pairs of models that two rankings order differently, among the pairs that neither ties."""
    rows, columns = np.triu_indices(len(first), k=1)
    before, after = (
        np.sign(scores.to_numpy()[rows] - scores.to_numpy()[columns]) for scores in (first, second.reindex(first.index))
    )
    untied = (before != 0) & (after != 0)
    return float((before != after)[untied].mean()) if untied.any() else float("nan")


def _leads(direct: pd.Series[float], trained: pd.Series[float]) -> pd.DataFrame | None:
    names = [str(name) for name in direct.index]
    pairs = [(base_of(name), name) for name in names if base_of(name) != name and base_of(name) in names]
    if not pairs:
        return None
    found = {
        name: [bool(pc1[tuned] > pc1[base]) for base, tuned in pairs] for name, pc1 in (("direct", direct), ("trained", trained))
    }
    return pd.DataFrame(found, index=pd.MultiIndex.from_tuples(pairs, names=["base", "instruct"]))
