"""Progress bars: ``progress_bar`` and ``track`` show a bar if a command has opened a ``display``, else nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from lm_harmony.stop_signals import raise_if_stopped

Item = TypeVar("Item")
_display: ContextVar[Progress | None] = ContextVar("display", default=None)


@contextmanager
def display(console: Console) -> Iterator[Progress]:
    """Show the bars that are opened inside the block on ``console``. A finished bar disappears."""
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


@contextmanager
def progress_bar(description: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of ``total`` steps for the duration of the block; yield the function that advances it by some steps.

    That function raises KeyboardInterrupt if a signal has stopped the process (``stop_signals.raise_if_stopped``).
    """
    progress = _display.get()
    bar = None if progress is None else progress.add_task(description, total=total)

    def advance(steps: int) -> None:
        raise_if_stopped()
        if progress is not None and bar is not None:
            progress.advance(bar, steps)

    try:
        yield advance
    finally:
        if progress is not None and bar is not None:
            progress.remove_task(bar)


def track(items: Iterable[Item], description: str, *, total: int) -> Iterator[Item]:
    """Yield ``items`` and advance a bar of ``total`` steps by one after each of them."""
    with progress_bar(description, total=total) as advance:
        for item in items:
            yield item
            advance(1)
