"""How a task's answers are counted, as plain values: metrics with direction and aggregation, filters; and the rows' commit.

Replies -> scores, filtered and counted by lm_eval's own functions.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import random
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import datasets
from lm_eval import utils as lm_eval_utils
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from lm_harmony.benchmarks.harness.bootstrap import finite_value, standard_error
from lm_harmony.benchmarks.harness.lm import arguments_of
from lm_harmony.benchmarks.harness.task_functions import LOADED_FROM
from lm_harmony.benchmarks.types import Example, Reply, RequestKind, Score
from lm_harmony.errors import BenchmarkError

if TYPE_CHECKING:  # the task imports this module
    from lm_harmony.benchmarks.harness.task import HarnessTask

_INVENTED: Mapping[RequestKind, Reply] = {"loglikelihood": (0.0, False), "loglikelihood_rolling": 0.0, "generate_until": ""}
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


def counting_rules(task: HarnessTask) -> dict[str, Any]:
    """Return what turns replies into a score: every metric's function, arguments, aggregation and direction, and the filters.

    Functions are told by their names, those outside lm_eval by their source too.
    """
    built: Task = task._task
    higher, aggregations = built.higher_is_better(), built.aggregation()
    functions: Mapping[str, Any] = getattr(built, "_metric_fn_list", {})
    arguments: Mapping[str, Any] = getattr(built, "_metric_fn_kwargs", {})
    metrics = {
        name: {
            "function": _told(functions.get(name)),
            "arguments": _told(arguments.get(name)),
            "aggregation": _told(aggregations.get(name)),
            "higher_is_better": higher.get(name),
        }
        for name in sorted({*higher, *aggregations, *functions})
    }
    return {
        "output_type": task.output_type,
        "metrics": metrics,
        "filters": {ensemble.name: _told(ensemble.filters) for ensemble in built._filters},
        "process_results": _told(getattr(built.config, "process_results", None)),
    }


def count_invented_replies(task: HarnessTask, example: Example) -> None:
    """Count an invented reply to each request of ``example``, so that files which only counting reads are opened now.

    The score is dropped, and so are warnings and errors: functions of a task may expect what no invented reply has.
    """
    replies = [_INVENTED[request.kind] for request in example.requests]
    with _quiet(), suppress(Exception):
        task.score([example], [replies], errors=False, samples=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop warnings, and restore Python's random state afterwards."""
    state, level = random.getstate(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        random.setstate(state)


def dataset_commit(task: HarnessTask) -> str | None:
    """Return the commit of the hub data set that a task's rows were loaded from, or None where that cannot be told."""
    loaded = task._task.dataset
    rows = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
    for split in rows:
        if not isinstance(split, datasets.Dataset):
            continue
        # `datasets` names the folder of its cache after the commit.
        for place in getattr(split, LOADED_FROM, [file["filename"] for file in split.cache_files]):
            found = _COMMIT.search(str(place))
            if found:
                return found[0]
    return None


def _told(value: Any) -> Any:
    """Return a value as plain JSON: functions by name and, outside lm_eval, by a digest of their source."""
    if isinstance(value, functools.partial):
        return {"function": _told(value.func), "arguments": _told([*value.args, value.keywords])}
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, (list, tuple)):
        return [_told(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if not callable(value):
        inner = (
            sorted(map(str, value)) if isinstance(value, (set, frozenset)) else vars(value) if hasattr(value, "__dict__") else ""
        )
        return {type(value).__qualname__: _told(inner)}
    module, name = str(getattr(value, "__module__", "")), getattr(value, "__qualname__", type(value).__qualname__)
    if module.split(".")[0] == "lm_eval" and not module.startswith("lm_eval.tasks."):
        return f"{module}.{name}"
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        return name
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


log = logging.getLogger(__name__)


def direction_of(task: str, metric: str, higher: Any) -> bool | None:
    """Return whether a higher score is better; None where neither the task's file nor lm_eval's registry of metrics says it.

    Args:
        task: the task's name, for the message.
        metric: the metric's name.
        higher: what the task holds as ``higher_is_better``.

    Raises:
        BenchmarkError: it is neither true nor false: the text "false" would count as true.
    """
    if higher is not None and not isinstance(higher, bool):
        raise BenchmarkError(
            f"benchmark {task}: higher_is_better of metric {metric} must be true or false, got {higher!r}. "
            f"Write it without quotes in the task's file."
        )
    return higher


def count(task: Task, examples: Sequence[Example], replies: Sequence[Sequence[Reply]], *, errors: bool, samples: bool) -> Score:
    """Filter and count a model's replies with lm_eval's own functions.

    Args:
        task: the lm_eval task that the examples come from.
        examples: the documents asked about.
        replies: for each example, one reply to each of its requests, in order.
        errors: compute standard errors (validation does not need them).
        samples: keep per-document outcomes.

    Returns:
        The score, without the metrics that have no finite value (word_perplexity of texts without spaces).
    """
    asked = [_instances(task, example, answers) for example, answers in zip(examples, replies, strict=True)]
    for ensemble in task._filters:
        ensemble.apply([instance for instances in asked for instance in instances])
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    kept: list[Mapping[str, Any]] = []
    for ensemble in task._filters:
        for instances in asked:
            filtered = [instance.filtered_resps[ensemble.name] for instance in instances]
            counted = task.process_results(instances[0].doc, filtered)
            for metric, value in counted.items():
                values[metric, ensemble.name].append(value)
            if samples:
                kept.append(_sample(task, instances, filtered, ensemble.name, counted))
    aggregations = task.aggregation()
    metrics, stderrs = {}, {}
    for (metric, ensemble_name), items in values.items():
        aggregate, key = aggregations.get(metric, mean), f"{metric},{ensemble_name}"
        value = finite_value(aggregate, items)
        if value is None:
            log.warning("%s of %s has no finite value here and is left out of the score.", key, task.config.task)
            continue
        metrics[key], stderrs[key] = value, standard_error(aggregate, items) if errors else None
    return Score(metrics=metrics, stderrs=stderrs, documents=len(asked), samples=tuple(kept))


def _instances(task: Task, example: Example, replies: Sequence[Reply]) -> list[Instance]:
    metadata = (task.task_name, example.row, task.config.repeats)
    instances = []
    for index, (request, reply) in enumerate(zip(example.requests, replies, strict=True)):
        instance = Instance(request.kind, dict(example.document), arguments_of(request), index, metadata)
        instance.resps.append(reply)
        instances.append(instance)
    return instances


def _sample(
    task: Task, instances: Sequence[Instance], filtered: Iterable[Reply], name: str, counted: Mapping[str, Any]
) -> dict[str, Any]:
    """Write one document's outcome as ``lm_eval.evaluate(log_samples=True)`` does."""
    doc, target = instances[0].doc, task.doc_to_target(instances[0].doc)
    text = json.dumps(doc, indent=2, default=lm_eval_utils.handle_non_serializable, ensure_ascii=False)
    return {
        "doc_id": instances[0].doc_id,
        "doc": doc,
        "target": target,
        "arguments": [instance.args for instance in instances],
        "resps": [instance.resps for instance in instances],
        "filtered_resps": list(filtered),
        "filter": name,
        "metrics": list(counted),
        "doc_hash": lm_eval_utils.hash_string(text),
        "prompt_hash": lm_eval_utils.hash_string(instances[0].arguments[0]),
        "target_hash": lm_eval_utils.hash_string(str(target)),
        **counted,
    }
