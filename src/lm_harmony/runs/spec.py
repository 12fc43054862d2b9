"""The specification of a run: model, benchmark, recipe, seed and options. No torch: plans and boards read it on a laptop."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX, benchmark_name, tasks_of, trained_name
from lm_harmony.benchmarks.prompt import PLAIN_PROMPT, Prompt
from lm_harmony.benchmarks.recurrence import NearDuplicateRule, check_near_duplicates
from lm_harmony.benchmarks.types import Caps, Shots, SplitProtocol, SplitUse
from lm_harmony.errors import FILE_RULES, UsageError, check_flag, check_integer
from lm_harmony.recipe import CHAT_TEMPLATE_DATE, PUBLISHED, Recipe, written_recipe
from lm_harmony.runs.file_values import from_plain, to_plain
from lm_harmony.runs.shots import check_shots
from lm_harmony.runs.upgrades import upgrade_spec

TRACKERS = ("tensorboard", "trackio", "wandb")
"""Trackers that a run can report to."""
ENGINES = ("auto", "plain", "compiled")
"""Values of --engine, which ``Execution.engine`` explains."""
_DEVICE = re.compile(r"auto|cpu|mps|meta|(cuda|xpu|hpu|npu|mlu|musa)(:\d+)?")
MEMORY_MODES = ("auto", "check", "off")
"""Values of --memory, which ``Execution.memory`` explains."""
LARGEST_SEED = 2**32 - 1
"""Largest seed of NumPy's legacy generator, which defines the published splits."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model: where it is loaded from, and how its chat template is used."""

    __pydantic_config__ = FILE_RULES

    name: str
    """Hub id, or path of a folder."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    apply_chat_template: bool = False
    """Whether training texts and requests are rendered with the model's chat template."""
    chat_template_date: str | None = CHAT_TEMPLATE_DATE
    """Date that the template takes as today, as YYYY-MM-DD; None: the day of the run, in records older than this field."""

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
    """A benchmark: its task, where its rows are, and how they are split."""

    __pydantic_config__ = FILE_RULES

    task: str
    """Name of an lm_eval task, path of a task's YAML file, or corpus:PATH."""
    include_path: Path | None = None
    """Folder with further task files, as lm_eval's --include_path."""
    data_dir: Path | None = None
    """Folder with `<task>/{train,validation,test}.jsonl`; None: rows come from the hub or from the task's own files."""
    caps: Caps = Caps()
    """Largest number of rows of each split."""
    split_protocol: SplitProtocol = "clean"
    """"clean" or "published": see ``benchmarks.splits.make_splits``."""
    near_duplicates: NearDuplicateRule = "keep"
    """"keep", or "drop": see ``benchmarks.near_duplicates.drop_near_duplicates``."""
    train_on: str | None = None
    """Task, task's YAML file or named set that has the training rows (``benchmarks.auxiliary``); None: the task's own rows."""

    @property
    def name(self) -> str:
        """Name of the folder and the column of these runs."""
        return trained_name(benchmark_name(self.task), self.train_on)

    @property
    def tasks(self) -> tuple[tuple[str, SplitUse], ...]:
        """The tested task and those whose rows are trained on, each with the use of its splits."""
        return tasks_of(self.task, self.train_on)

    def __post_init__(self) -> None:
        for name in ("include_path", "data_dir"):
            folder = getattr(self, name)
            if not isinstance(folder, Path | None):
                raise UsageError(f"{name} must be a pathlib.Path or None, got {folder!r}. Write Path({folder!r}).")
        given = self.train_on
        if given is not None and (not isinstance(given, str) or not given.strip() or CORPUS_PREFIX in (given + self.task)):
            raise UsageError(
                f"train_on must be a task or a named set for a task that is no text corpus, got {given!r} for {self.task}. "
                f"Give one such as mmlu_aux."
            )
        if given == self.task:
            raise UsageError(f"train_on = {given} is the benchmark itself. Remove train_on, or name another benchmark.")
        if given is not None and self.split_protocol == "published":
            raise UsageError(f"train_on = {given} contradicts split_protocol = published. Remove one of them.")
        check_near_duplicates("near_duplicates", self.near_duplicates, self.split_protocol)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is executed: options that change a score by rounding, and in GPT-2 and others which activations are dropped."""

    __pydantic_config__ = FILE_RULES

    device: str = "auto"
    """Device of the model: cpu, cuda, cuda:1, mps or auto."""
    device_map: str | None = None
    """auto: the blocks of the model are spread over all GPUs that the process sees; None: one device holds the model."""
    engine: str = "auto"
    """auto: packed rows where a probe finds them exact; plain: padded batches; compiled: auto with compiled layers, on CUDA."""
    micro_batch: int = 8
    """Largest number of training sequences in one forward pass."""
    eval_batch_size: int = 8
    """Largest number of sequences in one forward pass of scoring."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which takes a third more time and much less memory."""
    memory: str = "auto"
    """auto: gradient checkpointing is switched on where one longest row does not fit without it, and what does not fit even then
    is refused before loading; check: what does not fit as requested is refused; off: nothing is estimated."""
    save_checkpoints: bool = True
    """Save after each epoch what --resume_from_checkpoint needs."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that receive losses and scores: tensorboard, trackio, wandb."""
    logging_steps: int | None = 10
    """Optimizer steps between two losses sent to the trackers; None or 0: no losses are sent."""
    use_git: bool = True
    """Record the git commit of the working folder."""
    allow_task_code: bool = True
    """Allow Python code of a task that lm_eval does not ship."""

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise UsageError(f"device must be auto, cpu, mps, cuda or one such as cuda:1, got {self.device!r}. Use auto.")
        if self.device_map is not None:
            self._check_device_map()
        if self.engine not in ENGINES:
            raise UsageError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}. Use auto.")
        if self.memory not in MEMORY_MODES:
            raise UsageError(f"memory must be one of {', '.join(MEMORY_MODES)}, got {self.memory!r}. Use auto.")
        check_integer("train_param.per_device_train_batch_size", self.micro_batch, 1)
        check_integer("train_param.per_device_eval_batch_size", self.eval_batch_size, 1)
        if self.logging_steps is not None:
            check_integer("train_param.logging_steps", self.logging_steps, 0)
        for flag in ("gradient_checkpointing", "save_checkpoints", "use_git", "allow_task_code"):
            check_flag(flag, getattr(self, flag))

    def _check_device_map(self) -> None:
        """Raise UsageError for a device map that is not auto, or for another field that contradicts it."""
        if self.device_map != "auto":
            raise UsageError(f"device_map must be auto or left out, got {self.device_map!r}. Use auto.")
        if self.device not in ("auto", "cuda"):
            raise UsageError(
                f"device = {self.device} contradicts device_map = auto, which takes all GPUs. Remove one of them, or choose GPUs "
                f"with CUDA_VISIBLE_DEVICES."
            )
        if self.engine == "compiled":
            raise UsageError("engine = compiled does not support device_map = auto. Use engine auto.")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: a model that is fine-tuned on a benchmark by a recipe, and scored on it."""

    __pydantic_config__ = FILE_RULES

    model: ModelSpec
    """Model that is fine-tuned and scored."""
    benchmark: BenchmarkSpec
    """Benchmark that the model is fine-tuned and scored on."""
    recipe: Recipe = PUBLISHED
    """Every hyperparameter of the fine-tuning."""
    prompt: Prompt = PLAIN_PROMPT
    """Changes to prompts and answers, beyond the task's own file."""
    seed: int = 0
    """Seed of the validation split, the order of rows, dropout and the initial adapter."""
    metric: str | None = None
    """Metric that chooses the epoch, as lm_eval keys it ("acc_norm,none"); None: the benchmark's own."""
    greater_is_better: bool | None = None
    """Whether higher is better, for a metric whose benchmark does not say it; None: not given."""
    choose_best: bool = True
    """Test the epoch with the best validation score, as the method does; False: test the last epoch."""
    direct: bool = False
    """Also score the untouched model on the test split."""
    direct_fewshot: tuple[Shots, ...] = (0,)
    """Numbers of examples before each question, each a direct score of its own; "task": as the task's file says."""
    test: bool = True
    """Whether the chosen epoch is scored on the test split."""
    test_curve: bool = False
    """After the choice, score every epoch on the test split, for the record only."""
    execution: Execution = field(default=Execution(), compare=False)
    """Device, batch sizes and other options that change no score."""

    def __post_init__(self) -> None:
        check_integer("random_seed", self.seed, 0, LARGEST_SEED)
        check_shots(self.direct_fewshot, direct=self.direct)
        self.prompt.check_chat(self.model.apply_chat_template)
        if len(self.recipe.rates) > 1 and (self.test_curve or not self.choose_best):
            option = "eval_every_epoch" if self.test_curve else "train_param.no-load_best_model_at_end"
            raise UsageError(
                f"{option} contradicts learning_rate = {list(self.recipe.rates)}, of which validation chooses one before the "
                f"test rows are scored once. Remove --{option}, or give one learning rate."
            )
        if self.execution.device_map is not None and self.recipe.lora is None:
            raise UsageError(
                "device_map = auto trains adapters only, and the recipe trains all weights. Remove --device_map, or train an "
                "adapter (--use_peft; in a study: lora)."
            )

    @property
    def shots(self) -> tuple[Shots, ...]:
        """The number of examples before each question of every requested direct score."""
        return self.direct_fewshot if self.direct else ()

    def to_dict(self) -> dict[str, object]:
        """Return the specification as plain values for YAML and JSON, with the recipe's fingerprint."""
        plain = {**to_plain(self), "prompt": self.prompt.changes(), "recipe": written_recipe(to_plain(self.recipe))}
        later: dict[str, Any] = {"direct_fewshot": [0], "prompt": {}, "train_on": None, "near_duplicates": "keep"}
        later |= {"memory": "auto", "device_map": None}
        for part in (plain, plain["benchmark"], plain["execution"]):
            for name in [name for name, default in later.items() if part.get(name, ...) == default]:
                part.pop(name)  # as versions without this field wrote it, so that they can read the file
        return {**plain, "recipe_fingerprint": self.recipe.fingerprint()}

    @classmethod
    def from_dict(cls, values: object) -> RunSpec:
        """Return the specification that ``to_dict`` wrote.

        Raises:
            StoreError: a field is missing, unknown, of another type, or against its rule.
        """
        return from_plain(cls, upgrade_spec(values))


def _is_date(text: Any) -> bool:
    try:
        return isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
