"""A lease on a run whose results are behind a URL: as ``lease``, on a store that can create an object only if none is there.

The lease of a run is the highest number among <results>/.leases/<run>/<number>. A stale one is taken over by creating the next
number, which only one can; its holder, if it wakes, finds a higher one and leaves. Clocks of the machines and of the store must
agree within a minute.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from lm_harmony.errors import StoreError
from lm_harmony.runs.mirror import Mirror
from lm_harmony.studies.lease import STALE, LeaseHeld

BEAT = 20.0
"""Seconds between two touches, each a request."""
_FOLDER = ".leases"


@contextmanager
def remote_lease(
    mirror: Mirror, run: str, *, lost: Callable[[], None], stale: float = STALE, beat: float = BEAT
) -> Iterator[None]:
    """Hold the lease of ``run`` for the length of a block.

    Args:
        mirror: where the results are.
        run: its name.
        lost: called from another thread when the lease was taken over.
        stale: seconds after which another holder's untouched lease is taken over.
        beat: seconds between two touches of ours.

    Raises:
        LeaseHeld: someone else holds it.
        StoreError: the results cannot be reached.
    """
    before = _ages(mirror, run)
    if before and before[max(before)] < stale:
        raise LeaseHeld(f"{run} is held")
    mine = max(before, default=0) + 1
    try:
        _touch(mirror, run, mine, "create")
    except FileExistsError:
        raise LeaseHeld(f"{run} was taken by another") from None
    ended = threading.Event()

    def keep() -> None:
        touched = time.monotonic()
        while not ended.wait(beat):
            with contextlib.suppress(StoreError):  # the store may be back before the lease is stale
                if max(_ages(mirror, run), default=0) != mine:
                    return lost()
                _touch(mirror, run, mine, "overwrite")
                touched = time.monotonic()
            if time.monotonic() - touched > stale:
                return lost()

    try:
        if max(_ages(mirror, run), default=0) != mine:
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
            mirror.remove(f"{_FOLDER}/{run}/{number}")


def held_runs(mirror: Mirror, stale: float = STALE) -> set[str]:
    """Return the names of the runs that someone works on now."""
    found: dict[str, tuple[int, float]] = {}
    for name, age in _ages_below(mirror, _FOLDER).items():
        run, _, number = name.removeprefix(f"{_FOLDER}/").rpartition("/")
        found[run] = max(found.get(run, (0, 0.0)), (int(number), age))
    return {run for run, (_, age) in found.items() if age < stale}


def _ages(mirror: Mirror, run: str) -> dict[int, float]:
    """Return number -> seconds since it was touched."""
    return {int(name.rpartition("/")[2]): age for name, age in _ages_below(mirror, f"{_FOLDER}/{run}").items()}


def _ages_below(mirror: Mirror, path: str) -> Mapping[str, float]:
    found, now = mirror.listed(path), datetime.now(UTC)
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


def _touch(mirror: Mirror, run: str, number: int, mode: str) -> None:
    with mirror.reaching():
        if mode == "create":
            mirror.filesystem.makedirs(f"{mirror.root}/{_FOLDER}/{run}", exist_ok=True)
        mirror.filesystem.pipe_file(f"{mirror.root}/{_FOLDER}/{run}/{number}", b"held", mode=mode)
