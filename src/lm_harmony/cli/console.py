"""What every command prints with: lines, tables and log messages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 10_000
"""Columns that a table may take where the output is no terminal."""


def say(*lines: str, stderr: bool = False) -> None:
    """Print lines as they are: not wrapped, and with brackets that are no markup."""
    console = Console(stderr=stderr, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, highlight=False)


def show_table(table: Table) -> None:
    """Print a table: as wide as the terminal, and at its full width into a pipe or a file, so that no name is cut."""
    console = Console()
    if not console.is_terminal:
        wide = console.options.update(width=PIPE_WIDTH)
        console = Console(width=max(80, console.measure(table, options=wide).maximum))
    console.print(table)


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
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
        self.console.print(start + record.getMessage(), markup=False, highlight=False, soft_wrap=True)


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
