"""Remote sync: results behind a URL (s3://bucket/results, or another that fsspec supports), with a local working copy.

A run is pulled before it starts or continues. It is pushed when an epoch has ended, and when the run has finished or failed.
record.json is pushed last, so that a finished run is complete behind the URL. If the machine with the working copy is lost, only
the current epoch is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_harmony.errors import LeaseLost
from lm_harmony.runs.file_hashes import cache_folder
from lm_harmony.runs.files import new_file
from lm_harmony.runs.remote_files import UNKNOWN, RemoteFiles

LAST = ("epochs.jsonl", "failure.json", "record.json")
"""Files that are pushed after all others, in this order, because they mark what is complete."""
ENDED = ("record.json", "failure.json", "epochs.jsonl")
"""Files from which a study reads the state of each run."""


def is_url(place: str) -> bool:
    """Return whether a results_dir is a URL."""
    return "://" in place


@dataclass(frozen=True)
class RemoteSync(RemoteFiles):
    """Results behind a URL, and the folder that is their working copy."""

    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Files that are equal on both sides: path -> size and modification time of the local file."""
    _etags: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    """ETags of the files of ``LAST``, as this process has last seen or written them."""

    @cached_property
    def folder(self) -> Path:
        """Path of the working copy, in the user's cache folder (``cache_folder``)."""
        return cache_folder() / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def pull(self, path: str) -> None:
        """Make the working copy of the folder ``path`` equal to the results; removes other files."""
        infos = self.list_files(path)
        here, names = self._files(path), infos.keys()
        for name in here.keys() - names:
            (self.folder / name).unlink()
        for name in [name for name in self._etags if name.startswith(f"{path}/") and name not in names]:
            del self._etags[name]
        self._etags.update({name: str(info.get("ETag") or UNKNOWN) for name, info in infos.items() if _rank(name)})
        for name in names:
            if name not in here or self._sent.get(name) != _stamp(self.folder / name):
                self._get(name)

    def pull_outcomes(self) -> None:
        """Copy the files that tell the state of each run."""
        names = {name: info for name, info in self.list_files("").items() if name.rpartition("/")[2] in ENDED}
        for name in self._files("").keys() - names.keys():
            if name.endswith(LAST):
                (self.folder / name).unlink()
        for name, info in names.items():
            if not name.endswith("/record.json") or not _is_copy(self.folder / name, info):
                self._get(name)

    def push(self, path: str, check: Callable[[], None] = lambda: None) -> None:
        """Make the results of the folder ``path`` equal to the working copy.

        Args:
            path: path of the folder below the results.
            check: called before each write; raises if this process must not write any more.

        Raises:
            LeaseLost: another process has written one of the files of ``LAST`` since this one pulled the folder.
        """
        here, names = self._files(path), self.file_sizes(path)
        for name in sorted(here, key=lambda name: (_rank(name), name)):
            if name not in names or self._sent.get(name) != here[name]:
                check()
                self._push_file(name)
                self._sent[name] = here[name]
        for name in names.keys() - here.keys():
            if not name.rpartition("/")[2].startswith("."):  # the working copy has no hidden files, so no run wrote it
                check()
                self.remove(name)

    def _push_file(self, name: str) -> None:
        """Write one file. Those that mark what is complete replace only the version that this process has seen."""
        if not _rank(name):
            with self.clear_errors():
                self.filesystem.put_file(str(self.folder / name), f"{self.root}/{name}")
            return
        try:
            self._etags[name] = self.put(name, (self.folder / name).read_bytes(), etag=self._etags.get(name))
        except FileExistsError:
            raise LeaseLost(
                f"results_dir: {self.url}/{name} was written by another process. Nothing more is written there; the other "
                f"process finishes the run."
            ) from None

    def _get(self, name: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as scratch, self.clear_errors():
            self.filesystem.get_file(f"{self.root}/{name}", str(scratch))
        self._sent[name] = _stamp(file)

    def _files(self, path: str) -> dict[str, tuple[int, int]]:
        """Return size and time of the working copy's files below ``path``, without hidden ones (temporary files and leases)."""
        return {
            file.relative_to(self.folder).as_posix(): _stamp(file)
            for file in (self.folder / path).rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }


def _is_copy(file: Path, info: Mapping[str, Any]) -> bool:
    """Return whether the local file has the size of the remote one and is newer."""
    if not file.is_file() or file.stat().st_size != int(info["size"]):
        return False
    written = info.get("LastModified") or info.get("mtime") or info.get("created")
    seconds = written.timestamp() if isinstance(written, datetime) else written
    return isinstance(seconds, (int, float)) and file.stat().st_mtime > float(seconds)


def _rank(name: str) -> int:
    last = name.rpartition("/")[2]
    return LAST.index(last) + 1 if last in LAST else 0


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
