"""``lm-harmony leaderboard``, ``compare``, ``place`` and ``page``: the commands that read finished runs (see also
``analyze``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from lm_harmony.cli.analyze import PUBLISHED, analyze, audit, read
from lm_harmony.cli.console import PIPE_WIDTH, Format, say, show_table
from lm_harmony.errors import UsageError

if TYPE_CHECKING:
    from lm_harmony.analysis.benchmark_selection import BenchmarkSelection
    from lm_harmony.analysis.placement import Placement


def leaderboard(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    published: bool = False,
    format: Format = "table",
    preparation: Literal["trained", "direct"] = "trained",
) -> None:
    """Rank models by the first principal component (PC1) of their scores, with intervals and tie groups.

    Args:
        results: a folder of runs, or a .csv or .json file of scores; may be left out with --published.
        published: rank on the PC1 of the published board (61 models x 24 benchmarks), which new models do not change.
        format: table shows the columns that fit the terminal; the other formats have every benchmark.
        preparation: scores after fine-tuning (trained) or before it (direct).
    """
    from lm_harmony.analysis.leaderboard import own_board, published_board
    from lm_harmony.report import tables as text

    if results is None and not published:
        raise UsageError("results is missing. Give a folder of runs or a .csv or .json file, or add --published.")
    if published and preparation == "direct":
        raise UsageError("preparation = direct: the published board has only trained scores. Remove one of the two flags.")
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
    table = text.board_table(board, console.width if console.is_terminal else PIPE_WIDTH)
    show_table(table, optional=("tie", "95% interval"))
    explained = "" if board.explained is None else f"; PC1 explains {board.explained:.1%} of the variance"
    say(f"Reference: {board.reference}{explained}", *board.notes)
    if any(row.basis == "predicted" for row in board.rows):
        say("~: predicted from the benchmarks that the model has (details: lm-harmony place)")


def compare(
    results: Annotated[Path, tyro.conf.Positional],
    first: Annotated[str, tyro.conf.Positional],
    second: Annotated[str, tyro.conf.Positional],
    /,
    format: Format = "table",
) -> None:
    """Compare two models on each benchmark, with paired tests where their outcomes were kept and Holm-corrected p-values.

    Args:
        results: a folder of runs, a .csv or .json file of scores, or the word published for the published board.
        first: name of a model in the results, or the end of its folder's path.
        second: name of another model.
        format: table shows the columns that fit the terminal; the other formats have all of them.
    """
    from lm_harmony.analysis import paired
    from lm_harmony.report.tables import comparison_table

    matrix = read(results)
    found = paired.compare(matrix, matrix.find_model(first), matrix.find_model(second))
    table = comparison_table(found, {fact.task: fact for fact in matrix.benchmarks})
    show_table(table, optional=("p", "test", "second", "first"), format=format)
    if format != "table":
        return
    clear = [test for test in found.tests if test.holm is not None and test.holm < 0.05]
    ahead = sum(test.difference > 0 for test in clear)
    say(
        f"first: {found.first}, second: {found.second}; a positive difference is better for the first; ± one standard error",
        f"* distinguishable at 5% after Holm's correction: {ahead} for the first, {len(clear) - ahead} for the second, "
        f"of {len(found.tests)} comparisons",
        *dict.fromkeys(f"{test.benchmark}, {test.preparation}: not paired, {test.note}" for test in found.tests if test.note),
        *(f"left out, because only one model has it: {task} ({preparation})" for task, preparation in found.left_out),
    )


def place(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    model: str | None = None,
    suggest: int | None = None,
) -> None:
    """Predict the place of a model on the published board from the benchmarks that it has, or suggest benchmarks for that.

    Args:
        results: a folder of runs, or a .csv or .json file of scores.
        model: name of the model in the results, or the end of its folder's path; default: the only one.
        suggest: number of benchmarks to suggest: those that predict places best with few training rows.
    """
    from lm_harmony.analysis.benchmark_selection import select_benchmarks
    from lm_harmony.analysis.placement import placement_of, published_placement

    if results is None and suggest is None:
        raise UsageError("results is missing. Give a folder of runs, or ask for benchmarks with --suggest 3.")
    if results is None and model is not None:
        raise UsageError(f"results is missing. Give the folder with the runs of {model!r}.")
    known: tuple[str, ...] = ()
    if results is not None:
        matrix = read(results)
        if model is None and len(matrix.models) != 1:
            raise UsageError(f"model is missing: {matrix.source} has {len(matrix.models)} models. Name one with --model.")
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
    """Write the board as one interactive HTML file that opens in a browser without a network.

    Args:
        results: a folder of runs, or a .csv or .json file of scores; may be left out with --published.
        published: show the models among those of the published board, on its PC1, which new models do not change.
        output: the HTML file; an existing file is replaced.
    """
    from lm_harmony.report.page import write_page
    from lm_harmony.report.page_data import page_data

    if results is None and not published:
        raise UsageError("results is missing. Give a folder of runs or a .csv or .json file, or add --published.")
    only_published = results is None or (results == PUBLISHED and not results.exists())
    matrix = None if only_published else read(results or PUBLISHED)
    data = page_data(matrix, published=published or only_published)
    write_page(data, output)
    size = output.stat().st_size / 1e6
    say(f"{output}: {len(data['models'])} models x {len(data['benchmarks'])} benchmarks, {size:.1f} MB. Open it in a browser.")


def _show_placement(placed: Placement) -> None:
    how = f"predicted from {', '.join(placed.benchmarks)}" if placed.missing else "computed from all its benchmarks"
    check = placed.validation
    say(
        f"{placed.model} on the published board: PC1 {placed.pc1:.1f} ({placed.low:.1f} to {placed.high:.1f}), "
        f"rank {placed.rank} ({placed.rank_low} to {placed.rank_high}) among {placed.of} other models; {how}"
    )
    if placed.missing:
        say(
            f"cross-validated over families, these benchmarks predict with Kendall's tau {check.tau:.3f}, a root mean square "
            f"error of {check.rmse:.1f} in PC1 and a mean error of {check.rank_error:.1f} ranks; {check.coverage:.0%} of the "
            "models lie in their 95% interval"
        )
    if placed.outside:
        say(f"outside the range of published scores on {', '.join(placed.outside)}: the prediction extrapolates")


def _show_suggestion(found: BenchmarkSelection, known: tuple[str, ...]) -> None:
    chosen, best, cheapest = found.chosen, found.best, found.cheapest
    names = ", ".join(f"{task} (already measured)" if task in known else task for task in chosen.benchmarks)
    say(
        f"suggested: {names}: tau {chosen.tau:.3f} cross-validated over families, {chosen.train_rows:,} training rows",
        f"best: {', '.join(best.benchmarks)}: tau {best.tau:.3f}, {best.train_rows:,} training rows",
        f"cheapest: {', '.join(cheapest.benchmarks)}: tau {cheapest.tau:.3f}, {cheapest.train_rows:,} training rows",
        f"the suggested ones need the fewest rows among those within {found.tolerance} of the best of {found.tried:,} choices; "
        "the tau of a searched set is too optimistic (docs/analysis.md)",
    )


COMMANDS = (leaderboard, analyze, audit, compare, place, page)
"""Commands of this module, in the order of --help."""
