"""Leases of results behind a URL. The store must be able to create an object only if there is none.

The lease of a run is the highest number among <results>/.leases/<run>/<number>. A lease that is free is taken over by creating
the next number, which only one process can do. Every touch counts up a number inside the object. The working copy of the run has
a lease of its own, because the processes of one machine share it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_harmony.errors import LeaseHeld, LeaseLost
from lm_harmony.runs.folder_lease import FolderLeases
from lm_harmony.runs.lease import STALE, Holder, Lease, Leases, Sighting, held_by
from lm_harmony.runs.remote import RemoteSync

BEAT = 20.0
"""Seconds between two touches of a lease behind a URL. Each touch is two requests."""
_FOLDER = ".leases"


class RemoteLeases(Leases):
    """Leases of results behind a URL."""

    def __init__(
        self, remote: RemoteSync, *, stale: float = STALE, beat: float = BEAT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Use the lease objects of ``remote``."""
        super().__init__(stale=stale, beat=beat, clock=clock)
        self._remote = remote
        self._working_copies = FolderLeases(remote.folder, stale=stale, clock=clock)

    def _look(self, runs: list[str]) -> dict[str, Sighting]:
        """Return the leases of ``runs``, by one request and one more for each lease that exists."""
        newest: dict[str, int] = {}
        for name in self._remote.file_sizes(_FOLDER):
            run, _, number = name.removeprefix(f"{_FOLDER}/").rpartition("/")
            newest[run] = max(newest.get(run, 0), int(number))
        found = {run: _sighting(self._remote, run, newest[run]) for run in runs if run in newest}
        return {run: lease for run, lease in found.items() if lease is not None}

    def acquire(self, run: str, abandoned: str | None = None) -> Lease:
        """Take the lease.

        Raises:
            LeaseHeld: another process holds it, or holds the lease of the working copy on this machine.
            StoreError: the store cannot be reached.
        """
        before = _numbers(self._remote, run)
        if before:
            now = _sighting(self._remote, run, before[-1])
            if now is None:
                raise LeaseHeld(held_by(run, "another process, which has just left"))
            if not self._is_free(run, now, abandoned):
                raise LeaseHeld(held_by(run, str(now.holder)))
        here = self._working_copies.working([run]).get(run)  # free with the lease behind the URL, which is touched more rarely
        local = self._working_copies.acquire(run, here.state if here else None)
        lease = _RemoteLease(self._remote, run, [*before, before[-1] + 1 if before else 1], local)
        try:
            lease.create()
        except BaseException:
            local.release()
            raise
        return lease


class _RemoteLease(Lease):
    """A lease object that this process has created."""

    def __init__(self, remote: RemoteSync, run: str, numbers: list[int], local: Lease) -> None:
        """Describe the lease with the last of ``numbers``; the others were taken over."""
        self._remote, self._run, self._numbers, self._local = remote, run, numbers, local
        self._holder, self._touches = Holder.this_process(), 0
        self._etag: str | None = None

    def create(self) -> None:
        try:
            self._put()
            self.check()
        except (FileExistsError, LeaseLost):
            self._remove()
            raise LeaseHeld(held_by(self._run, "another process, which has just taken it")) from None
        except BaseException:
            self._remove()
            raise

    def _put(self) -> None:
        """Write the lease object, unless another process wrote it.

        Raises:
            FileExistsError: another process wrote it.
        """
        body = json.dumps({**asdict(self._holder), "touches": self._touches}).encode()
        self._etag = self._remote.put(_path(self._run, self._numbers[-1]), body, etag=self._etag)

    def touch(self) -> bool:
        if not (self._local.touch() and self._is_ours()):
            return False
        self._touches += 1
        try:
            self._put()
        except FileExistsError:
            return False
        return True

    def _is_ours(self) -> bool:
        numbers = _numbers(self._remote, self._run)
        if not numbers or numbers[-1] != self._numbers[-1]:
            return False
        now = _sighting(self._remote, self._run, numbers[-1])
        return now is not None and now.holder.token == self._holder.token

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._local.writing():
            yield

    def check(self) -> None:
        if not self._is_ours():
            raise LeaseLost(
                f"{self._run} was taken over by another process, because this one did not touch its lease for too long. "
                f"Nothing more is written there. The other process finishes the run."
            )

    def release(self) -> None:
        try:
            if self._is_ours():
                self._remove()
        finally:
            self._local.release()

    def _remove(self) -> None:
        for number in self._numbers[:-1]:
            self._remote.remove(_path(self._run, number))
        now = _sighting(self._remote, self._run, self._numbers[-1])
        if now is not None and now.holder.token == self._holder.token:
            self._remote.remove(_path(self._run, self._numbers[-1]))


def leases_for(results_dir: Path, remote: RemoteSync | None) -> Leases:
    """Return the leases of all runs in a results folder, or behind a URL if there is one."""
    return FolderLeases(results_dir) if remote is None else RemoteLeases(remote)


def _path(run: str, number: int) -> str:
    return f"{_FOLDER}/{run}/{number}"


def _numbers(remote: RemoteSync, run: str) -> list[int]:
    return sorted(int(name.rpartition("/")[2]) for name in remote.file_sizes(f"{_FOLDER}/{run}"))


def _sighting(remote: RemoteSync, run: str, number: int) -> Sighting | None:
    text = remote.read(_path(run, number))
    if text is None:
        return None
    holder = Holder.read(_without_touches(text))
    return Sighting(holder=holder, state=f"{number} {text}")


def _without_touches(text: str) -> str:
    try:
        values: Any = json.loads(text)
    except ValueError:
        return text
    return json.dumps({key: value for key, value in values.items() if key != "touches"}) if isinstance(values, dict) else text
