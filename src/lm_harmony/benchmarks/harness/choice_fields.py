"""The question, the choices and the right answer of a multiple-choice task's documents: read from them, and written as new ones.

A task's templates say how a document becomes text, not which columns are the question and the choices. Columns are found by names
that lm_eval tasks use, or as the task's file names them (``metadata: {choice_fields: ...}``). How an answer is written is learned
from documents whose right choice lm_eval knows. ``ChoiceFields.check`` proves it: scored documents must give the same requests.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_harmony.benchmarks.choice_questions import ChoiceQuestion
from lm_harmony.benchmarks.harness.documents import right_choice
from lm_harmony.benchmarks.harness.question_columns import (
    QUESTIONS,
    declared_columns,
    plain_words,
    refused,
    templates_of,
    value_at,
)
from lm_harmony.benchmarks.harness.task import HarnessTask
from lm_harmony.benchmarks.types import ChatTemplate, Example
from lm_harmony.errors import BenchmarkError

Columns = str | tuple[str, ...]
"""Column with all choices ("choices", or "choices.text" of a column that is a mapping), or one column for each choice."""
_CONTEXTS = ("context", "support", "narrative", "passage", "article")
_CHOICES: tuple[Columns, ...] = (
    *("choices", "choices.text", "options", "endings", "mc1_targets.choices"),
    ("choice1", "choice2", "choice3", "choice4"),
    ("opa", "opb", "opc", "opd"),
    ("sol1", "sol2"),
    ("answerA", "answerB", "answerC"),
    ("distractor1", "distractor2", "distractor3", "correct_answer"),
    ("A", "B", "C", "D"),
    ("option_a", "option_b", "option_c", "option_d"),
)
_ANSWERS = ("answer", "answerKey", "label", "gold", "cop", "correct", "answer_index", "answer_idx", "answer_choice", "Answer")
_LETTERS = string.ascii_uppercase
_WRITTEN: Mapping[str, Callable[[int, Sequence[str]], Any]] = {
    "letter": lambda right, choices: _LETTERS[right],
    "index": lambda right, choices: right,
    "index as text": lambda right, choices: str(right),
    "number": lambda right, choices: right + 1,
    "number as text": lambda right, choices: str(right + 1),
    "small letter": lambda right, choices: _LETTERS[right].lower(),
    "letter in brackets": lambda right, choices: f"({_LETTERS[right]})",
    "text of the choice": lambda right, choices: choices[right],
}
"""Ways in which a column holds the right answer -> its value for (index of the right choice, choices)."""
_WAYS = ("label", *_WRITTEN)
"""All ways. label: the label of the right choice, in a column that has labels beside the choices."""
_SAMPLE = 100
"""Number of documents that are searched for the columns which stand in the text."""


@dataclass(frozen=True, kw_only=True)
class ChoiceFields:
    """The columns of a task's documents that hold the fields of a multiple-choice question."""

    task: HarnessTask
    """The task that the documents belong to."""
    question: str
    """Column of the question."""
    context: str | None
    """Column of the text that the question is about; None: there is none."""
    choices: Columns | None
    """Column or columns of the choices; None: the task computes them, so they can be read but not written."""
    answers: Mapping[str, str]
    """Columns of the right answer -> way in which they hold it, a key of the table above or "label"."""
    position: int | None
    """Index of the right choice if it is the same in all documents; None: it is not."""
    as_text: bool = False
    """Whether the column of the choices is a text with a Python list."""

    @classmethod
    def find(cls, task: HarnessTask, documents: Sequence[Mapping[str, Any]]) -> ChoiceFields:
        """Return the fields of a task.

        Args:
            task: a multiple-choice task.
            documents: some of its documents, at least one.

        Raises:
            BenchmarkError: the task has no question or no choices, or its file names a column that does not exist.
        """
        if task.output_type != "multiple_choice" or task.lm_eval_task.multiple_input:
            raise refused(task, f"it is no multiple-choice question with one text (output_type: {task.output_type})")
        declared, first, text_of = declared_columns(task, documents[0]), documents[0], task.lm_eval_task.doc_to_text
        with templates_of(task):
            texts = [(one, plain_words(str(text_of(one)))) for one in documents[:_SAMPLE]]
            filled = {name: str(text_of({**first, name: "(x)"})) for name in _CONTEXTS if first.get(name) == ""}

        def is_used(column: str) -> bool:  # its text stands in the text of a document
            return any(plain_words(str(one[column] or "")) in text for one, text in texts if column in one)

        question = declared.get("question") or next((name for name in QUESTIONS if is_used(name)), None)
        if question is None:
            raise refused(task, f"none of its columns ({', '.join(first)}) is known as the question")
        used = [*filter(is_used, _CONTEXTS), *(name for name, text in filled.items() if "(x)" in text)]  # printed, but empty here
        context = declared.get("context") or next((name for name in used if name != question), None)
        choices = declared.get("choices") or next((one for one in _CHOICES if choices_in(first, one) is not None), None)
        as_text = isinstance(choices, str) and isinstance(value_at(first, choices), str)
        found = cls(task=task, question=question, context=context, choices=choices, answers={}, position=None, as_text=as_text)
        read = [(one, asked) for one in documents if (asked := found.read(one)) is not None]
        candidates = [declared["answer"]] if "answer" in declared else [name for name in _ANSWERS if name in first]
        answers = {column: way for column in candidates if read and (way := found._way(column, read)) is not None}
        rights = {asked.right for _, asked in read}
        return replace(found, answers=answers, position=rights.pop() if len(rights) == 1 else None)

    def _way(self, column: str, read: Sequence[tuple[Mapping[str, Any], ChoiceQuestion]]) -> str | None:
        """Return the way in which a column holds the right answer of all documents; None: it does not."""
        return next((way for way in _WAYS if all(self._holds(one, column, way, asked) for one, asked in read)), None)

    def _holds(self, document: Mapping[str, Any], column: str, way: str, asked: ChoiceQuestion) -> bool:
        labels = value_at(document, f"{str(self.choices).partition('.')[0]}.label")
        label = labels[asked.right] if labels else None
        expected = label if way == "label" else _WRITTEN[way](asked.right, asked.choices)
        return type(document.get(column)) is type(expected) and document.get(column) == expected

    def read(self, document: Mapping[str, Any]) -> ChoiceQuestion | None:
        """Return the question of a document; None if a field is no text, or there is no usable answer."""
        question, context = document.get(self.question), document.get(str(self.context))
        with templates_of(self.task):
            named = self.task.lm_eval_task.doc_to_choice(document)
            right = right_choice(self.task.lm_eval_task, document, named)
        choices = named if self.choices is None else choices_in(document, self.choices) or []
        texts = all(isinstance(choice, str) for choice in choices)
        if right is None or not isinstance(question, str) or not texts or not right < len(choices) <= len(_LETTERS):
            return None
        return ChoiceQuestion(context=str(context or ""), question=question, choices=tuple(choices), right=right)

    def write(self, asked: ChoiceQuestion) -> dict[str, Any]:
        """Return the document of a question. A context that the task has no column for stands in front of the question."""
        assert self.choices is not None
        in_question = self.context is None and asked.context
        document: dict[str, Any] = {self.question: f"{asked.context}\n{asked.question}" if in_question else asked.question}
        if self.context is not None:
            document[self.context] = asked.context
        choices, right = list(asked.choices), asked.right
        if not self.answers and self.position is not None:
            choices.insert(self.position, choices.pop(right))
        if isinstance(self.choices, tuple):
            document |= dict(zip(self.choices, choices, strict=True))
        else:
            column, _, inner = self.choices.partition(".")
            labels = {"label": list(_LETTERS[: len(choices)])}
            document[column] = {inner: choices, **labels} if inner else repr(choices) if self.as_text else choices
        for column, way in self.answers.items():
            document[column] = _LETTERS[right] if way == "label" else _WRITTEN[way](right, choices)
        return document

    def check(self, scored: Sequence[Example], chat: ChatTemplate | None) -> tuple[ChoiceQuestion, ...]:
        """Check that the scored documents, read and written again, give the same text; return their questions.

        Raises:
            BenchmarkError: a field cannot be written, or a text differs.
        """
        for field, known in (("choices", self.choices is not None), ("answer", self.answers or self.position is not None)):
            if not known:
                raise refused(self.task, f"none of its columns ({', '.join(scored[0].document)}) is known as the {field}")
        found = []
        for example in scored:
            asked = self.read(example.document)
            if asked is None:
                raise refused(self.task, f"{example.location} has no text as its question or as one of its choices")
            again = self.render(asked, example.row, chat, place=f"{example.location}, written again")
            if (again.request_texts, again.continuation) != (example.request_texts, example.continuation):
                raise refused(self.task, f"{example.location}, read and written again, gives another text")
            found.append(asked)
        return tuple(found)

    def render(self, asked: ChoiceQuestion, row: int, chat: ChatTemplate | None, *, place: str) -> Example:
        """Return a question as an example of the task.

        Args:
            asked: the question.
            row: number of the row that it comes from.
            chat: the model's chat template, or None.
            place: where that row stands, for messages.

        Raises:
            BenchmarkError: the task's templates use a column that is no field of a question.
        """
        try:
            return replace(self.task.example(row, self.write(asked), chat=chat, aliases="first"), location=place)
        except BenchmarkError as error:
            cause = str(error).partition(": ")[2].partition(" (columns")[0]
            raise refused(self.task, f"{place}: its text needs other columns than these fields: {cause}") from error


def choices_in(document: Mapping[str, Any], columns: Columns) -> list[Any] | None:
    """Return the choices of a document, or None if the columns hold none."""
    if isinstance(columns, tuple):
        return [document[name] for name in columns] if all(name in document for name in columns) else None
    value = value_at(document, columns)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return None
    return list(value) if isinstance(value, list | tuple) else None
