"""What was asked of a run and what it answered. No torch: a board reads these records on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.caps import Caps, SplitProtocol
from lm_harmony.benchmarks.score import Score
from lm_harmony.errors import StoreError, UsageError
from lm_harmony.recipe import PUBLISHED, Recipe

TRACKERS = ("tensorboard", "trackio", "wandb")
"""Trackers that a run can report to."""
FORMAT = 1
"""Version of record.json; a reader refuses a newer one."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model."""

    name: str
    """Hub id or folder."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run code from the model's repository."""
    apply_chat_template: bool = False
    """Render training and scoring with the model's chat template."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """Which benchmark, with which rows."""

    task: str
    """Name of an lm_eval task, or a task's YAML file."""
    include_path: Path | None = None
    """Folder of further task files."""
    data_dir: Path | None = None
    """Folder that holds <task>/{train,validation,test}.jsonl; None: the hub."""
    caps: Caps = Caps()
    """The most rows of each split."""
    split_protocol: SplitProtocol = "clean"
    """"clean" or "published": see ``benchmarks.splits.make_splits``."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out: nothing here changes a score beyond rounding, so a resumed run may differ in it."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    micro_batch: int = 8
    """Most training sequences in one forward pass."""
    eval_batch_size: int = 8
    """Most sequences in one scoring pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time, much less memory."""
    save_checkpoints: bool = True
    """Keep what --resume_from_checkpoint needs after each epoch."""
    trackers: tuple[str, ...] = ()
    """Where losses and scores are shown too: tensorboard, trackio, wandb."""
    logging_steps: int | None = 10
    """Optimizer steps between two logged losses; None: losses are not logged."""
    use_git: bool = True
    """Note the git revision of the working folder."""

    def __post_init__(self) -> None:
        for flag, value in (
            ("train_param.per_device_train_batch_size", self.micro_batch),
            ("train_param.per_device_eval_batch_size", self.eval_batch_size),
            ("train_param.logging_steps", self.logging_steps or 1),
        ):
            if value < 1:
                raise UsageError(f"{flag} must be at least 1, got {value}. Give a positive number.")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: a model on a benchmark by a recipe."""

    model: ModelSpec
    """Which model."""
    benchmark: BenchmarkSpec
    """Which benchmark."""
    recipe: Recipe = PUBLISHED
    """How it is prepared."""
    seed: int = 0
    """Governs everything random: split, order, dropout, adapter."""
    metric: str | None = None
    """Metric that chooses the epoch, as lm_eval keys it ("acc_norm,none"); None: the benchmark's own."""
    greater_is_better: bool | None = None
    """Direction that the user takes the metric to have; a wrong one is refused. None: the benchmark's own."""
    choose_best: bool = True
    """Test the best epoch by validation (the protocol); False: the last one."""
    direct: bool = False
    """Score the untouched model on the test split too."""
    test: bool = True
    """Score the chosen epoch on the test split."""
    test_curve: bool = False
    """After the choice, score every epoch on the test split, for the record only."""
    execution: Execution = field(default=Execution(), compare=False)
    """How it is carried out."""

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain values for YAML and JSON."""
        return {**_plain(asdict(self)), "recipe_fingerprint": self.recipe.fingerprint()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """Rebuild what ``to_dict`` returned."""
        benchmark = dict(values["benchmark"])
        for key in ("include_path", "data_dir"):
            benchmark[key] = None if benchmark[key] is None else Path(benchmark[key])
        benchmark["caps"] = Caps(**benchmark["caps"])
        rest = {
            key: values[key] for key in ("seed", "metric", "greater_is_better", "choose_best", "direct", "test", "test_curve")
        }
        return cls(
            model=ModelSpec(**values["model"]),
            benchmark=BenchmarkSpec(**benchmark),
            recipe=Recipe.from_dict(values["recipe"]),
            execution=Execution(**{**values["execution"], "trackers": tuple(values["execution"]["trackers"])}),
            **rest,
        )


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
    """Training rows whose answer is none of their choices."""
    truncated: int
    """Training texts that lost context because they were too long."""


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

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values for JSON, without per-document samples."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["spec"] = self.spec.to_dict()
        values["data"] = asdict(self.data)
        values["epochs"] = [asdict(epoch) for epoch in self.epochs]
        for key in ("direct", "trained"):
            values[key] = values[key].to_dict() if values[key] else None
        values["test_curve"] = {str(epoch): dict(metrics) for epoch, metrics in self.test_curve.items()}
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """Rebuild what ``to_dict`` returned.

        Raises:
            StoreError: a newer format, or a missing field.
        """
        known = values.get("format") if isinstance(values, Mapping) else None
        if known != FORMAT:
            raise StoreError(f"record format {known!r} is not {FORMAT}. Read it with the LM-Harmony that wrote it.")
        try:
            rest = {field.name: values[field.name] for field in fields(cls)}
            rest["spec"] = RunSpec.from_dict(rest["spec"])
            rest["data"] = DataRecord(**rest["data"])
            rest["epochs"] = tuple(EpochRecord(**epoch) for epoch in rest["epochs"])
            for key in ("direct", "trained"):
                rest[key] = None if rest[key] is None else Score(**rest[key])
            rest["test_curve"] = {int(epoch): metrics for epoch, metrics in rest["test_curve"].items()}
            return cls(**rest)
        except (KeyError, TypeError) as error:
            raise StoreError(f"the record lacks or adds a field: {error}. Run it again with --overwrite.") from error


def _plain(value: Any) -> Any:
    """Turn paths to strings and tuples to lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
