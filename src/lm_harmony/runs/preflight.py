"""Checks of a request before any work starts. They need neither torch nor the network, so their errors come within a second."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lm_harmony.benchmarks.catalogue import benchmark_name, corpus_path
from lm_harmony.benchmarks.corpus import read_corpus
from lm_harmony.benchmarks.foreign_code import check_task_code
from lm_harmony.benchmarks.json_lines import rows_of
from lm_harmony.benchmarks.task_files import TaskFiles, task_files
from lm_harmony.benchmarks.task_groups import find_group
from lm_harmony.benchmarks.task_index import asked_as
from lm_harmony.errors import BenchmarkError, ModelError, UsageError, did_you_mean
from lm_harmony.models.folder_checks import refuse_no_weights
from lm_harmony.models.model_folder import refuse_no_model
from lm_harmony.runs.sources import shortened
from lm_harmony.runs.spec import BenchmarkSpec, RunSpec

LONGEST_NAME = 255
"""Longest name of a file or folder in bytes, on the file systems of Linux."""

GPUS = ("h200", "h100", "a100", "a100-40", "l40s", "rtx4090")
"""GPUs whose time can be predicted: the names in ``studies.hardware``, which imports torch."""


def check_hardware(name: str) -> None:
    """Check the name of a GPU, in capital or small letters.

    Raises:
        UsageError: there is no GPU of that name.
    """
    if name.lower() not in GPUS:
        raise UsageError(
            f"hardware: no data for {name!r}.{did_you_mean(name.lower(), GPUS)} Known: {', '.join(GPUS)}. "
            f"Or give here, which measures this machine for up to 30 seconds."
        )


def check_request(spec: RunSpec) -> None:
    """Check that the model, the task and local rows of a run exist and can be read, and that this machine may have the device.

    Raises:
        ModelError: the name of the model is neither a hub id nor a folder with a model, or the device cannot be used.
        UsageError: no task has the name, or it runs code that is not allowed.
        BenchmarkError: a file of the task or of its rows does not exist or cannot be read.
    """
    check_device(spec.execution.device, spec.execution.engine)
    refuse_no_model(spec.model.name, spec.model.revision)
    refuse_no_weights(spec.model.name)
    benchmark = spec.benchmark
    if benchmark.include_path is not None and not benchmark.include_path.is_dir():
        raise UsageError(f"include_path = {benchmark.include_path} is not a folder. Give the folder of your task YAML files.")
    if not spec.execution.allow_task_code:
        for task, _ in benchmark.tasks:
            with asked_as("task_name" if task == benchmark.task else "train_on"):
                check_task_code(task, include_path=benchmark.include_path, allowed=False)
    found = check_train_on(benchmark)
    check_metric(benchmark, found[0], spec.metric, "train_param.metric_for_best_model")
    for (task, _), files in zip(benchmark.tasks, found, strict=True):
        for kind in dict.fromkeys(files.output_types.values()):
            spec.prompt.check_task(benchmark.name, kind)
        for path in files.rows.values():
            if not path.is_file():
                raise BenchmarkError(f"{path} does not exist. Put the split's rows there, one JSON object in each line.")
        corpus = corpus_path(task)
        if corpus is not None:
            _check_corpus(corpus, _changed(*files.rows.values()))
            continue
        for path in files.rows.values():
            if path.suffix == ".jsonl":
                _check_rows(path, _changed(path))


def check_train_on(benchmark: BenchmarkSpec) -> tuple[TaskFiles, ...]:
    """Return the files of a benchmark's tasks. If it trains on another one, check that all are multiple-choice tasks.

    Raises:
        UsageError: there is no such task, or it is of another type, or a task of a group has neither training rows nor others.
        BenchmarkError: a file of a task cannot be read.
    """
    for task, _ in benchmark.tasks[1:]:
        with asked_as("train_on"):
            group = find_group(task, benchmark.include_path)
        if group is not None:
            raise UsageError(
                f"train_on = {benchmark.train_on}: {group.name!r} is a group of lm_eval tasks. Give the name of one task of that "
                f"group, such as {group.subtasks[0].name}, or mmlu_aux."
            )
    places = {"include_path": benchmark.include_path, "data_dir": benchmark.data_dir}
    found = {}
    for task, use in benchmark.tasks:
        with asked_as("task_name" if task == benchmark.task else "train_on"):
            found[task] = task_files(task, **places, use=use)
    kinds = {one: kind for files in found.values() for one, kind in files.output_types.items()}
    for one, kind in kinds.items() if benchmark.train_on is not None else ():
        if kind not in ("multiple_choice", "generate_until"):
            raise UsageError(
                f"train_on = {benchmark.train_on} needs tasks of output_type multiple_choice or generate_until, and {one} has "
                f"{kind}. Choose another task."
            )
        first = next(iter(kinds))
        if kind != kinds[first]:
            raise UsageError(
                f"train_on = {benchmark.train_on}: rows of {benchmark_name(one)} (output_type {kind}) cannot be written as those "
                f"of {first} ({kinds[first]}). Name a benchmark of the same output_type."
            )
    tested = found[benchmark.task]
    if benchmark.train_on is None and tested.untrained and len(tested.output_types) > 1:
        raise UsageError(
            f"task_name: {benchmark.task!r} is a group of lm_eval tasks, and these have no training split: "
            f"{shortened(tested.untrained)}. Add --train_on mmlu_aux (in a study: train_on) to train on other rows."
        )
    if benchmark.train_on is None and tested.untrained and "None" not in tested.output_types.values():
        raise BenchmarkError(
            f"benchmark {benchmark.name} cannot be used: it has no training split; --train_on mmlu_aux (in a study: train_on) "
            f"trains on rows of another benchmark. Choose another (`lm-harmony benchmarks`)."
        )
    return tuple(found.values())


def check_metric(benchmark: BenchmarkSpec, files: TaskFiles, metric: str | None, field: str) -> None:
    """Check metrics as far as the files of a benchmark list them: those of a group's score, and the one that chooses the epoch.

    Args:
        benchmark: the benchmark.
        files: the files of its tested task.
        metric: the metric that chooses the epoch; None: the benchmark's own.
        field: name of ``metric`` in messages.

    Raises:
        UsageError: the benchmark has no such metric.
        BenchmarkError: no task of the group has a metric of its aggregate_metric_list.
    """
    if files.metrics is None:
        return  # opening the benchmark checks it
    group = find_group(benchmark.task, benchmark.include_path)
    known = sorted(files.metrics) if group is None else group.metrics(files.metrics)
    if metric is not None and metric not in known:
        raise UsageError(
            f"{field} = {metric}: benchmark {benchmark.name} has no such metric.{did_you_mean(metric, known)} It has: "
            f"{', '.join(known)}. Give one of them."
        )


def _changed(*paths: Path) -> tuple[int, ...]:
    """Return when the files were changed, so that a study checks them once."""
    return tuple(path.stat().st_mtime_ns for path in paths)


@cache
def _check_rows(path: Path, changed: tuple[int, ...]) -> None:
    """Check that a JSONL file can be read, once for the time at which it was ``changed``."""
    rows_of(path)


@cache
def _check_corpus(path: Path, changed: tuple[int, ...]) -> None:
    """Check that a corpus has documents for all splits, once for the times at which its files were ``changed``."""
    read_corpus(path)


def check_device(device: str, engine: str = "auto") -> None:
    """Check what can be known of a device without torch.

    Args:
        device: the requested device.
        engine: the requested engine; "compiled" needs CUDA.

    Raises:
        ModelError: mps on a machine that is no Mac, or cuda or the compiled engine with a torch that has no CUDA.
    """
    if engine == "compiled" and (device in ("cpu", "mps") or _torch_version().endswith("+cpu")):
        raise ModelError(f"engine = compiled needs a CUDA device, got device = {device}. Use --engine auto, or a CUDA device.")
    if device == "mps" and platform.system() != "Darwin":
        raise ModelError(
            f"device 'mps' cannot be used: it is the GPU of a Mac, and this machine runs {platform.system()}. "
            f"Use --device cpu, cuda or auto."
        )
    if device.startswith("cuda") and _torch_version().endswith("+cpu"):
        raise ModelError(
            f"device {device!r} cannot be used: the installed torch {_torch_version()} has no CUDA. Install a build with CUDA, "
            f"or use --device cpu."
        )


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:  # a build that was not installed by pip
        return ""


def check_results_folder(results: Path, name: str = "", *, written: bool = True) -> None:
    """Check that files can be written below a results folder, which need not exist yet.

    Args:
        results: the results folder.
        name: path of a run below it.
        written: whether the command writes there; else only what cannot be a folder is refused.

    Raises:
        UsageError: a part of the path is a file, is too long, or may not be written.
    """
    check_folder("results_dir", results, written=written)
    if name:
        check_folder("exp_name", results / name, written=written)


def check_folder(field: str, folder: Path, *, written: bool = True) -> None:
    """Check that ``folder`` exists or can be made, and that files can be written there; ``field`` names it in the message.

    Raises:
        UsageError: a part of the path is a file, is too long, or may not be written.
    """
    long = next((part for part in folder.parts if len(os.fsencode(part)) > LONGEST_NAME - 10), None)
    if long is not None:
        raise UsageError(
            f"{field}: the name {long[:20]}... has {len(os.fsencode(long))} bytes, and file systems allow {LONGEST_NAME}. "
            f"Choose a shorter name."
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{field}: {there} is a file, so {folder} cannot be a folder. Choose another folder.")
    if written and not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{field}: {there} cannot be written by this user. Choose another folder, or change its permissions.")
