"""SHA-256 of files, cached until a file changes, so that large files are read once. No torch.

Hashes are lines of JSON in hashes.jsonl of the user's cache folder (``cache_folder``). Each line is appended with one write, so
that several processes can share the file. A damaged line is skipped; its file is then read again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lm_harmony.errors import StoreError
from lm_harmony.progress import track
from lm_harmony.runs.files import write_atomically

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
"""Module for file locks; None on Windows, where two processes may read the same file."""
log = logging.getLogger(__name__)

SMALL = 1 << 20
"""Size in bytes below which files are not cached, because a lookup takes as long as reading."""
LARGE = 1 << 28
"""Size in bytes from which files are read by one process at a time, with a log line."""
UNSETTLED = 2.0
"""Seconds after a change in which another change may leave equal times; hashes of such files are not cached."""
_BLOCK = 1 << 23
_MOST_LINES = 10_000
_ATTEMPTS = 3

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of the last change of content and of inode in nanoseconds, inode number."""


def cache_folder() -> Path:
    """Return the folder of this user's cache: LM_HARMONY_CACHE_DIR, else lm-harmony in XDG_CACHE_HOME, else in ~/.cache."""
    chosen = os.environ.get("LM_HARMONY_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lm-harmony"
    except RuntimeError:  # a user without a home folder, as in a container
        return Path(tempfile.gettempdir()) / f"lm-harmony-{os.getuid()}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits; it is read unless its hash is cached.

    Raises:
        StoreError: the file cannot be read, or changes while it is read.
    """
    return _cache_in(cache_folder()).sha256_of(path)


def sha256_if_known(path: Path) -> str | None:
    """Return the SHA-256 of a file that was read here before, also if it has changed since; None: it never was."""
    return _cache_in(cache_folder()).sha256_if_known(path)


@dataclass
class HashCache:
    """Hashes of large files by path, cached in one folder."""

    folder: Path
    """Folder that holds hashes.jsonl."""
    reads: int = 0
    """Number of files that were read completely."""
    _known: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    _lines: int = 0
    _offset: int = 0
    _told: bool = False

    def sha256_of(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes (see the module's function).

        Raises:
            StoreError: the file cannot be read, or changes while it is read.
        """
        try:
            path = path.resolve()
            size = path.stat().st_size
            if size < SMALL:
                return self._read(path)[0]
            with self._alone(path) if size >= LARGE else nullcontext():
                known = self._find(path)
                return known or self._keep(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}. Make it readable and repeat.") from error

    def sha256_if_known(self, path: Path) -> str | None:
        """Return the hash of a file that was read here before (see the module's function)."""
        path = path.resolve()
        known = self._find(path)
        return self.sha256_of(path) if known is None and str(path) in self._known else known

    def _find(self, path: Path) -> str | None:
        """Return the cached hash of a file that has not changed, or None."""
        stamp = _stamp(path)
        for _ in range(2):
            known = self._known.get(str(path))
            if known is not None and known[0] == stamp:
                return known[1]
            if not self._load():
                break
        return None

    def _keep(self, path: Path) -> str:
        if path.stat().st_size >= LARGE:
            # The hash of a file that has just been written is not cached, so the file would be read twice.
            age = time.time() - _last_change(_stamp(path))
            if 0 <= age <= UNSETTLED:
                time.sleep(UNSETTLED - age + 0.1)
        started = time.time()
        digest, stamp = self._read(path)
        if _last_change(stamp) < started - UNSETTLED:
            self._known[str(path)] = (stamp, digest)
            self._append(path, stamp, digest)
        return digest

    def _read(self, path: Path) -> tuple[str, Stamp]:
        """Return the hash of a file and its stamp, which did not change during the reading."""
        for _ in range(_ATTEMPTS):
            before = _stamp(path)
            if before[0] >= LARGE:
                log.info("reading %s (%.1f GB) to see whether it changed", path, before[0] / 1e9)
            digest = hashlib.sha256()
            with path.open("rb") as file:
                blocks = _blocks(file)
                if before[0] >= SMALL:  # the bars of many small files would only flicker
                    blocks = track(blocks, f"hashing {path.name}", total=before[0] // _BLOCK + 1)
                for block in blocks:
                    digest.update(block)
            self.reads += 1
            if _stamp(path) == before:
                return digest.hexdigest(), before
        raise StoreError(f"{path} changes while it is read. Wait until it is complete, and repeat.")

    def _load(self) -> bool:
        """Read the lines that other processes have added; return whether there are any."""
        file = self.folder / "hashes.jsonl"
        try:
            size = file.stat().st_size
            if size < self._offset:  # another process has removed outdated lines
                self._known.clear()
                self._offset = self._lines = 0
            if size == self._offset:
                return False
            with file.open("rb") as opened:
                opened.seek(self._offset)
                added = opened.read()
        except OSError:
            return False
        added = added[: added.rfind(b"\n") + 1]
        self._offset += len(added)
        self._lines += added.count(b"\n")
        for line in added.splitlines():
            try:
                values = json.loads(line)
                self._known[values["path"]] = (tuple(values["stamp"]), values["sha256"])
            except (ValueError, KeyError, TypeError):  # torn by a kill
                continue
        return bool(added)

    def _append(self, path: Path, stamp: Stamp, digest: str) -> None:
        file = self.folder / "hashes.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._load()
            if self._lines > _MOST_LINES and self._lines > 2 * len(self._known):
                self._rewrite(file)
            opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(opened, (json.dumps({"path": str(path), "stamp": stamp, "sha256": digest}) + "\n").encode())
            finally:
                os.close(opened)
        except (OSError, StoreError) as error:  # only time is lost
            large = stamp[0] >= LARGE and not self._told
            self._told |= large
            message = "%s cannot be written: %s. Large files are read again at each start. Set LM_HARMONY_CACHE_DIR."
            log.log(logging.WARNING if large else logging.DEBUG, message, file, error)

    def _rewrite(self, file: Path) -> None:
        """Rewrite the file without lines that later lines replace."""
        lines = [json.dumps({"path": path, "stamp": stamp, "sha256": known}) for path, (stamp, known) in self._known.items()]
        write_atomically(file, "\n".join(lines) + "\n")
        self._offset, self._lines = file.stat().st_size, len(lines)

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Prevent other processes from reading the same file during the block, where the file system supports locks."""
        place = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4]) >> 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "hashes.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            yield
            return
        try:
            _lock(lock, place, path)
            yield
        finally:
            os.close(lock)


def _lock(opened: int, place: int, path: Path) -> None:
    """Lock the byte ``place`` of an open file, waiting for other processes; without support for locks do nothing."""
    if fcntl is None:
        return
    try:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            log.info("waiting for another process that reads %s", path)
            fcntl.lockf(opened, fcntl.LOCK_EX, 1, place)
    except OSError as error:
        log.debug("%s cannot be locked: %s", path, error)


_CACHES: dict[Path, HashCache] = {}


def _cache_in(folder: Path) -> HashCache:
    return _CACHES.setdefault(folder, HashCache(folder))


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _last_change(stamp: Stamp) -> float:
    """Return the time of the last change in seconds: the inode's, because programs can set a file's modification time."""
    return (stamp[1] if os.name == "nt" else stamp[2]) / 1e9
