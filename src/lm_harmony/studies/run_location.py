"""One run of a study and where it belongs. No torch: the coordinator deals in these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path

from lm_harmony.errors import StoreError
from lm_harmony.runs.fingerprint import folder_name
from lm_harmony.runs.record import Failure, RunRecord
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.sources import UNRECORDED, Source, SourceCheck
from lm_harmony.runs.spec import RunSpec
from lm_harmony.runs.store import RunStore


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Whether a run must be carried out, and what there is to say about it."""

    finished: bool
    """Its record is there, answers all that is asked, and is current as far as can be told."""
    reason: str | None = None
    """Why a record that is there does not count ("rte.yaml changed since"), or what cannot be told of one that does."""
    sources: tuple[Source, ...] = ()
    """What the record says that it was made from."""
    readable: bool = True
    """Whether the record, if there is one, could be read."""

    def unless_moved(self, moved: Mapping[Source, str]) -> RunState:
        """Return this, or that the run waits again because a repository of the hub that it read has moved (``HubRevisions``)."""
        said = [moved[source] for source in self.sources if source in moved]
        return replace(self, finished=False, reason="; ".join(said)) if said and self.finished else self


@dataclass(frozen=True, kw_only=True)
class RunLocation:
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
        # Beside the results the study may be moved with them; behind a URL it may be read from another folder.
        name = folder_name(self.spec, self.results_dir if self.url is None else None)
        return self._earlier(name) or name

    @property
    def store(self) -> RunStore:
        """The run's folder."""
        return RunStore(self.results_dir / self.name, remote_of(self.url))

    def state(self, check: SourceCheck | None = None) -> RunState:
        """Look whether the run is finished and current; files are compared, nothing is loaded and no network is asked.

        Args:
            check: what compares sources; one for many runs looks at each file once.
        """
        store = self.store
        if not store.is_finished():
            return RunState(finished=False)
        try:
            record = _record(store.folder, _stamp(store.folder / "record.json"))
        except StoreError as error:
            return RunState(finished=False, reason=str(error), readable=False)
        changed = (check or SourceCheck()).difference(record.sources, self.spec)
        lacking = self.spec.direct and record.direct is None
        if changed == UNRECORDED:
            return RunState(finished=not lacking, reason=changed)
        return RunState(finished=changed is None and not lacking, reason=changed, sources=record.sources or ())

    def _earlier(self, name: str) -> str | None:
        """Return the folder that a version before 0.2 gave to this run, if a finished run is there and none under ``name``."""
        place = self.results_dir / name
        if self.url is not None or place.exists():
            return None
        for other in sorted(place.parent.glob(f"seed{self.spec.seed}-*/record.json")):
            try:
                record = RunStore(other.parent).record()
            except StoreError:
                continue
            if record.sources is None and replace(record.spec, direct=self.spec.direct) == self.spec:
                return other.parent.relative_to(self.results_dir).as_posix()
        return None


@lru_cache(maxsize=10_000)
def _record(folder: Path, stamp: tuple[int, int, int]) -> RunRecord:
    """Read a record once as long as its file does not change: a study looks at every run whenever one has ended."""
    return RunStore(folder).record()


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@cache
def remote_of(url: str | None) -> RemoteSync | None:
    """Return the one mirror of ``url`` that this process uses; None for results in a folder."""
    return None if url is None else RemoteSync(url)


def record_failure(run: RunLocation, *, kind: str, cause: str, attempts: int, log_tail: Sequence[str] = ()) -> Failure:
    """Record that a run cannot be done."""
    failure = Failure(kind=kind, cause=cause, attempts=attempts, log_tail=tuple(log_tail))
    run.store.write_failure(failure)
    return failure
