"""What a person sees while it works: one live display for a run, plain silence in a library.

The command opens a ``display``; the rooms below say ``track(rows, "reading")`` and know nothing of terminals. Without an open
display ``track`` only iterates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
_display: ContextVar[Progress | None] = ContextVar("display", default=None)


@contextmanager
def display(console: Console) -> Iterator[Progress]:
    """Show every ``track`` below as a bar on ``console`` until the block ends; finished bars disappear."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        token = _display.set(progress)
        try:
            yield progress
        finally:
            _display.reset(token)


def track(items: Iterable[Item], description: str, *, total: int) -> Iterator[Item]:
    """Yield ``items``, advancing a bar called ``description`` of ``total`` steps where a display is open."""
    progress = _display.get()
    if progress is None:
        yield from items
        return
    bar = progress.add_task(description, total=total)
    try:
        for item in items:
            yield item
            progress.advance(bar)
    finally:
        progress.remove_task(bar)
