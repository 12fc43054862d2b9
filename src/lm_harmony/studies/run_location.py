"""A run of a study: its specification, its folder, and whether it is finished. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path

from lm_harmony.errors import LeaseHeld, StoreError
from lm_harmony.redaction import without_secrets
from lm_harmony.runs.fingerprint import folder_name, other_request
from lm_harmony.runs.layout import has_leftovers, remove_leftovers
from lm_harmony.runs.lease import Leases
from lm_harmony.runs.record import Failure, RunRecord
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.remote_lease import leases_for
from lm_harmony.runs.sources import UNRECORDED, Source, SourceCheck
from lm_harmony.runs.spec import BenchmarkSpec, RunSpec
from lm_harmony.runs.store import RunStore


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Whether a run is finished, and why it has to be executed again or cannot be verified."""

    finished: bool
    """True if the record exists, holds every score that is asked for, and is current as far as can be checked."""
    reason: str | None = None
    """Why an existing record is not current ("rte.yaml changed since"), or what cannot be checked of one that counts."""
    sources: tuple[Source, ...] = ()
    """The files and commits that the record was made from."""
    readable: bool = True
    """False if there is a record that cannot be read."""

    def unless_moved(self, moved: Mapping[Source, str]) -> RunState:
        """Return this state, or an unfinished one if a hub repository that the run read is in ``moved``.

        Args:
            moved: repositories that moved since, with the reason to show, as ``HubRevisions.moved`` returns them.
        """
        reasons = [moved[source] for source in self.sources if source in moved]
        return replace(self, finished=False, reason="; ".join(reasons)) if reasons and self.finished else self


@dataclass(frozen=True, kw_only=True)
class RunLocation:
    """A run and the place of its results."""

    spec: RunSpec
    """The specification of the run."""
    results_dir: Path
    """Folder of the study's results, or the working copy of results behind a URL."""
    url: str | None = None
    """URL of the results, or None for results in a folder."""

    @cached_property
    def name(self) -> str:
        """Path of the run's folder below the results, which identifies the run. It is computed once and does not change later."""
        # A study can be moved together with its results folder. Results behind a URL can be read by studies in other folders.
        name = folder_name(self.spec, self.results_dir if self.url is None else None)
        return self._name_before_0_2(name) or name

    @property
    def store(self) -> RunStore:
        """The run's folder, as an object that reads and writes its files."""
        return RunStore(self.results_dir / self.name, remote_of(self.url), results=self.results_dir)

    @property
    def leases(self) -> Leases:
        """The leases of all runs in the results folder; a new object, which has watched no lease yet."""
        return leases_for(self.results_dir, remote_of(self.url))

    def state(self, check: SourceCheck | None = None) -> RunState:
        """Return whether the run is finished and current. Files are compared; no model is loaded and no network is used.

        Args:
            check: compares the sources; one object for many runs reads each file once.
        """
        store = self.store
        if not store.is_finished():
            return RunState(finished=False)
        try:
            record = _record(store.folder, _stamp(store.folder / "record.json"))
        except StoreError as error:
            return RunState(finished=False, reason=str(error), readable=False)
        if record.sources is not None and (other := other_request(record.spec, self.spec)):
            reason = f"{store.folder / 'record.json'} is the record of another run: {other}. Move the folder away."
            return RunState(finished=False, reason=reason, readable=False)
        changed = (check or SourceCheck()).difference(record.sources, self.spec)
        changed = _rows_elsewhere(record.spec.benchmark, self.spec.benchmark) if changed is None else changed
        missing = set(self.spec.shots) - set(record.spec.shots)
        lacks_direct = bool(missing) or (0 in self.spec.shots and record.direct is None)
        if changed == UNRECORDED:
            return RunState(finished=not lacks_direct, reason=changed)
        return RunState(finished=changed is None and not lacks_direct, reason=changed, sources=record.sources or ())

    def write_failure_as_coordinator(self, *, kind: str, cause: str, attempts: int, log_tail: Sequence[str] = ()) -> None:
        """Write failure.json for a worker that died, unless another process executes the run; arguments as ``write_failure``."""
        with suppress(LeaseHeld), self.leases.hold(self.name, lost=lambda: None) as lease:
            store = replace(self.store, lease=lease)
            store.pull()
            self.write_failure(store, kind=kind, cause=cause, attempts=attempts, log_tail=log_tail)

    def clean_up(self) -> None:
        """Remove what a killed process left in the folder of a finished run, unless another process works there."""
        _clean_up(self.store.folder, self.leases, self.name)

    def remove_failure(self) -> None:
        """Remove failure.json, so that a study tries the run again, unless another process executes the run."""
        with suppress(LeaseHeld), self.leases.hold(self.name, lost=lambda: None) as lease:
            replace(self.store, lease=lease).remove_failure()

    def write_failure(self, store: RunStore, *, kind: str, cause: str, attempts: int, log_tail: Sequence[str] = ()) -> None:
        """Write failure.json: the run failed after ``attempts`` attempts and is not tried again unless the user asks for it.

        Args:
            store: the run's folder with its lease.
            kind: class name of the error, or "worker died".
            cause: message of the error, which is written without secrets.
            attempts: how often the run was tried.
            log_tail: last lines of the worker's log.
        """
        hidden = without_secrets(cause)
        store.write_failure(Failure(kind=kind, cause=hidden, attempts=attempts, log_tail=tuple(log_tail)))

    def _name_before_0_2(self, name: str) -> str | None:
        """Return the name that versions before 0.2 gave to this run, if it is finished there and has no folder under ``name``."""
        folder = self.results_dir / name
        if self.url is not None or folder.exists():
            return None
        for other in sorted(folder.parent.glob(f"seed{self.spec.seed}-*/record.json")):
            try:
                record = RunStore(other.parent).record()
            except StoreError:
                continue
            if (
                record.sources is None
                and replace(record.spec, direct=self.spec.direct, direct_fewshot=self.spec.direct_fewshot) == self.spec
            ):
                return other.parent.relative_to(self.results_dir).as_posix()
        return None


def clean_up_direct_scores(results_dir: Path, leases: Leases) -> None:
    """Remove what killed processes left in the folders of shared direct scores, unless another process works there."""
    folders = (results_dir / "direct").glob("*/") if not (results_dir / "direct").is_symlink() else ()
    for folder in folders:
        _clean_up(folder, leases, f"direct/{folder.name}")


def _clean_up(folder: Path, leases: Leases, name: str) -> None:
    with suppress(LeaseHeld, StoreError, OSError):  # only disk space is lost
        if has_leftovers(folder):
            with leases.hold(name, lost=lambda: None) as lease, lease.writing():
                remove_leftovers(folder, checkpoints=True)


def _rows_elsewhere(made: BenchmarkSpec, asked: BenchmarkSpec) -> str | None:
    """Return what is wrong if the rows that a benchmark names now cannot be compared with those of a record; None: nothing."""
    if made.data_dir is not None and asked.data_dir is None:
        return f"the rows were read from data_dir = {made.data_dir}, which is not given now"
    return None


@lru_cache(maxsize=10_000)
def _record(folder: Path, stamp: tuple[int, int, int]) -> RunRecord:
    """Read a record, once for each ``stamp`` of its file: a study reads every record again whenever a run has ended."""
    return RunStore(folder).record()


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@cache
def remote_of(url: str | None) -> RemoteSync | None:
    """Return the one ``RemoteSync`` that this process uses for ``url``, or None for results in a folder."""
    return None if url is None else RemoteSync(url)
