"""Flags of ``lm-harmony run`` -> RunSpec. The table ``FIELDS`` says which flag sets which field."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any

from lm_harmony.benchmarks.prompt import Prompt
from lm_harmony.benchmarks.types import Caps, Shots
from lm_harmony.cli.run_flags import BUILT_IN, RunFlags
from lm_harmony.errors import UsageError, check_integer, check_learning_rates, did_you_mean
from lm_harmony.recipe import Recipe
from lm_harmony.runs.spec import TRACKERS, BenchmarkSpec, Execution, ModelSpec, RunSpec

_INTEGER = re.compile(r"-?\d+")


def given_flags(arguments: Sequence[str]) -> frozenset[str]:
    """Return the names of the flags on a command line: "--train_param.no-packing" gives "train_param.packing"."""
    names = set()
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].split("=")[0].replace("-", "_")
            group, dot, field = name.rpartition(".")
            names.add(f"{group}{dot}{field.removeprefix('no_')}")
    return frozenset(names)


def built_in_lines(given: Collection[str]) -> list[str]:
    """Return one line for each given flag that has no effect because what it asks for is built in."""
    return [f"--{flag} has no effect: {reason}." for flag, reason in BUILT_IN.items() if flag in given]


def run_spec(flags: RunFlags, given: Collection[str] = ()) -> RunSpec:
    """Return the specification of the run that the flags describe.

    Args:
        flags: the parsed command line.
        given: names of the flags that stood on the command line, because some defaults differ from the same value given.

    Raises:
        UsageError: a value is not allowed, two flags contradict each other, or a flag would change the protocol.
    """
    _refuse_other_protocols(flags)
    parts: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for target, source in FIELDS.items():
        part, field = target.split(".")
        parts[part][field] = attrgetter(source)(flags) if isinstance(source, str) else source(flags, given)
    return RunSpec(
        model=ModelSpec(**parts["model"]),
        benchmark=BenchmarkSpec(caps=Caps(**parts["caps"]), **parts["benchmark"]),
        recipe=Recipe(**parts["recipe"]),
        prompt=Prompt(**parts["prompt"]),
        execution=Execution(**parts["execution"]),
        **parts["run"],
    )


def _chat_template_date(flags: RunFlags, given: Collection[str]) -> str:
    day = flags.dataset_param.chat_template_date
    if "dataset_param.chat_template_date" in given and not flags.dataset_param.apply_chat_template:
        raise UsageError(
            f"dataset_param.chat_template_date = {day} has no effect without a chat template. "
            f"Add --dataset_param.apply_chat_template, or remove the date."
        )
    return day


def _think_end_token(flags: RunFlags, given: Collection[str]) -> str | int | None:
    token = flags.dataset_param.think_end_token
    return int(token) if token is not None and token.isdecimal() else token  # lm_eval's rule


def _dtype(flags: RunFlags, given: Collection[str]) -> str:
    if flags.train_param.bf16 and flags.dtype not in ("auto", "bfloat16"):
        raise UsageError(f"train_param.bf16 contradicts dtype = {flags.dtype}. Give one of them.")
    return "bfloat16" if flags.train_param.bf16 else flags.dtype


def _seed(flags: RunFlags, given: Collection[str]) -> int:
    seed, theirs = flags.random_seed, flags.train_param.seed
    if "train_param.seed" not in given:
        return seed
    if "random_seed" in given and seed != theirs:
        raise UsageError(f"train_param.seed = {theirs} contradicts random_seed = {seed}: a run has one seed. Give one of them.")
    return theirs


def _eval_batch_size(flags: RunFlags, given: Collection[str]) -> int:
    size = flags.train_param.per_device_eval_batch_size
    return min(size, flags.eval_max_batch_size or size)


def _trackers(flags: RunFlags, given: Collection[str]) -> tuple[str, ...]:
    names = tuple(name for name in flags.train_param.report_to.replace(",", " ").split() if name != "none")
    for name in names:
        if name not in TRACKERS:
            raise UsageError(
                f"train_param.report_to = {name!r} is no tracker (allowed: {', '.join(TRACKERS)}, none)."
                f"{did_you_mean(name, TRACKERS)}"
            )
    return names


def _shots(flags: RunFlags, given: Collection[str]) -> tuple[Shots, ...]:
    if "direct_fewshot" in given and not flags.eval_before_train:
        raise UsageError("direct_fewshot contradicts no-eval_before_train: no direct score is computed. Remove one of them.")
    return tuple(int(shots) if _INTEGER.fullmatch(shots) else shots for shots in flags.direct_fewshot)  # type: ignore[misc]


def _learning_rate(flags: RunFlags, given: Collection[str]) -> float | tuple[float, ...]:
    rates = flags.learning_rates
    if "learning_rates" not in given and not rates:
        return flags.train_param.learning_rate
    check_learning_rates("learning_rates", rates)
    if "train_param.learning_rate" in given:
        raise UsageError(
            f"train_param.learning_rate = {flags.train_param.learning_rate} contradicts learning_rates = {list(rates)}. "
            f"Remove one of them."
        )
    return rates


def _metric(flags: RunFlags, given: Collection[str]) -> str | None:
    metric = flags.train_param.metric_for_best_model
    return None if metric is None else metric.removeprefix("eval_")


FIELDS: dict[str, str | Callable[[RunFlags, Collection[str]], Any]] = {
    "model.name": "base_model",
    "model.revision": "revision",
    "model.trust_remote_code": "trust_remote_code",
    "model.apply_chat_template": "dataset_param.apply_chat_template",
    "model.chat_template_date": _chat_template_date,
    "benchmark.task": "task_name",
    "benchmark.include_path": "include_path",
    "benchmark.data_dir": "data_dir",
    "benchmark.split_protocol": "split_protocol",
    "benchmark.near_duplicates": "near_duplicates",
    "benchmark.train_on": "train_on",
    "caps.train": "dataset_param.max_num_train",
    "caps.validation": "dataset_param.max_num_valid",
    "caps.test": "dataset_param.max_num_test",
    "prompt.chat_template_args": "dataset_param.chat_template_args",
    "prompt.system_instruction": "dataset_param.system_instruction",
    "prompt.gen_prefix": "dataset_param.gen_prefix",
    "prompt.think_end_token": _think_end_token,
    "prompt.max_gen_toks": "dataset_param.max_gen_toks",
    "recipe.lora": lambda flags, given: flags.peft_config if flags.use_peft else None,
    "recipe.epochs": "train_param.num_train_epochs",
    "recipe.learning_rate": _learning_rate,
    "recipe.batch_size": lambda flags, given: (
        flags.train_param.per_device_train_batch_size * flags.train_param.gradient_accumulation_steps
    ),
    "recipe.max_length": "train_param.max_seq_length",
    "recipe.completion_only": "completion_only",
    "recipe.optimizer": "train_param.optim",
    "recipe.adam_beta1": "train_param.adam_beta1",
    "recipe.adam_beta2": "train_param.adam_beta2",
    "recipe.adam_epsilon": "train_param.adam_epsilon",
    "recipe.weight_decay": "train_param.weight_decay",
    "recipe.max_grad_norm": "train_param.max_grad_norm",
    "recipe.lr_schedule": "train_param.lr_scheduler_type",
    "recipe.warmup_steps": "train_param.warmup_steps",
    "recipe.warmup_ratio": "train_param.warmup_ratio",
    "recipe.max_steps": lambda flags, given: None if flags.train_param.max_steps == -1 else flags.train_param.max_steps,
    "recipe.dtype": _dtype,
    "recipe.max_new_tokens": "max_new_tokens",
    "recipe.quantize": "quantize",
    "execution.device": "device",
    "execution.device_map": "device_map",
    "execution.engine": "engine",
    "execution.memory": "memory",
    "execution.micro_batch": "train_param.per_device_train_batch_size",
    "execution.eval_batch_size": _eval_batch_size,
    "execution.gradient_checkpointing": "train_param.gradient_checkpointing",
    "execution.save_checkpoints": lambda flags, given: flags.train_param.save_strategy == "epoch",
    "execution.trackers": _trackers,
    "execution.logging_steps": lambda flags, given: (
        flags.train_param.logging_steps if flags.train_param.logging_strategy == "steps" else None
    ),
    "execution.use_git": "use_git",
    "execution.allow_task_code": "allow_task_code",
    "run.seed": _seed,
    "run.metric": _metric,
    "run.greater_is_better": lambda flags, given: (
        flags.train_param.greater_is_better if "train_param.greater_is_better" in given else None
    ),
    "run.choose_best": "train_param.load_best_model_at_end",
    "run.direct": "eval_before_train",
    "run.direct_fewshot": _shots,
    "run.test": "eval_after_train",
    "run.test_curve": "eval_every_epoch",
}
"""Field of the specification -> the flag that sets it, or a function of the flags and of the names of those that were given."""

_PROTOCOL: dict[str, tuple[tuple[object, ...], str]] = {
    "train_param.eval_strategy": (("epoch",), "The best epoch is chosen by validation after each epoch."),
    "train_param.save_strategy": (("epoch", "no"), "A checkpoint is written after each epoch or never."),
    "train_param.logging_strategy": (("steps", "epoch", "no"), "It decides which losses go to the trackers."),
    "train_param.fp16": ((False,), "Small gradients are lost in half precision: use --dtype bfloat16."),
    "train_param.save_safetensors": ((True,), "No other format is written: remove the flag."),
}
"""Flag -> the values that keep the protocol, and why or what to do instead."""


def _refuse_other_protocols(flags: RunFlags) -> None:
    for flag, (allowed, remedy) in _PROTOCOL.items():
        value = attrgetter(flag)(flags)
        if value not in allowed:
            raise UsageError(f"{flag} = {value!r} is not supported (allowed: {', '.join(map(str, allowed))}). {remedy}")
    for flag in ("train_param.gradient_accumulation_steps", "eval_max_batch_size"):
        size = attrgetter(flag)(flags)
        if size is not None:
            check_integer(flag, size, 1)
