"""Remote sync: results behind a URL (s3://bucket/results, or another that fsspec supports), with a local working copy.

A run is pulled before it starts or continues. It is pushed when an epoch has ended, and when the run has finished or failed.
record.json is pushed last, so that a finished run is complete behind the URL. If the machine with the working copy is lost, only
the current epoch is lost.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from lm_harmony.errors import LeaseLost, MissingExtra, StoreUnavailable, UsageError
from lm_harmony.runs.files import new_file

LAST = ("epochs.jsonl", "failure.json", "record.json")
"""Files that are pushed after all others, in this order, because they mark what is complete."""
_UNKNOWN = "unknown"
"""ETag of a file in a store that has none."""
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
    _etags: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    """ETags of the files of ``LAST``, as this process has last seen or written them."""

    @cached_property
    def folder(self) -> Path:
        """Path of the working copy, in the user's cache folder."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "lm-harmony" / hashlib.sha256(self.url.encode()).hexdigest()[:16]

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
        infos = self.list_files(path)
        here, names = self._files(path), infos.keys()
        for name in here.keys() - names:
            (self.folder / name).unlink()
        for name in [name for name in self._etags if name.startswith(f"{path}/") and name not in names]:
            del self._etags[name]
        self._etags.update({name: str(info.get("ETag") or _UNKNOWN) for name, info in infos.items() if _rank(name)})
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

    def put(self, name: str, data: bytes, *, etag: str | None) -> str | None:
        """Write a small file unless another process has written it since, and return its new ETag.

        On S3 the store itself compares. Other stores only compare when a file must be new.

        Args:
            name: path of the file below the results.
            data: its new content.
            etag: ETag of the content that is replaced; None: there must be no such file.

        Raises:
            FileExistsError: the file has another content.
        """
        place = f"{self.root}/{name}"
        try:
            with self.clear_errors():
                if not self._conditional:
                    if etag is None:
                        self.filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
                    self.filesystem.pipe_file(place, data, mode="create" if etag is None else "overwrite")
                    return _UNKNOWN
                bucket, key, _ = self.filesystem.split_path(place)
                condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
                try:
                    written = self.filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
                except OSError as error:
                    if _error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                        raise FileExistsError(f"{place} was changed") from error
                    raise
                self.filesystem.invalidate_cache(place)
                return str(written["ETag"])
        except FileExistsError:
            # An earlier attempt of this write may have succeeded without its answer reaching us.
            found = self.read(name)
            if found is None or found.encode() != data:
                raise
            return self._etag_of(name)

    def read(self, name: str) -> str | None:
        """Return the text of a small file, or None if there is none."""
        with self.clear_errors():
            try:
                return bytes(self.filesystem.cat_file(f"{self.root}/{name}")).decode("utf-8", errors="replace")
            except FileNotFoundError:
                return None

    def _etag_of(self, name: str) -> str | None:
        with self.clear_errors():
            info = self.filesystem.info(f"{self.root}/{name}")
        return str(info.get("ETag") or _UNKNOWN)

    @property
    def _conditional(self) -> bool:
        """Whether the store can compare the ETag of what a write replaces."""
        return "s3" in self.url.partition("://")[0]

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
            StoreUnavailable: the results cannot be read or written.
        """
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreUnavailable(
                f"results_dir: {self.url} cannot be used: {' '.join(str(error).split())[:300]}. What was finished is complete. "
                f"Check the address and your permission to write there, and repeat."
            ) from error
        except Exception as error:
            # Errors of credentials and endpoints are classes of the client library, which derive from no standard error.
            if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "google", "azure"):
                raise
            raise StoreUnavailable(
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


def _error_code(error: OSError) -> str:
    """Return the code of an error of S3, such as "PreconditionFailed"."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _rank(name: str) -> int:
    last = name.rpartition("/")[2]
    return LAST.index(last) + 1 if last in LAST else 0


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
