"""What a run answered. No torch: a board reads these records on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import StoreError
from lm_harmony.recipe import FILE_RULES, Number
from lm_harmony.runs.files import from_plain, to_plain
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import RunSpec, upgrade_spec


def _with_document(sample: dict[str, Any]) -> dict[str, Any]:
    if type(sample.get("doc_id")) is not int:
        raise ValueError(f"doc_id must be an integer, got {sample.get('doc_id')!r}")
    return sample


Sample = Annotated[dict[str, Any], AfterValidator(_with_document)]
"""Outcome of one document, in lm_eval's sample schema."""
FORMAT = 1
"""Version of record.json; a reader refuses a newer one."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch, written as it ends."""

    __pydantic_config__ = FILE_RULES

    epoch: int
    """Counted from 1."""
    loss: float
    """Mean training loss in nats a token."""
    validation: Mapping[str, float]
    """Every metric on the validation split."""
    tokens: int
    """Tokens fed in this epoch, without padding."""
    seconds: float = field(compare=False)
    """Time of the training pass."""
    validation_seconds: float = field(compare=False)
    """Time of the validation."""


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The rows that a run stood on."""

    __pydantic_config__ = FILE_RULES

    fingerprint: str
    """Of every text of the three splits."""
    train: int
    """Rows learned from."""
    validation: int
    """Rows that chose the epoch."""
    test: int
    """Rows scored."""
    carved: bool
    """Validation rows were cut from the training rows."""
    dropped_from_train: int
    """Training rows whose question recurs in validation or test."""
    dropped_from_validation: int
    """Validation rows whose question recurs in test."""
    without_answer: int
    """Training rows, and validation rows cut from them, without a usable answer."""
    truncated: int
    """Training texts that lost context because they were too long."""
    answer_too_long: int = 0
    """Training rows left out because their answer is longer than a training text may be."""
    appended_tokens: tuple[str, ...] = ()
    """Tokens that the tokenizer appends to every text by itself; texts were encoded without them."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run has no record: it was given up."""

    __pydantic_config__ = FILE_RULES

    kind: str
    """Name of the error, or "worker died"."""
    cause: str
    """What it said, or how the worker ended."""
    attempts: int
    """How often the run was begun."""
    log_tail: tuple[str, ...] = ()
    """Last lines of the worker's log."""


@with_config({"extra": "allow", "strict": True})
class Environment(TypedDict, total=False):
    """What a run was carried out with; records of other versions may have further keys."""

    versions: Mapping[str, str]
    """Version of Python and of each library, by its name on the package index."""
    system: str
    """Operating system, as ``platform.platform()`` names it."""
    hardware: Mapping[str, Any]
    """Processor, its threads, and the GPU."""
    device: str
    """Device of the model, such as "cuda:0"."""
    git_revision: str | None
    """Commit of the working folder, with "+changes" where files differ from it."""
    precision: Mapping[str, str | None]
    """Number formats of weights and matrix products."""
    engine: Mapping[str, Any]
    """Forward passes that the probe chose."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that a run answered. Two runs of one command on one machine have equal records (costs are not compared)."""

    __pydantic_config__ = FILE_RULES

    spec: RunSpec
    """What was asked."""
    benchmark: str
    """The task's name."""
    model_revision: str | None
    """Commit of the weights on the hub, when known."""
    metric: str
    """Metric that chose the epoch, and the one to read."""
    higher_is_better: bool
    """Direction of the metric."""
    data: DataRecord
    """The rows."""
    direct: Score | None
    """Test score of the untouched model."""
    epochs: tuple[EpochRecord, ...]
    """Every epoch with its validation scores."""
    chosen_epoch: int
    """The epoch that was tested, counted from 1."""
    trained: Score | None
    """Test score of the chosen epoch."""
    test_curve: Mapping[int, Mapping[str, float]]
    """Epoch -> test metrics, where asked."""
    environment: Environment = field(compare=False)
    """Versions, hardware, source revision."""
    costs: Mapping[str, Number] = field(compare=False)
    """Seconds of each phase, tokens, peak memory in bytes."""
    sources: tuple[Source, ...] | None = None
    """Every file and hub commit that the run was made from; None: made before sources were recorded."""
    request_fingerprint: Annotated[str | None, Field(alias="asked")] = None
    """Fingerprint of every request and training token (``RequestFingerprints.run``); None: made before it was recorded."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values for JSON, without per-document samples."""
        sources = None if self.sources is None else [source.to_dict() for source in self.sources]
        return {"format": FORMAT, **to_plain(self), "spec": self.spec.to_dict(), "sources": sources}

    @classmethod
    def from_dict(cls, values: Any) -> RunRecord:
        """Return the record that ``to_dict`` wrote.

        Raises:
            StoreError: it is of another format, or a field is missing, unknown, of another type, or against its rule.
        """
        return from_plain(cls, upgrade_record(values))


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSpec):
    """What config.yaml holds: the specification of a run that was begun, and fingerprints of what it was begun with."""

    data_fingerprint: str
    """Fingerprint of every text of the three splits."""
    asked_fingerprint: str | None = None
    """Fingerprint of every request and training token; None: begun before it was recorded."""
    sources: tuple[Source, ...] | None = None
    """Every file and hub commit that the run reads; None: begun before sources were recorded."""

    @property
    def spec(self) -> RunSpec:
        """The specification alone."""
        return RunSpec(**{field.name: getattr(self, field.name) for field in fields(RunSpec)})


def upgrade_record(values: Any) -> Any:
    """Return a written record with the fields of today.

    Raises:
        StoreError: it is of another format.
    """
    known = values.get("format") if isinstance(values, Mapping) else None
    if known != FORMAT:
        raise StoreError(f"format = {known!r} is not the record format {FORMAT}. Read it with the LM-Harmony that wrote it.")
    rest = {key: value for key, value in values.items() if key != "format"}
    return {**rest, "spec": upgrade_spec(rest["spec"])} if "spec" in rest else rest
