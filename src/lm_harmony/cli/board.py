"""``lm-harmony leaderboard``, ``compare`` and ``page``: the commands that read finished runs (see also ``analyze``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lm_harmony.cli.analyze import PUBLISHED, analyze, audit, read
from lm_harmony.cli.console import PIPE_WIDTH, Format, say, show_table
from lm_harmony.errors import UsageError, counted
from lm_harmony.runs.shots import shots_of


def leaderboard(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    published: bool = False,
    format: Format = "table",
    preparation: str = "trained",
) -> None:
    """Rank models by the first principal component (PC1) of their scores, with intervals and tie groups.

    Example: `lm-harmony leaderboard results --published`

    Args:
        results: a folder of runs, or a .csv or .json file of scores; may be left out with --published.
        published: rank on the PC1 of the published board (61 models x 24 benchmarks), which new models do not change.
        format: table shows the columns that fit the terminal; the other formats have every benchmark. With csv, notes such as one
            on mixed recipes go to standard error.
        preparation: scores after fine-tuning (trained), before it (direct), or before it with k examples before each question
            (direct_5shot for 5).
    """
    from lm_harmony.analysis.leaderboard import own_board, published_board
    from lm_harmony.report import tables as text
    from lm_harmony.report.near_duplicate_columns import notes_of

    if results is None and not published:
        raise UsageError("results is missing. Give a folder of runs or a .csv or .json file, or add --published.")
    if preparation != "trained" and shots_of(preparation) is None:
        raise UsageError(f"preparation must be trained, direct, or one such as direct_5shot, got {preparation!r}. Use trained.")
    if published and preparation != "trained":
        raise UsageError(
            f"preparation = {preparation}: the published board has only trained scores. Remove one of the two flags."
        )
    matrix = None if results is None else read(results)
    if published:
        board = published_board(None if results == PUBLISHED else matrix)
    else:
        assert matrix is not None
        board = own_board(matrix, preparation)
    if format != "table":
        written = {"csv": text.board_csv, "json": text.board_json, "markdown": text.board_markdown}[format](board)
        sys.stdout.write(written)
        if format == "csv":  # the other formats hold the notes, and a CSV file has no place for them
            say(*board.notes, stderr=True)
        return
    console = Console()
    table = text.board_table(board, console.width if console.is_terminal else PIPE_WIDTH)
    show_table(table, optional=("tie", "95% interval"))
    explained = "" if board.explained is None else f"; PC1 explains {board.explained:.1%} of the variance"
    say(f"Reference: {board.reference}{explained}", *notes_of(board))
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

    Example: `lm-harmony compare results my/model EleutherAI/pythia-410m-deduped`

    Args:
        results: a folder of runs, a .csv or .json file of scores, or the word published for the published board.
        first: name of a model in the results, or the end of its folder's path.
        second: name of another model.
        format: table shows the columns that fit the terminal; the other formats have all of them.
    """
    from lm_harmony.analysis import paired
    from lm_harmony.report.shown_names import short_names
    from lm_harmony.report.tables import comparison_table

    matrix = read(results)
    found = paired.compare(matrix, matrix.find_model(first), matrix.find_model(second))
    table = comparison_table(found, {fact.task: fact for fact in matrix.benchmarks})
    show_table(table, optional=("p", "test", "second", "first"), format=format)
    if format != "table":
        return
    clear = [test for test in found.tests if test.holm is not None and test.holm < 0.05]
    names = short_names(matrix.model_names)
    ahead = sum(test.difference > 0 for test in clear)
    say(
        f"first: {names[found.first]}, second: {names[found.second]}; a positive difference is better for the first; "
        "± one standard error",
        f"* distinguishable at 5% after Holm's correction: {ahead} for the first, {len(clear) - ahead} for the second, "
        f"of {counted(len(found.tests), 'comparison')}",
        *dict.fromkeys(f"{test.benchmark}, {test.preparation}: not paired, {test.note}" for test in found.tests if test.note),
        *(f"left out, because only one model has it: {task} ({preparation})" for task, preparation in found.left_out),
    )


def page(
    results: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    published: bool = False,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("board.html"),
) -> None:
    """Write the board as one interactive HTML file that opens in a browser without a network.

    Example: `lm-harmony page results --published -o board.html`

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
    say(
        f"{output}: {counted(len(data['models']), 'model')} x "
        f"{counted(len(data['benchmarks']), 'benchmark')}, {size:.1f} MB. Open it in a browser."
    )


COMMANDS = (leaderboard, analyze, audit, compare, page)
"""Commands of this module and of ``analyze``, in the order of --help."""
