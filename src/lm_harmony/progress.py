"""Progress bars: ``progress_bar`` and ``track`` show a bar if a command has opened a ``display``, else nothing.

A run has one bar for all its phases: ``show_phases`` opens it, and bars that are opened inside a ``phase`` advance it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lm_harmony.stop_signals import raise_if_stopped

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class _Phases:
    """One bar for the phases of a run."""

    def __init__(self, progress: Progress, sizes: Sequence[tuple[str, float]]) -> None:
        self._progress, self._left, self._done, self._size = progress, list(sizes), 0.0, 0.0
        self._bar = progress.add_task("", total=sum(size for _, size in sizes))

    @contextmanager
    def entered(self, name: str, description: str) -> Iterator[None]:
        """Show a phase until the block ends. Phases before it that were left out, such as finished epochs, count as done."""
        place = next((index for index, (left, _) in enumerate(self._left) if left == name), None)
        if place is not None:
            self._done += sum(size for _, size in self._left[:place])
            self._size = self._left[place][1]
            del self._left[: place + 1]
        self._progress.update(self._bar, description=description, completed=self._done)
        yield
        self._done, self._size = self._done + self._size, 0.0
        self._progress.update(self._bar, completed=self._done)

    def advance(self, share: float) -> None:
        """Show that a share of the phase, from 0 to 1, is done."""
        self._progress.update(self._bar, completed=self._done + share * self._size)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.remove_task(self._bar)


class _Display:
    """The bars of a command."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.phases: _Phases | None = None
        self.in_phase = False


_display: ContextVar[_Display | None] = ContextVar("display", default=None)


@contextmanager
def display(console: Console) -> Iterator[Progress]:
    """Show the bars that are opened inside the block on ``console``. A finished bar disappears."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        token = _display.set(_Display(progress))
        try:
            yield progress
        finally:
            _display.reset(token)


def show_phases(sizes: Sequence[tuple[str, float]]) -> None:
    """Show one bar for the phases of a run, until the display ends or another run calls this.

    Args:
        sizes: (name, work) of each phase in their order; the unit of the work is the same for all.
    """
    shown = _display.get()
    if shown is not None:
        if shown.phases is not None:
            shown.phases.close()
        shown.phases = _Phases(shown.progress, sizes)


@contextmanager
def phase(name: str, what: str) -> Iterator[None]:
    """Log that a phase of a run begins; the run's bar shows it until the block ends.

    Args:
        name: name of the phase, as in ``show_phases``.
        what: number and kind of what is computed, such as "250 documents".
    """
    log.info("%s: %s", name, what)
    shown = _display.get()
    if shown is None or shown.phases is None:
        yield
        return
    shown.in_phase = True
    try:
        with shown.phases.entered(name, f"{name}: {what}"):
            yield
    finally:
        shown.in_phase = False


@contextmanager
def progress_bar(description: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of ``total`` steps for the duration of the block; yield the function that advances it by some steps.

    That function raises KeyboardInterrupt if a signal has stopped the process (``stop_signals.raise_if_stopped``).
    """
    shown, done = _display.get(), 0
    phases = shown.phases if shown is not None and shown.in_phase else None
    bar = shown.progress.add_task(description, total=total) if shown is not None and phases is None else None

    def advance(steps: int) -> None:
        nonlocal done
        raise_if_stopped()
        done += steps
        if phases is not None:
            phases.advance(done / total)
        elif shown is not None and bar is not None:
            shown.progress.advance(bar, steps)

    try:
        yield advance
    finally:
        if shown is not None and bar is not None:
            shown.progress.remove_task(bar)


def track(items: Iterable[Item], description: str, *, total: int) -> Iterator[Item]:
    """Yield ``items`` and advance a bar of ``total`` steps by one after each of them."""
    with progress_bar(description, total=total) as advance:
        for item in items:
            yield item
            advance(1)
