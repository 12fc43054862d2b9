"""Small matrices, and folders of records as runs write them, for the tests of the board."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import Preparation, ScoreRow, ScoreRows
from lm_harmony.benchmarks.types import Caps, Score
from lm_harmony.recipe import PUBLISHED, Recipe
from lm_harmony.runs.data_record import DataRecord
from lm_harmony.runs.record import EpochRecord, Failure, RunRecord
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore


def matrix_of(
    trained: pd.DataFrame | None = None,
    direct: pd.DataFrame | None = None,
    *,
    stderr: float | None = None,
    lower: Sequence[str] = (),
) -> ScoreMatrix:
    """Return a matrix of these tables (models x benchmarks, NaN is a gap). In ``lower`` benchmarks, lower is better."""
    tables: dict[Preparation, pd.DataFrame | None] = {"trained": trained, "direct": direct}
    rows = [
        ScoreRow(
            model=str(model),
            benchmark=str(task),
            preparation=preparation,
            value=None if np.isnan(value) else float(value),
            stderr=stderr,
            metric="score",
            higher_is_better=task not in lower,
        )
        for preparation, table in tables.items()
        if table is not None
        for model, line in table.iterrows()
        for task, value in line.items()
    ]
    return ScoreMatrix.from_rows(ScoreRows(source="a small matrix", rows=tuple(rows)))


def random_table(models: int, tasks: int, seed: int = 0) -> pd.DataFrame:
    """Return scores that depend on one common ability of each model."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(models, 1)) + 0.5 * random.normal(size=(models, tasks))
    return pd.DataFrame(values, index=[f"m{i}" for i in range(models)], columns=[f"b{i}" for i in range(tasks)])


def write_run(
    results: Path,
    *,
    model: str,
    task: str = "arc_easy",
    trained: float | None = 0.5,
    direct: float | None = None,
    stderr: float = 0.05,
    seed: int = 0,
    metric: str = "acc_norm,none",
    higher: bool = True,
    recipe: Recipe = PUBLISHED,
    outcomes: Sequence[Any] = (),
    name: str | None = None,
    versions: Mapping[str, str] = {},
    sources: tuple[Source, ...] | None = (),
    parameters: int | None = None,
    rows: int = 50_000,
    chosen_epoch: int = 1,
) -> RunStore:
    """Write the record of a finished run. Write its samples too if ``outcomes`` of its questions are given."""

    def score(value: float | None) -> Score | None:
        return None if value is None else Score(metrics={metric: value}, stderrs={metric: stderr}, documents=100)

    benchmark = BenchmarkSpec(task=task, caps=Caps(train=rows))
    spec = RunSpec(model=ModelSpec(name=model), benchmark=benchmark, seed=seed, recipe=recipe)
    record = RunRecord(
        spec=spec,
        benchmark=task,
        model_revision=None,
        metric=metric,
        higher_is_better=higher,
        data=DataRecord(
            fingerprint="f",
            train=min(10, rows),
            validation=10,
            test=100,
            carved=False,
            dropped_from_train=0,
            dropped_from_validation=0,
            without_answer=0,
            truncated=0,
        ),
        direct=score(direct),
        epochs=tuple(
            EpochRecord(
                epoch=number, loss=1.0, validation={metric: 0.5}, tokens=10, seconds=1.0, validation_seconds=1.0, **of_rate
            )
            for number, of_rate in enumerate([{"learning_rate": rate} for rate in recipe.rates] if recipe.rates[1:] else [{}], 1)
        ),
        chosen_epoch=chosen_epoch,
        trained=score(trained),
        test_curve={},
        environment={"versions": versions} if versions else {},
        costs={},
        sources=sources,
        parameters=parameters,
    )
    store = RunStore.at(results, name or f"{task}/{model.replace('/', '--')}/seed{seed}")
    store.begin(spec, data="f", overwrite=False)
    if outcomes:
        store.write_samples("test", [sample(question, outcome, metric) for question, outcome in enumerate(outcomes)])
    store.write_record(record)
    return store


def sample(question: int, outcome: Any, metric: str) -> Mapping[str, Any]:
    """Return one question's outcome in lm_eval's sample schema."""
    name, filtered = metric.split(",")
    return {"doc_id": question, "doc_hash": f"hash{question}", "filter": filtered, "metrics": [name], name: outcome}


def write_failure(results: Path, *, model: str, task: str = "arc_easy") -> None:
    """Write the files of a failed run."""
    store = RunStore.at(results, f"{task}/{model}/seed0")
    store.begin(RunSpec(model=ModelSpec(name=model), benchmark=BenchmarkSpec(task=task)), data="f", overwrite=False)
    store.write_failure(Failure(kind="ModelError", cause="no weights", attempts=1))


class PublishedRank(NamedTuple):
    """Rank and PC1 (times 100) of a model on the published board."""

    rank: int
    pc1: float


def published_ranks() -> dict[str, PublishedRank]:
    """Return rank and PC1 of each model as published."""
    text = resources.files("lm_harmony.analysis").joinpath("published_leaderboard.csv").read_text(encoding="utf-8")
    return {row["model"]: PublishedRank(int(row["rank"]), float(row["pc1"])) for row in csv.DictReader(text.splitlines())}
