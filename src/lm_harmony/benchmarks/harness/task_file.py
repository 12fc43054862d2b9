"""A task's YAML file: read with its functions, and refused where train-before-test cannot use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from lm_harmony.benchmarks.local_data import ENCODING
from lm_harmony.benchmarks.task_files import local_row_files
from lm_harmony.errors import BenchmarkError

Role = Literal["train", "validation", "test"]
_SPLIT_FIELDS: Mapping[Role, str] = {
    "train": "training_split",
    "validation": "validation_split",
    "test": "test_split",
}


def read_config(path: Path) -> dict[str, Any]:
    """Read a task's file with its functions.

    Raises:
        BenchmarkError: it is no single task, or cannot be fine-tuned.
    """
    plain = _read(path, with_functions=False)
    if not isinstance(plain.get("task"), str):
        raise BenchmarkError(f"{path}: `task` must be the name of one task, got {plain.get('task')!r}. Give it a name.")
    # Before the task's own Python code is imported, which in lm_eval's code-running tasks downloads and may fail.
    _refuse_unfit(plain["task"], plain, split_names_of(plain))
    config = _read(path, with_functions=True)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    return config


def _read(path: Path, *, with_functions: bool) -> dict[str, Any]:
    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=with_functions)
    except (OSError, ValueError, ImportError, AttributeError, SyntaxError, yaml.YAMLError) as error:
        raise BenchmarkError(f"{path}: cannot be read as an lm_eval task: {error}. Correct the file.") from error
    return config


def split_names_of(config: Mapping[str, Any]) -> dict[Role, str]:
    """Return the data set's split of each role that the task declares."""
    return {role: config[key] for role, key in _SPLIT_FIELDS.items() if config.get(key)}


def local_jsonl_files(config: Mapping[str, Any]) -> dict[str, Path]:
    """Return split -> file if each split that a task declares is one local JSONL file behind ``dataset_path: json``, else {}."""
    options = dict(config.get("dataset_kwargs") or {})
    named = options.get("data_files")
    plain = options.keys() <= {"data_files", "data_dir", "cache_dir", "trust_remote_code"}  # others change how a file is read
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
        if len(files) != 1 or not _holds_json_lines(files[0]):
            return {}
        found[split] = files[0]
    return found


def _holds_json_lines(file: Path) -> bool:
    """Return whether a file is meant to hold one JSON object a line; a .json file may as well be one array or one object."""
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


def _refuse_unfit(name: str, config: Mapping[str, Any], declared: Mapping[Role, str]) -> None:
    reason = None
    if "class" in config:
        reason = "it is a Python class whose training text lm_eval does not define"
    elif config.get("doc_to_image") or config.get("doc_to_audio"):
        reason = "it needs images or sound, and models here read text"
    elif config.get("unsafe_code"):
        reason = "its metric executes what the model writes"
    elif config.get("repeats", 1) != 1:
        reason = f"it asks each question {config['repeats']} times, and one reply is counted here"
    elif "train" not in declared:
        reason = "it has no training split, and train-before-test needs rows to train on"
    elif not declared.keys() & {"validation", "test"}:
        reason = "it has neither a validation nor a test split to score"
    if reason:
        raise BenchmarkError(f"benchmark {name} cannot be used: {reason}. Choose another (`lm-harmony benchmarks`).")
