"""Losses and scores sent to TensorBoard, Trackio or Weights & Biases, through Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from lm_harmony.benchmarks.types import Score
from lm_harmony.engine.train_state import Epoch
from lm_harmony.errors import MissingExtra
from lm_harmony.runs.spec import Execution


class Tracker:
    """All experiment trackers of a run; with none, its methods do nothing."""

    def __init__(self, trackers: tuple[GeneralTracker, ...], logging_steps: int | None) -> None:
        """Take opened trackers; the loss of every ``logging_steps``-th step is logged."""
        self._trackers, self._logging_steps = trackers, logging_steps

    def epoch(self, epoch: Epoch, validation: Mapping[str, float], *, steps_before: int = 0) -> None:
        """Log the losses of an epoch's steps and its validation scores.

        Args:
            epoch: the finished epoch.
            validation: its score in every metric.
            steps_before: number of steps with other learning rates before this training.
        """
        for step in epoch.steps:
            if self._logging_steps and step.number % self._logging_steps == 0:
                values = {"loss": step.loss, "learning_rate": step.learning_rate, "grad_norm": step.grad_norm}
                self._log({f"train/{key}": value for key, value in values.items()}, steps_before + step.number)
        self._log({f"validation/{key}": value for key, value in validation.items()}, steps_before + epoch.steps[-1].number)

    def tested(self, scores: Mapping[str, Score | None], *, step: int) -> None:
        """Log the test scores that are not None, each under its name."""
        for name, score in scores.items():
            if score is not None:
                self._log({f"{name}/{key}": value for key, value in score.metrics.items()}, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=step)


@contextmanager
def open_trackers(execution: Execution, *, folder: Path, run: str) -> Iterator[Tracker]:
    """Open the requested trackers for the duration of the block; TensorBoard writes below ``folder``.

    Raises:
        MissingExtra: a tracker's package is not installed.
    """
    opened: list[GeneralTracker] = []
    if execution.trackers:
        PartialState()  # Accelerate's trackers log through it
    try:
        for name in execution.trackers:
            kind = LOGGER_TYPE_TO_CLASS[name]
            here = {"run_name": run, "logging_dir": str(folder)}
            there = {"run_name": "lm-harmony", "name": run}
            tracker = kind(**(here if kind.requires_logging_directory else there))
            try:
                tracker.start()
            except ImportError as error:
                raise MissingExtra(
                    f"train_param.report_to {name} needs a package that is not installed. Run: pip install 'lm-harmony[trackers]'"
                ) from error
            opened.append(tracker)
        yield Tracker(tuple(opened), execution.logging_steps)
    finally:
        for tracker in opened:
            tracker.finish()
