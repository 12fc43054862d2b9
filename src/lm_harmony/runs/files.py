"""Files and folders written atomically: a reader, or a crash, finds either the old content or all of the new one. No torch."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from lm_harmony.errors import StoreUnavailable

Guard = Callable[[], AbstractContextManager[None]]
"""Makes the block in which a file takes its name; raises if this process may not write any more (``Lease.writing``)."""


@contextmanager
def new_folder(folder: Path, guard: Guard = nullcontext) -> Iterator[Path]:
    """Yield an empty folder, which becomes ``folder`` when the block ends without an error and is removed otherwise.

    It has the name of ``folder``, alone inside a hidden folder beside it. All of its files are on disk before it takes its name.

    Args:
        folder: path of the folder, which must not exist or be empty.
        guard: block in which the folder takes its name.
    """
    hidden = _scratch(folder)
    scratch = hidden / folder.name
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for root, _, names in os.walk(scratch):
            for name in names:
                _sync(Path(root) / name)
            _sync(Path(root))
        with guard():
            os.replace(scratch, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def new_file(path: Path, guard: Guard = nullcontext) -> Iterator[Path]:
    """Yield the path of a file to write, which becomes ``path`` when the block ends without an error and is removed otherwise.

    Its content is on disk before it takes its name, and its permissions are those of the user's umask.

    Args:
        path: path of the file.
        guard: block in which the file takes its name.
    """
    scratch = _scratch(path)
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)  # safetensors replaces it by a file that only its owner may read
        _sync(scratch)
        with guard():
            os.replace(scratch, path)
        _sync(path.parent)
    finally:
        with suppress(OSError):  # such as a disk that has become read-only, which the first error says
            scratch.unlink(missing_ok=True)


def _scratch(path: Path) -> Path:
    """Return a hidden name beside ``path`` that no other process and no other call uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on disk.

    Raises:
        OSError: the disk failed, or is full.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some systems do not open folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str, guard: Guard = nullcontext) -> None:
    """Write a file so that a reader, or a crash, finds either its old text or all of the new one.

    Args:
        path: path of the file.
        text: its new content.
        guard: block in which the new content replaces the old one.

    Raises:
        StoreUnavailable: the disk is full or the folder cannot be written.
    """
    try:
        with new_file(path, guard) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> StoreUnavailable:
    """Return the error that ``path`` cannot be written, with its cause and what to do."""
    cause = getattr(error, "strerror", None) or " ".join(str(error).split())
    return StoreUnavailable(
        f"{path} cannot be written: {cause}. What was finished before is complete. Free disk space, or make {path.parent} "
        f"writable, and resume with --resume_from_checkpoint."
    )
