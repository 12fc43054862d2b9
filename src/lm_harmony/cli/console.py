"""What every command prints with: lines, tables and log messages."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Literal

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from lm_harmony.redaction import SafeFormatter, without_secrets

Format = Literal["table", "csv", "json", "markdown"]

PIPE_WIDTH = 10_000
"""Columns that a table may take where the output is no terminal."""


def say(*lines: str, stderr: bool = False) -> None:
    """Print lines as they are: not wrapped, and with brackets that are no markup."""
    console = Console(stderr=stderr, soft_wrap=True)
    for line in lines:
        console.print(without_secrets(line), markup=False, highlight=False)


def show_table(table: Table, *, optional: Sequence[str] = (), format: Format = "table") -> None:
    """Print a table: as wide as the terminal, and at its full width into a pipe or a file, so that no name is cut.

    Args:
        table: the table. Its cells wrap where they do not fit.
        optional: headers of the columns that a narrow terminal leaves out, the least important one first.
        format: "table", or a format for other programs, which has all columns and no title.
    """
    if format != "table":
        sys.stdout.write(_written(table, format))
        return
    console = Console()
    natural = console.options.update(width=PIPE_WIDTH)
    for column in table.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        console = Console(width=max(80, console.measure(table, options=natural).maximum))
    omitted: list[str] = []
    for header in optional:
        if console.measure(table, options=natural).maximum <= console.width:
            break
        table.columns = [column for column in table.columns if column.header != header]
        omitted.append(header)
    console.print(table)
    if omitted:
        say(f"columns left out: {', '.join(reversed(omitted))} (a wider terminal or --format csv has them)")


def show_rows(rows: Sequence[Mapping[str, str | float | None]], format: Format) -> None:
    """Print rows with equal keys in a format for other programs. Numbers are numbers in JSON, without thousands separators."""
    if format == "json":
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    heads = [
        Column(key, justify="left" if isinstance(value, str) else "right") for key, value in (rows[0] if rows else {}).items()
    ]
    table = Table(*heads)
    for row in rows:
        cells = ("" if value is None else Text(value) if isinstance(value, str) else f"{value:.10g}" for value in row.values())
        table.add_row(*cells)
    show_table(table, format=format)


@contextmanager
def lines_beside(format: Format) -> Iterator[None]:
    """Print what the block prints to standard error, if standard output is for another program."""
    with nullcontext() if format == "table" else redirect_stdout(sys.stderr):
        yield


def _written(table: Table, format: Format) -> str:
    """Return the cells of a table as CSV, as a JSON list with an object for each row, or as Markdown."""
    heads = [_plain(column.header) for column in table.columns]
    rows = list(zip(*([_plain(cell) for cell in column.cells] for column in table.columns), strict=True))
    if format == "json":
        return json.dumps([dict(zip(heads, row, strict=True)) for row in rows], indent=2, ensure_ascii=False) + "\n"
    if format == "markdown":
        lines = [heads, ["---:" if column.justify == "right" else "---" for column in table.columns], *rows]
        return "".join(
            f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
        )
    from lm_harmony.analysis.load_tables import csv_text  # not needed to start a command

    texts = [column.justify != "right" for column in table.columns]  # numbers are on the right
    safe = [[csv_text(cell) if text else cell for cell, text in zip(row, texts, strict=True)] for row in rows]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[csv_text(head) for head in heads], *safe])
    return out.getvalue()


def _plain(cell: RenderableType) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)


@contextmanager
def logging_to(console: Console, file: Path | None = None, *, debug: bool = False) -> Iterator[None]:
    """Show the package's log messages on ``console``, and append them to ``file``, until the block ends.

    Args:
        console: where messages are shown.
        file: a log file; its folder may be created within the block.
        debug: show debug messages too, and those of other libraries.
    """
    logger, ours = logging.getLogger(None if debug else "lm_harmony"), logging.getLogger("lm_harmony")
    handlers: list[logging.Handler] = [_ConsoleHandler(console)]
    if file is not None:
        handlers.append(_LateFileHandler(file))
        handlers[-1].setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours.setLevel(logging.DEBUG if debug else logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def quiet_libraries() -> None:
    """Switch off the progress bars and warnings of the libraries that we call."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", module=r"(transformers|datasets|peft|lm_eval|torch)\.")
    for name in ("lm_eval", "transformers", "datasets", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


class _ConsoleHandler(logging.Handler):
    """Prints each message on one line above the progress bars; a warning begins with "warning: "."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        start = "warning: " if record.levelno >= logging.WARNING else ""
        self.console.print(start + without_secrets(record.getMessage()), markup=False, highlight=False, soft_wrap=True)


class _LateFileHandler(logging.Handler):
    """Holds messages until the folder of the log file exists, then appends them: bad input leaves no folder behind."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.lines = path, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        self.flush()

    def flush(self) -> None:
        if self.lines and self.path.parent.is_dir():
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n".join(self.lines) + "\n")
            self.lines.clear()

    def close(self) -> None:
        self.flush()
        super().close()
