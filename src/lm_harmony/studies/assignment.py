"""One run of a study and where it belongs. No torch: the coordinator deals in these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from lm_harmony.runs.identity import folder_name
from lm_harmony.runs.mirror import Mirror
from lm_harmony.runs.record import Failure
from lm_harmony.runs.spec import RunSpec
from lm_harmony.runs.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A run and where it belongs."""

    spec: RunSpec
    """What is asked."""
    results_dir: Path
    """The study's results, or their working copy."""
    url: str | None = None
    """Where the results are if not in a folder."""

    @cached_property
    def name(self) -> str:
        """The run's folder below the results, which is its identity: taken once, so that it stays while a study works."""
        return folder_name(self.spec)

    @property
    def store(self) -> RunStore:
        """The run's folder."""
        return RunStore(self.results_dir / self.name, mirror_of(self.url))

    def is_finished(self) -> bool:
        """Tell whether the record is there, with the direct score if that is asked."""
        return self.store.is_finished() and (not self.spec.direct or self.store.record().direct is not None)


@cache
def mirror_of(url: str | None) -> Mirror | None:
    """Return the one mirror of ``url`` that this process uses; None for results in a folder."""
    return None if url is None else Mirror(url)


def give_up(assignment: Assignment, *, kind: str, cause: str, attempts: int, log_tail: Sequence[str] = ()) -> Failure:
    """Record that a run cannot be done."""
    failure = Failure(kind=kind, cause=cause, attempts=attempts, log_tail=tuple(log_tail))
    assignment.store.fail(failure)
    return failure
