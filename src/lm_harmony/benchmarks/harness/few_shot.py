"""Requests of a direct score with examples before each question (few-shot), as lm_eval builds them with ``num_fewshot``.

The examples are drawn by lm_eval's sampler of the task, row after row of the scored split, from the rows that the task names for
them (``fewshot_split``, ``fewshot_config``) or from its training split. lm_eval takes rows of the scored split where a task names
that one. Here the training split takes its place, and an example with the question of the tested row is replaced by another.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lm_eval.api.samplers import ContextSampler, get_sampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import FewshotConfig

from lm_harmony.benchmarks.harness.documents import ROW_ERRORS, right_choice
from lm_harmony.benchmarks.harness.group import Benchmark
from lm_harmony.benchmarks.harness.patches import sandboxed_templates
from lm_harmony.benchmarks.harness.scoring import request_of
from lm_harmony.benchmarks.harness.task import HarnessTask
from lm_harmony.benchmarks.types import ChatTemplate, Example, Shots
from lm_harmony.errors import BenchmarkError
from lm_harmony.progress import track

log = logging.getLogger(__name__)

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DirectRows:
    """The scored rows of a direct score."""

    examples: Sequence[Example] = field(repr=False)
    """Scored rows, whose requests have the examples before the question."""
    split: str | None = None
    """Split of the data set that the examples are from; None: there are none, or the task's file holds them."""
    replaced: int = 0
    """Number of scored rows for which an example with the same question, or without a usable answer, was replaced."""


def direct_rows(
    benchmark: Benchmark, test: Sequence[Example], asked: Sequence[Shots], *, seed: int, chat: ChatTemplate | None
) -> dict[int, DirectRows]:
    """Return the scored rows of each requested direct score, by the number of examples before a question.

    Args:
        benchmark: the benchmark; in a group, the examples of each row are of the same task.
        test: the scored rows without examples, which are the result for 0 examples.
        asked: numbers of examples, or "task" for the task's own number.
        seed: seed of lm_eval's sampler (its ``fewshot_random_seed``).
        chat: the model's chat template, or None. It renders each example as a turn of its own (``fewshot_as_multiturn``).

    Raises:
        BenchmarkError: there are too few rows for examples, one does not fit, or tasks of a group ask for different numbers.
    """
    numbers = {int(task.few_shot_fields.get("num_fewshot") or 0) for task in benchmark.subtasks}
    own, rows = max(numbers), dict[int, DirectRows]()
    if len(numbers) > 1 and "task" in asked:
        raise BenchmarkError(f"direct_fewshot = task: group {benchmark.name} has tasks with different numbers. Give a number.")
    if asked and own and not {own, "task"} & set(asked):
        log.info(
            "%s: its task file asks for %d examples before each question (num_fewshot). They are left out here; "
            "--direct_fewshot task scores the untouched model with them.",
            *(benchmark.name, own),
        )
    for shots in dict.fromkeys(own if given == "task" else given for given in asked):
        if shots and all(task.output_type == "loglikelihood_rolling" for task in benchmark.subtasks):
            log.info("%s: it has no questions to give examples for, so its direct score has none.", benchmark.name)
            shots = 0
        rows[shots] = _drawn_rows(benchmark, test, shots, seed, chat) if shots else DirectRows(examples=test)
    return rows


def _drawn_rows(benchmark: Benchmark, test: Sequence[Example], shots: int, seed: int, chat: ChatTemplate | None) -> DirectRows:
    scored = {task: [example for example in test if example.subtask == task.subtask] for task in benchmark.subtasks}
    parts = [_Drawing(task, shots, seed, chat).rows(rows) for task, rows in scored.items()]
    splits = sorted({rows.split for rows in parts if rows.split is not None})
    examples = tuple(example for rows in parts for example in rows.examples)
    return DirectRows(examples=examples, split=", ".join(splits) or None, replaced=sum(rows.replaced for rows in parts))


class _Given:
    """Takes the place of the sampler in lm_eval's task and returns the examples that were chosen."""

    def __init__(self) -> None:
        self.chosen: Sequence[Document] = ()

    def sample(self, n: int, eval_doc: Document | None = None) -> Sequence[Document]:
        return self.chosen


class _Drawing:
    """Draws the examples of each scored row, and renders them with the row."""

    def __init__(self, task: HarnessTask, shots: int, seed: int, chat: ChatTemplate | None) -> None:
        self._name, self._shots, self._seed, self._chat = task.name, shots, seed, chat
        self._task: ConfigurableTask = copy.copy(task.lm_eval_task)
        self._harness = task
        self._settings, self._split = self._configured()
        self._task.fewshot_cfg, self._task.sampler = self._settings, _Given()
        self._pool = self._rows_for_examples()
        self._known: dict[int, tuple[object, bool]] = {}
        # As in lm_eval, which compares two None where a task names neither split.
        self._own_split = self._settings.split == self._task.config.test_split
        most = len(self._pool) - int(self._own_split)
        if shots > most:
            place = f"split {self._split}" if self._split else "the task's file"
            raise BenchmarkError(
                f"direct_fewshot = {shots}: benchmark {task.name} has {len(self._pool)} rows for examples ({place}). "
                f"Give at most {most}."
            )

    def rows(self, test: Sequence[Example]) -> DirectRows:
        """Return the scored rows with examples. They are drawn for all rows of the split in order, as lm_eval draws them."""
        wanted = {example.row: example for example in test}
        documents = self._harness.documents(self._harness.scored_role) if self._own_split else None
        sampler = self._sampler()
        asked: dict[int, Example] = {}
        replaced = 0
        for row in track(range(max(wanted) + 1), f"drawing {self._shots} examples for each test row", total=max(wanted) + 1):
            drawn = sampler.sample(n=self._shots, eval_doc=None if documents is None else documents[row])
            if row in wanted:
                kept = self._without_recurring(wanted[row], drawn)
                replaced += kept is not drawn
                asked[row] = self._ask(wanted[row], kept)
        return DirectRows(examples=tuple(asked[example.row] for example in test), split=self._split, replaced=replaced)

    def _configured(self) -> tuple[FewshotConfig, str | None]:
        """Return lm_eval's configuration of the examples, and the split that they are from."""
        config, fields = self._task.config, self._harness.few_shot_fields
        given = dict(fields.get("fewshot_config") or {})
        split = given.pop("split", None) or fields.get("fewshot_split")
        scored = {config.validation_split, config.test_split} - {None, config.training_split}
        if split in scored and config.training_split:
            log.warning(
                "%s: its task file takes examples from the split %s, which is scored here or chooses the epoch. They are taken "
                "from %s.",
                *(self._name, split, config.training_split),
            )
            split = config.training_split
        source = split or (None if given.get("samples") is not None else config.training_split)
        if source is None and given.get("samples") is None:
            raise BenchmarkError(
                f"direct_fewshot = {self._shots}: benchmark {self._name} has no training split, and its task file names no other "
                f"rows for examples. Remove direct_fewshot."
            )
        inherited = ("process_docs", "fewshot_delimiter", "target_delimiter", "gen_prefix", "doc_to_text", "doc_to_choice")
        try:
            return FewshotConfig.from_dict(
                given, fewshot_split=split, **{key: config[key] for key in (*inherited, "doc_to_target")}
            ), source
        except TypeError as error:
            raise BenchmarkError(f"benchmark {self._name}: fewshot_config: {error}. Correct the task's file.") from error

    def _rows_for_examples(self) -> list[Document]:
        state = random.getstate()
        random.seed(0)  # as for the scored rows
        try:
            return list(self._task.fewshot_docs())
        except KeyError as error:
            raise BenchmarkError(
                f"direct_fewshot = {self._shots}: benchmark {self._name} takes examples from the split {error}, and its rows "
                f"lack it. Give rows with that split, or remove direct_fewshot."
            ) from error
        except ROW_ERRORS as error:
            raise BenchmarkError(f"benchmark {self._name}, rows for examples: {error}. Correct the rows.") from error
        finally:
            random.setstate(state)

    def _sampler(self) -> ContextSampler:
        named = self._settings.sampler
        sampler: ContextSampler = (get_sampler(named) if isinstance(named, str) else named)(self._pool, rnd=None)
        return sampler.set_rnd(self._seed)

    def _without_recurring(self, example: Example, drawn: Sequence[Document]) -> Sequence[Document]:
        """Return the drawn examples; those with the question of the row, or without a usable answer, are replaced by others.

        Raises:
            BenchmarkError: there are too few others.
        """
        question, _ = self._read(example.document)

        def fits(document: Document) -> bool:
            other, usable = self._read(document)
            return usable and other != question

        kept = [document for document in drawn if fits(document)]
        if len(kept) == len(drawn):
            return drawn
        # Drawn by a generator of its own, so that the examples of all other rows stay those of lm_eval.
        order = random.Random(f"{self._seed} {example.row}").sample(self._pool, len(self._pool))
        others = iter(document for document in order if document not in drawn and fits(document))
        kept = [document if fits(document) else next(others, {}) for document in drawn]
        if {} in kept:
            raise BenchmarkError(
                f"direct_fewshot = {self._shots}: benchmark {self._name} has fewer than {self._shots} usable rows for examples "
                f"with another question than {example.location}. Give a smaller number."
            )
        return kept

    def _read(self, document: Document) -> tuple[object, bool]:
        """Return the question of a document with its choices, and whether it has a usable answer."""
        if id(document) not in self._known:
            task = self._task
            with sandboxed_templates():
                try:
                    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else []
                    question: object = ("" if task.multiple_input else task.doc_to_text(document), tuple(map(str, choices)))
                    usable = right_choice(task, document, choices) is not None if choices else bool(task.doc_to_target(document))
                except ROW_ERRORS:  # examples in the task's file may have columns and templates of their own
                    question, usable = repr(sorted(document.items(), key=repr)), True
            self._known[id(document)] = question, usable
        return self._known[id(document)]

    def _ask(self, example: Example, chosen: Sequence[Document]) -> Example:
        """Return the row with the requests that lm_eval makes of it after the chosen examples."""
        task, chat = self._task, self._chat
        task.sampler.chosen = chosen
        try:
            with sandboxed_templates():
                context = task.fewshot_context(
                    example.document,
                    num_fewshot=self._shots,
                    system_instruction=self._harness.prompt.system_instruction,
                    apply_chat_template=chat is not None,
                    fewshot_as_multiturn=chat is not None,
                    chat_template=chat,
                    gen_prefix=task.doc_to_prefix(example.document),
                )
                built = task.construct_requests(
                    doc=example.document,
                    ctx=context,
                    metadata=(self._name, example.row, task.config.repeats),
                    apply_chat_template=chat is not None,
                    chat_template=chat,
                )
        except ROW_ERRORS as error:
            raise BenchmarkError(
                f"benchmark {self._name}, {example.location} with {self._shots} examples: {error}. Correct the rows for examples "
                f"to the columns and types of the task."
            ) from error
        instances = built if isinstance(built, list) else [built]
        return replace(example, requests=tuple(request_of(instance, example.location) for instance in instances))
