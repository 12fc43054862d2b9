"""Files and folders that are there whole or not at all, whatever happens in between."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lm_harmony.errors import StoreError


def replace_folder(scratch: Path, folder: Path) -> None:
    """Put a folder that was written whole under ``scratch`` in the place of ``folder``."""
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(scratch, folder)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its name holds either the old text or the new one, whole, whatever happens in between.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error.strerror}. What was finished before is whole; make room and resume with "
            f"--resume_from_checkpoint."
        ) from error
