"""Benchmarks by name: the 24 of the published board, suites of them, and the names of task files and text corpora.

catalogue.csv lists the published benchmarks in the published order (most training rows first): where lm_eval defines each,
which metric the board shows, and what uniform guessing scores. A test compares it with lm_eval's task files. The board's three
perplexity corpora are not in it, because lm_eval has no tasks for them: a text corpus is the user's own file, ``corpus:PATH``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from lm_harmony.benchmarks.types import SplitUse
from lm_harmony.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BenchmarkInfo:
    """The metadata of one benchmark of the published board."""

    task: str
    """Name of the task in lm_eval."""
    title: str
    """Name on boards and figures."""
    category: str
    """Group on the board, e.g. "Commonsense Reasoning"."""
    metric: str
    """Key of the metric that the board shows, such as "acc_norm,none"."""
    higher_is_better: bool
    """Whether a larger value of ``metric`` is better."""
    train_rows: int
    """Rows of the hub's training split, before caps and before validation rows are cut from it."""
    chance: float
    """Value of ``metric`` for uniform guessing: 1 / number of choices, and 0 for mcc and for generated answers.

    Where rows differ, it is the usual number of choices: 4 for ARC (a few rows have 3 or 5) and for HeadQA, whose validation and
    test rows have 4 while its training rows have 5.
    """
    splits: tuple[str, ...]
    """Which of train, validation and test have rows of their own; MedMCQA's test rows are its validation rows."""
    path: str
    """The task's YAML file, relative to lm_eval's tasks folder."""


def _read() -> dict[str, BenchmarkInfo]:
    text = resources.files(__package__).joinpath("catalogue.csv").read_text(encoding="utf-8")
    return {row["task"]: _info(row) for row in csv.DictReader(text.splitlines())}


def _info(row: Mapping[str, str]) -> BenchmarkInfo:
    return BenchmarkInfo(
        task=row["task"],
        title=row["title"],
        category=row["category"],
        metric=row["metric"],
        higher_is_better=row["higher_is_better"] == "True",
        train_rows=int(row["train_rows"]),
        chance=float(row["chance"]),
        splits=tuple(row["splits"].split()),
        path=row["path"],
    )


BENCHMARKS: Mapping[str, BenchmarkInfo] = MappingProxyType(_read())
"""lm_eval's task name -> metadata, in the published order."""


def find(name: str) -> BenchmarkInfo | None:
    """Return the benchmark of that task name, or None. Tasks outside the catalogue can be used as well."""
    return BENCHMARKS.get(name)


CORPUS_PREFIX = "corpus:"
"""Marks a task that is a text corpus: corpus:PATH."""
_RECORDED_CORPUS = "corpus-"


def corpus_path(task: str) -> Path | None:
    """Return the file or folder of a text corpus (``corpus:PATH``); None for any other task."""
    return Path(task.removeprefix(CORPUS_PREFIX)) if task.startswith(CORPUS_PREFIX) else None


def benchmark_name(task: str) -> str:
    """Return the name under which the runs of a task are stored and shown.

    It is "corpus-STEM" for ``corpus:PATH``, the file name without its ending for a YAML file, and else the task's own name.
    """
    corpus = corpus_path(task)
    if corpus is not None:
        return f"{_RECORDED_CORPUS}{corpus.stem}"
    return Path(task).stem if task.endswith((".yaml", ".yml")) else task


MMLU_AUX_FILE = Path(__file__).with_name("mmlu_aux.yaml")
"""Task file of MMLU's auxiliary training rows, which lm_eval has no task for."""
TRAINING_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mmlu_aux": (str(MMLU_AUX_FILE),),
        "mc_mix": (
            *("arc_challenge", "arc_easy", "commonsense_qa", "headqa_en", "hellaswag", "mathqa", "medmcqa", "openbookqa"),
            *("piqa", "sciq", "social_iqa"),
        ),
    }
)
"""Named sets of training rows -> their tasks. mc_mix: the catalogued benchmarks whose rows have a question and choices."""
_TRAINED_ON = ".train_on."


def tasks_of(task: str, train_on: str | None) -> tuple[tuple[str, SplitUse], ...]:
    """Return the tasks that a benchmark reads, each with the use of its splits: the tested one, and those it trains on.

    Args:
        task: the tested task.
        train_on: task or named set that has the training rows; None: the tested task itself.
    """
    if train_on is None:
        return ((task, "all"),)
    others: list[tuple[str, SplitUse]] = [(one, "training") for one in TRAINING_SETS.get(train_on, (train_on,))]
    return ((task, "scoring"), *others)


def trained_name(benchmark: str, train_on: str | None) -> str:
    """Return the name of a benchmark's runs and columns: "TESTED.train_on.TRAINED" where it trains on rows of another one.

    Args:
        benchmark: name of the tested benchmark.
        train_on: task or named set that has the training rows; None: the benchmark itself.
    """
    return benchmark if train_on is None else f"{benchmark}{_TRAINED_ON}{benchmark_name(train_on)}"


def name_parts(name: str) -> tuple[str, str | None]:
    """Return the tested benchmark of a name that ``trained_name`` made, and what it trains on; None: itself."""
    tested, _, trained = name.partition(_TRAINED_ON)
    return tested, trained or None


def is_corpus(name: str) -> bool:
    """Return whether a name is that of a text corpus: ``corpus:PATH``, or "corpus-STEM" as ``benchmark_name`` writes it."""
    return name.startswith((CORPUS_PREFIX, _RECORDED_CORPUS))


def corpus_title(name: str) -> str:
    """Return a corpus's name without the part that marks it as a corpus: "fox" for "corpus-fox"."""
    return name.removeprefix(CORPUS_PREFIX).removeprefix(_RECORDED_CORPUS)


LEADERBOARD9 = tuple(sorted(sorted(BENCHMARKS, key=lambda task: BENCHMARKS[task].train_rows)[:9]))
"""The nine benchmarks with the fewest training rows: the cheapest suite."""
SUITES = ("paper24", "leaderboard9", "perplexity")
"""Names that stand for several benchmarks in a study."""


def expand(name: str, corpora: Sequence[str]) -> list[str]:
    """Return the tasks of a suite; any other name is a task and is returned alone.

    Args:
        name: a suite (paper24, leaderboard9, perplexity) or a task.
        corpora: files of the user's own texts, the benchmarks of the suite perplexity.

    Raises:
        UsageError: the suite is perplexity and ``corpora`` is empty.
    """
    if name == "perplexity":
        if not corpora:
            raise UsageError("corpora is empty: the suite perplexity needs texts of your own. List their files under corpora.")
        return [f"{CORPUS_PREFIX}{path}" for path in corpora]
    return {"paper24": list(BENCHMARKS), "leaderboard9": list(LEADERBOARD9)}.get(name, [name])
