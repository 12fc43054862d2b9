"""``lm-harmony page``: what it takes and what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lm_harmony.errors import UsageError


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
    from lm_harmony.cli.board import PUBLISHED, read
    from lm_harmony.report.page import write_page
    from lm_harmony.report.page_data import page_data

    if results is None and not published:
        raise UsageError("results: name a folder of runs, or add --published for the published board.")
    only_published = results is None or (results == PUBLISHED and not results.exists())
    matrix = None if only_published else read(results or PUBLISHED)
    data = page_data(matrix, published=published or only_published)
    write_page(data, output)
    size = output.stat().st_size / 1e6
    said = f"{output}: {len(data['models'])} models x {len(data['benchmarks'])} benchmarks, {size:.1f} MB. Open it in a browser."
    Console(soft_wrap=True).print(said, markup=False, highlight=False)
