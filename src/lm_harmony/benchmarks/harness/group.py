"""A group of lm_eval tasks as one benchmark, and opening of a task or a group by its name."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from lm_eval.api import group as lm_eval_group
from lm_eval.api.group import Group

from lm_harmony.benchmarks.catalogue import corpus_path
from lm_harmony.benchmarks.foreign_code import check_task_code
from lm_harmony.benchmarks.harness.scoring import lm_eval_row
from lm_harmony.benchmarks.harness.task import HarnessTask
from lm_harmony.benchmarks.prompt import PLAIN_PROMPT, Prompt
from lm_harmony.benchmarks.task_files import CORPUS_FILE
from lm_harmony.benchmarks.task_groups import TaskGroup, find_group
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Example, MetricKey, Reply, Score, SplitUse, SubtaskScore
from lm_harmony.errors import BenchmarkError

log = logging.getLogger(__name__)


class HarnessGroup:
    """A group of lm_eval tasks: the rows are those of its tasks, and the score is what lm_eval makes of their scores."""

    def __init__(self, group: TaskGroup, data_dir: Path | None = None, *, use: SplitUse = "all") -> None:
        """Load all tasks of a group; ``data_dir`` and ``use`` are those of ``HarnessTask``.

        Raises:
            BenchmarkError: a task cannot be used, its rows cannot be loaded, or no task has a metric of the group.
        """
        self.name = group.name
        self.subtasks = tuple(HarnessTask(one.file, data_dir, use=use, changes=one.changes) for one in group.subtasks)
        """The tasks in lm_eval's order."""
        try:
            self.lm_eval_group = _lm_eval_group(group, {task.name: task for task in self.subtasks})
        except (TypeError, ValueError) as error:
            raise BenchmarkError(f"group {group.name}: {group.file}: {error}. Correct the file.") from error
        if not self.metrics:
            raise BenchmarkError(
                f"group {group.name}: no task has a metric of the aggregate_metric_list in {group.file}. "
                f"Its tasks have {', '.join(dict.fromkeys(key for task in self.subtasks for key in task.metrics))}."
            )
        for key in self.metrics:
            without = [task.name for task in self.subtasks if key not in task.metrics]
            if without:
                have, verb = ("has", "does") if len(without) == 1 else ("have", "do")
                names = f"{', '.join(without)} {have}"
                log.warning("group %s: %s no %s and %s not count in it, as in lm_eval.", self.name, names, key, verb)

    def with_prompt(self, prompt: Prompt) -> HarnessGroup:
        """Change the prompts and answers of all tasks as ``HarnessTask.with_prompt`` does, and return the group."""
        for task in self.subtasks:
            task.with_prompt(prompt)
        return self

    @cached_property
    def metrics(self) -> Mapping[str, bool | None]:
        """Metric key of the group's score -> whether higher is better; None: not defined, or its tasks differ."""
        known = {task.name: task.metrics for task in self.subtasks}
        rows = {name: {"sample_len": 1, **dict.fromkeys(found, 0.0)} for name, found in known.items()}
        keys = _metric_keys(self._aggregated(rows))
        directions = {key: {found[key] for found in known.values() if key in found} for key in keys}
        return {key: found.pop() if len(found) == 1 else None for key, found in directions.items()}

    @cached_property
    def row_offsets(self) -> Mapping[str, int]:
        """Task -> number of scored rows of the tasks before it, so that row numbers of a group are unique."""
        rows = [len(task.lm_eval_task.eval_docs) for task in self.subtasks]
        return dict(zip((task.name for task in self.subtasks), accumulate(rows[:-1], initial=0), strict=True))

    def score(self, examples: Sequence[Example], replies: Sequence[Sequence[Reply]], *, errors: bool, samples: bool) -> Score:
        """Score the replies to ``examples`` of any of its tasks: each task alone, and all of them as lm_eval aggregates.

        The arguments are those of ``scoring.score_replies``. A task without examples does not count.
        """
        answered: dict[str, list[tuple[Example, Sequence[Reply]]]] = defaultdict(list)
        for example, answers in zip(examples, replies, strict=True):
            answered[example.subtask].append((example, answers))
        scores: dict[str, Score] = {}
        for task in self.subtasks:
            if found := answered.get(task.name):
                one, other = [example for example, _ in found], [answers for _, answers in found]
                scores[task.name] = task.score(one, other, errors=errors, samples=samples)
        return self._total(scores)

    def score_without(self, score: Score, left_out: Collection[int]) -> Score:
        """Return a score without some documents, as ``HarnessTask.score_without``; ``left_out``: numbers in the whole group."""
        scores: dict[str, Score] = {}
        for task in (task for task in self.subtasks if task.name in score.subtasks):
            part = score.subtasks[task.name]
            samples = tuple(sample for sample in score.samples if sample["task"] == task.name)
            whole = Score(metrics=part.metrics, stderrs=part.stderrs, documents=part.documents, samples=samples)
            found = task.score_without(whole, {row - self.row_offsets[task.name] for row in left_out})
            if found.documents:
                scores[task.name] = found
        return self._total(scores)

    def _total(self, scores: Mapping[str, Score]) -> Score:
        """Return the score of the group from those of its tasks, as lm_eval aggregates them."""
        total = self._aggregated({name: lm_eval_row(name, name, score) for name, score in scores.items()})
        stderrs = {key: total.get(MetricKey.parse(key).stderr) for key in _metric_keys(total)}
        return Score(
            metrics={key: float(total[key]) for key in stderrs},
            stderrs={key: float(value) if isinstance(value, float) else None for key, value in stderrs.items()},
            documents=sum(score.documents for score in scores.values()),
            samples=tuple({"task": name, **sample} for name, score in scores.items() for sample in score.samples),
            subtasks={
                name: SubtaskScore(metrics=score.metrics, stderrs=score.stderrs, documents=score.documents)
                for name, score in scores.items()
            },
        )

    def _aggregated(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the row of the group that lm_eval computes from the rows of its tasks."""
        with no_group_warnings():
            return dict(self.lm_eval_group.aggregate(dict(rows)))


Benchmark = HarnessTask | HarnessGroup
"""What a run is scored on."""


def _lm_eval_group(group: TaskGroup, tasks: Mapping[str, HarnessTask]) -> Group:
    """Return lm_eval's group with its members, as lm_eval's ``TaskFactory`` builds it."""
    built = Group.from_config(dict(group.fields))
    for one in group.members:
        built.add(_lm_eval_group(one, tasks) if isinstance(one, TaskGroup) else tasks[one.name].lm_eval_task)
    return built


def _metric_keys(row: Mapping[str, Any]) -> list[str]:
    """Return the keys "metric,filter" of a row of lm_eval's results."""
    return [key for key in row if "," in key and "_stderr," not in key]


@contextmanager
def no_group_warnings() -> Iterator[None]:
    """Silence lm_eval's warning on tasks without a metric in the block: the group logs it once, when it is opened."""
    logger, disabled = lm_eval_group.eval_logger, lm_eval_group.eval_logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled


def open_benchmark(
    name: str,
    *,
    include_path: Path | None = None,
    data_dir: Path | None = None,
    allow_code: bool = True,
    use: SplitUse = "all",
    prompt: Prompt = PLAIN_PROMPT,
) -> Benchmark:
    """Load a task or a group by its name, its YAML file, or ``corpus:PATH``; arguments and errors are those of ``open_task``."""
    group = None if corpus_path(name) is not None else find_group(name, include_path)
    if group is None:
        return open_task(name, include_path=include_path, data_dir=data_dir, allow_code=allow_code, use=use, prompt=prompt)
    check_task_code(name, include_path=include_path, allowed=allow_code)
    return HarnessGroup(group, data_dir, use=use).with_prompt(prompt)


def open_task(
    name: str,
    *,
    include_path: Path | None = None,
    data_dir: Path | None = None,
    allow_code: bool = True,
    use: SplitUse = "all",
    prompt: Prompt = PLAIN_PROMPT,
) -> HarnessTask:
    """Load a task by its name, its YAML file, or ``corpus:PATH``.

    Args:
        name: the task.
        include_path: a folder of the user's own task files, searched first.
        data_dir: a folder that holds <task>/{train,validation,test}.jsonl; None: the data set that the task names.
        allow_code: whether Python code that lm_eval does not ship may run; each of its files is logged.
        use: which of its splits are needed.
        prompt: changes to its prompts and answers.

    Raises:
        UsageError: no task has that name, it runs code that is not allowed, or the prompt does not suit it.
        BenchmarkError: the task cannot be fine-tuned, or its rows cannot be loaded.
    """
    corpus = corpus_path(name)
    if corpus is not None:
        return HarnessTask(CORPUS_FILE, corpus=corpus).with_prompt(prompt)
    check_task_code(name, include_path=include_path, allowed=allow_code)
    return HarnessTask(find_task_file(name, include_path), data_dir, use=use).with_prompt(prompt)
