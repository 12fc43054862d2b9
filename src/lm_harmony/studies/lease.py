"""A lease on a run's folder: whoever holds it works there, and nobody else does.

The file .<run>.lease beside the folder is created by the one that comes first, and touched while it works. A lease whose holder
is gone is taken over: at once where the holder ran on this machine and its process has ended, otherwise when it was not touched
for STALE seconds.

A lease on a run whose results are behind a URL: as ``lease``, on a store that can create an object only if none is there.

The lease of a run is the highest number among <results>/.leases/<run>/<number>. A stale one is taken over by creating the next
number, which only one can; its holder, if it wakes, finds a higher one and leaves. Clocks of the machines and of the store must
agree within a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from lm_harmony.errors import StoreError
from lm_harmony.runs.remote import RemoteSync

STALE = 120.0
"""Seconds after which an untouched lease counts as abandoned."""
BEAT = 5.0
"""Seconds between two touches."""


class LeaseHeld(Exception):
    """Someone else works in the folder."""


@contextmanager
def lease(folder: Path, *, lost: Callable[[], None], stale: float = STALE, beat: float = BEAT) -> Iterator[None]:
    """Hold the lease of ``folder`` for the length of a block.

    Args:
        folder: of the run.
        lost: called from another thread when the lease was taken over (this process was stopped for too long).
        stale: seconds after which another holder's untouched lease is taken over.
        beat: seconds between two touches of ours.

    Raises:
        LeaseHeld: someone else holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path, token, ended = _path(folder), uuid.uuid4().hex, threading.Event()
    _claim(path, token, stale)

    def keep() -> None:
        while not ended.wait(beat):
            if _holder(path).get("token") != token:
                lost()
                return
            with contextlib.suppress(OSError):
                os.utime(path)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        if _holder(path).get("token") == token:
            for left in path.parent.glob(f"{path.name}.*.part"):  # of a process that was killed while it claimed
                left.unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def is_held(folder: Path, stale: float = STALE) -> bool:
    """Tell whether someone works in ``folder`` now."""
    path = _path(folder)
    return path.is_file() and not _abandoned(path, _holder(path), stale)


def _path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lease")


def _claim(path: Path, token: str, stale: float) -> None:
    """Create the lease, whole from its first moment: written aside, then linked, which fails where one is there."""
    scratch = path.with_name(f"{path.name}.{token}.part")
    process = psutil.Process()
    scratch.write_text(
        json.dumps({"token": token, "machine": _machine(), "pid": process.pid, "born": process.create_time()}), encoding="utf-8"
    )
    try:
        try:
            os.link(scratch, path)
        except FileExistsError:
            holder = _holder(path)  # read once: the lease that is judged must be the lease that is set aside
            if not _abandoned(path, holder, stale):
                raise LeaseHeld(f"{path} is held by {holder}") from None
            _set_aside(path, path.with_name(f"{path.name}.{token}.old"), holder.get("token"))
            os.link(scratch, path)
    except FileExistsError:
        raise LeaseHeld(f"{path} was taken over by another process") from None
    except FileNotFoundError:  # another holder has just left and removed every scratch file, ours too
        raise LeaseHeld(f"{path} was held until now") from None
    finally:
        scratch.unlink(missing_ok=True)


def _set_aside(path: Path, aside: Path, abandoned: object) -> None:
    """Take an abandoned lease away; if a fresh one has come in its place meanwhile, put that back."""
    with contextlib.suppress(FileNotFoundError):  # another has set it aside
        os.rename(path, aside)
        try:
            if _holder(aside).get("token") != abandoned:
                with contextlib.suppress(FileExistsError):  # its holder sees that it has lost the lease
                    os.link(aside, path)
                raise LeaseHeld(f"{path} was taken over by another")
        finally:
            aside.unlink(missing_ok=True)


def _abandoned(path: Path, holder: dict[str, object], stale: float) -> bool:
    """Tell whether ``holder``, as read from ``path``, no longer works; a lease that vanished since is not for us to set aside."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if holder.get("machine") == _machine():
        try:
            return bool(abs(psutil.Process(holder["pid"]).create_time() - holder["born"]) > 1)
        except psutil.NoSuchProcess:
            return True
    return age > stale


def _holder(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _machine() -> str:
    """Name this machine and its boot: a process number means nothing on another one."""
    return f"{platform.node()}/{psutil.boot_time():.0f}"


REMOTE_BEAT = 20.0
"""Seconds between two touches, each a request."""
_FOLDER = ".leases"


@contextmanager
def remote_lease(
    remote: RemoteSync, run: str, *, lost: Callable[[], None], stale: float = STALE, beat: float = REMOTE_BEAT
) -> Iterator[None]:
    """Hold the lease of ``run`` for the length of a block.

    Args:
        remote: where the results are.
        run: its name.
        lost: called from another thread when the lease was taken over.
        stale: seconds after which another holder's untouched lease is taken over.
        beat: seconds between two touches of ours.

    Raises:
        LeaseHeld: someone else holds it.
        StoreError: the results cannot be reached.
    """
    before = _ages(remote, run)
    if before and before[max(before)] < stale:
        raise LeaseHeld(f"{run} is held")
    mine = max(before, default=0) + 1
    try:
        _touch(remote, run, mine, "create")
    except FileExistsError:
        raise LeaseHeld(f"{run} was taken by another") from None
    ended = threading.Event()

    def keep() -> None:
        touched = time.monotonic()
        while not ended.wait(beat):
            with contextlib.suppress(StoreError):  # the store may be back before the lease is stale
                if max(_ages(remote, run), default=0) != mine:
                    return lost()
                _touch(remote, run, mine, "overwrite")
                touched = time.monotonic()
            if time.monotonic() - touched > stale:
                return lost()

    try:
        if max(_ages(remote, run), default=0) != mine:
            raise LeaseHeld(f"{run} was taken by another")
        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
    finally:
        for number in sorted(number for number in (*before, mine)):
            remote.remove(f"{_FOLDER}/{run}/{number}")


def held_remote_runs(remote: RemoteSync, stale: float = STALE) -> set[str]:
    """Return the names of the runs that someone works on now."""
    found: dict[str, tuple[int, float]] = {}
    for name, age in _ages_below(remote, _FOLDER).items():
        run, _, number = name.removeprefix(f"{_FOLDER}/").rpartition("/")
        found[run] = max(found.get(run, (0, 0.0)), (int(number), age))
    return {run for run, (_, age) in found.items() if age < stale}


def _ages(remote: RemoteSync, run: str) -> dict[int, float]:
    """Return number -> seconds since it was touched."""
    return {int(name.rpartition("/")[2]): age for name, age in _ages_below(remote, f"{_FOLDER}/{run}").items()}


def _ages_below(remote: RemoteSync, path: str) -> Mapping[str, float]:
    found, now = remote.list_files(path), datetime.now(UTC)
    return {name: (now - _touched(info)).total_seconds() for name, info in found.items()}


def _touched(info: Mapping[str, object]) -> datetime:
    """Return when a file was last written, as the store tells: S3, memory:// and folders each have their own word."""
    for key in ("LastModified", "last_modified", "modified", "created", "mtime"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
    raise StoreError(f"{info.get('name')}: the store does not tell when a file was written, and a lease needs that. Use s3://.")


def _touch(remote: RemoteSync, run: str, number: int, mode: str) -> None:
    with remote.clear_errors():
        if mode == "create":
            remote.filesystem.makedirs(f"{remote.root}/{_FOLDER}/{run}", exist_ok=True)
        remote.filesystem.pipe_file(f"{remote.root}/{_FOLDER}/{run}/{number}", b"held", mode=mode)
