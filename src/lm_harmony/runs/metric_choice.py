"""The metric that chooses the epoch of a run, and whether a higher value of it is better."""

from __future__ import annotations

from lm_harmony.benchmarks import catalogue
from lm_harmony.benchmarks.harness import Benchmark
from lm_harmony.benchmarks.types import MetricKey
from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.runs.spec import RunSpec


def choosing_metric(spec: RunSpec, task: Benchmark) -> tuple[str, bool]:
    """Return the metric that chooses the epoch, and whether higher is better."""
    metric = spec.metric or default_metric(task)
    if metric not in task.metrics:
        known = list(task.metrics)
        raise UsageError(
            f"benchmark {task.name} has no metric {metric!r}.{did_you_mean(metric, known)} It has: {', '.join(known)}. Give "
            f"one as --train_param.metric_for_best_model (in a study: metric under the benchmark)."
        )
    return metric, direction(task.metrics[metric], spec.greater_is_better, metric=metric, task=task.name)


def direction(declared: bool | None, asked: bool | None, *, metric: str, task: str) -> bool:
    """Return whether a higher score is better: as the task declares it, else as the user says.

    Args:
        declared: what the task's file or lm_eval's registry says; None: neither says it.
        asked: the value of --train_param.greater_is_better; None: not given.
        metric: metric that chooses the epoch, for the message.
        task: name of the benchmark, for the message.

    Raises:
        UsageError: the direction is not known, or the task and the user contradict each other.
    """
    if declared is None and asked is None:
        name = MetricKey.parse(metric).metric
        raise UsageError(
            f"benchmark {task}: metric {metric} has no higher_is_better, so the best epoch is unknown. Add higher_is_better: "
            f"true or false to {name} in the metric_list of the task's YAML file, or give --train_param.greater_is_better or "
            f"--train_param.no-greater_is_better (in a study: greater_is_better under the benchmark)."
        )
    if declared is not None and asked not in (None, declared):
        raise UsageError(
            f"train_param.greater_is_better: {metric} of {task} is better when {'higher' if declared else 'lower'}, "
            f"got {asked}. Drop the flag."
        )
    return bool(asked if declared is None else declared)


def default_metric(task: Benchmark) -> str:
    """Return the catalogued metric of a benchmark; else acc_norm, acc or bits_per_byte; else the first that it reports."""
    known = catalogue.find(task.name)
    if known is not None:
        return known.metric
    reported = list(task.metrics)
    preferred = [key for name in ("acc_norm", "acc", "bits_per_byte") for key in reported if MetricKey.parse(key).metric == name]
    return (preferred or reported)[0]
