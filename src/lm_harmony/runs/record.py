"""What a run answered. No torch: a board reads these records on a laptop."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import StoreError
from lm_harmony.runs.sources import Source, sources_from
from lm_harmony.runs.spec import RunSpec

FORMAT = 1
"""Version of record.json; a reader refuses a newer one."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch, written as it ends."""

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

    kind: str
    """Name of the error, or "worker died"."""
    cause: str
    """What it said, or how the worker ended."""
    attempts: int
    """How often the run was begun."""
    log_tail: tuple[str, ...] = ()
    """Last lines of the worker's log."""

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as plain values for JSON."""
        return {**asdict(self), "log_tail": list(self.log_tail)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Failure:
        """Rebuild what ``to_dict`` returned."""
        return cls(**{**values, "log_tail": tuple(values["log_tail"])})


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that a run answered. Two runs of one command on one machine have equal records (costs are not compared)."""

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
    environment: Mapping[str, Any] = field(compare=False)
    """Versions, hardware, source revision."""
    costs: Mapping[str, float] = field(compare=False)
    """Seconds of each phase, tokens, peak memory in bytes."""
    sources: tuple[Source, ...] | None = None
    """Every file and hub commit that the run was made from; None: made before sources were recorded."""
    asked: str | None = None
    """Fingerprint of what was asked (``runs.asked.RequestFingerprints.run``); None: made before it was recorded."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values for JSON, without per-document samples."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["spec"] = self.spec.to_dict()
        values["data"] = asdict(self.data)
        values["epochs"] = [asdict(epoch) for epoch in self.epochs]
        for key in ("direct", "trained"):
            values[key] = values[key].to_dict() if values[key] else None
        values["sources"] = None if self.sources is None else [source.to_dict() for source in self.sources]
        values["test_curve"] = {str(epoch): dict(metrics) for epoch, metrics in self.test_curve.items()}
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """Rebuild what ``to_dict`` returned.

        Raises:
            StoreError: a newer format, a missing field, or a value of a type that no run writes.
        """
        known = values.get("format") if isinstance(values, Mapping) else None
        if known != FORMAT:
            raise StoreError(f"record format {known!r} is not {FORMAT}. Read it with the LM-Harmony that wrote it.")
        try:
            values = {"sources": None, "asked": None, **values}
            rest = {field.name: values[field.name] for field in fields(cls)}
            rest["spec"] = RunSpec.from_dict(rest["spec"])
            appended = tuple(rest["data"].get("appended_tokens", ()))  # records before this field know nothing of it
            rest["data"] = DataRecord(**{**rest["data"], "appended_tokens": appended})
            rest["epochs"] = tuple(EpochRecord(**epoch) for epoch in rest["epochs"])
            for key in ("direct", "trained"):
                rest[key] = None if rest[key] is None else Score(**rest[key])
            rest["sources"] = sources_from(rest["sources"])
            rest["test_curve"] = {int(epoch): metrics for epoch, metrics in rest["test_curve"].items()}
            record = cls(**rest)
        except (KeyError, TypeError) as error:
            raise StoreError(f"the record lacks or adds a field: {error}. Run it again with --overwrite.") from error
        _refuse_wrong_types(record)
        return record


def _refuse_wrong_types(record: RunRecord) -> None:
    """Refuse values that JSON can hold but a run does not write: they would fail, or pass for scores, far from their file."""
    texts = (record.benchmark, record.metric, record.spec.model.name)
    if not all(isinstance(text, str) for text in texts) or not isinstance(record.higher_is_better, bool):
        raise StoreError("benchmark, metric and model must be text, higher_is_better true or false")
    versions = record.environment.get("versions") if isinstance(record.environment, Mapping) else record.environment
    if not isinstance(record.environment, Mapping) or not isinstance(versions or {}, Mapping):
        raise StoreError(f"environment must be a mapping, and so must its versions, got {versions!r}")
    if not all(isinstance(source.name, str) and isinstance(source.path, str | None) for source in record.sources or ()):
        raise StoreError("the names and paths of sources must be text")
    for name, score in (("direct", record.direct), ("trained", record.trained)):
        if score is not None:
            refuse_no_number(name, score)


def refuse_no_number(name: str, score: Score) -> None:
    """Refuse a score that holds anything else than numbers; ``name``: "direct" or "trained".

    Raises:
        StoreError: it does.
    """
    errors = {key: value for key, value in score.stderrs.items() if value is not None}
    for key, value in (*score.metrics.items(), *errors.items()):
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise StoreError(f"the {name} score of {key} is no number: {value!r}")
    if not isinstance(score.documents, int):
        raise StoreError(f"the {name} score's documents are no whole number: {score.documents!r}")
