"""``lm-harmony demo``: the study's progress, its direct and trained scores, the agreement of benchmarks, and the page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Column, Table

from lm_harmony.analysis.agreement import agreement
from lm_harmony.analysis.matrix import ScoreMatrix, changed_scores
from lm_harmony.analysis.metadata import ModelMetadata
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation, Scores
from lm_harmony.benchmarks.catalogue import benchmark_name
from lm_harmony.cli.console import Format, lines_beside, say, show_table
from lm_harmony.cli.study import run_study
from lm_harmony.demo.study import demo_study, demo_workers
from lm_harmony.errors import MissingExtra, UsageError
from lm_harmony.models.model_folder import shown_name
from lm_harmony.report.page import write_page
from lm_harmony.report.page_data import page_data
from lm_harmony.runs.shots import shown_direct
from lm_harmony.studies.study import Study

_TITLES: dict[Preparation, str] = {"direct": "Direct evaluation", "trained": "Train-before-test"}


def run_demo(results_dir: Path, build: Path, *, fast: bool, format: Format = "table", shots: Sequence[int] = (0,)) -> bool:
    """Carry out what remains of the demo's study, print its scores and write the page; return whether every run is finished.

    Args:
        results_dir: folder for records and the page.
        build: folder with models and rows.
        fast: only three models and three benchmarks.
        format: "table", or a format for other programs, which has direct and trained scores in one table.
        shots: numbers of examples before each question of the direct scores.

    Raises:
        UsageError: ``build`` is not a finished build of the demo, or ``shots`` lacks 0.
    """
    if 0 not in shots:
        raise UsageError(f"direct_fewshot = {shots}: the demo compares with scores without examples. Add 0.")
    study = demo_study(results_dir, build=build, fast=fast, shots=shots)
    with lines_beside(format):
        if not run_study(study, workers=demo_workers(), ray=None, retry_failed=False):
            return False
    matrix = demo_matrix(study, build)
    for preparations in [PREPARATIONS] if format != "table" else [(one,) for one in PREPARATIONS]:
        show_table(_board(matrix, preparations), format=format)
    with lines_beside(format):
        say("Scores in %, in brackets the rank among the models.")
        for preparation in filter(matrix.has, matrix.preparations):
            say(f"{_TITLES.get(preparation, shown_direct(preparation).capitalize()):17}: {_agreement(matrix, preparation)}")
        _write_page(matrix, results_dir / ("board-fast.html" if fast else "board.html"))
    return True


def demo_matrix(study: Study, build: Path) -> ScoreMatrix:
    """Return the scores of a demo's finished study: models from small to large, with the metadata of their build."""
    specs = [run.spec for run in study.runs]
    models = dict.fromkeys(spec.model.name for spec in specs)
    tasks = dict.fromkeys(benchmark_name(spec.benchmark.task) for spec in specs)
    matrix = ScoreMatrix.from_records(study.spec.results_dir).subset(models, tasks)
    names = {folder: shown_name(folder) for folder in models}
    return replace(
        matrix,
        **changed_scores(matrix, lambda scores: _renamed(scores, names)),
        models=_facts(build, names.values()),
        benchmarks=tuple(replace(fact, title=fact.task.removeprefix("micro_"), category="Demo") for fact in matrix.benchmarks),
        causes={(names[model], task, prepared): cause for (model, task, prepared), cause in matrix.causes.items()},
        samples={(names[model], task, prepared): files for (model, task, prepared), files in matrix.samples.items()},
        source="LM-Harmony's demo, tiny models of an artificial language",
    )


def _facts(build: Path, names: Iterable[str]) -> tuple[ModelMetadata, ...]:
    """Read family, parameters and tokens of models from the log of their build."""
    lines = (build / "build.log").read_text(encoding="utf-8").splitlines()
    said = {line["name"]: line for line in map(json.loads, lines) if "name" in line}
    return tuple(
        ModelMetadata(
            name=name,
            family=name.split("-")[0],
            kind="base",
            params_b=said[name]["parameters"] / 1e9,
            pretraining_tokens_b=said[name]["tokens"] / 1e9,
        )
        for name in names
    )


def _renamed(scores: Scores, names: dict[str, str]) -> Scores:
    return Scores(**{table: getattr(scores, table).rename(index=names) for table in ("values", "stderrs", "counts")})


def _board(matrix: ScoreMatrix, preparations: Sequence[Preparation]) -> Table:
    """Return a table of scores in percent with the model's rank on each benchmark, sorted by PC1.

    One kind of scores is the title of the table, several are its first column.
    """
    columns = [Column(fact.title, justify="right") for fact in matrix.benchmarks]
    table = Table("model", *columns, Column("PC1", justify="right"), title_justify="left")
    if len(preparations) > 1:
        table.columns.insert(0, Column("scores"))
    else:
        table.title = _TITLES[preparations[0]]
    for preparation in preparations:
        for cells in _lines(matrix, preparation):
            table.add_row(*([preparation] if len(preparations) > 1 else []), *cells)
    return table


def _lines(matrix: ScoreMatrix, preparation: Preparation) -> Iterator[tuple[str, ...]]:
    """Yield for each model its name, its score and rank on each benchmark, and its PC1."""
    values, places = matrix.scores(preparation).values, matrix.oriented(preparation).rank(ascending=False, method="min")
    try:
        pc1 = components(matrix, preparation).pc1
    except UsageError:  # all models have the same score on a benchmark
        pc1 = places.mean(axis=1) * float("nan")
    for model in pc1.sort_values(ascending=False).index:
        cells = (f"{100 * values.loc[model, task]:.0f} ({places.loc[model, task]:.0f})" for task in values)
        yield model, *cells, "-" if pc1.isna().all() else f"{pc1[model]:.0f}"


def _agreement(matrix: ScoreMatrix, preparation: Preparation) -> str:
    """Return the mean agreement of benchmarks and the share of variance that the first component explains, as text."""
    tau = f"mean Kendall's tau between benchmarks {agreement(matrix, preparation).mean_tau:.2f}"
    try:
        return f"{tau}; the first component explains {components(matrix, preparation).explained[0]:.0%} of the variance"
    except UsageError as error:
        return f"{tau}; no components: {error}"


def _write_page(matrix: ScoreMatrix, path: Path) -> None:
    """Write the board as a page, or print which extra is missing."""
    try:
        write_page(page_data(matrix), path)
    except MissingExtra as error:
        say(f"No page: {error}")
    else:
        say(f"The board as a page: {path.resolve()}")
