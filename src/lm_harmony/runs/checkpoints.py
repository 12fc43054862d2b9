"""Checkpoints of an epoch: weights and optimizer state, written atomically."""

from __future__ import annotations

import errno
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lm_harmony.engine.adapters import Trainee
from lm_harmony.engine.train_state import Epoch, Resumption
from lm_harmony.errors import DamagedFile, HarmonyError, UsageError
from lm_harmony.runs.files import new_file, new_folder, not_written
from lm_harmony.runs.recovery import OPTIMIZER, checksums
from lm_harmony.runs.store import RunStore


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
