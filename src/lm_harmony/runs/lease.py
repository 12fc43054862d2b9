"""Leases: at most one process works in a folder at a time, and one that has lost its lease can write nothing more.

A lease holds a random token, which is never used again, and the process that holds it. The holder touches it every few seconds.

- A lease is free at once if its holder ran on this machine and has ended. Otherwise it is free after another process has watched
  it for STALE seconds and saw no touch. That process compares two readings by its own monotonic clock, so the clocks of two
  machines are never compared. A process that is suspended loses its lease in this way, on this machine too.
- Every write of a run compares the token of the lease with its own. A holder that wakes up after its lease was taken over finds
  another token, and its write is refused.

``folder_lease`` keeps leases beside the folders of runs, ``remote_lease`` those of results behind a URL.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lm_harmony.errors import StoreError

STALE = 120.0
"""Seconds without a touch after which a lease is free."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease: the content of the lease file."""

    token: str
    """Random name of this lease; no other lease ever has it."""
    host: str
    """Name of the machine, for messages."""
    machine: str
    """Identity of the machine and its process ids: two processes with equal values see each other's process ids."""
    pid: int
    """Number of the process on its machine."""
    born: float
    """When the process was started, in seconds since 1970, because process ids are used again."""

    @classmethod
    def this_process(cls) -> Holder:
        """Return this process with a new token."""
        process, token = psutil.Process(), uuid.uuid4().hex
        return cls(token=token, host=platform.node(), machine=_machine(), pid=process.pid, born=process.create_time())

    @classmethod
    def read(cls, text: str) -> Holder:
        """Return the holder that a lease file names; a damaged file names an unknown one, which a watcher finds stale."""
        try:
            found: Any = json.loads(text)
            return cls(**{"host": "an unknown machine", **found})
        except (ValueError, TypeError):
            return cls(token=text, host="an unknown machine", machine="", pid=0, born=0.0)

    def process_status(self) -> str | None:
        """Return psutil's status of the process, "ended" if it has ended, or None if it ran elsewhere, so that nobody knows."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.born) <= 1
            status = str(process.status())
        except psutil.NoSuchProcess:
            return "ended"
        except psutil.Error:
            return None
        return status if same and status != psutil.STATUS_ZOMBIE else "ended"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A lease as it was seen at one moment."""

    holder: Holder
    """Process that holds the lease."""
    state: str
    """Text that every touch changes."""


class Lease(ABC):
    """A lease that this process has acquired."""

    @abstractmethod
    def touch(self) -> bool:
        """Touch the lease, and return whether it is still ours."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Allow the block to write to the folder; nobody can take the lease over meanwhile. Blocks must be short.

        Raises:
            LeaseLost: another process has taken the lease over.
        """

    @abstractmethod
    def check(self) -> None:
        """Check that the lease is still ours, before a write to results behind a URL.

        Raises:
            LeaseLost: another process has taken the lease over.
        """

    @abstractmethod
    def release(self) -> None:
        """Remove the lease if it is still ours."""


class Leases(ABC):
    """The leases of all runs below one results folder or URL."""

    def __init__(self, *, stale: float, beat: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Set after how many seconds without a touch a lease is free, and the seconds between two touches of our own."""
        self.stale, self.beat, self._clock = stale, beat, clock
        self._seen: dict[str, tuple[str, float]] = {}

    @contextmanager
    def hold(self, run: str, *, lost: Callable[[], None], abandoned: str | None = None) -> Iterator[Lease]:
        """Hold the lease of ``run`` while a block is executed.

        Args:
            run: name of the run, which is the path of its folder below the results.
            lost: called from another thread when another process has taken the lease over.
            abandoned: state of the lease that this or another process has watched for STALE seconds.

        Raises:
            LeaseHeld: another process holds the lease.
            StoreError: the results cannot be reached or written.
        """
        lease, ended = self.acquire(run, abandoned), threading.Event()

        def touch() -> None:
            while not ended.wait(self.beat):
                with contextlib.suppress(StoreError, OSError):  # the store may be back in time; each write checks the lease
                    if not lease.touch():
                        return lost()

        toucher = threading.Thread(target=touch, daemon=True)
        toucher.start()
        try:
            yield lease
        finally:
            ended.set()
            toucher.join()
            lease.release()

    @contextmanager
    def hold_patiently(self, run: str, *, lost: Callable[[], None], waiting: Callable[[str], None]) -> Iterator[Lease]:
        """Hold the lease as ``hold`` does, but first watch a holder of which nobody knows whether it still works.

        Args:
            run: name of the run.
            lost: as for ``hold``.
            waiting: called once with the holder before it is watched, which takes at most STALE seconds and a touch.

        Raises:
            LeaseHeld: another process holds the lease and works.
        """
        first = self.working([run]).get(run)
        while first is not None and first.holder.process_status() in (None, psutil.STATUS_STOPPED):
            waiting(str(first.holder))
            time.sleep(min(self.beat, self.stale / 4))
            waiting = _nothing
            now = self.working([run]).get(run)
            if now is None or now.state != first.state:
                break
        with self.hold(run, lost=lost, abandoned=self.abandoned(run)) as lease:
            yield lease

    def working(self, runs: Iterable[str]) -> dict[str, Sighting]:
        """Return those of ``runs`` whose lease is held, as far as this object has watched."""
        seen = self._look(list(runs))
        return {run: lease for run, lease in seen.items() if not self._is_free(run, lease)}

    def abandoned(self, run: str) -> str | None:
        """Return the state of the run's lease if it was watched for STALE seconds and not touched, else None."""
        state, since = self._seen.get(run, ("", self._clock()))
        return state if self._clock() - since > self.stale else None

    def _is_free(self, run: str, lease: Sighting, abandoned: str | None = None) -> bool:
        if self._seen.get(run, ("",))[0] != lease.state:
            self._seen[run] = lease.state, self._clock()
        return lease.holder.process_status() == "ended" or lease.state in (abandoned, self.abandoned(run))

    @abstractmethod
    def acquire(self, run: str, abandoned: str | None = None) -> Lease:
        """Take the lease, or raise ``LeaseHeld``."""

    @abstractmethod
    def _look(self, runs: list[str]) -> dict[str, Sighting]:
        """Return the leases of ``runs`` that exist."""


def held_by(run: str, holder: str) -> str:
    return f"{run} is executed by {holder}. Wait until it has ended and repeat, or choose another name or results folder."


def _nothing(_: str) -> None:
    """Ignore the holder, after the first time that it was shown."""


def _machine() -> str:
    """Return the identity of this machine, its boot and its process ids.

    Containers may share the name and the boot of their host. Each one counts processes in a namespace of its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{platform.node()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{platform.node()}/{psutil.boot_time():.0f}"
