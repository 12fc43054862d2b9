"""``lm-harmony leaderboard``, ``analyze``, ``compare``, ``place`` and ``page``: the commands that read finished runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from lm_harmony.cli.console import PIPE_WIDTH, say, show_table
from lm_harmony.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from lm_harmony.analysis.benchmark_selection import BenchmarkSelection
    from lm_harmony.analysis.matrix import ScoreMatrix
    from lm_harmony.analysis.placement import Placement

PUBLISHED = Path("published")
"""Stands for the published board where results are asked for."""


def leaderboard(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    published: bool = False,
    format: Literal["table", "csv", "json", "markdown"] = "table",
    preparation: Literal["trained", "direct"] = "trained",
) -> None:
    """Rank models by the first principal component of their scores, with intervals and tie groups.

    Args:
        results: a folder of runs, or a .csv or .json file of scores; may be left out with --published.
        published: rank on the published board of 61 models x 24 benchmarks, which no new model moves.
        format: table fits the terminal, the others have every benchmark.
        preparation: scores after train-before-test, or of the untouched models.
    """
    from lm_harmony.analysis.leaderboard import own_board, published_board
    from lm_harmony.report import tables as text

    if results is None and not published:
        raise UsageError("results: name a folder of runs, or add --published for the published board.")
    if published and preparation == "direct":
        raise UsageError("preparation: the published board has trained scores only. Leave out --published or --preparation.")
    matrix = None if results is None else read(results)
    if published:
        board = published_board(None if results == PUBLISHED else matrix)
    else:
        assert matrix is not None
        board = own_board(matrix, preparation)
    if format != "table":
        written = {"csv": text.board_csv, "json": text.board_json, "markdown": text.board_markdown}[format](board)
        sys.stdout.write(written)
        return
    console = Console()
    show_table(text.board_table(board, console.width if console.is_terminal else PIPE_WIDTH))
    explained = "" if board.explained is None else f"; PC1 explains {board.explained:.1%} of the variance"
    say(f"Reference: {board.reference}{explained}", *board.notes)
    if any(row.basis == "predicted" for row in board.rows):
        say("~ predicted from the benchmarks that the model has (lm-harmony place tells more)")


def analyze(
    results: Annotated[Path, tyro.conf.Positional],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("analysis"),
    figures: bool = True,
    bump: tuple[str, str] | None = None,
) -> None:
    """Write agreement, components, perplexity, significance and stability as tables and figures (pdf, png) into a folder.

    Args:
        results: a folder of runs, a .csv or .json file of scores, or the word published.
        output: folder to write to; files of an earlier analysis in it are overwritten.
        figures: draw figures; --no-figures needs no matplotlib.
        bump: two benchmarks for the bump chart; default: those that agree least after training.
    """
    from lm_harmony.analysis.summary import analyze_matrix
    from lm_harmony.report.report_folder import summary_lines, write_tables

    if figures:
        try:
            from lm_harmony.report.figures import write_figures
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"figures need {error.name}. Install it with: pip install 'lm-harmony[figures]', or add --no-figures."
            ) from error
    matrix = read(results)
    if bump is not None:
        matrix.subset(benchmarks=bump)  # refuses unknown names before anything is written
    made = analyze_matrix(matrix, seeds=_by_seed(results, matrix))
    written = write_tables(made, output)
    if figures:
        written += write_figures(made, output / "figures", pair=bump)
    say(*summary_lines(made), f"{len(written)} files in {output}, {output / 'summary.md'} tells what came out")


def compare(
    results: Annotated[Path, tyro.conf.Positional],
    first: Annotated[str, tyro.conf.Positional],
    second: Annotated[str, tyro.conf.Positional],
    /,
) -> None:
    """Compare two models benchmark by benchmark: paired where their outcomes were kept, p-values corrected by Holm.

    Args:
        results: a folder of runs, a .csv or .json file of scores, or the word published.
        first: a model, as its runs name it, or the end of its folder's path.
        second: another one.
    """
    from lm_harmony.analysis import paired
    from lm_harmony.report.tables import comparison_table

    matrix = read(results)
    found = paired.compare(matrix, matrix.find_model(first), matrix.find_model(second))
    show_table(comparison_table(found, {fact.task: fact for fact in matrix.benchmarks}))
    clear = [test for test in found.tests if test.holm is not None and test.holm < 0.05]
    ahead = sum(test.difference > 0 for test in clear)
    say(
        f"first: {found.first}, second: {found.second}; a positive difference is better for the first; ± one standard error",
        f"* told apart at 5% after Holm's correction: {ahead} for the first, {len(clear) - ahead} for the second, "
        f"of {len(found.tests)} comparisons",
        *dict.fromkeys(f"{test.benchmark}, {test.preparation}: not paired, {test.note}" for test in found.tests if test.note),
        *(f"left out, only one has it: {task} ({preparation})" for task, preparation in found.left_out),
    )


def place(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    model: str | None = None,
    suggest: int | None = None,
) -> None:
    """Say where a model stands on the published board by the benchmarks it has, and which few benchmarks would tell best.

    Args:
        results: a folder of runs, or a .csv or .json file of scores.
        model: the model, as its runs name it, or the end of its folder's path; default: the only one there.
        suggest: name this many benchmarks that place models as well as any for the fewest training rows.
    """
    from lm_harmony.analysis.benchmark_selection import select_benchmarks
    from lm_harmony.analysis.placement import placement_of, published_placement

    if results is None and suggest is None:
        raise UsageError("results: name a folder of runs, or ask for benchmarks with --suggest 3.")
    if results is None and model is not None:
        raise UsageError(f"results: name the folder that holds the runs of {model!r}.")
    known: tuple[str, ...] = ()
    if results is not None:
        matrix = read(results)
        if model is None and len(matrix.models) != 1:
            raise UsageError(f"model: {matrix.source} has {len(matrix.models)} models. Name one with --model.")
        placed = placement_of(matrix, matrix.find_model(model) if model else matrix.model_names[0])
        known = placed.benchmarks
        _show_placement(placed)
    if suggest is not None:
        _show_suggestion(select_benchmarks(published_placement(), suggest), known)


def page(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    published: bool = False,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("board.html"),
) -> None:
    """Write the board as one interactive HTML page that opens anywhere, without a network.

    Args:
        results: a folder of runs, or a .csv or .json file of scores; may be left out with --published.
        published: show the models among those of the published board, on its PC1, which no new model moves.
        output: the HTML file; an earlier one is replaced.
    """
    from lm_harmony.report.page import write_page
    from lm_harmony.report.page_data import page_data

    if results is None and not published:
        raise UsageError("results: name a folder of runs, or add --published for the published board.")
    only_published = results is None or (results == PUBLISHED and not results.exists())
    matrix = None if only_published else read(results or PUBLISHED)
    data = page_data(matrix, published=published or only_published)
    write_page(data, output)
    size = output.stat().st_size / 1e6
    say(f"{output}: {len(data['models'])} models x {len(data['benchmarks'])} benchmarks, {size:.1f} MB. Open it in a browser.")


def read(results: Path) -> ScoreMatrix:
    """Return the matrix of a folder or file, or of the word "published".

    Raises:
        UsageError: there is nothing of the kind.
    """
    from lm_harmony.analysis.matrix import ScoreMatrix

    return ScoreMatrix.published() if results == PUBLISHED and not results.exists() else ScoreMatrix.read(results)


def _by_seed(results: Path, matrix: ScoreMatrix) -> list[ScoreMatrix]:
    """Return the matrix of each seed alone, where the source has several."""
    from lm_harmony.analysis.matrix import ScoreMatrix

    return [ScoreMatrix.from_records(results, seed=seed) for seed in matrix.seeds] if len(matrix.seeds) > 1 else []


def _show_placement(placed: Placement) -> None:
    how = f"predicted from {', '.join(placed.benchmarks)}" if placed.missing else "computed from all its benchmarks"
    check = placed.validation
    say(
        f"{placed.model} on the published board: PC1 {placed.pc1:.1f} ({placed.low:.1f} to {placed.high:.1f}), "
        f"rank {placed.rank} ({placed.rank_low} to {placed.rank_high}) among {placed.of} other models; {how}"
    )
    if placed.missing:
        say(
            f"with these benchmarks, models of families left out are placed with Kendall's tau {check.tau:.3f}, a PC1 error of "
            f"{check.rmse:.1f} (root mean square) and {check.rank_error:.1f} places on average; {check.coverage:.0%} of them lie "
            "in their 95% interval"
        )
    if placed.outside:
        say(f"beyond what published models score on {', '.join(placed.outside)}: the fit extrapolates there")


def _show_suggestion(found: BenchmarkSelection, known: tuple[str, ...]) -> None:
    chosen, best, cheapest = found.chosen, found.best, found.cheapest
    names = ", ".join(f"{task} (measured already)" if task in known else task for task in chosen.benchmarks)
    say(
        f"suggested: {names}: tau {chosen.tau:.3f} with families left out, {chosen.train_rows:,} training rows",
        f"best: {', '.join(best.benchmarks)}: tau {best.tau:.3f}, {best.train_rows:,} training rows",
        f"cheapest: {', '.join(cheapest.benchmarks)}: tau {cheapest.tau:.3f}, {cheapest.train_rows:,} training rows",
        f"the suggested ones need the fewest rows among those within {found.tolerance} of the best of {found.tried:,} choices; "
        "a search flatters the tau of what it finds (docs/analysis.md)",
    )


COMMANDS = (leaderboard, analyze, compare, place, page)
"""What the command line registers."""
