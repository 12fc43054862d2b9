"""The question and the free answer of documents whose answers are generated: read from them, and written as new ones.

A free answer is read as a question with one choice, which is right. So rows are compared with the test rows, written and counted
by the same functions as multiple-choice questions (``choice_fields``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_harmony.benchmarks.choice_questions import ChoiceQuestion
from lm_harmony.benchmarks.harness.choice_fields import ChoiceFields
from lm_harmony.benchmarks.harness.question_columns import QUESTIONS, declared_columns, plain_words, refused, templates_of
from lm_harmony.benchmarks.harness.task import HarnessTask

_QUESTIONS = (*QUESTIONS, "input", "prompt", "instruction")
_ANSWERS = ("answer", "answers", "target", "targets", "output", "solution", "Answer", "gold", "label")
_SAMPLE = 100
"""Number of documents that are searched for the column which stands in the text."""


class AnswerFields(ChoiceFields):
    """The columns of a task's documents that hold a question and its free answer."""

    @classmethod
    def find(cls, task: HarnessTask, documents: Sequence[Mapping[str, Any]]) -> AnswerFields:
        """Return the fields of a task whose answers are generated; arguments and errors are those of ``ChoiceFields.find``."""
        declared, first = declared_columns(task, documents[0]), documents[0]
        with templates_of(task):
            texts = [(one, plain_words(str(task.lm_eval_task.doc_to_text(one)))) for one in documents[:_SAMPLE]]
        used = (name for name in _QUESTIONS if name in first and all(plain_words(str(one[name])) in text for one, text in texts))
        question = declared.get("question") or next(used, None)
        if question is None:
            raise refused(task, f"none of its columns ({', '.join(first)}) is known as the question")
        found = cls(task=task, question=question, context=declared.get("context"), choices=(), answers={}, position=None)
        read = [(one, asked.choices[0]) for one in documents if (asked := found.read(one)) is not None]
        candidates = [declared["answer"]] if "answer" in declared else [name for name in _ANSWERS if name in first]
        ways = {name: {_way(one[name], text) for one, text in read} for name in candidates}
        known = {name: str(way.pop()) for name, way in ways.items() if len(way) == 1 and None not in way}
        return cls(task=task, question=question, context=found.context, choices=(), answers=known, position=None)

    def read(self, document: Mapping[str, Any]) -> ChoiceQuestion | None:
        """Return the question of a document with its first right answer as the only choice; None if one of them is no text."""
        with templates_of(self.task):
            gold = self.task.lm_eval_task.doc_to_target(document)
        gold = gold[0] if isinstance(gold, list) and gold else gold
        question, context = document.get(self.question), document.get(str(self.context))
        if not isinstance(question, str) or not isinstance(gold, str):
            return None
        return ChoiceQuestion(context=str(context or ""), question=question, choices=(gold,), right=0)

    def write(self, asked: ChoiceQuestion) -> dict[str, Any]:
        """Return the document of a question. A context that the task has no column for stands in front of the question."""
        answer = asked.choices[asked.right]
        in_question = self.context is None and asked.context
        document: dict[str, Any] = {self.question: f"{asked.context}\n{asked.question}" if in_question else asked.question}
        if self.context is not None:
            document[self.context] = asked.context
        return document | {name: [answer] if way == "list" else answer for name, way in self.answers.items()}


def _way(value: Any, answer: str) -> str | None:
    """Return how a column holds an answer: as a text, as the first of a list, or None for neither."""
    if isinstance(value, list):
        return "list" if value and value[0] == answer else None
    return "text" if value == answer else None


def question_fields(task: HarnessTask, documents: Sequence[Mapping[str, Any]]) -> ChoiceFields:
    """Return the fields of a task's documents: of a question with choices, or with a free answer if answers are generated.

    Raises:
        BenchmarkError: as ``ChoiceFields.find``.
    """
    kind = AnswerFields if task.output_type == "generate_until" else ChoiceFields
    return kind.find(task, documents)
