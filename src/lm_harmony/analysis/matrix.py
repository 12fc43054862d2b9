"""ScoreMatrix: models x benchmarks x (direct, trained), with standard errors and counts. A gap is NaN, and is spoken of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from lm_harmony.analysis.load_records import record_rows
from lm_harmony.analysis.load_tables import csv_rows, json_rows
from lm_harmony.analysis.metadata import BenchmarkMetadata, ModelMetadata, benchmark_metadata, benchmark_order, model_metadata
from lm_harmony.analysis.published import published_rows
from lm_harmony.analysis.score_rows import PREPARATIONS, Basis, Gap, Preparation, ScoreRow, ScoreRows, Scores
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreMatrix:
    """Models x benchmarks x (direct, trained)."""

    direct: Scores
    """Scores of the untouched models; all NaN where none were taken."""
    trained: Scores
    """Scores after train-before-test; all NaN where none were taken."""
    models: tuple[ModelMetadata, ...]
    """One for each row."""
    benchmarks: tuple[BenchmarkMetadata, ...]
    """One for each column."""
    source: str
    """Where the scores come from, in words."""
    causes: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """(model, benchmark, preparation) -> why the score is not there."""
    samples: Mapping[tuple[str, str, str], tuple[Path, ...]] = field(default_factory=dict)
    """(model, benchmark, preparation) -> files of per-example outcomes; read only when a test needs them."""
    seeds: tuple[int, ...] = ()
    """Seeds that were averaged, where the source has runs."""
    notes: tuple[str, ...] = ()
    """What whoever compares the scores has to know, such as benchmarks on which models were trained by different recipes."""

    def __post_init__(self) -> None:
        for scores in (self.direct, self.trained):
            for table in (scores.values, scores.stderrs, scores.counts):
                assert tuple(table.index) == self.model_names and tuple(table.columns) == self.benchmark_names

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models, in order."""
        return tuple(model.name for model in self.models)

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """Names of the benchmarks, in order."""
        return tuple(benchmark.task for benchmark in self.benchmarks)

    def scores(self, preparation: Preparation) -> Scores:
        """Return the scores of one preparation."""
        return self.direct if preparation == "direct" else self.trained

    def has(self, preparation: Preparation) -> bool:
        """Tell whether any score of that preparation is there."""
        return bool(self.scores(preparation).values.notna().to_numpy().any())

    def oriented(self, preparation: Preparation) -> pd.DataFrame:
        """Return the scores with the sign turned where lower is better, so that larger is better everywhere."""
        signs = [1.0 if benchmark.higher_is_better else -1.0 for benchmark in self.benchmarks]
        return self.scores(preparation).values * np.array(signs)

    def gaps(self, preparation: Preparation | None = None) -> tuple[Gap, ...]:
        """Return every score that is not there, of one preparation or of both."""
        found = []
        for asked in PREPARATIONS if preparation is None else (preparation,):
            missing = self.scores(asked).values.isna().to_numpy()
            for row, column in zip(*np.nonzero(missing), strict=True):
                key = (self.model_names[row], self.benchmark_names[column], asked)
                cause = self.causes.get(key, "not measured")
                found.append(Gap(model=key[0], benchmark=key[1], preparation=asked, cause=cause))
        return tuple(found)

    def subset(self, models: Iterable[str] | None = None, benchmarks: Iterable[str] | None = None) -> ScoreMatrix:
        """Return some models and benchmarks in the order given; None: all.

        Raises:
            UsageError: a name is not in the matrix.
        """
        rows = self.model_names if models is None else tuple(models)
        columns = self.benchmark_names if benchmarks is None else tuple(benchmarks)
        _refuse_unknown("model", rows, self.model_names, self.source)
        _refuse_unknown("benchmark", columns, self.benchmark_names, self.source)
        model, benchmark = {fact.name: fact for fact in self.models}, {fact.task: fact for fact in self.benchmarks}
        return replace(
            self,
            direct=self.direct.subset(rows, columns),
            trained=self.trained.subset(rows, columns),
            models=tuple(model[name] for name in rows),
            benchmarks=tuple(benchmark[name] for name in columns),
        )

    def find_model(self, name: str) -> str:
        """Return the model of that name, or the one whose folder's path ends with it.

        Raises:
            UsageError: there is none, or several.
        """
        ending, paths = PurePosixPath(name).parts, {known: PurePosixPath(known).parts for known in self.model_names}
        found = [known for known, parts in paths.items() if parts == ending]  # "./my/model" is "my/model"
        found = found or [known for known, parts in paths.items() if parts[-len(ending) :] == ending] or [name]
        if len(found) > 1:
            raise UsageError(f"model {name!r} may be {' or '.join(map(repr, found))} of {self.source}. Name one of them whole.")
        _refuse_unknown("model", found, self.model_names, self.source)
        return found[0]

    def downstream(self) -> ScoreMatrix:
        """Return the matrix without text corpora."""
        return self.subset(benchmarks=[fact.task for fact in self.benchmarks if not fact.is_perplexity])

    def perplexities(self) -> ScoreMatrix:
        """Return the text corpora alone."""
        return self.subset(benchmarks=[fact.task for fact in self.benchmarks if fact.is_perplexity])

    def complete(self, preparation: Preparation = "trained") -> tuple[ScoreMatrix, Basis]:
        """Return the part of the matrix without gaps in one preparation, and what had to be left out for it.

        Again and again the model or benchmark with the largest share of gaps goes; of equals the benchmark first, then the one
        that comes first by name, so that the order of rows and columns decides nothing.
        """
        missing = self.scores(preparation).values.isna()
        models: list[str] = []
        benchmarks: list[str] = []
        while missing.to_numpy().any():
            shares = [(missing[task].mean(), 1, task) for task in missing] + [
                (missing.loc[name].mean(), 0, name) for name in missing.index
            ]
            _, is_benchmark, name = min(shares, key=lambda share: (-share[0], -share[1], share[2]))
            (benchmarks if is_benchmark else models).append(name)
            missing = missing.drop(columns=name) if is_benchmark else missing.drop(index=name)
        part = self.subset(missing.index, missing.columns)
        basis = Basis(
            models=part.model_names,
            benchmarks=part.benchmark_names,
            dropped_models=tuple(models),
            dropped_benchmarks=tuple(benchmarks),
        )
        return part, basis

    @classmethod
    def from_rows(cls, found: ScoreRows) -> ScoreMatrix:
        """Lay rows out as a matrix: models in the order they are found, benchmarks as catalogued.

        Raises:
            UsageError: one benchmark's scores are of several metrics or directions, or nobody says which direction is better.
        """
        models = list(dict.fromkeys(row.model for row in found.rows))
        tasks = sorted({row.benchmark for row in found.rows}, key=benchmark_order)
        return cls(
            direct=_scores(found.rows, "direct", models, tasks),
            trained=_scores(found.rows, "trained", models, tasks),
            models=tuple(model_metadata(name) for name in models),
            benchmarks=tuple(_facts(task, found) for task in tasks),
            source=found.source,
            causes={_key(row): row.cause for row in found.rows if row.cause},
            samples={_key(row): row.samples for row in found.rows if row.samples},
            seeds=found.seeds,
            notes=found.notes,
        )

    @classmethod
    def from_records(cls, results: Path, *, seed: int | None = None) -> ScoreMatrix:
        """Read every finished run below a folder (``records.record_rows``); ``seed``: of that seed only."""
        return cls.from_rows(record_rows(results, seed=seed))

    @classmethod
    def from_csv(cls, path: Path) -> ScoreMatrix:
        """Read a table (``tables.csv_rows``)."""
        return cls.from_rows(csv_rows(path))

    @classmethod
    def from_json(cls, path: Path) -> ScoreMatrix:
        """Read the layout of the paper's results (``tables.json_rows``)."""
        return cls.from_rows(json_rows(path))

    @classmethod
    def published(cls) -> ScoreMatrix:
        """Return the published board that ships with the package (``published.published_rows``)."""
        return cls.from_rows(published_rows())

    @classmethod
    def read(cls, path: Path) -> ScoreMatrix:
        """Read a results folder, a .csv or a .json file.

        Raises:
            UsageError: there is nothing of the kind.
        """
        readers: dict[str, Any] = {".csv": cls.from_csv, ".json": cls.from_json}
        if path.is_dir():
            return cls.from_records(path)
        if path.is_file() and path.suffix in readers:
            return readers[path.suffix](path)  # type: ignore[no-any-return]
        raise UsageError(f"results: {path} is neither a folder nor a .csv or .json file. Name the results_dir of a study.")


def _key(row: ScoreRow) -> tuple[str, str, str]:
    return row.model, row.benchmark, row.preparation


def _scores(rows: Sequence[ScoreRow], preparation: Preparation, models: list[str], tasks: list[str]) -> Scores:
    model_index, task_index = {name: i for i, name in enumerate(models)}, {task: i for i, task in enumerate(tasks)}
    tables = np.full((3, len(models), len(tasks)), np.nan)
    for row in rows:
        if row.preparation == preparation:
            held = [np.nan if x is None else float(x) for x in (row.value, row.stderr, row.count)]
            tables[:, model_index[row.model], task_index[row.benchmark]] = held
    values, stderrs, counts = (pd.DataFrame(table, index=models, columns=tasks) for table in tables)
    return Scores(values=values, stderrs=stderrs, counts=counts)


def _facts(task: str, found: ScoreRows) -> BenchmarkMetadata:
    said = {(row.metric, row.higher_is_better) for row in found.rows if row.benchmark == task and row.value is not None}
    if not said:  # nothing but gaps: no score can be read the wrong way round
        return benchmark_metadata(task) or benchmark_metadata(task, higher_is_better=True)  # type: ignore[return-value]
    if len(said) > 1:
        metrics = ", ".join(sorted(f"{metric} ({'higher' if up else 'lower'} is better)" for metric, up in said))
        raise UsageError(
            f"benchmark {task}: its scores are of several metrics: {metrics}. Keep runs of one metric in {found.source}."
        )
    [(metric, higher)] = said
    facts = benchmark_metadata(task, metric=metric, higher_is_better=higher)
    if facts is None:
        near = did_you_mean(task, BENCHMARKS)
        raise UsageError(
            f"benchmark {task!r} in {found.source} is not catalogued, and nothing says which direction is better.{near} "
            "Use the long layout with a column higher_is_better (docs/analysis.md)."
        )
    return facts


def _refuse_unknown(what: str, asked: Sequence[str], known: Sequence[str], source: str) -> None:
    for name in asked:
        if name not in known:
            near = did_you_mean(name, known)
            few = f": {', '.join(known)}" if len(known) <= 10 else ""
            raise UsageError(f"{what} {name!r} is not in {source}.{near} It has {len(known)} {what}s{few}.")
