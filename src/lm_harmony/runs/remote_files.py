"""Files behind a URL (s3://bucket/results, or another that fsspec supports), with one error for every failure of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fsspec

from lm_harmony.errors import MissingExtra, StoreUnavailable, UsageError

UNKNOWN = "unknown"
"""ETag of a file in a store that has none."""


@dataclass(frozen=True)
class RemoteFiles:
    """Files behind a URL."""

    url: str
    """URL of the results, such as s3://bucket/results."""

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
        below = {name.removeprefix(f"{self.root}/"): info for name, info in files.items()}
        # An object may be called ../name, which would be outside the working copy.
        return {name: info for name, info in below.items() if not name.startswith("/") and ".." not in name.split("/")}

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
                    return UNKNOWN
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
        return str(info.get("ETag") or UNKNOWN)

    @property
    def _conditional(self) -> bool:
        """Whether the store can compare the ETag of what a write replaces."""
        return "s3" in self.url.partition("://")[0]

    def remove(self, name: str) -> None:
        """Remove one file of the results, if it exists."""
        with self.clear_errors():
            if self.filesystem.exists(f"{self.root}/{name}"):
                self.filesystem.rm_file(f"{self.root}/{name}")

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


def _error_code(error: OSError) -> str:
    """Return the code of an error of S3, such as "PreconditionFailed"."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
