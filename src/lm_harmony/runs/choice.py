"""The choice by validation: of the epochs, and of several learning rates the epochs of all. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lm_harmony.runs.record import EpochRecord, RunRecord


def choose_epoch(epochs: Sequence[EpochRecord], metric: str, *, higher_is_better: bool) -> EpochRecord:
    """Return the epoch with the best validation score; of equal ones the first: the first learning rate, then the earliest."""
    sign = 1 if higher_is_better else -1
    return max(epochs, key=lambda epoch: sign * epoch.validation[metric])  # max returns the first of equal ones


def shown_epoch(epoch: EpochRecord) -> str:
    """Return the number of an epoch, with its learning rate if the run chooses one."""
    return f"epoch {epoch.epoch}" + ("" if epoch.learning_rate is None else f" (learning rate {epoch.learning_rate:g})")


def chosen_rate(record: RunRecord) -> float:
    """Return the learning rate of the epoch that was tested."""
    chosen = next((epoch.learning_rate for epoch in record.epochs if epoch.epoch == record.chosen_epoch), None)
    return record.spec.recipe.peak_rate if chosen is None else chosen


def epochs_by_rate(record: RunRecord) -> Mapping[float, Sequence[EpochRecord]]:
    """Return the epochs of each learning rate; none of one whose first epoch diverged."""
    if len(record.spec.recipe.rates) == 1:
        return {record.spec.recipe.peak_rate: record.epochs}
    return {rate: [epoch for epoch in record.epochs if epoch.learning_rate == rate] for rate in record.spec.recipe.rates}


def best_by_rate(record: RunRecord) -> Mapping[float, float]:
    """Return the best validation score of each learning rate: what the run would have reached with that rate alone."""
    return {
        rate: choose_epoch(epochs, record.metric, higher_is_better=record.higher_is_better).validation[record.metric]
        for rate, epochs in epochs_by_rate(record).items()
        if epochs
    }
