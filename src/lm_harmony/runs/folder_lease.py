"""Leases of results in a folder: the file .<run>.lease beside the run's folder.

While a holder writes, it holds a shared lock (flock) on its lease file. Who takes a lease over needs the exclusive lock on that
file. So no lease is taken over between the check of the token and the write that follows it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lm_harmony.errors import LeaseHeld, LeaseLost, StoreUnavailable
from lm_harmony.runs.lease import STALE, Holder, Lease, Leases, Sighting, held_by

BEAT = 5.0
"""Seconds between two touches of a lease in a folder."""


class FolderLeases(Leases):
    """Leases of results in a folder."""

    def __init__(
        self, results_dir: Path, *, stale: float = STALE, beat: float = BEAT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Use the lease files below ``results_dir``."""
        super().__init__(stale=stale, beat=beat, clock=clock)
        self._results_dir = results_dir

    def _path(self, run: str) -> Path:
        folder = self._results_dir / run
        return folder.with_name(f".{folder.name}.lease")

    def _look(self, runs: list[str]) -> dict[str, Sighting]:
        found = {run: _sighting(self._path(run)) for run in runs}
        return {run: lease for run, lease in found.items() if lease is not None}

    def acquire(self, run: str, abandoned: str | None = None) -> Lease:
        """Take the lease: write it to a file of its own and link that into place, which fails if there is a lease already.

        Raises:
            LeaseHeld: another process holds the lease.
            StoreUnavailable: the lease file cannot be written.
        """
        path, holder = self._path(run), Holder.this_process()
        scratch = path.with_name(f"{path.name}.{holder.token}.part")
        try:
            made = _make_folders(path.parent)
            scratch.write_text(json.dumps(asdict(holder)), encoding="utf-8")
            try:
                self._link(run, scratch, path, abandoned)
                return _FolderLease(path, holder.token, made)
            finally:
                scratch.unlink(missing_ok=True)
        except FileExistsError:
            raise LeaseHeld(held_by(run, "another process, which has just taken it")) from None
        except FileNotFoundError:  # another holder has just left, with its empty folder and every scratch file
            raise LeaseHeld(held_by(run, "another process, which has just left")) from None
        except OSError as error:
            reason = f"{path} cannot be written: {error.strerror}. What was finished before is complete."
            raise StoreUnavailable(f"{reason} Make {path.parent} writable, or free disk space, and repeat.") from error

    def _link(self, run: str, scratch: Path, path: Path, abandoned: str | None) -> None:
        try:
            os.link(scratch, path)
        except FileExistsError:
            other = _sighting(path)
            if other is not None:
                if not self._is_free(run, other, abandoned):
                    raise LeaseHeld(held_by(run, str(other.holder))) from None
                _remove_free(run, path, other)
            os.link(scratch, path)


class _FolderLease(Lease):
    """A lease file that this process has made. It is kept open, so that its inode cannot be used again."""

    def __init__(self, path: Path, token: str, made: list[Path]) -> None:
        self._path, self._token, self._made = path, token, made
        self._file = path.open("r+", encoding="utf-8")

    def touch(self) -> bool:
        os.utime(self._file.fileno())  # by its open file, so that the lease of another process is never touched
        return self._is_ours()

    def _is_ours(self) -> bool:
        now = _sighting(self._path)
        return now is not None and now.holder.token == self._token

    @contextmanager
    def writing(self) -> Iterator[None]:
        with _locked(self._file.fileno(), fcntl.LOCK_SH):
            self.check()
            yield

    def check(self) -> None:
        if not self._is_ours():
            now = _sighting(self._path)
            other = "another process" if now is None else str(now.holder)
            raise LeaseLost(
                f"{self._path} was taken over by {other}, because this process did not touch it for too long. Nothing more is "
                f"written here. The other process finishes the run."
            )

    def release(self) -> None:
        with self._file, contextlib.suppress(LeaseLost, OSError), self.writing():
            for scratch in self._path.parent.glob(f"{self._path.name}.*.part"):  # of processes killed while they took the lease
                scratch.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # the run is in it
                folder.rmdir()


def _remove_free(run: str, path: Path, free: Sighting) -> None:
    """Remove a lease that is free, unless its holder writes at this moment or it has changed.

    Raises:
        LeaseHeld: it changed, or its holder writes at this moment.
    """
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with contextlib.suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:
        try:
            with _locked(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                if os.fstat(file.fileno()).st_ino != path.stat().st_ino or _sighting(path) != free:
                    raise LeaseHeld(held_by(run, "another process, which has just taken it"))
                os.rename(path, aside)
        except BlockingIOError:
            raise LeaseHeld(held_by(run, f"{free.holder}, which writes at this moment")) from None
        moved = _sighting(aside)
        if moved is not None and moved.holder.token != free.holder.token:  # on a file system without locks
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink(missing_ok=True)
            raise LeaseHeld(held_by(run, str(moved.holder)))
        aside.unlink(missing_ok=True)


@contextmanager
def _locked(file: int, how: int) -> Iterator[None]:
    """Hold a lock on an open file. On a file system without locks the token alone protects, without the instant of the write.

    Raises:
        BlockingIOError: another process holds the lock, and ``how`` says not to wait.
    """
    locked = True
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError:
        locked = False
    try:
        yield
    finally:
        if locked:
            fcntl.flock(file, fcntl.LOCK_UN)


def _sighting(path: Path) -> Sighting | None:
    try:
        holder = Holder.read(path.read_text(encoding="utf-8", errors="replace"))
        return Sighting(holder=holder, state=f"{holder.token} {path.stat().st_mtime_ns}")
    except FileNotFoundError:
        return None


def _make_folders(folder: Path) -> list[Path]:
    """Create a folder with those above it, and return the ones that were created, outermost first."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]
