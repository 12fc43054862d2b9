"""Checkpoints of an epoch: weights and optimizer state, written atomically. Trainings begin or continue from them."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lm_harmony.engine.adapters import Trainee
from lm_harmony.engine.train_state import Epoch, Resumption
from lm_harmony.engine.training import Training
from lm_harmony.errors import DamagedFile, HarmonyError, UsageError
from lm_harmony.runs.files import new_file, new_folder, not_written
from lm_harmony.runs.record import EpochRecord
from lm_harmony.runs.recovery import OPTIMIZER, checksums
from lm_harmony.runs.run_setup import RunSetup
from lm_harmony.runs.store import RunStore

INITIAL = 0
"""Number of the checkpoint with the weights from which every learning rate begins, where a run has several."""


def save_checkpoint(store: RunStore, trainee: Trainee, epoch: Epoch, *, resumable: bool) -> dict[str, str]:
    """Write the weights of ``epoch`` and, if ``resumable``, the optimizer state; return the SHA-256 of each file.

    Raises:
        StoreUnavailable: the disk is full or cannot be written.
    """
    folder = store.checkpoint(epoch.number)
    store.remove(folder)  # of an attempt that was interrupted
    save_weights(store, trainee, folder / "weights", model_card=False)
    if resumable:
        try:
            with new_file(folder / OPTIMIZER, store.guard) as scratch:
                save_file(dict(epoch.optimizer_state), scratch)
        except (OSError, SafetensorError) as error:
            raise not_written(folder, error) from error
    return checksums(folder)


def trainings(run: RunSetup, trainee: Trainee, store: RunStore, done: Sequence[EpochRecord]) -> Iterator[tuple[int, Training]]:
    """Yield the place and the training of each learning rate of the recipe, one after another, each from the same weights.

    The training of the last epoch in ``done`` continues after it. Those of earlier learning rates have ended.
    """
    recipe, initial = run.spec.recipe, store.checkpoint(INITIAL) / "weights"
    if len(recipe.rates) > 1:
        save_weights(store, trainee, initial, model_card=False)
    rate = done[-1].learning_rate if done else None
    begun = 0 if rate is None else recipe.rates.index(rate)
    for place in range(begun, len(recipe.rates)):
        resume = None
        if place > begun:
            trainee.load(initial)
        elif done:
            own = sum(epoch.learning_rate == rate for epoch in done)
            resume = replace(load_checkpoint(store, trainee, done[-1].epoch), epoch=own)
        yield (
            place,
            Training(
                trainee,
                run.sequences,
                recipe.at_rate(recipe.rates[place]),
                seed=run.spec.seed,
                micro_batch=run.spec.execution.micro_batch,
                backend=run.scorer.backend,
                resume=resume,
            ),
        )


def load_checkpoint(store: RunStore, trainee: Trainee, epoch: int) -> Resumption:
    """Load the weights of ``epoch`` into the model and return the state from which training resumes.

    Raises:
        DamagedFile: the checkpoint is missing or cannot be read.
    """
    folder = store.checkpoint(epoch)
    trainee.load(folder / "weights")
    try:
        return Resumption(epoch=epoch, optimizer_state=load_file(folder / OPTIMIZER))
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"{folder / OPTIMIZER} cannot be read: {error}. Run it again with --overwrite.") from error


def save_weights(store: RunStore, trainee: Trainee, folder: Path, *, model_card: bool = True) -> None:
    """Write the trained weights to ``folder``, inside the run's, atomically; an adapter gets a model card if ``model_card``.

    Raises:
        UsageError: the folder holds something that no run writes.
        StoreUnavailable: the disk is full or cannot be written.
    """
    try:
        store.remove(folder)
        with new_folder(folder, store.guard) as scratch:
            trainee.save(scratch, model_card=model_card)
    except (OSError, SafetensorError) as error:
        if isinstance(error, HarmonyError):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise UsageError(f"{folder} holds files that no run writes. Move them away, and repeat.") from error
        raise not_written(folder, error) from error
