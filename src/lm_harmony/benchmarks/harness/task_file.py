"""Reads a task's YAML file with its functions, and refuses tasks that train-before-test cannot use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.registry import aggregation_registry, get_aggregation, get_metric, metric_registry
from lm_eval.api.task import ALL_OUTPUT_TYPES
from lm_eval.tasks._yaml_loader import load_yaml

from lm_harmony.benchmarks.json_lines import ENCODING
from lm_harmony.benchmarks.row_files import local_row_files
from lm_harmony.benchmarks.types import SPLIT_FIELDS, Role, SplitUse, used_splits
from lm_harmony.errors import BenchmarkError, did_you_mean


def read_config(path: Path, use: SplitUse = "all", changes: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Read a task's file with its functions, for a use of its splits.

    Args:
        path: the file.
        use: which splits the task must name.
        changes: fields that replace those of the file.

    Raises:
        BenchmarkError: the file does not define a single task, or a task that can be fine-tuned, or a field has a wrong value.
    """
    plain = {**_read(path, with_functions=False), **changes}
    if not isinstance(plain.get("task"), str):
        raise BenchmarkError(f"{path}: `task` must be the name of one task, got {plain.get('task')!r}. Give the task a name.")
    # First without the task's own Python code: in tasks that execute code, importing it downloads files and may fail.
    _refuse_unusable(plain["task"], plain, used_splits(split_names_of(plain), use), use)
    config = {**_read(path, with_functions=True), **changes}
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    _refuse_wrong_fields(path, config)
    return config


def _read(path: Path, *, with_functions: bool) -> dict[str, Any]:
    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=with_functions)
    except (OSError, ValueError, ImportError, AttributeError, SyntaxError, yaml.YAMLError) as error:
        raise BenchmarkError(f"{path}: cannot be read as an lm_eval task: {error}. Correct the file.") from error
    return config


def split_names_of(config: Mapping[str, Any]) -> dict[Role, str]:
    """Return role -> split of the data set, for each role that the task's file names a split for."""
    return {role: config[key] for role, key in SPLIT_FIELDS.items() if config.get(key)}


def local_jsonl_files(config: Mapping[str, Any]) -> dict[str, Path]:
    """Return split -> file if every split of a task is one local JSONL file with ``dataset_path: json``, else {}."""
    options = dict(config.get("dataset_kwargs") or {})
    named = options.get("data_files")
    plain = options.keys() <= {
        "data_files",
        "data_dir",
        "cache_dir",
        "trust_remote_code",
    }  # others change how it is read
    if (
        config.get("dataset_path") != "json"
        or callable(config.get("custom_dataset"))
        or not plain
        or not isinstance(named, Mapping)
    ):
        return {}
    found: dict[str, Path] = {}
    for split in split_names_of(config).values():
        one = {"dataset_path": "json", "dataset_kwargs": {**options, "data_files": named.get(split)}}
        files = list((local_row_files(one) or {}).values()) if split in named else []
        if len(files) != 1 or not _is_jsonl(files[0]):
            return {}
        found[split] = files[0]
    return found


def _is_jsonl(file: Path) -> bool:
    """Return whether a file has one JSON object in each line. A .json file may instead be one array or one object."""
    if file.suffix not in (".jsonl", ".json") or not file.is_file():
        return file.suffix == ".jsonl"
    with file.open(encoding=ENCODING, errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    if file.suffix == ".jsonl":
        return not first.lstrip().startswith("[")
    try:
        return isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _refuse_unusable(name: str, config: Mapping[str, Any], splits: Mapping[Role, str], use: SplitUse) -> None:
    """Refuse a task that cannot be trained on or scored, with the reason."""
    reason = None
    if "class" in config:
        reason = "it is a Python class, for which lm_eval defines no training text"
    elif config.get("doc_to_image") or config.get("doc_to_audio"):
        reason = "it needs images or sound, and only text is supported"
    elif config.get("unsafe_code"):
        reason = "its metric executes code that the model writes"
    elif config.get("repeats", 1) != 1:
        reason = f"repeats: {config['repeats']} is not supported (only 1)"
    elif "train" not in splits and use != "scoring":
        reason = "it has no training split; --train_on mmlu_aux (in a study: train_on) trains on rows of another benchmark"
    elif not splits.keys() & {"validation", "test"} and use != "training":
        reason = "it has neither a validation nor a test split to score"
    if reason:
        raise BenchmarkError(f"benchmark {name} cannot be used: {reason}. Choose another (`lm-harmony benchmarks`).")


def _refuse_wrong_fields(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse values that lm_eval would accept without a message, or stumble over when rows are read or scored."""
    kind, choices = config.get("output_type", "generate_until"), config.get("doc_to_choice")
    if kind not in ALL_OUTPUT_TYPES:
        hint = did_you_mean(str(kind), ALL_OUTPUT_TYPES)
        raise BenchmarkError(f"{path}: output_type must be one of {', '.join(ALL_OUTPUT_TYPES)}, got {kind!r}.{hint} Correct it.")
    if kind == "multiple_choice" and (choices is None or choices == []) and not config.get("use_prompt"):
        raise BenchmarkError(f"{path}: output_type multiple_choice needs doc_to_choice, got {choices!r}. Add the choices.")
    listed = config.get("metric_list")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping):
            _refuse_unknown_metric(path, entry, computed=config.get("process_results") is not None)


def _refuse_unknown_metric(path: Path, entry: Mapping[str, Any], *, computed: bool) -> None:
    """Refuse a metric or an aggregation that lm_eval does not have; ``computed``: a function of the task computes its metrics."""
    metric, aggregation = entry.get("metric"), entry.get("aggregation")
    if isinstance(metric, str) and not computed and get_metric(metric, bool(entry.get("hf_evaluate"))) is None:
        known = sorted(metric_registry.keys())
        raise BenchmarkError(
            f"{path}: metric_list: lm_eval has no metric {metric!r}.{did_you_mean(metric, known)} Its metrics: "
            f"{', '.join(known)}. Name one of them, or compute it in process_results."
        )
    if isinstance(aggregation, str) and get_aggregation(aggregation) is None:
        known = sorted(aggregation_registry.keys())
        raise BenchmarkError(
            f"{path}: metric_list: lm_eval has no aggregation {aggregation!r} (of {metric})."
            f"{did_you_mean(aggregation, known)} Its aggregations: {', '.join(known)}. Name one of them."
        )
