"""What is asked of a run. No torch: plans and boards read it on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.types import Caps, SplitProtocol
from lm_harmony.errors import UsageError, check_flag, check_integer
from lm_harmony.recipe import CHAT_TEMPLATE_DATE, FILE_RULES, PUBLISHED, Recipe
from lm_harmony.runs.files import from_plain, to_plain

TRACKERS = ("tensorboard", "trackio", "wandb")
"""Trackers that a run can report to."""
ENGINES = ("auto", "plain")
"""Layouts of forward passes that can be asked for."""
LARGEST_SEED = 2**32 - 1
"""NumPy's legacy generator, which defines the published splits, takes seeds from 0 to this one."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model."""

    __pydantic_config__ = FILE_RULES

    name: str
    """Hub id or folder."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run code from the model's repository."""
    apply_chat_template: bool = False
    """Render training and scoring with the model's chat template."""
    chat_template_date: str | None = CHAT_TEMPLATE_DATE
    """What the template takes for today, as YYYY-MM-DD; None: the day of the run, in records older than this field."""

    def __post_init__(self) -> None:
        check_flag("trust_remote_code", self.trust_remote_code)
        check_flag("dataset_param.apply_chat_template", self.apply_chat_template)
        if not isinstance(self.revision, str):
            raise UsageError(f"revision must be text, got {self.revision!r}. Write it in quotes: '{self.revision}'.")
        day = self.chat_template_date
        if day is not None and not _is_date(day):
            raise UsageError(
                f"dataset_param.chat_template_date must be a date as YYYY-MM-DD, got {day!r}. "
                f"Give one such as {CHAT_TEMPLATE_DATE}."
            )


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """Which benchmark, with which rows."""

    __pydantic_config__ = FILE_RULES

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
    """How a run is carried out.

    Nothing here changes a score beyond rounding (and, of models with dropout of their own such as GPT-2, the places it hits).
    """

    __pydantic_config__ = FILE_RULES

    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    engine: str = "auto"
    """auto: the fast forward passes where a probe finds them exact; plain: padded batches everywhere."""
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
    """Optimizer steps between two logged losses; None or 0: losses are not logged."""
    use_git: bool = True
    """Note the git revision of the working folder."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}. Use auto.")
        check_integer("train_param.per_device_train_batch_size", self.micro_batch, 1)
        check_integer("train_param.per_device_eval_batch_size", self.eval_batch_size, 1)
        if self.logging_steps is not None:
            check_integer("train_param.logging_steps", self.logging_steps, 0)
        for flag in ("gradient_checkpointing", "save_checkpoints", "use_git"):
            check_flag(flag, getattr(self, flag))


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: a model on a benchmark by a recipe."""

    __pydantic_config__ = FILE_RULES

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
    """Direction of the metric where the benchmark gives none; one that contradicts the benchmark is refused. None: not given."""
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

    def __post_init__(self) -> None:
        check_integer("random_seed", self.seed, 0, LARGEST_SEED)

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain values for YAML and JSON, with the recipe's fingerprint."""
        return {**to_plain(self), "recipe_fingerprint": self.recipe.fingerprint()}

    @classmethod
    def from_dict(cls, values: Any) -> RunSpec:
        """Return the specification that ``to_dict`` wrote.

        Raises:
            StoreError: a field is missing, unknown, of another type, or against its rule.
        """
        return from_plain(cls, upgrade_spec(values))


def upgrade_spec(values: Any) -> Any:
    """Return a written specification with the fields of today: older versions wrote no date of the chat template."""
    if not isinstance(values, Mapping):
        return values
    model = values.get("model")
    if isinstance(model, Mapping) and model.get("apply_chat_template"):
        model = {"chat_template_date": None, **model}  # the template was rendered with the day of the run
    derived = {"recipe_fingerprint"}
    return {key: model if key == "model" else value for key, value in values.items() if key not in derived}


def _is_date(text: Any) -> bool:
    try:
        return isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
