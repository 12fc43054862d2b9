"""``lm-harmony analyze`` and ``audit``: statistics of a score matrix, written into a folder or printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lm_harmony.cli.console import Format, say, show_table
from lm_harmony.errors import MissingExtra, UsageError, check_integer, check_number, counted
from lm_harmony.runs.preflight import check_folder

if TYPE_CHECKING:
    from lm_harmony.analysis.matrix import ScoreMatrix
    from lm_harmony.analysis.rate_comparison import RateComparison

PUBLISHED = Path("published")
"""The word that names the published board in place of a folder or file of results."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which models of the results are analysed."""

    family: tuple[str, ...] = ()
    """Only models of these families, such as Qwen."""
    kind: tuple[Literal["base", "instruct"], ...] = ()
    """Only base models, or only instruct models."""
    size: tuple[float, float] | None = None
    """Only models of at least the first and of less than the second number of billions of parameters."""


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """How checkpoints of training runs are analysed."""

    tokens_per_step: float | None = None
    """Training tokens of an optimizer step, for curves of checkpoints whose names have steps alone."""
    last_checkpoints: int = 5
    """Largest number of last checkpoints of a training run whose scores give the noise of a benchmark."""


def analyze(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    published: bool = False,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("analysis"),
    figures: bool = True,
    bump: tuple[str, str] | None = None,
    scale: Literal["score", "logit"] = "score",
    fixed: Path | None = None,
    models: tyro.conf.OmitArgPrefixes[ModelChoice] = ModelChoice(),
    checkpoints: tyro.conf.OmitArgPrefixes[CheckpointChoice] = CheckpointChoice(),
) -> None:
    """Write agreement, principal components, perplexity, significance and stability into a folder, as tables and figures.

    Example: `lm-harmony analyze results -o analysis`

    Args:
        results: a folder of runs, a .csv or .json file of scores, or the word published; may be left out with --published.
        published: analyse the models of the published board, together with those of the results on its benchmarks.
        output: folder for the files; those of an earlier analysis are overwritten.
        figures: draw figures (pdf and png), which need matplotlib.
        bump: two benchmarks for the bump chart; default: the two that agree least after training.
        scale: logit turns scores into log-odds above chance, so that benchmarks near their ends weigh as much as others.
        fixed: a folder of the same runs with one learning rate, for results that chose it (choose: validation): how ranks move.
        models: which models are analysed.
        checkpoints: how checkpoints of training runs are analysed.
    """
    from lm_harmony.analysis.summary import analyze_matrix
    from lm_harmony.report.report_folder import summary_lines, write_tables

    check_folder("output", output)
    _check_checkpoints(checkpoints)
    _check_fixed(results, fixed, published)
    draw = _figure_writer() if figures else None
    matrix = _wanted(_analysed(results, published), models, scale)
    if bump is not None:
        matrix.subset(benchmarks=bump)  # refuses unknown names before anything is written
    whole = scale == "score" and models == ModelChoice() and not published
    seeds = _by_seed(results, matrix) if whole and results is not None else ()
    made = analyze_matrix(matrix, seeds=seeds, tokens_per_step=checkpoints.tokens_per_step, last=checkpoints.last_checkpoints)
    if fixed is not None and results is not None:
        made = replace(made, rates=_rates(matrix, results, fixed, _wanted(read(fixed), models, scale)))
    written = write_tables(made, output)
    if draw is not None:
        written += draw(made, output / "figures", pair=bump)
    say(*summary_lines(made), f"{counted(len(written), 'file')} in {output}, {output / 'summary.md'} is the overview")


def _figure_writer() -> Callable[..., list[Path]]:
    """Return the function that draws the figures. Raises MissingExtra if matplotlib is not installed."""
    try:
        from lm_harmony.report.figures import write_figures
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"figures need {error.name}. Install it with: pip install 'lm-harmony[figures]', or add --no-figures."
        ) from error
    return write_figures


def audit(results: Annotated[Path, tyro.conf.Positional], /, format: Format = "table") -> None:
    """List the models whose direct rank is better than their rank after training, with the error of the difference.

    Example: `lm-harmony audit results`

    Args:
        results: a folder of runs, or a .csv or .json file of scores, direct and trained.
        format: table shows the columns that fit the terminal; the other formats have all of them.
    """
    if results == PUBLISHED and not results.exists():
        raise UsageError(
            "results: the published board has no direct scores to compare with. Give a folder of runs, or a .csv or .json file, "
            "with direct and trained scores."
        )
    from lm_harmony.analysis import audit as audits
    from lm_harmony.report.shown_names import short_names, with_short_names
    from lm_harmony.report.tables import audit_table

    found = audits.audit(read(results))
    show_table(audit_table(found, full_names=format != "table"), optional=("error", "difference"), format=format)
    if format != "table":
        return
    names = short_names(found.models)
    say(
        f"ranks by PC1 among {counted(len(found.models), 'model')}, "
        f"on {counted(len(found.benchmarks), 'benchmark')}; z is difference / error, "
        "* marks z above 1.96",
        *(with_short_names(line, names) for line in found.sentences()),
        "A mark says that the direct scores favour a model, not why: practice on the benchmark, instruction tuning or a prompt "
        "that suits it.",
    )


def read(results: Path) -> ScoreMatrix:
    """Return the score matrix of a folder or file of results, or of the published board.

    Raises:
        UsageError: there is no such folder or file.
    """
    from lm_harmony.analysis.matrix import ScoreMatrix

    return ScoreMatrix.published() if results == PUBLISHED and not results.exists() else ScoreMatrix.read(results)


def _analysed(results: Path | None, published: bool) -> ScoreMatrix:
    """Return the scores to analyse: of the results, of the published board, or of both on the published benchmarks."""
    from lm_harmony.analysis.leaderboard import published_with_new_models
    from lm_harmony.analysis.matrix import ScoreMatrix

    if results is None:
        if not published:
            raise UsageError("results is missing. Give a folder of runs or a .csv or .json file, or add --published.")
        return ScoreMatrix.published()
    both = published and (results != PUBLISHED or results.exists())
    return published_with_new_models(read(results)) if both else read(results)


def _wanted(matrix: ScoreMatrix, models: ModelChoice, scale: str) -> ScoreMatrix:
    """Return the part of a matrix that is analysed, in the scale that is asked for."""
    from lm_harmony.analysis.logit_scale import logit_matrix
    from lm_harmony.analysis.subsets import chosen_models

    part = chosen_models(matrix, models.family, models.kind, models.size)
    return logit_matrix(part) if scale == "logit" else part


def _rates(matrix: ScoreMatrix, results: Path, fixed: Path, others: ScoreMatrix) -> RateComparison:
    """Compare the runs of ``results``, which chose their learning rate, with those of ``fixed``."""
    from lm_harmony.analysis.rate_comparison import chosen_rates, compare_rates

    return compare_rates(matrix, others, chosen_rates(results, fixed))


def _check_checkpoints(choice: CheckpointChoice) -> None:
    check_integer("last_checkpoints", choice.last_checkpoints, 2)
    if choice.tokens_per_step is not None:
        check_number("tokens_per_step", choice.tokens_per_step, positive=True)


def _check_fixed(results: Path | None, fixed: Path | None, published: bool) -> None:
    """Check that there are two folders of runs to compare, where ``fixed`` is given."""
    if fixed is not None and (published or results is None or not results.is_dir()):
        raise UsageError(f"fixed = {fixed} needs a folder of runs to compare with, and no published board. Name it as results.")
    if fixed is not None and not fixed.is_dir():
        raise UsageError(f"fixed: {fixed} is not a folder. Name the results_dir of a study with one learning rate.")


def _by_seed(results: Path, matrix: ScoreMatrix) -> list[ScoreMatrix]:
    """Return a matrix for each seed, or nothing if the results have one seed."""
    from lm_harmony.analysis.matrix import ScoreMatrix

    return [ScoreMatrix.from_records(results, seed=seed) for seed in matrix.seeds] if len(matrix.seeds) > 1 else []
