"""Remote sync: results behind a URL (s3://bucket/results, or another that fsspec supports), with a local working copy.

A run is pulled before it starts or continues. It is pushed when an epoch has ended, and when the run has finished or failed.
record.json is pushed last, so that a finished run is complete behind the URL. If the machine with the working copy is lost, only
the current epoch is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from lm_harmony.errors import MissingExtra, StoreError, UsageError
from lm_harmony.runs.file_hashes import cache_folder
from lm_harmony.runs.files import new_file

LAST = ("epochs.jsonl", "failure.json", "record.json")
"""Files that are pushed after all others, in this order, because they mark what is complete."""
ENDED = ("record.json", "failure.json", "epochs.jsonl")
"""Files from which a study reads the state of each run."""


def is_url(place: str) -> bool:
    """Return whether a results_dir is a URL."""
    return "://" in place


@dataclass(frozen=True)
class RemoteSync:
    """Results behind a URL, and the folder that is their working copy."""

    url: str
    """URL of the results, such as s3://bucket/results."""
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Files that are equal on both sides: path -> size and modification time of the local file."""

    @cached_property
    def folder(self) -> Path:
        """Path of the working copy, in the user's cache folder (``cache_folder``)."""
        return cache_folder() / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    @cached_property
    def filesystem(self) -> Any:
        """File system of the URL, from fsspec.

        Raises:
            MissingExtra: the package for this kind of URL is not installed.
            UsageError: fsspec does not support this kind of URL.
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
        """Path of the results in the file system of the URL."""
        return str(self.filesystem._strip_protocol(self.url)).rstrip("/")

    def file_sizes(self, path: str = "") -> Mapping[str, int]:
        """Return the size of every file below ``path``, by its path from the root."""
        return {name: int(info["size"]) for name, info in self.list_files(path).items()}

    def list_files(self, path: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the metadata of every file below ``path``, by its path from the root."""
        with self.clear_errors():
            found = self.filesystem.find(f"{self.root}/{path}".rstrip("/"), detail=True)
        # Where a folder is empty, s3fs looks whether its name is a file, and names a folder that another filled in between.
        files = {name: info for name, info in found.items() if info.get("type") != "directory"}
        return {name.removeprefix(f"{self.root}/"): info for name, info in files.items()}

    def pull(self, path: str) -> None:
        """Make the working copy of the folder ``path`` equal to the results; removes other files."""
        names = self.file_sizes(path)
        here = self._files(path)
        for name in here.keys() - names.keys():
            (self.folder / name).unlink()
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

    def push(self, path: str) -> None:
        """Make the results of the folder ``path`` equal to the working copy."""
        here, names = self._files(path), self.file_sizes(path)
        for name in sorted(here, key=lambda name: (_rank(name), name)):
            if name not in names or self._sent.get(name) != here[name]:
                with self.clear_errors():
                    self.filesystem.put_file(str(self.folder / name), f"{self.root}/{name}")
                self._sent[name] = here[name]
        for name in names.keys() - here.keys():
            if not name.rpartition("/")[2].startswith("."):  # the working copy has no hidden files, so no run wrote it
                self.remove(name)

    def remove(self, name: str) -> None:
        """Remove one file of the results, if it exists."""
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
        """Return size and time of the working copy's files below ``path``, without hidden ones (temporary files and leases)."""
        return {
            file.relative_to(self.folder).as_posix(): _stamp(file)
            for file in (self.folder / path).rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Turn an error of the remote file system into one that says what to do.

        Raises:
            StoreError: the results cannot be read or written.
        """
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreError(
                f"results_dir: {self.url} cannot be used: {' '.join(str(error).split())[:300]}. What was finished is complete. "
                f"Check the address and your permission to write there, and repeat."
            ) from error
        except Exception as error:
            # Errors of credentials and endpoints are classes of the client library, which derive from no standard error.
            if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "google", "azure"):
                raise
            raise StoreError(
                f"results_dir: {self.url} cannot be reached: {' '.join(str(error).split())[:300]}. "
                f"Check the address and credentials."
            ) from error


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
