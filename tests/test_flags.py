"""The reference command line is frozen: its flags, their defaults, and the field that each flag sets."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from lm_harmony.benchmarks.prompt import PLAIN_PROMPT, Prompt
from lm_harmony.cli.run_flags import BUILT_IN, RunFlags
from lm_harmony.cli.run_spec import _PROTOCOL, FIELDS, built_in_lines, given_flags, run_spec
from lm_harmony.errors import UsageError
from lm_harmony.recipe import PUBLISHED, Lora, Recipe
from lm_harmony.runs.spec import BenchmarkSpec, RunSpec

REFERENCE = (
    "--exp_name arc_easy/EleutherAI/pythia-70m-deduped --base_model EleutherAI/pythia-70m-deduped --task_name arc_easy "
    "--train_param.num_train_epochs 5 --eval_before_train --eval_every_epoch --eval_after_train "
    "--train_param.greater_is_better --train_param.metric_for_best_model eval_acc_norm,none "
    "--dataset_param.max_num_train 50000 --dataset_param.max_num_valid 1000 --dataset_param.max_num_test 10000 --no-use_git"
)
FLAGS = {
    "exp_name", "task_name", "use_git", "random_seed", "base_model", "only_evaluate", "eval_max_batch_size",
    "eval_before_train", "eval_after_train", "eval_every_epoch", "resume_from_checkpoint", "completion_only",
    "max_new_tokens", "use_peft",
    # LM-Harmony's own
    "data_dir", "include_path", "split_protocol", "near_duplicates", "train_on", "overwrite", "dtype", "device", "engine",
    "revision", "trust_remote_code", "allow_task_code", "quantize", "memory", "device_map", "direct_fewshot",
    "learning_rates",
    "results_dir", "format", "debug",
}  # fmt: skip
DATASET_PARAM = {
    "max_num_train", "max_num_valid", "max_num_test", "apply_chat_template", "chat_template_date",
    "chat_template_args", "system_instruction", "gen_prefix", "think_end_token", "max_gen_toks",
}  # fmt: skip
PEFT_CONFIG = {"r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora"}
TRAIN_PARAM = {
    "max_seq_length", "per_device_train_batch_size", "per_device_eval_batch_size", "auto_find_batch_size",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "num_train_epochs", "max_steps",
    "eval_strategy", "logging_strategy", "save_strategy", "eval_steps", "logging_steps", "save_steps",
    "gradient_accumulation_steps", "gradient_checkpointing", "eval_accumulation_steps", "optim", "learning_rate",
    "lr_scheduler_type", "weight_decay", "warmup_steps", "warmup_ratio", "max_grad_norm", "adam_beta1", "adam_beta2",
    "adam_epsilon", "bf16", "fp16", "report_to", "dataset_text_field", "save_safetensors", "packing", "seed",
}  # fmt: skip


def spec_of(command: str) -> RunSpec:
    arguments = shlex.split(command)
    return run_spec(tyro.cli(RunFlags, args=arguments, use_underscores=True), given_flags(arguments))


def names(part: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(part)}


def test_the_flags_are_frozen() -> None:
    flags = RunFlags(base_model="m", task_name="t")
    assert names(flags) == FLAGS | {"dataset_param", "peft_config", "train_param"}
    assert names(flags.dataset_param) == DATASET_PARAM
    assert names(flags.peft_config) == PEFT_CONFIG
    assert names(flags.train_param) == TRAIN_PARAM
    groups = {"train_param": TRAIN_PARAM, "dataset_param": DATASET_PARAM}
    assert all(flag.split(".")[1] in groups[flag.split(".")[0]] for flag in BUILT_IN)


def test_the_table_sets_every_field_of_a_specification_once() -> None:
    spec = spec_of("--base_model m --task_name t")
    parts = {"model": spec.model, "benchmark": spec.benchmark, "caps": spec.benchmark.caps, "recipe": spec.recipe}
    parts["prompt"] = spec.prompt
    expected = {f"{name}.{field}" for name, part in parts.items() for field in names(part) if field != "caps"}
    expected |= {f"execution.{field}" for field in names(spec.execution)}
    expected |= {f"run.{field}" for field in names(spec) - {*parts, "execution"}}
    assert set(FIELDS) == expected


def test_every_flag_is_used() -> None:
    """Each flag changes the specification, has a built-in value, is refused, or controls the command itself."""
    command = {"exp_name", "results_dir", "only_evaluate", "resume_from_checkpoint", "overwrite", "format", "debug"}
    used = {source for source in FIELDS.values() if isinstance(source, str)} | {*BUILT_IN, *_PROTOCOL, *command}
    for source in FIELDS.values():
        if not isinstance(source, str):
            names_in_code = source.__code__.co_names
            used |= {name for name in FLAGS if name in names_in_code}
            used |= {f"train_param.{name}" for name in TRAIN_PARAM if name in names_in_code}
            used |= {f"dataset_param.{name}" for name in DATASET_PARAM if name in names_in_code}
    flags = FLAGS | {f"train_param.{name}" for name in TRAIN_PARAM} | {f"dataset_param.{name}" for name in DATASET_PARAM}
    assert flags - used == set()


def test_the_reference_command_is_the_published_recipe() -> None:
    spec = spec_of(REFERENCE)
    assert spec.recipe == PUBLISHED == Recipe()
    assert (spec.benchmark.caps.train, spec.benchmark.caps.validation, spec.benchmark.caps.test) == (50_000, 1_000, 10_000)
    assert spec.metric == "acc_norm,none" and spec.greater_is_better is True
    assert spec.direct and spec.test and spec.test_curve and not spec.execution.use_git and spec.seed == 0


def test_the_published_recipe_equals_the_papers() -> None:
    assert PUBLISHED.lora == Lora(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=())
    paper = {
        "epochs": 5, "learning_rate": 2e-5, "batch_size": 8, "max_length": 1024, "adam_beta1": 0.9, "adam_beta2": 0.999,
        "weight_decay": 0.01, "max_grad_norm": 1.0, "lr_schedule": "linear", "warmup_steps": 0, "warmup_ratio": 0.0,
        "max_new_tokens": 256, "completion_only": False,
    }  # fmt: skip
    assert {name: getattr(PUBLISHED, name) for name in paper} == paper


def test_the_flags_of_a_prompt() -> None:
    command = "--base_model m --task_name t --dataset_param.apply_chat_template --dataset_param.chat_template_args "
    spec = spec_of(command + "'{\"enable_thinking\": false}' --dataset_param.gen_prefix A: --dataset_param.max_gen_toks 9")
    assert spec.prompt == Prompt(chat_template_args='{"enable_thinking": false}', gen_prefix="A:", max_gen_toks=9)
    assert spec_of("--base_model m --task_name t").prompt == PLAIN_PROMPT
    for given, token in (("</think>", "</think>"), ("200008", 200008)):  # digits are an id, as in lm_eval
        assert spec_of(f"--base_model m --task_name t --dataset_param.think_end_token '{given}'").prompt.think_end_token == token
    with pytest.raises(UsageError, match="no effect without a chat template"):
        spec_of("--base_model m --task_name t --dataset_param.chat_template_args '{\"enable_thinking\": false}'")


def test_every_flag_that_affects_a_number_is_in_the_recipe() -> None:
    plain = spec_of("--base_model m --task_name t")
    for flag, value, field, expected in (
        ("train_param.learning_rate", "1e-3", "learning_rate", 1e-3),
        ("train_param.num_train_epochs", "2", "epochs", 2),
        ("train_param.gradient_accumulation_steps", "4", "batch_size", 32),
        ("train_param.per_device_train_batch_size", "2", "batch_size", 2),
        ("train_param.max_seq_length", "64", "max_length", 64),
        ("train_param.optim", "sgd", "optimizer", "sgd"),
        ("train_param.lr_scheduler_type", "cosine", "lr_schedule", "cosine"),
        ("train_param.weight_decay", "0", "weight_decay", 0.0),
        ("train_param.warmup_steps", "3", "warmup_steps", 3),
        ("train_param.warmup_ratio", "0.1", "warmup_ratio", 0.1),
        ("train_param.max_grad_norm", "2", "max_grad_norm", 2.0),
        ("train_param.adam_beta1", "0.8", "adam_beta1", 0.8),
        ("train_param.adam_beta2", "0.9", "adam_beta2", 0.9),
        ("train_param.adam_epsilon", "1e-6", "adam_epsilon", 1e-6),
        ("train_param.max_steps", "7", "max_steps", 7),
        ("max_new_tokens", "16", "max_new_tokens", 16),
        ("dtype", "bfloat16", "dtype", "bfloat16"),
    ):
        recipe = spec_of(f"--base_model m --task_name t --{flag} {value}").recipe
        assert getattr(recipe, field) == expected
        assert recipe.fingerprint() != plain.recipe.fingerprint()
    assert spec_of("--base_model m --task_name t --completion_only").recipe.completion_only
    assert spec_of("--base_model m --task_name t --train_param.bf16").recipe.dtype == "bfloat16"
    assert spec_of("--base_model m --task_name t --no-use_peft").recipe.lora is None
    lora = spec_of("--base_model m --task_name t --peft_config.r 4 --peft_config.target_modules q_proj v_proj").recipe.lora
    assert lora == Lora(r=4, target_modules=("q_proj", "v_proj"))


def test_the_date_of_chat_templates_is_part_of_the_specification() -> None:
    """The date is in the specification and is validated. It is refused if it would have no effect."""
    command = "--base_model m --task_name t"
    assert spec_of(command).model.chat_template_date == "2024-07-26"
    chat = command + " --dataset_param.apply_chat_template"
    assert spec_of(chat).model.chat_template_date == "2024-07-26"
    assert spec_of(chat + " --dataset_param.chat_template_date 2026-01-05").model.chat_template_date == "2026-01-05"
    for wrong in ("05.01.2026", "20260105", "2026-02-30", "today"):
        with pytest.raises(UsageError, match="chat_template_date must be a date as YYYY-MM-DD, got"):
            spec_of(f"{chat} --dataset_param.chat_template_date {wrong}")
    with pytest.raises(UsageError, match="has no effect without a chat template"):
        spec_of(command + " --dataset_param.chat_template_date 2026-01-05")


def test_a_message_says_that_a_given_flag_is_built_in() -> None:
    arguments = ["--train_param.packing", "--train_param.no-auto_find_batch_size", "--train_param.save_safetensors"]
    lines = built_in_lines(given_flags(arguments))
    assert [line.split(" has no effect: ")[0] for line in lines] == [
        "--train_param.packing",
        "--train_param.save_safetensors",
        "--train_param.auto_find_batch_size",
    ]
    assert built_in_lines(given_flags(["--base_model", "m"])) == []


def test_one_seed_sets_all_seeds() -> None:
    assert spec_of("--base_model m --task_name t --train_param.seed 3").seed == 3
    assert spec_of("--base_model m --task_name t --random_seed 3").seed == 3
    assert spec_of("--base_model m --task_name t --random_seed 3 --train_param.seed 3").seed == 3
    with pytest.raises(UsageError, match="contradicts"):
        spec_of("--base_model m --task_name t --random_seed 3 --train_param.seed 4")


def test_several_learning_rates() -> None:
    several = spec_of("--base_model m --task_name t --learning_rates 5e-6 2e-5")
    assert several.recipe == Recipe(learning_rate=(5e-6, 2e-5)) and several.recipe.fingerprint() != PUBLISHED.fingerprint()
    with pytest.raises(UsageError, match=r"learning_rate = 1e-05 contradicts learning_rates = \[5e-06, 2e-05\]"):
        spec_of("--base_model m --task_name t --learning_rates 5e-6 2e-5 --train_param.learning_rate 1e-5")


def test_the_smaller_evaluation_batch_is_used() -> None:
    command = "--base_model m --task_name t --train_param.per_device_eval_batch_size 16"
    assert spec_of(command).execution.eval_batch_size == 16
    assert spec_of(command + " --eval_max_batch_size 4").execution.eval_batch_size == 4


def test_a_specification_is_unchanged_by_yaml_and_pickle() -> None:
    import pickle

    import yaml

    spec = spec_of(REFERENCE + " --peft_config.target_modules a b --data_dir d --train_param.report_to tensorboard")
    assert RunSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_folder_given_as_text_is_refused_by_its_field() -> None:
    with pytest.raises(UsageError, match=r"data_dir must be a pathlib\.Path or None, got 'rows'\. Write Path\('rows'\)\."):
        BenchmarkSpec(task="rte", data_dir="rows")  # type: ignore[arg-type]
    assert BenchmarkSpec(task="rte", data_dir=Path("rows")).data_dir == Path("rows")


def test_an_unknown_field_of_a_recipe_file_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'learning_rate'"):
        Recipe.from_dict({"learnin_rate": 1.0})
    with pytest.raises(UsageError, match="must be one of"):
        Recipe(optimizer="adam")
