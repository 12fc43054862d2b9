"""lm_eval's task with its documents, and of a document its right answer, printed nulls, and file and line for messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lm_harmony.benchmarks.harness.patches import sandboxed_templates
from lm_harmony.benchmarks.local_data import line_of, read_splits
from lm_harmony.benchmarks.prompt import cut_think_part
from lm_harmony.benchmarks.row_files import local_row_files
from lm_harmony.benchmarks.types import Aliases, Example
from lm_harmony.errors import BenchmarkError
from lm_harmony.hub_connection import missing_hub

ROW_ERRORS = (jinja2.TemplateError, LookupError, TypeError, ValueError, AttributeError, AssertionError)
"""Errors of lm_eval and of a task's functions for a row that does not fit the task."""


class _Mark(str):
    """A text that is false in a condition, as a null is, so that a template takes the same branch for both."""

    def __bool__(self) -> bool:
        return False


_MARK = _Mark("\ue000\ue001")
"""Replaces a null to find where it is printed: two characters that occur in no text and have no upper or lower case."""


def right_answer(
    task: ConfigurableTask,
    document: Mapping[str, Any],
    instances: list[Instance],
    *,
    chat: bool,
    aliases: Aliases,
    think_end: str | None = None,
) -> tuple[str, str | None]:
    """Return the (context, continuation) of the right answer, as in the requests that score the document.

    The continuation is None where the label is not usable: it is not one of the choices, or an empty text where there are none.

    Args:
        task: the lm_eval task.
        document: the row.
        instances: the requests of the row, as lm_eval's instances.
        chat: whether the context is a rendered chat, after which an answer needs no delimiter.
        aliases: which of several right answers is returned.
        think_end: text that ends the think part of a generated answer, which is cut off; None: there is none.
    """
    kind = task.OUTPUT_TYPE
    if kind == "loglikelihood_rolling":
        return "", str(instances[0].args[0])
    if kind == "loglikelihood":
        context, answer = instances[0].args
        return context, answer if isinstance(answer, str) and answer.strip() else None
    if kind == "multiple_choice":
        index = right_choice(task, document, task.doc_to_choice(document))
        return ("", None) if index is None else (instances[index].args[0], instances[index].args[1])
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    context = instances[0].args[0]
    if task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(document)
        if not isinstance(gold, int) or not 0 <= gold < len(choices):
            return context, None
        gold = choices[gold]
    if isinstance(gold, list):
        gold = (" ".join(map(str, gold)) if aliases == "joined" else gold[0]) if gold else None
    gold = gold if gold is None else cut_think_part(str(gold), think_end)
    if gold is None or not gold.strip():
        return context, None
    # As lm_eval joins a few-shot answer: no delimiter after a chat, and no second space after a gen_prefix.
    prefix = task.doc_to_prefix(document)
    bare = prefix[-1].isspace() if prefix else chat
    return context, f"{'' if bare else task.config.target_delimiter}{gold}"


def right_choice(task: ConfigurableTask, document: Mapping[str, Any], choices: Sequence[str]) -> int | None:
    """Return the index of the right one of a document's choices; None: it has no usable answer."""
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    gold = gold[0] if isinstance(gold, list) and gold else gold
    index = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    return index if isinstance(index, int) and 0 <= index < len(choices) else None


Sources = Callable[[], Iterable[tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Example]]]]
"""Returns (row, function that renders it): the document, and the row before the task's processing, if there is one."""


def null_column(example: Example, sources: Sources) -> str | None:
    """Return the column whose null is printed as "None" in a request, or None.

    A template may test for a null and print nothing. So the document is rendered again with a mark in place of the null. The null
    is printed only where the two texts differ by exactly that.

    Args:
        example: a rendered document.
        sources: the rows that it is rendered from.
    """
    for column, marked in _marked_examples(example, sources):
        for ours, theirs in zip(example.requests, marked.requests, strict=False):
            answer = ours.kind == "loglikelihood"  # its continuation is a choice, or the right answer itself
            texts = [(ours.context, theirs.context)]
            if not answer or len(example.requests) > 1:
                texts.append((ours.continuation, theirs.continuation))
            if any(_prints(text, other) for text, other in texts):
                return column
    return None


def drop_null_answer(example: Example, sources: Sources) -> Example:
    """Return the example with continuation None if its answer is a printed null, because such a label is not usable."""
    for _, marked in _marked_examples(example, sources):
        only_null = (example.target.lower(), marked.target) == ("none", _MARK)
        if only_null or _prints(example.continuation or "", marked.continuation or ""):
            return replace(example, continuation=None)
    return example


def _prints(text: str | None, marked: str) -> bool:
    """Return whether ``text`` has "None" exactly where ``marked`` has the mark."""
    return _MARK in marked and marked.replace(_MARK, "None").lower() == str(text).lower()


def _marked_examples(example: Example, sources: Sources) -> Iterator[tuple[str, Example]]:
    """Yield (column, the example with that column's nulls replaced by marks), if its texts contain "None" at all."""
    texts = [example.continuation, example.target, *(text for pair in example.request_texts for text in pair)]
    if not any("none" in str(text).lower() for text in texts):
        return
    for row, render in sources():
        for column, value in row.items():
            filled = _with_marks(value)
            if filled != value:
                try:
                    marked = render({**row, column: filled})
                except Exception:  # noqa: BLE001 the task's code expects a number or a list here, so it does not print the value
                    continue
                yield column, marked


def _with_marks(value: Any) -> Any:
    """Return a value with every null in it replaced by the mark."""
    if isinstance(value, dict):
        return {key: _with_marks(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_marks(item) for item in value]
    return _MARK if value is None else value


Processing = Callable[[datasets.Dataset], datasets.Dataset]
"""The function of a task's ``process_docs``."""
MOST_TRIED = 300
"""Largest number of rows that are processed one by one to find the row on which a task's processing fails."""


def file_and_line(file: Path | None, row: int, *, moved: bool) -> str:
    """Return " (FILE line N)" of a document, " (FILE)" where the line is unknown, or "" where the rows are not local.

    Args:
        file: the split's JSONL file.
        row: the document's number in its split, from 0, after the task's processing.
        moved: whether the document may come from another row of the file, because the task's processing removed or added rows.
    """
    if file is None:
        return ""
    line = None if moved else line_of(file, row)
    return f" ({file} line {line})" if line is not None else f" ({file})"


def raw_row(rows: datasets.Dataset, row: int, document: Mapping[str, Any], processing: Processing) -> Mapping[str, Any] | None:
    """Return row ``row`` if a task's processing turns it into ``document``, else None."""
    if row >= len(rows):
        return None
    made = _processed(rows, row, processing)
    if isinstance(made, Exception) or len(made) != 1 or made[0] != document:
        return None
    found: Mapping[str, Any] = rows[row]
    return found


def unprocessable_row(file: Path | None, processing: Processing | None) -> str:
    """Return " (FILE line N)" of a row on which a task's processing fails, or " (FILE)". Rows with nulls are tried first."""
    if file is None:
        return ""
    if processing is not None:
        rows = read_splits({"rows": file})["rows"]
        nulls = [None in row.values() for row in rows]
        for row in sorted(range(len(rows)), key=lambda row: not nulls[row])[:MOST_TRIED]:
            if isinstance(_processed(rows, row, processing), Exception):
                return f" ({file} line {line_of(file, row)})"
    return f" ({file})"


def _processed(rows: datasets.Dataset, row: int, processing: Processing) -> datasets.Dataset | Exception:
    """Return the result of processing one row alone, or the error that this raises."""
    try:
        return processing(rows.select([row]))
    except Exception as error:  # noqa: BLE001 any error of the task's code is returned
        return error


def build_task(name: str, config: dict[str, Any], scored: Path | None) -> ConfigurableTask:
    """Load the rows and build lm_eval's task.

    Args:
        name: name of the task.
        config: its configuration.
        scored: local file of the scored split, for messages; None: there is none.

    Raises:
        BenchmarkError: the rows cannot be loaded, or do not fit the task.
    """
    if local_row_files(config) is None and "custom_dataset" not in config:
        missing_hub()  # without network, `datasets` would repeat each request for 23 seconds
    try:
        with sandboxed_templates():
            return ConfigurableTask(config=config)
    except BenchmarkError:
        raise
    except (ImportError, NotImplementedError) as error:  # a prompt with choices, or of promptsource
        if config.get("use_prompt") is None:
            raise
        prompt, reason = config["use_prompt"], ": ".join(str(one).strip() for one in error.args)
        remedy = "Write doc_to_text, doc_to_target and doc_to_choice into the task's YAML in its place."
        raise BenchmarkError(f"benchmark {name}: use_prompt = {prompt!r}: {reason}. {remedy}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = (missing_hub() if local_row_files(config) is None else None) or str(error).strip().split("\n")[0]
        raise BenchmarkError(
            f"benchmark {name}: data set {config.get('dataset_path')!r} cannot be loaded: {reason}. "
            f"Connect to the hub once, or give its rows with --data_dir DIR as DIR/{name}/train.jsonl ..."
        ) from error
    except ROW_ERRORS as error:
        if str(error) == "string index out of range":  # lm_eval reads the first letter of every choice of the first row
            where = file_and_line(scored, 0, moved=config.get("process_docs") is not None)
            raise BenchmarkError(
                f"benchmark {name}, first test row{where}: doc_to_choice gives an empty choice. Give every choice a text."
            ) from error
        where = unprocessable_row(scored, config.get("process_docs"))
        raise BenchmarkError(
            f"benchmark {name}, test rows{where}: {error}. Correct the rows to the columns and types of the task."
        ) from error
