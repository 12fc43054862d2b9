"""How a task's answers are counted, as plain values: metrics with direction and aggregation, filters; and the rows' commit."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import datasets
from lm_eval.api.task import Task

from lm_harmony.benchmarks.examples import Example, Reply, RequestKind
from lm_harmony.benchmarks.harness.own_functions import LOADED_FROM
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
