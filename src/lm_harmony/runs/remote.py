"""Results that are kept behind a URL (s3://bucket/results, or any other that fsspec knows): a folder here is their working copy.

A run is pulled before it is begun or continued, and pushed when an epoch has ended, when it is finished and when it is given up.
Every file goes whole; record.json goes last, so that what is finished there is whole there. Nothing in the working copy is
trusted: losing it with its machine loses what the current epoch has done, no more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from lm_harmony.errors import MissingExtra, StoreError, UsageError
from lm_harmony.runs.files import new_file

LAST = ("epochs.jsonl", "failure.json", "record.json")
"""Pushed after all else, in this order: they say that what they speak of is there."""
ENDED = ("record.json", "failure.json", "epochs.jsonl")
"""What a study must know of every run to say how it stands."""


def is_url(place: str) -> bool:
    """Tell whether results are asked for behind a URL."""
    return "://" in place


@dataclass(frozen=True)
class RemoteSync:
    """Results behind a URL and the folder that is their working copy."""

    url: str
    """Where the results are."""
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What this process knows to be the same on both sides: path -> size and time of the file here."""

    @cached_property
    def folder(self) -> Path:
        """The working copy, in this user's cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "lm-harmony" / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    @cached_property
    def filesystem(self) -> Any:
        """What fsspec opens the URL with.

        Raises:
            MissingExtra: the package for this kind of URL is not there.
            UsageError: fsspec knows no such kind.
        """
        try:
            filesystem, _ = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise MissingExtra(
                f"results_dir: {self.url} needs a package: {error}. For s3:// run: pip install 'lm-harmony[s3]'"
            ) from error
        except ValueError as error:
            raise UsageError(f"results_dir: {self.url}: {error}. Use a folder, or s3://bucket/folder.") from error
        return filesystem

    @cached_property
    def root(self) -> str:
        """The URL as its file system spells paths."""
        return str(self.filesystem._strip_protocol(self.url)).rstrip("/")

    def file_sizes(self, path: str = "") -> Mapping[str, int]:
        """Return the size of every file below ``path``, by its path from the root."""
        return {name: int(info["size"]) for name, info in self.list_files(path).items()}

    def list_files(self, path: str) -> Mapping[str, Mapping[str, Any]]:
        """Return what the file system tells of every file below ``path``, by its path from the root."""
        with self.clear_errors():
            found = self.filesystem.find(f"{self.root}/{path}".rstrip("/"), detail=True)
        # Where a folder is empty, s3fs looks whether its name is a file, and names a folder that another filled in between.
        files = {name: info for name, info in found.items() if info.get("type") != "directory"}
        return {name.removeprefix(f"{self.root}/"): info for name, info in files.items()}

    def pull(self, path: str) -> None:
        """Make the working copy of the folder ``path`` what the results are; what else is there goes."""
        names = self.file_sizes(path)
        here = self._files(path)
        for name in here.keys() - names.keys():
            (self.folder / name).unlink()
        for name in names:
            if name not in here or self._sent.get(name) != _stamp(self.folder / name):
                self._get(name)

    def pull_outcomes(self) -> None:
        """Learn what every run's folder says of its end."""
        names = {name: info for name, info in self.list_files("").items() if name.rpartition("/")[2] in ENDED}
        for name in self._files("").keys() - names.keys():
            if name.endswith(LAST):
                (self.folder / name).unlink()
        for name, info in names.items():
            if not name.endswith("/record.json") or not _is_copy(self.folder / name, info):
                self._get(name)

    def push(self, path: str) -> None:
        """Make the results of the folder ``path`` what the working copy is."""
        here, names = self._files(path), self.file_sizes(path)
        for name in sorted(here, key=lambda name: (_rank(name), name)):
            if name not in names or self._sent.get(name) != here[name]:
                with self.clear_errors():
                    self.filesystem.put_file(str(self.folder / name), f"{self.root}/{name}")
                self._sent[name] = here[name]
        for name in names.keys() - here.keys():
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove one file of the results, if it is there."""
        with self.clear_errors():
            if self.filesystem.exists(f"{self.root}/{name}"):
                self.filesystem.rm_file(f"{self.root}/{name}")

    def _get(self, name: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as scratch, self.clear_errors():
            self.filesystem.get_file(f"{self.root}/{name}", str(scratch))
        self._sent[name] = _stamp(file)

    def _files(self, path: str) -> dict[str, tuple[int, int]]:
        """Return stamps of the working copy's files below ``path``; names with a dot in front are half-written or leases."""
        return {
            file.relative_to(self.folder).as_posix(): _stamp(file)
            for file in (self.folder / path).rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Turn what a remote file system raises into an error that says what to do.

        Raises:
            StoreError: the results cannot be reached or written.
        """
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreError(
                f"results_dir: {self.url} cannot be used: {' '.join(str(error).split())[:300]}. What was finished is whole; "
                f"check the address and your right to write there, and repeat."
            ) from error
        except Exception as error:
            # Credentials and endpoints fail in classes of the client library, which derive from nothing of the standard one.
            if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "google", "azure"):
                raise
            raise StoreError(
                f"results_dir: {self.url} cannot be reached: {' '.join(str(error).split())[:300]}. "
                f"Check the address and credentials."
            ) from error


def _is_copy(file: Path, info: Mapping[str, Any]) -> bool:
    """Tell whether a file of the working copy is of the size of the remote one and was pulled after that was written."""
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
