"""What a study and its workers send each other: requests and results, encoded as one JSON text each. No torch.

The local pool writes these texts to pipes and the Ray pool passes them to actors, so both kinds of workers answer alike.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from lm_harmony.errors import HarmonyError, LeaseHeld, StoreUnavailable
from lm_harmony.redaction import without_secrets
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.run_location import RunLocation, remote_of


class Outcome(StrEnum):
    """How the attempt to execute a run ended. The values are part of the event names in events.jsonl."""

    FINISHED = "finished"
    """The record of the run is written."""
    FAILED = "failed"
    """The run cannot be executed as it is asked for. failure.json holds the cause; the run is not tried again."""
    HELD = "held"
    """Another study executes the run now, or has taken it over; the cause names its process."""
    STORE_UNAVAILABLE = "no_room"
    """The results could not be read or written: the disk is full, or the store cannot be reached."""
    CRASHED = "surprised"
    """An exception that LM-Harmony does not expect ended the run."""
    DIED = "died"
    """The worker process ended before it answered."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunResult(_Message):
    """What a worker answers about one run."""

    outcome: Outcome
    """How the attempt ended."""
    kind: str | None = None
    """Class name of the error, if there was one."""
    cause: str | None = None
    """Message of the error, or how the worker process ended."""
    log_tail: tuple[str, ...] | None = None
    """Last lines of the log of a worker process that died."""
    loads: int | None = None
    """How many models the worker process has loaded so far."""
    place: int = 0
    """Place in the request of the run that has ended."""

    def details(self) -> dict[str, Any]:
        """Return the fields that have a value, without the outcome and the place, for events.jsonl."""
        return self.model_dump(mode="json", exclude={"outcome", "place"}, exclude_none=True)


class AskedRun(_Message):
    """One run of a request."""

    spec: dict[str, Any]
    """The run's specification as plain values."""
    results_dir: Path
    """Folder of the results. Where they are behind a URL, a worker uses its own working copy instead."""
    url: str | None
    """URL of the results, or None for results in a folder."""
    abandoned: str | None = None
    """State of the run's lease that the coordinator has watched for so long that it is free; None: none is known."""

    @classmethod
    def of(cls, run: RunLocation, abandoned: str | None) -> AskedRun:
        """Return ``run``, whose lease may be ``abandoned``, as part of a request."""
        return cls(spec=run.spec.to_dict(), results_dir=run.results_dir, url=run.url, abandoned=abandoned)

    def run(self) -> RunLocation:
        """Return the run, with the results folder of the machine on which this is called."""
        remote = remote_of(self.url)
        results_dir = self.results_dir if remote is None else remote.folder
        return RunLocation(spec=RunSpec.from_dict(self.spec), results_dir=results_dir, url=self.url)


class RunRequest(_Message):
    """Asks a worker to advance some runs until one of them ends; it answers with the ``RunResult`` of that run.

    The next request names the runs that are left, and others that enter. A worker that has been restarted resumes them all.
    """

    runs: tuple[AskedRun, ...]
    """The runs. Several of them train in common passes where they can."""

    @classmethod
    def of(cls, runs: Sequence[RunLocation], abandoned: Sequence[str | None]) -> RunRequest:
        """Return the request for ``runs``, each with the state of its lease if it was found abandoned."""
        return cls(runs=tuple(AskedRun.of(run, state) for run, state in zip(runs, abandoned, strict=True)))


class MemoryRequest(_Message):
    """Asks a worker how many runs its device's free memory holds at once; it answers with a ``MemoryResult``."""

    specs: tuple[dict[str, Any], ...]
    """Specifications of the runs as plain values. The one that needs most memory counts."""
    others: tuple[int, ...]
    """Process ids of the other workers, which are starting. The host memory that they take is that of runs that are counted."""

    @classmethod
    def of(cls, runs: Sequence[RunLocation], others: Sequence[int]) -> MemoryRequest:
        """Return the request for ``runs``, with the process ids of the ``others``."""
        return cls(specs=tuple(run.spec.to_dict() for run in runs), others=tuple(others))

    def run_specs(self) -> list[RunSpec]:
        """Return the specifications."""
        return [RunSpec.from_dict(spec) for spec in self.specs]


class MemoryResult(_Message):
    """What a worker answers to a ``MemoryRequest``."""

    runs_that_fit: int
    """Number of runs that fit into the free memory of the worker's device at once; 0 if not even one does."""


LEASE_LOST = 75
"""Exit status of a worker whose run another process has taken over (EX_TEMPFAIL of sysexits.h)."""
_UNAVAILABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE),
)
"""Errors of the system that more disk space, memory or permissions remove."""


def result_of(error: Exception) -> RunResult:
    """Return how a run ended that raised ``error``."""
    cause = str(error)
    if isinstance(error, LeaseHeld):
        outcome = Outcome.HELD
    elif isinstance(error, StoreUnavailable):
        outcome = Outcome.STORE_UNAVAILABLE
    elif isinstance(error, HarmonyError):
        outcome = Outcome.FAILED
    elif isinstance(error, OSError) and error.errno in _UNAVAILABLE:
        outcome = Outcome.STORE_UNAVAILABLE
        place = error.filename or "a resource of this machine"
        cause = f"{place}: {error.strerror}. Free disk space or memory, or check permissions."
    else:
        outcome = Outcome.CRASHED
    return RunResult(outcome=outcome, kind=type(error).__name__, cause=without_secrets(" ".join(cause.split()))[:2000])


_REQUEST: TypeAdapter[RunRequest | MemoryRequest] = TypeAdapter(RunRequest | MemoryRequest)


def decode_request(text: str) -> RunRequest | MemoryRequest:
    """Return the request that ``model_dump_json`` of one encoded."""
    return _REQUEST.validate_json(text)
