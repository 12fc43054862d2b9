"""Leases: at most one process executes a run at a time, and the lease of a process that is gone is taken over.

For results in a folder, the lease is the file .<run>.lease beside the run's folder. The first process creates it and touches it
while it works. A lease is taken over at once if its holder ran on this machine and has ended. Otherwise it is taken over after it
was not touched for STALE seconds. For results behind a URL, see ``remote_lease``.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from lm_harmony.errors import StoreError

STALE = 120.0
"""Seconds after which a lease that was not touched counts as abandoned."""
BEAT = 5.0
"""Seconds between two touches of a lease in a folder."""

Claim = TypeVar("Claim")
"""What a lease remembers of its own claim, to find out whether another process has taken it over."""


class LeaseHeld(Exception):
    """Another process holds the lease of the run."""


class Leases(ABC, Generic[Claim]):
    """The leases of all runs below one results folder or URL."""

    def __init__(self, *, stale: float, beat: float) -> None:
        """Set after how many seconds an untouched lease is taken over, and the seconds between two touches of our own."""
        self.stale, self.beat = stale, beat

    @contextmanager
    def hold(self, run: str, *, lost: Callable[[], None]) -> Iterator[None]:
        """Hold the lease of ``run`` while a block is executed.

        Args:
            run: name of the run, which is the path of its folder below the results.
            lost: called from another thread when another process has taken the lease over.

        Raises:
            LeaseHeld: another process holds the lease.
            StoreError: results behind a URL cannot be reached.
        """
        claim, ended = self._claim(run), threading.Event()

        def touch() -> None:
            touched = time.monotonic()
            while not ended.wait(self.beat):
                with contextlib.suppress(StoreError):  # the store may be back before the lease is stale
                    if not self._touch(run, claim):
                        return lost()
                    touched = time.monotonic()
                if time.monotonic() - touched > self.stale:
                    return lost()

        toucher = threading.Thread(target=touch, daemon=True)
        toucher.start()
        try:
            yield
        finally:
            ended.set()
            toucher.join()
            self._release(run, claim)

    @abstractmethod
    def held(self, runs: Iterable[str]) -> set[str]:
        """Return those of ``runs`` that a process works on now."""

    @abstractmethod
    def _claim(self, run: str) -> Claim:
        """Take the lease, or raise ``LeaseHeld``."""

    @abstractmethod
    def _touch(self, run: str, claim: Claim) -> bool:
        """Touch the lease if it is still ours, and return whether it is."""

    @abstractmethod
    def _release(self, run: str, claim: Claim) -> None:
        """Remove the lease if it is still ours."""


class FolderLeases(Leases[str]):
    """Leases of results in a folder. A claim is a random token in the lease file."""

    def __init__(self, results_dir: Path, *, stale: float = STALE, beat: float = BEAT) -> None:
        """Use the lease files below ``results_dir``."""
        super().__init__(stale=stale, beat=beat)
        self._results_dir = results_dir

    def held(self, runs: Iterable[str]) -> set[str]:
        """Return those of ``runs`` that a process works on now."""
        paths = {run: self._path(run) for run in runs}
        return {run for run, path in paths.items() if path.is_file() and not self._abandoned(path, _holder(path))}

    def _path(self, run: str) -> Path:
        folder = self._results_dir / run
        return folder.with_name(f".{folder.name}.lease")

    def _claim(self, run: str) -> str:
        """Write the lease to a file of its own and link that into place, which fails if there is a lease already."""
        path, token, process = self._path(run), uuid.uuid4().hex, psutil.Process()
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{token}.part")
        holder = {"token": token, "machine": _machine(), "pid": process.pid, "born": process.create_time()}
        scratch.write_text(json.dumps(holder), encoding="utf-8")
        try:
            try:
                os.link(scratch, path)
            except FileExistsError:
                other = _holder(path)  # read once, so that the lease that is judged is the lease that is removed
                if not self._abandoned(path, other):
                    raise LeaseHeld(f"{path} is held by {other}") from None
                _remove_abandoned(path, path.with_name(f"{path.name}.{token}.old"), other.get("token"))
                os.link(scratch, path)
        except FileExistsError:
            raise LeaseHeld(f"{path} was taken over by another process") from None
        except FileNotFoundError:  # another holder has just left and removed every scratch file, ours too
            raise LeaseHeld(f"{path} was held until now") from None
        finally:
            scratch.unlink(missing_ok=True)
        return token

    def _touch(self, run: str, claim: str) -> bool:
        path = self._path(run)
        if _holder(path).get("token") != claim:
            return False
        with contextlib.suppress(OSError):
            os.utime(path)
        return True

    def _release(self, run: str, claim: str) -> None:
        path = self._path(run)
        if _holder(path).get("token") == claim:
            for scratch in path.parent.glob(f"{path.name}.*.part"):  # of a process that was killed while it claimed the lease
                scratch.unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def _abandoned(self, path: Path, holder: Mapping[str, Any]) -> bool:
        """Return whether ``holder``, as read from ``path``, no longer works. A lease that has vanished since is not abandoned."""
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return False
        if holder.get("machine") == _machine():
            try:
                return bool(abs(psutil.Process(holder["pid"]).create_time() - holder["born"]) > 1)
            except psutil.NoSuchProcess:
                return True
        return age > self.stale


def _remove_abandoned(path: Path, aside: Path, abandoned: object) -> None:
    """Remove an abandoned lease. If another process has replaced it by its own meanwhile, put that one back."""
    with contextlib.suppress(FileNotFoundError):  # another process has removed it
        os.rename(path, aside)
        try:
            if _holder(aside).get("token") != abandoned:
                with contextlib.suppress(FileExistsError):  # the holder of the lease in ``aside`` sees that it has lost it
                    os.link(aside, path)
                raise LeaseHeld(f"{path} was taken over by another process")
        finally:
            aside.unlink(missing_ok=True)


def _holder(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    """Return a name of this machine and its boot, because a process id means nothing on another machine or after a reboot."""
    return f"{platform.node()}/{psutil.boot_time():.0f}"
