"""Lets the processes of one machine load their models one after another where host memory is short."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

log = logging.getLogger(__name__)


@contextmanager
def loading_turn(needed: int, folder: Path | None = None) -> Iterator[bool]:
    """Wait for a turn to load a model if host memory does not hold two loadings like this one at once.

    While a checkpoint is read, its files and its tensors are both in host memory, also where the weights go to a GPU. The lock is
    released when the block ends or when the process ends, however it ends.

    Args:
        needed: bytes of the checkpoint.
        folder: folder of the lock file; default: the system's folder for temporary files.

    Yields:
        Whether the process has waited for its turn and holds the lock.
    """
    short = 4 * needed > psutil.virtual_memory().available
    if not short:
        yield False
        return
    path = (folder or Path(tempfile.gettempdir())) / f"lm-harmony-{os.getuid()}-loading.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting: host memory is short, and another process loads a model.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield True
