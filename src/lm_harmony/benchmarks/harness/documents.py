"""The right answer of a document, taken from the requests that scoring sends; and nulls that would be read as "None".

Where a document of local rows stands, for messages: its file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lm_harmony.benchmarks.local_data import line_of, read_splits
from lm_harmony.benchmarks.types import Example


class _Mark(str):
    """A text that is false as a null is, so that a template which asks whether there is a value goes the same way."""

    def __bool__(self) -> bool:
        return False


_MARK = _Mark("\ue000\ue001")
"""Stands for a null to see where it is printed: two characters that no text holds and that no case changes."""


def right_answer(
    task: ConfigurableTask, document: Mapping[str, Any], instances: list[Instance], *, chat: bool, aliases: str
) -> tuple[str, str | None]:
    """Return the (context, continuation) of the right answer; the continuation is None where the label is not usable.

    A label is usable if it is one of the choices, or else a text that is not empty.

    Args:
        task: the lm_eval task.
        document: the row.
        instances: its requests, in lm_eval's form.
        chat: whether the context is a rendered chat, behind which an answer needs no delimiter.
        aliases: of several right answers, learn the "first" or all "joined" by spaces (as published).
    """
    kind = task.OUTPUT_TYPE
    if kind == "loglikelihood_rolling":
        return "", str(instances[0].args[0])
    if kind == "loglikelihood":
        context, answer = instances[0].args
        return context, answer if isinstance(answer, str) and answer.strip() else None
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if kind == "multiple_choice":
        choices = task.doc_to_choice(document)
        gold = gold[0] if isinstance(gold, list) and gold else gold
        index = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
        if not isinstance(index, int) or not 0 <= index < len(choices):
            return "", None
        return instances[index].args[0], instances[index].args[1]
    context = instances[0].args[0]
    if task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(document)
        if not isinstance(gold, int) or not 0 <= gold < len(choices):
            return context, None
        gold = choices[gold]
    if isinstance(gold, list):
        gold = (" ".join(map(str, gold)) if aliases == "joined" else gold[0]) if gold else None
    if gold is None or not str(gold).strip():
        return context, None
    # As lm_eval joins a few-shot answer: a chat's reply begins without delimiter, a begun answer gets no second space.
    prefix = task.doc_to_prefix(document)
    bare = prefix[-1].isspace() if prefix else chat
    return context, f"{'' if bare else task.config.target_delimiter}{gold}"


Sources = Callable[[], Iterable[tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Example]]]]
"""The document and what renders it; and, where the task processes its rows first, the row and what processes and renders it."""


def printed_null(example: Example, sources: Sources) -> str | None:
    """Return the column whose null the question prints as "None", or None.

    A template may ask whether there is a value and print nothing: so the document is rendered a second time with a mark in the
    place of the null, and the null is printed only where the two texts differ by exactly that.

    Args:
        example: a rendered document.
        sources: what it is rendered from.
    """
    for column, marked in _marked(example, sources):
        for ours, theirs in zip(example.requests, marked.requests, strict=False):
            answer = ours.kind == "loglikelihood"  # there the continuation is a choice, or the answer itself
            texts = [(ours.context, theirs.context)]
            if not answer or len(example.requests) > 1:
                texts.append((ours.continuation, theirs.continuation))
            if any(_prints(text, other) for text, other in texts):
                return column
    return None


def without_null_answer(example: Example, sources: Sources) -> Example:
    """Return the example without its answer if that prints a null: such a row has no usable label."""
    for _, marked in _marked(example, sources):
        whole = (example.target.lower(), marked.target) == ("none", _MARK)
        if whole or _prints(example.continuation or "", marked.continuation or ""):
            return replace(example, continuation=None)
    return example


def _prints(text: str | None, marked: str) -> bool:
    return _MARK in marked and marked.replace(_MARK, "None").lower() == str(text).lower()


def _marked(example: Example, sources: Sources) -> Iterator[tuple[str, Example]]:
    """Yield (column, the example with marks in the place of that column's nulls), if "None" stands in its texts at all."""
    texts = [example.continuation, example.target, *(text for pair in example.request_texts for text in pair)]
    if not any("none" in str(text).lower() for text in texts):
        return
    for row, render in sources():
        for column, value in row.items():
            filled = _filled(value)
            if filled != value:
                try:
                    marked = render({**row, column: filled})
                except Exception:  # noqa: BLE001 a mark where a number or a list belongs, in the task's own code: not printed
                    continue
                yield column, marked


def _filled(value: Any) -> Any:
    """Put the mark in the place of every null inside a value."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item) for item in value]
    return _MARK if value is None else value


Processing = Callable[[datasets.Dataset], datasets.Dataset]
"""A task's own ``process_docs``."""
TRIED = 300
"""Rows that are tried one by one to find the one that a task's processing cannot take."""


def place_of(file: Path | None, row: int, *, moved: bool) -> str:
    """Return " (FILE line N)" of a document, " (FILE)" where the line is not known, "" where the rows are not local.

    Args:
        file: the split's JSONL file.
        row: the document's number in its split, from 0, after the task's processing.
        moved: whether the task's processing may have made this document of another row of the file.
    """
    if file is None:
        return ""
    line = None if moved else line_of(file, row)
    return f" ({file} line {line})" if line is not None else f" ({file})"


def unprocessed(
    rows: datasets.Dataset, row: int, document: Mapping[str, Any], processing: Processing
) -> Mapping[str, Any] | None:
    """Return the row that a task's processing makes ``document`` of, or None where row ``row`` is another one."""
    if row >= len(rows):
        return None
    made = _processed(rows, row, processing)
    if isinstance(made, Exception) or len(made) != 1 or made[0] != document:
        return None
    found: Mapping[str, Any] = rows[row]
    return found


def misfit_place(file: Path | None, processing: Processing | None) -> str:
    """Return " (FILE line N)" of the first row that a task's processing cannot take, rows that hold a null before others."""
    if file is None:
        return ""
    if processing is not None:
        rows = read_splits({"rows": file})["rows"]
        nulls = [None in row.values() for row in rows]
        for row in sorted(range(len(rows)), key=lambda row: not nulls[row])[:TRIED]:
            if isinstance(_processed(rows, row, processing), Exception):
                return f" ({file} line {line_of(file, row)})"
    return f" ({file})"


def _processed(rows: datasets.Dataset, row: int, processing: Processing) -> datasets.Dataset | Exception:
    try:
        return processing(rows.select([row]))
    except Exception as error:  # noqa: BLE001 whatever the task's code raises is the answer
        return error
