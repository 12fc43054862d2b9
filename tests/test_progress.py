"""One bar shows all phases of a run. Bars that are opened inside a phase advance it by their share of the phase's work."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress

from lm_harmony.progress import display, phase, progress_bar, show_phases

RUN = [("direct test", 30.0), ("epoch 1/2", 20.0), ("epoch 2/2", 20.0), ("test", 30.0)]


def only_bar(progress: Progress) -> tuple[str, float]:
    """Return the description and the percentage of the only bar."""
    (bar,) = progress.tasks
    return bar.description, bar.percentage


def test_the_bar_of_a_run_advances_with_the_work_of_its_phases() -> None:
    with display(Console(file=io.StringIO())) as progress:
        show_phases(RUN)
        with phase("direct test", "5 documents"), progress_bar("scoring", total=20) as advance:
            advance(10)
            assert only_bar(progress) == ("direct test: 5 documents", 15.0)
            advance(10)
        assert only_bar(progress)[1] == 30.0
        with phase("epoch 2/2", "8 rows"):  # the first epoch was finished before the run was resumed
            assert only_bar(progress) == ("epoch 2/2: 8 rows", 50.0)
        assert only_bar(progress)[1] == 70.0
        with phase("another phase", "1 document"), progress_bar("scoring", total=1) as advance:  # of no known work
            advance(1)
            assert only_bar(progress)[1] == 70.0
        with phase("test", "5 documents"):
            pass
        assert only_bar(progress)[1] == 100.0


def test_a_bar_outside_of_phases_is_shown_by_itself_and_the_next_run_has_a_new_bar() -> None:
    with display(Console(file=io.StringIO())) as progress:
        show_phases(RUN)
        with progress_bar("hashing", total=4) as advance:
            advance(1)
            assert [(bar.description, bar.percentage) for bar in progress.tasks] == [("", 0.0), ("hashing", 25.0)]
        show_phases(RUN[-1:])
        with phase("test", "5 documents"):
            assert only_bar(progress) == ("test: 5 documents", 0.0)


def test_each_phase_is_one_line_without_a_display(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lm_harmony"):
        show_phases(RUN)
        with phase("direct test", "5 documents"), progress_bar("scoring", total=2) as advance:
            advance(2)
    assert caplog.messages == ["direct test: 5 documents"]
