"""Checks of a request before any work starts. They need neither torch nor the network, so their errors come within a second."""

from __future__ import annotations

import os
from pathlib import Path

from lm_harmony.benchmarks.foreign_code import check_task_code
from lm_harmony.benchmarks.task_files import TaskFiles, task_files
from lm_harmony.errors import BenchmarkError, UsageError
from lm_harmony.models.model_folder import refuse_no_model
from lm_harmony.runs.spec import BenchmarkSpec, RunSpec

LONGEST_NAME = 255
"""Longest name of a file or folder in bytes, on the file systems of Linux."""


def check_request(spec: RunSpec) -> None:
    """Check that the model, the task and local rows of a run exist.

    Raises:
        ModelError: the name of the model is neither a hub id nor a folder with a model.
        UsageError: no task has the name, or it runs code that is not allowed.
        BenchmarkError: a file of the task or of its rows does not exist or cannot be read.
    """
    refuse_no_model(spec.model.name, spec.model.revision)
    benchmark = spec.benchmark
    if not spec.execution.allow_task_code:
        for task, _ in benchmark.tasks:
            check_task_code(task, include_path=benchmark.include_path, allowed=False)
    for path in (path for found in check_train_on(benchmark) for path in found.rows.values()):
        if not path.is_file():
            raise BenchmarkError(f"{path} does not exist. Put the split's rows there, one JSON object in each line.")


def check_train_on(benchmark: BenchmarkSpec) -> tuple[TaskFiles, ...]:
    """Return the files of a benchmark's tasks. If it trains on another one, check that all are multiple-choice tasks.

    Raises:
        UsageError: there is no such task, or it is of another type.
        BenchmarkError: a file of a task cannot be read.
    """
    places = {"include_path": benchmark.include_path, "data_dir": benchmark.data_dir}
    found = {task: task_files(task, **places, use=use) for task, use in benchmark.tasks}
    for task, files in found.items():
        if benchmark.train_on is not None and files.output_type != "multiple_choice":
            raise UsageError(
                f"train_on = {benchmark.train_on} needs multiple-choice tasks, and {task} has output_type {files.output_type}. "
                f"Remove train_on, or choose multiple-choice tasks."
            )
    return tuple(found.values())


def check_results_folder(results: Path, name: str = "") -> None:
    """Check that files can be written below a results folder, which need not exist yet.

    Args:
        results: the results folder.
        name: path of a run below it.

    Raises:
        UsageError: a part of the path is a file, is too long, or may not be written.
    """
    long = next((part for part in (*results.parts, *Path(name).parts) if len(os.fsencode(part)) > LONGEST_NAME - 10), None)
    if long is not None:
        raise UsageError(
            f"exp_name: the name {long[:20]}... has {len(os.fsencode(long))} bytes, and file systems allow {LONGEST_NAME}. "
            f"Choose a shorter --exp_name or results_dir."
        )
    folder = results / name
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"results_dir: {there} is a file, so {folder} cannot be a folder. Choose another results folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"results_dir: {there} cannot be written by this user. Choose another folder, or change its permissions."
        )
