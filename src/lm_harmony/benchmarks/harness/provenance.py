"""What a run records of its task besides scores: scoring rules, the data set's commit, and lm_eval's own metadata of a run."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import datasets
from lm_eval.api.task import Task
from lm_eval.evaluator_utils import EvalAcc, aggregate_groups
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.utils import hash_string

from lm_harmony.benchmarks.harness.group import Benchmark, HarnessGroup, no_group_warnings
from lm_harmony.benchmarks.harness.patches import LOADED_FROM
from lm_harmony.benchmarks.harness.scoring import lm_eval_row
from lm_harmony.benchmarks.harness.task import HarnessTask
from lm_harmony.benchmarks.types import Example, MetricKey, Reply, RequestKind, Score

PLACEHOLDERS: Mapping[RequestKind, Reply] = {
    "loglikelihood": (0.0, False),
    "loglikelihood_rolling": 0.0,
    "generate_until": "",
}
"""Kind of a request -> a reply that shows only whether replies can be scored."""
_COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


def scoring_rules(benchmark: Benchmark) -> dict[str, Any]:
    """Return how replies become a score, as plain JSON: the filters, and each metric's functions, arguments and direction.

    A function is identified by its name. A function outside lm_eval is identified by a digest of its source as well. For a group
    it is how the scores of its tasks become one, and the rules of each task.
    """
    if isinstance(benchmark, HarnessGroup):
        rules = {task.name: _rules_of(task) for task in benchmark.subtasks}
        return {"group": _plain(benchmark.lm_eval_group.to_dict()), "subtasks": rules}
    return _rules_of(benchmark)


def _rules_of(task: HarnessTask) -> dict[str, Any]:
    built: Task = task.lm_eval_task
    higher, aggregations = built.higher_is_better(), built.aggregation()
    functions: Mapping[str, Any] = getattr(built, "_metric_fn_list", {})
    arguments: Mapping[str, Any] = getattr(built, "_metric_fn_kwargs", {})
    metrics = {
        name: {
            "function": _plain(functions.get(name)),
            "arguments": _plain(arguments.get(name)),
            "aggregation": _plain(aggregations.get(name)),
            "higher_is_better": higher.get(name),
        }
        for name in sorted({*higher, *aggregations, *functions})
    }
    return {
        "output_type": task.output_type,
        "metrics": metrics,
        "filters": {ensemble.name: _plain(ensemble.filters) for ensemble in built._filters},
        "process_results": _plain(getattr(built.config, "process_results", None)),
    }


def score_placeholder_replies(benchmark: Benchmark, examples: Sequence[Example]) -> None:
    """Score placeholder replies to the first example of each task, so that files which only scoring opens are opened now.

    The score is dropped. Warnings and errors are dropped too, because functions of a task may not accept a placeholder.
    """
    for example in {one.subtask: one for one in reversed(examples)}.values():
        replies = [PLACEHOLDERS[request.kind] for request in example.requests]
        with _quiet(), suppress(Exception):
            benchmark.score([example], [replies], errors=False, samples=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop warnings inside the block, and restore Python's random state after it."""
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
    """Return the commit of the hub data set that a task's rows were loaded from, or None where it is not known."""
    loaded = task.lm_eval_task.dataset
    rows = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
    for split in rows:
        if not isinstance(split, datasets.Dataset):
            continue
        # `datasets` names the folder of its cache after the commit.
        for file in getattr(split, LOADED_FROM, [cached["filename"] for cached in split.cache_files]):
            found = _COMMIT.search(str(file))
            if found:
                return found[0]
    return None


def _plain(value: Any) -> Any:
    """Return a value as plain JSON: functions by name and, outside lm_eval, by a digest of their source."""
    if isinstance(value, functools.partial):
        return {"function": _plain(value.func), "arguments": _plain([*value.args, value.keywords])}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if not callable(value):
        inner = (
            sorted(map(str, value)) if isinstance(value, (set, frozenset)) else vars(value) if hasattr(value, "__dict__") else ""
        )
        return {type(value).__qualname__: _plain(inner)}
    module, name = str(getattr(value, "__module__", "")), getattr(value, "__qualname__", type(value).__qualname__)
    if module.split(".")[0] == "lm_eval" and not module.startswith("lm_eval.tasks."):
        return f"{module}.{name}"
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        return name
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


def lm_eval_results(benchmark: Benchmark, score: Score) -> dict[str, Any]:
    """Return a zero-shot score as the parts of lm_eval's results that tell of tasks and groups.

    These are results, configs, versions, n-shot, higher_is_better and n-samples, and of a group groups and group_subtasks. The
    groups in a group have their scores too.
    """
    group = benchmark.lm_eval_group if isinstance(benchmark, HarnessGroup) else None
    groups = [] if group is None else [group, *group.get_all_groups()]
    found = EvalAcc(groups={one.name: one for one in groups})
    for task in benchmark.subtasks:
        described, name = task.lm_eval_config(), task.name
        config, part = described["config"], score.subtasks.get(name, score)
        found.metrics[name] = lm_eval_row(name, config.get("task_alias") or name, part)
        found.configs[name], found.versions[name], found.num_fewshot[name] = config, described["version"], 0
        higher = {MetricKey.parse(key).metric: better for key, better in task.metrics.items()}
        found.higher_is_better[name] = higher
        found.n_samples[name] = {"original": described["rows"], "effective": part.documents}
    with no_group_warnings():
        return dict(aggregate_groups(found)._to_eval_results())


def experiment_of(
    model_args: Mapping[str, Any], *, chat_template: str | None, system_instruction: str | None = None
) -> dict[str, Any]:
    """Return what lm_eval writes of an experiment: model_name (the adapter's, if there is one), chat_template_sha and others.

    Args:
        model_args: the arguments that ``lm_eval --model hf --model_args`` would get.
        chat_template: the template that rendered the requests; None: plain text.
        system_instruction: text before every question; None: there is none.
    """
    tracker = GeneralConfigTracker()
    tracker.log_experiment_args(
        model_source="hf",
        model_args=dict(model_args),
        system_instruction=system_instruction,
        chat_template=chat_template,
        fewshot_as_multiturn=False,
    )
    return asdict(tracker)


def hash_of_samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return one hash of all documents, prompts and targets, as ``EvaluationTracker.save_results_aggregated`` computes it."""
    return str(hash_string("".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)))
