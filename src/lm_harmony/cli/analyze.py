"""``lm-harmony analyze`` and ``audit``: statistics of a score matrix, written into a folder or printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lm_harmony.cli.console import Format, say, show_table
from lm_harmony.errors import MissingExtra, UsageError
from lm_harmony.runs.preflight import check_folder

if TYPE_CHECKING:
    from lm_harmony.analysis.matrix import ScoreMatrix

PUBLISHED = Path("published")
"""The word that names the published board in place of a folder or file of results."""


def analyze(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    published: bool = False,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("analysis"),
    figures: bool = True,
    bump: tuple[str, str] | None = None,
    scale: Literal["score", "logit"] = "score",
    family: tuple[str, ...] = (),
    kind: tuple[Literal["base", "instruct"], ...] = (),
    size: tuple[float, float] | None = None,
) -> None:
    """Write agreement, principal components, perplexity, significance and stability into a folder, as tables and figures.

    Args:
        results: a folder of runs, a .csv or .json file of scores, or the word published; may be left out with --published.
        published: analyse the models of the published board, together with those of the results on its benchmarks.
        output: folder for the files; those of an earlier analysis are overwritten.
        figures: draw figures (pdf and png), which need matplotlib.
        bump: two benchmarks for the bump chart; default: the two that agree least after training.
        scale: logit turns scores into log-odds above chance, so that benchmarks near their ends weigh as much as others.
        family: only models of these families, such as Qwen.
        kind: only base models, or only instruct models.
        size: only models of at least the first and of less than the second number of billions of parameters.
    """
    from lm_harmony.analysis.logit_scale import logit_matrix
    from lm_harmony.analysis.subsets import chosen_models
    from lm_harmony.analysis.summary import analyze_matrix
    from lm_harmony.report.report_folder import summary_lines, write_tables

    check_folder("output", output)
    if figures:
        try:
            from lm_harmony.report.figures import write_figures
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"figures need {error.name}. Install it with: pip install 'lm-harmony[figures]', or add --no-figures."
            ) from error
    matrix = chosen_models(_analysed(results, published), family, kind, size)
    if scale == "logit":
        matrix = logit_matrix(matrix)
    if bump is not None:
        matrix.subset(benchmarks=bump)  # refuses unknown names before anything is written
    whole = scale == "score" and not (family or kind or size or published)
    made = analyze_matrix(matrix, seeds=_by_seed(results, matrix) if whole and results is not None else ())
    written = write_tables(made, output)
    if figures:
        written += write_figures(made, output / "figures", pair=bump)
    say(*summary_lines(made), f"{len(written)} files in {output}, {output / 'summary.md'} is the overview")


def audit(results: Annotated[Path, tyro.conf.Positional], /, format: Format = "table") -> None:
    """List the models whose direct rank is better than their rank after training, with the error of the difference.

    Args:
        results: a folder of runs, or a .csv or .json file of scores, direct and trained.
        format: table shows the columns that fit the terminal; the other formats have all of them.
    """
    from lm_harmony.analysis import audit as audits
    from lm_harmony.report.report_folder import audit_lines
    from lm_harmony.report.tables import audit_table

    found = audits.audit(read(results))
    show_table(audit_table(found, full_names=format != "table"), optional=("error", "difference"), format=format)
    if format != "table":
        return
    say(
        f"ranks by PC1 among {len(found.models)} models, on {len(found.benchmarks)} benchmarks; z is difference / error, "
        "* marks z above 1.96",
        *audit_lines(found),
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


def _by_seed(results: Path, matrix: ScoreMatrix) -> list[ScoreMatrix]:
    """Return a matrix for each seed, or nothing if the results have one seed."""
    from lm_harmony.analysis.matrix import ScoreMatrix

    return [ScoreMatrix.from_records(results, seed=seed) for seed in matrix.seeds] if len(matrix.seeds) > 1 else []
