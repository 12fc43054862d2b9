"""Leases of results behind a URL. The store must be able to create an object only if there is none.

The lease of a run is the highest number among <results>/.leases/<run>/<number>. A stale lease is taken over by creating the next
number, which only one process can do. If the former holder wakes up, it finds the higher number and leaves. The clocks of the
machines and of the store must agree within a minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from lm_harmony.errors import StoreError
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.studies.lease import STALE, LeaseHeld, Leases

BEAT = 20.0
"""Seconds between two touches of a lease behind a URL. Each touch is a request."""
_FOLDER = ".leases"


class RemoteLeases(Leases[tuple[int, ...]]):
    """Leases of results behind a URL. A claim is the numbers of the run's leases so far; the last one is ours."""

    def __init__(self, remote: RemoteSync, *, stale: float = STALE, beat: float = BEAT) -> None:
        """Use the lease objects of ``remote``."""
        super().__init__(stale=stale, beat=beat)
        self._remote = remote

    def held(self, runs: Iterable[str]) -> set[str]:
        """Return those of ``runs`` that a process works on now, by one request."""
        newest: dict[str, tuple[int, float]] = {}
        for name, age in self._ages_below(_FOLDER).items():
            run, _, number = name.removeprefix(f"{_FOLDER}/").rpartition("/")
            newest[run] = max(newest.get(run, (0, 0.0)), (int(number), age))
        return {run for run in runs if run in newest and newest[run][1] < self.stale}

    def _claim(self, run: str) -> tuple[int, ...]:
        before = self._ages(run)
        if before and before[max(before)] < self.stale:
            raise LeaseHeld(f"{run} is held")
        claim = (*sorted(before), max(before, default=0) + 1)
        try:
            self._write(run, claim[-1], "create")
        except FileExistsError:
            raise LeaseHeld(f"{run} was taken over by another process") from None
        try:
            if max(self._ages(run), default=0) != claim[-1]:
                raise LeaseHeld(f"{run} was taken over by another process")
        except BaseException:
            self._release(run, claim)
            raise
        return claim

    def _touch(self, run: str, claim: tuple[int, ...]) -> bool:
        if max(self._ages(run), default=0) != claim[-1]:
            return False
        self._write(run, claim[-1], "overwrite")
        return True

    def _release(self, run: str, claim: tuple[int, ...]) -> None:
        for number in claim:
            self._remote.remove(f"{_FOLDER}/{run}/{number}")

    def _ages(self, run: str) -> dict[int, float]:
        """Return the seconds since each of the run's leases was touched, by its number."""
        return {int(name.rpartition("/")[2]): age for name, age in self._ages_below(f"{_FOLDER}/{run}").items()}

    def _ages_below(self, path: str) -> Mapping[str, float]:
        found, now = self._remote.list_files(path), datetime.now(UTC)
        return {name: (now - _written_at(info)).total_seconds() for name, info in found.items()}

    def _write(self, run: str, number: int, mode: str) -> None:
        with self._remote.clear_errors():
            if mode == "create":
                self._remote.filesystem.makedirs(f"{self._remote.root}/{_FOLDER}/{run}", exist_ok=True)
            self._remote.filesystem.pipe_file(f"{self._remote.root}/{_FOLDER}/{run}/{number}", b"held", mode=mode)


def _written_at(info: Mapping[str, object]) -> datetime:
    """Return when a file was last written. S3, memory:// and local file systems use different keys for it."""
    for key in ("LastModified", "last_modified", "modified", "created", "mtime"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
    raise StoreError(
        f"results_dir: {info.get('name')}: this kind of store does not say when a file was written, which a lease needs. Use s3://."
    )
