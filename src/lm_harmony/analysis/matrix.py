"""ScoreMatrix: scores of models x benchmarks x preparations, with standard errors, numbers of examples and gaps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from lm_harmony.analysis.load_records import record_rows
from lm_harmony.analysis.load_tables import csv_rows, json_rows
from lm_harmony.analysis.metadata import BenchmarkMetadata, ModelMetadata, benchmark_order, model_metadata, scored_benchmark
from lm_harmony.analysis.published import published_rows
from lm_harmony.analysis.score_rows import (
    PREPARATIONS,
    CompletePart,
    Gap,
    PartScore,
    Preparation,
    ScoreRow,
    ScoreRows,
    Scores,
    preparation_order,
)
from lm_harmony.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreMatrix:
    """Scores of models x benchmarks, before and after train-before-test; a missing score is NaN and listed by ``gaps``."""

    direct: Scores
    """Scores of the models without fine-tuning, models x benchmarks; all NaN if none were measured."""
    trained: Scores
    """Scores after train-before-test, models x benchmarks; all NaN if none were measured."""
    models: tuple[ModelMetadata, ...]
    """Metadata of the models, one per row."""
    benchmarks: tuple[BenchmarkMetadata, ...]
    """Metadata of the benchmarks, one per column."""
    source: str
    """Name of the source of the scores, for messages and boards."""
    causes: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """Reasons for missing scores by (model, benchmark, preparation)."""
    samples: Mapping[tuple[str, str, str], tuple[Path, ...]] = field(default_factory=dict)
    """Files of per-example outcomes by (model, benchmark, preparation); read only by paired tests."""
    seeds: tuple[int, ...] = ()
    """Seeds that were averaged, if the source is a folder of runs."""
    notes: tuple[str, ...] = ()
    """Remarks for readers who compare the scores, such as benchmarks whose models were trained by different recipes."""
    few_shot: Mapping[Preparation, Scores] = field(default_factory=dict)
    """Preparation "direct_<k>shot" -> scores without fine-tuning and with k examples before each question, by k."""
    without_near_duplicates: Mapping[tuple[str, str, str], PartScore] = field(default_factory=dict)
    """Scores without test examples that have a near duplicate in the training rows, by (model, benchmark, preparation)."""

    def __post_init__(self) -> None:
        for scores in map(self.scores, self.preparations):
            for table in (scores.values, scores.stderrs, scores.counts):
                assert tuple(table.index) == self.model_names and tuple(table.columns) == self.benchmark_names

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models, in the order of the rows."""
        return tuple(model.name for model in self.models)

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """Names of the benchmarks, in the order of the columns."""
        return tuple(benchmark.task for benchmark in self.benchmarks)

    @property
    def preparations(self) -> tuple[Preparation, ...]:
        """Every preparation: direct, direct with examples, trained."""
        return ("direct", *self.few_shot, "trained")

    def scores(self, preparation: Preparation) -> Scores:
        """Return the scores of one preparation, models x benchmarks."""
        return {"direct": self.direct, "trained": self.trained, **self.few_shot}[preparation]

    def has(self, preparation: Preparation) -> bool:
        """Tell whether the matrix has any score of that preparation."""
        return preparation in self.preparations and bool(self.scores(preparation).values.notna().to_numpy().any())

    def oriented(self, preparation: Preparation) -> pd.DataFrame:
        """Return the scores, models x benchmarks, negated where lower is better, so that larger is always better."""
        signs = [1.0 if benchmark.higher_is_better else -1.0 for benchmark in self.benchmarks]
        return self.scores(preparation).values * np.array(signs)

    def gaps(self, preparation: Preparation | None = None) -> tuple[Gap, ...]:
        """Return every missing score of one preparation; None: of direct scores without examples and of trained ones."""
        found = []
        for name in PREPARATIONS if preparation is None else (preparation,):
            missing = self.scores(name).values.isna().to_numpy()
            for row, column in zip(*np.nonzero(missing), strict=True):
                key = (self.model_names[row], self.benchmark_names[column], name)
                cause = self.causes.get(key, "not measured")
                found.append(Gap(model=key[0], benchmark=key[1], preparation=name, cause=cause))
        return tuple(found)

    def subset(self, models: Iterable[str] | None = None, benchmarks: Iterable[str] | None = None) -> ScoreMatrix:
        """Return the matrix of some models and some benchmarks, in the order given; None: all.

        Raises:
            UsageError: a name is not in the matrix.
        """
        rows = self.model_names if models is None else tuple(models)
        columns = self.benchmark_names if benchmarks is None else tuple(benchmarks)
        _refuse_unknown("model", rows, self.model_names, self.source)
        _refuse_unknown("benchmark", columns, self.benchmark_names, self.source)
        by_name, by_task = {model.name: model for model in self.models}, {metadata.task: metadata for metadata in self.benchmarks}
        return replace(
            self,
            **changed_scores(self, lambda scores: scores.subset(rows, columns)),
            models=tuple(by_name[name] for name in rows),
            benchmarks=tuple(by_task[name] for name in columns),
        )

    def find_model(self, name: str) -> str:
        """Return the full name of a model, given that name or the last parts of its folder's path.

        Raises:
            UsageError: no model or more than one matches.
        """
        ending, paths = PurePosixPath(name).parts, {known: PurePosixPath(known).parts for known in self.model_names}
        found = [known for known, parts in paths.items() if parts == ending]  # "./my/model" is "my/model"
        found = found or [known for known, parts in paths.items() if parts[-len(ending) :] == ending] or [name]
        if len(found) > 1:
            raise UsageError(f"model {name!r} may be {' or '.join(map(repr, found))} of {self.source}. Give the full name.")
        _refuse_unknown("model", found, self.model_names, self.source)
        return found[0]

    def downstream(self) -> ScoreMatrix:
        """Return the matrix without text corpora."""
        return self.subset(benchmarks=[benchmark.task for benchmark in self.benchmarks if not benchmark.is_perplexity])

    def perplexities(self) -> ScoreMatrix:
        """Return the matrix of the text corpora only."""
        return self.subset(benchmarks=[benchmark.task for benchmark in self.benchmarks if benchmark.is_perplexity])

    def complete(self, preparation: Preparation = "trained") -> tuple[ScoreMatrix, CompletePart]:
        """Return a part of the matrix without gaps in one preparation, and the names of what was kept and left out.

        The model or benchmark with the largest share of gaps is dropped until no gap remains. Of equal shares, a benchmark is
        dropped before a model, and then the first by name, so the result does not depend on the order of rows and columns.
        """
        missing = self.scores(preparation).values.isna()
        models: list[str] = []
        benchmarks: list[str] = []
        while missing.to_numpy().any():
            by_task, by_model = missing.mean(), missing.mean(axis=1)
            is_benchmark = by_task.max() >= by_model.max()
            shares = by_task if is_benchmark else by_model
            name = min(shares.index[shares == shares.max()])
            (benchmarks if is_benchmark else models).append(name)
            missing = missing.drop(columns=name) if is_benchmark else missing.drop(index=name)
        part = self.subset(missing.index, missing.columns)
        basis = CompletePart(
            models=part.model_names,
            benchmarks=part.benchmark_names,
            dropped_models=tuple(models),
            dropped_benchmarks=tuple(benchmarks),
        )
        return part, basis

    @classmethod
    def from_rows(cls, found: ScoreRows) -> ScoreMatrix:
        """Return the matrix of score rows: models in the order of the rows, benchmarks in the order of the catalogue.

        Raises:
            UsageError: a benchmark has scores of several metrics or directions, or the direction of its metric is not known.
        """
        models = list(dict.fromkeys(row.model for row in found.rows))
        tasks = sorted({row.benchmark for row in found.rows}, key=benchmark_order)
        names = sorted({row.preparation for row in found.rows} - {*PREPARATIONS}, key=preparation_order)
        return cls(
            direct=_scores(found.rows, "direct", models, tasks),
            trained=_scores(found.rows, "trained", models, tasks),
            few_shot={name: _scores(found.rows, name, models, tasks) for name in names},
            models=tuple(model_metadata(name, found.parameters.get(name)) for name in models),
            benchmarks=tuple(scored_benchmark(task, found) for task in tasks),
            source=found.source,
            causes={row.key: row.cause for row in found.rows if row.cause},
            samples={row.key: row.samples for row in found.rows if row.samples},
            seeds=found.seeds,
            notes=found.notes,
            without_near_duplicates={row.key: part for row in found.rows if (part := row.without_near_duplicates)},
        )

    @classmethod
    def from_records(cls, results: Path, *, seed: int | None = None, max_num_train: int | None = None) -> ScoreMatrix:
        """Read every finished run below a folder, or some of them (``load_records.record_rows``)."""
        return cls.from_rows(record_rows(results, seed=seed, max_num_train=max_num_train))

    @classmethod
    def from_csv(cls, path: Path) -> ScoreMatrix:
        """Read a table of scores in CSV (``load_tables.csv_rows``)."""
        return cls.from_rows(csv_rows(path))

    @classmethod
    def from_json(cls, path: Path) -> ScoreMatrix:
        """Read JSON in the layout of the paper's results (``load_tables.json_rows``)."""
        return cls.from_rows(json_rows(path))

    @classmethod
    def published(cls) -> ScoreMatrix:
        """Return the published board that ships with the package (``published.published_rows``)."""
        return cls.from_rows(published_rows())

    @classmethod
    def read(cls, path: Path) -> ScoreMatrix:
        """Read a results folder, a .csv or a .json file.

        Raises:
            UsageError: the path is none of these, or the reader refuses its content.
        """
        readers: dict[str, Callable[[Path], ScoreMatrix]] = {".csv": cls.from_csv, ".json": cls.from_json}
        if path.is_dir():
            return cls.from_records(path)
        if path.is_file() and path.suffix in readers:
            return readers[path.suffix](path)
        raise UsageError(f"results: {path} is neither a folder nor a .csv or .json file. Name the results_dir of a study.")


def changed_scores(matrix: ScoreMatrix, change: Callable[[Scores], Scores]) -> dict[str, Any]:
    """Return the fields of a matrix that hold scores, changed, for ``dataclasses.replace``."""
    few_shot = {name: change(scores) for name, scores in matrix.few_shot.items()}
    return {"direct": change(matrix.direct), "trained": change(matrix.trained), "few_shot": few_shot}


def _scores(rows: Sequence[ScoreRow], preparation: Preparation, models: list[str], tasks: list[str]) -> Scores:
    model_index, task_index = {name: i for i, name in enumerate(models)}, {task: i for i, task in enumerate(tasks)}
    tables = np.full((3, len(models), len(tasks)), np.nan)
    for row in rows:
        if row.preparation == preparation:
            numbers = [np.nan if number is None else float(number) for number in (row.value, row.stderr, row.count)]
            tables[:, model_index[row.model], task_index[row.benchmark]] = numbers
    values, stderrs, counts = (pd.DataFrame(table, index=models, columns=tasks) for table in tables)
    return Scores(values=values, stderrs=stderrs, counts=counts)


def _refuse_unknown(what: str, names: Sequence[str], known: Sequence[str], source: str) -> None:
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            few = f": {', '.join(known)}" if len(known) <= 10 else ""
            raise UsageError(f"{what} {name!r} is not in {source}.{near} It has {len(known)} {what}s{few}.")
