"""Flags of the reference command line -> a run's specification."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lm_harmony.benchmarks.types import Caps
from lm_harmony.cli.run_flags import BUILT_IN, RunFlags
from lm_harmony.errors import UsageError, check_integer, did_you_mean
from lm_harmony.recipe import Recipe
from lm_harmony.runs.spec import TRACKERS, BenchmarkSpec, Execution, ModelSpec, RunSpec


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
    """Return one line for each given flag whose effect is built in."""
    return [f"--{flag}: {reason}." for flag, reason in BUILT_IN.items() if flag in given]


def run_spec(flags: RunFlags, given: Collection[str] = ()) -> RunSpec:
    """Turn flags into a specification.

    Args:
        flags: the parsed command line.
        given: names of the flags that were on it, where a default differs from saying it.

    Raises:
        UsageError: a value against a rule, or a flag that would change the protocol.
    """
    _refuse_other_protocols(flags)
    train, data = flags.train_param, flags.dataset_param
    metric = train.metric_for_best_model
    return RunSpec(
        model=ModelSpec(
            name=flags.base_model,
            revision=flags.revision,
            trust_remote_code=flags.trust_remote_code,
            apply_chat_template=data.apply_chat_template,
            chat_template_date=_chat_template_date(flags, given),
        ),
        benchmark=BenchmarkSpec(
            task=flags.task_name,
            include_path=flags.include_path,
            data_dir=flags.data_dir,
            caps=Caps(train=data.max_num_train, validation=data.max_num_valid, test=data.max_num_test),
            split_protocol=flags.split_protocol,
        ),
        recipe=_recipe(flags),
        seed=_seed(flags, given),
        metric=None if metric is None else metric.removeprefix("eval_"),
        greater_is_better=train.greater_is_better if "train_param.greater_is_better" in given else None,
        choose_best=train.load_best_model_at_end,
        direct=flags.eval_before_train,
        test=flags.eval_after_train,
        test_curve=flags.eval_every_epoch,
        execution=Execution(
            device=flags.device,
            engine=flags.engine,
            micro_batch=train.per_device_train_batch_size,
            eval_batch_size=min(train.per_device_eval_batch_size, flags.eval_max_batch_size or train.per_device_eval_batch_size),
            gradient_checkpointing=train.gradient_checkpointing,
            save_checkpoints=train.save_strategy == "epoch",
            trackers=_trackers(train.report_to),
            logging_steps=train.logging_steps if train.logging_strategy == "steps" else None,
            use_git=flags.use_git,
        ),
    )


def _chat_template_date(flags: RunFlags, given: Collection[str]) -> str:
    if "dataset_param.chat_template_date" in given and not flags.dataset_param.apply_chat_template:
        raise UsageError(
            f"dataset_param.chat_template_date {flags.dataset_param.chat_template_date} has no effect without a chat template. "
            f"Add --dataset_param.apply_chat_template, or drop the date."
        )
    return flags.dataset_param.chat_template_date


def _recipe(flags: RunFlags) -> Recipe:
    train = flags.train_param
    if train.bf16 and flags.dtype not in ("auto", "bfloat16"):
        raise UsageError(f"train_param.bf16 contradicts --dtype {flags.dtype}. Give one of them.")
    return Recipe(
        lora=flags.peft_config if flags.use_peft else None,
        epochs=train.num_train_epochs,
        learning_rate=train.learning_rate,
        batch_size=train.per_device_train_batch_size * train.gradient_accumulation_steps,
        max_length=train.max_seq_length,
        completion_only=flags.completion_only,
        optimizer=train.optim,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        lr_schedule=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        warmup_ratio=train.warmup_ratio,
        max_steps=None if train.max_steps == -1 else train.max_steps,
        dtype="bfloat16" if train.bf16 else flags.dtype,
        max_new_tokens=flags.max_new_tokens,
    )


def _refuse_other_protocols(flags: RunFlags) -> None:
    train = flags.train_param
    for flag, value, allowed, remedy in (
        (
            "train_param.eval_strategy",
            train.eval_strategy,
            ("epoch",),
            "The protocol chooses between epochs: use epoch.",
        ),
        ("train_param.save_strategy", train.save_strategy, ("epoch", "no"), "Use epoch, or no."),
        ("train_param.logging_strategy", train.logging_strategy, ("steps", "epoch", "no"), "Use steps, epoch or no."),
        ("train_param.fp16", train.fp16, (False,), "Half precision loses small gradients here: use --dtype bfloat16."),
        ("train_param.save_safetensors", train.save_safetensors, (True,), "Nothing else is written: drop the flag."),
    ):
        if value not in allowed:
            raise UsageError(f"{flag} cannot be {value!r}. {remedy}")
    for flag, size in (
        ("train_param.gradient_accumulation_steps", train.gradient_accumulation_steps),
        ("eval_max_batch_size", flags.eval_max_batch_size),
    ):
        if size is not None:
            check_integer(flag, size, 1)


def _seed(flags: RunFlags, given: Collection[str]) -> int:
    seed = flags.random_seed
    if "train_param.seed" in given:
        if "random_seed" in given and seed != flags.train_param.seed:
            raise UsageError(
                f"train_param.seed {flags.train_param.seed} contradicts random_seed {seed}: one seed governs all. Give one."
            )
        seed = flags.train_param.seed
    return seed


def _trackers(report_to: str) -> tuple[str, ...]:
    names = tuple(name for name in report_to.replace(",", " ").split() if name != "none")
    for name in names:
        if name not in TRACKERS:
            raise UsageError(
                f"train_param.report_to: no tracker {name!r}.{did_you_mean(name, TRACKERS)} Use {', '.join(TRACKERS)} or none."
            )
    return names
