"""Checks the content of a group's YAML file before lm_eval is loaded, so that a wrong key or value is refused within a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.task_index import lm_eval_tasks_folder
from lm_harmony.errors import BenchmarkError, did_you_mean

GROUP_FIELDS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""Fields of a group's file that describe the group. All others replace fields of its tasks."""
TASK_FIELDS = (
    *("task", "task_alias", "tag", "custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs", "training_split"),
    *("validation_split", "test_split", "fewshot_split", "process_docs", "doc_to_text", "doc_to_target", "doc_to_image"),
    *("doc_to_audio", "unsafe_code", "doc_to_choice", "process_results", "use_prompt", "description", "target_delimiter"),
    *("fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats"),
    *("filter_list", "should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata"),
)
"""Fields of a task, as in lm_eval's ``TaskConfig``."""
AGGREGATE_FIELDS = ("metric", "aggregation", "weight_by_size", "filter_list")
"""Keys of an entry of ``aggregate_metric_list``, as in lm_eval's ``AggMetricConfig``."""


def is_group(file: Path, values: Mapping[str, Any]) -> bool:
    """Return whether a YAML file with these values defines a group of tasks, and not one task.

    Raises:
        BenchmarkError: it lists several tasks without a name for the group.
    """
    if isinstance(values.get("task"), str) and "aggregate_metric_list" not in values:
        return False  # a task of the past may name the group that it belongs to
    if "group" not in values and ("aggregate_metric_list" in values or isinstance(values.get("task"), list)):
        raise BenchmarkError(
            f"{file} has no key group, but what a group of tasks has (a list under task, or aggregate_metric_list). Add "
            f"group: NAME, task: [NAME, ...] and aggregate_metric_list: [{{metric: acc}}], or give the file of one task."
        )
    return "group" in values


def check_group(name: str, file: Path, values: Mapping[str, Any]) -> None:
    """Check what a file says of a group, with its entries of ``task``.

    Raises:
        BenchmarkError: a key is unknown, or a value breaks a rule. The message names the file, the key and the rule.
    """
    if not _is_text(values.get("group")):
        raise BenchmarkError(
            f"{file}: group must be a text that is not empty, got {_shown(values.get('group'))}. Write group: NAME."
        )
    place = f"group {name}: {file}"
    _check_keys(place, "", values, (*GROUP_FIELDS, *TASK_FIELDS))
    alias, metadata, tasks = values.get("group_alias"), values.get("metadata"), values.get("task")
    if alias is not None and not _is_text(alias):
        raise _refused(place, "group_alias", "a text that is not empty", alias, "Write group_alias: TITLE, or remove it")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise _refused(place, "metadata", "a mapping", metadata, "Write metadata: {version: 1.0}, or remove it")
    if not isinstance(tasks, list) or not tasks:
        raise _refused(place, "task", "a list of names that is not empty", tasks, "Write task: [NAME, NAME]")
    _check_tasks(place, tasks, repeats=file.is_relative_to(lm_eval_tasks_folder()))
    metrics = values.get("aggregate_metric_list")
    if metrics is not None:
        example = "Write aggregate_metric_list: [{metric: acc}]"
        entries = [metrics] if isinstance(metrics, Mapping) else metrics  # lm_eval takes one mapping, too
        if not isinstance(entries, list):
            raise _refused(place, "aggregate_metric_list", "a list of mappings", metrics, example)
        for number, entry in enumerate(entries):
            key = f"aggregate_metric_list[{number}]"
            if not isinstance(entry, Mapping):
                raise _refused(place, key, "a mapping with the key metric", entry, example)
            _check_metric(place, key, entry)


def _check_tasks(place: str, tasks: Sequence[Any], *, repeats: bool) -> None:
    """Check the entries of ``task``; ``repeats``: one may be given twice, as in a group that lm_eval ships."""
    seen: dict[str, int] = {}
    for number, entry in enumerate(tasks):
        key = f"task[{number}]"
        given = {"task": entry} if isinstance(entry, str) else entry
        if not isinstance(given, Mapping) or not _is_text(given.get("group", given.get("task"))):
            rule = "the name of a task, a group or a tag, or a mapping with such a name"
            raise _refused(place, key, rule, entry, "Write NAME, or {task: NAME, task_alias: TITLE}")
        _check_keys(place, key, given, (*GROUP_FIELDS, *TASK_FIELDS) if "group" in given else TASK_FIELDS)
        name = str(given.get("group", given.get("task")))
        if name in seen and not repeats:
            raise BenchmarkError(f"{place}: {key} = {name} is listed already as task[{seen[name]}]. Remove one of them.")
        seen[name] = number


def _check_metric(place: str, key: str, entry: Mapping[str, Any]) -> None:
    """Check an entry of ``aggregate_metric_list``."""
    _check_keys(place, key, entry, AGGREGATE_FIELDS)
    metric, filters = entry.get("metric"), entry.get("filter_list")
    if not _is_text(metric):
        raise _refused(place, f"{key}.metric", "the name of a metric", metric, "Write metric: acc")
    if "," in str(metric):
        remedy = f"Write metric: {str(metric).partition(',')[0]}, and the filter as filter_list"
        raise _refused(place, f"{key}.metric", "the name of a metric without a filter", metric, remedy)
    if entry.get("aggregation", "mean") != "mean":
        raise _refused(
            place, f"{key}.aggregation", "mean, the only one of lm_eval", entry["aggregation"], "Write mean, or remove it"
        )
    if not isinstance(entry.get("weight_by_size", True), bool):
        raise _refused(place, f"{key}.weight_by_size", "true or false", entry["weight_by_size"], "Write it without quotes")
    names = filters if isinstance(filters, list) and filters else [filters]
    if filters is not None and not all(map(_is_text, names)):
        rule = "the name of a filter, or a list of such names"
        raise _refused(place, f"{key}.filter_list", rule, filters, "Write filter_list: none, or remove it for all filters")


def _check_keys(place: str, key: str, values: Mapping[Any, Any], known: Sequence[str]) -> None:
    """Check the keys of a mapping, which is the value of ``key``; "": the file itself."""
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        shown = (
            known if known is AGGREGATE_FIELDS else [one for one in GROUP_FIELDS if one in known] + ["fields of an lm_eval task"]
        )
        raise BenchmarkError(
            f"{place}: {key or 'the file'} has an unknown key {unknown!r}.{did_you_mean(str(unknown), known)} "
            f"Known are {', '.join(shown)}. Correct or remove it."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refused(place: str, key: str, rule: str, value: Any, remedy: str) -> BenchmarkError:
    return BenchmarkError(f"{place}: {key} must be {rule}, got {_shown(value)}. {remedy}.")
