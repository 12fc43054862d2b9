"""A Hugging Face hub on loopback: a real HTTP server for the real clients, so that tests need neither network nor fakes.

It serves local folders as repositories to ``huggingface_hub``, ``datasets`` and ``from_pretrained``. These read HF_ENDPOINT
when they are imported, so a test runs them in a subprocess under ``LoopbackHub.environment``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_BRANCH = "main"
_DATE = "2024-01-01T00:00:00.000Z"
_ARC_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("choices", pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))])),
        ("answerKey", pa.string()),
    ]
)
# The features as the hub's card of ai2_arc writes them, in the notation of older releases of `datasets`.
_ARC_FEATURES = [
    {"name": "id", "dtype": "string"},
    {"name": "question", "dtype": "string"},
    {"name": "choices", "sequence": [{"name": "text", "dtype": "string"}, {"name": "label", "dtype": "string"}]},
    {"name": "answerKey", "dtype": "string"},
]


def write_arc_dataset(folder: Path, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write ``rows`` of each split as the hub's allenai/ai2_arc lays out ARC-Easy: a parquet file a split, and the card."""
    (folder / "ARC-Easy").mkdir(parents=True)
    for split, split_rows in rows.items():
        table = pa.Table.from_pylist(split_rows, schema=_ARC_SCHEMA)
        pq.write_table(table, folder / "ARC-Easy" / f"{split}-00000-of-00001.parquet")
    splits = [{"name": split, "num_examples": len(split_rows)} for split, split_rows in rows.items()]
    files = [{"split": split, "path": f"ARC-Easy/{split}-*"} for split in rows]
    card = {
        "dataset_info": [{"config_name": "ARC-Easy", "features": _ARC_FEATURES, "splits": splits}],
        "configs": [{"config_name": "ARC-Easy", "data_files": files}],
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n# ARC\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a client asks for; ``segments`` are unquoted one by one, for a revision may hold a quoted slash."""

    segments: list[str]
    query: Mapping[str, list[str]]
    form: Mapping[str, list[str]]
    byte_range: str


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A whole response; for HEAD the body is left out and its length still told."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file on disk with the git blob id that the hub tells both as its ``oid`` and as its ETag."""

    path: Path
    size: int
    oid: str


@dataclass(frozen=True, kw_only=True)
class _Repository:
    """The files of a folder at its one commit."""

    name: str
    files: Mapping[str, _File]

    @cached_property
    def commit(self) -> str:
        """The digest of paths and contents, so that the clients' caches never mix two contents up."""
        return _digest(json.dumps([(path, file.oid) for path, file in self.files.items()]).encode())

    @cached_property
    def folders(self) -> frozenset[str]:
        return frozenset(str(parent) for path in self.files for parent in PurePosixPath(path).parents[:-1])

    def entries(self, paths: Iterable[str]) -> list[dict[str, Any]]:
        """Describe those of ``paths`` that exist, as the hub's tree and paths-info endpoints do."""
        last = {"lastCommit": {"id": self.commit, "title": "Add files", "date": _DATE}}
        found = []
        for path in paths:
            if file := self.files.get(path):
                found.append({"type": "file", "path": path, "size": file.size, "oid": file.oid, **last})
            elif path in self.folders:
                oid = _digest(f"{self.commit}/{path}".encode())
                found.append({"type": "directory", "path": path, "size": 0, "oid": oid, **last})
        return found


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _read_repository(name: str, folder: Path) -> _Repository:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        oid = _digest(b"blob %d\0" % len(content) + content)
        files[path.relative_to(folder).as_posix()] = _File(path=path, size=len(content), oid=oid)
    if not files:
        raise ValueError(f"{folder} holds no file to serve as {name}")
    return _Repository(name=name, files=files)


def _json(value: object) -> _Answer:
    return _Answer(headers={"Content-Type": "application/json"}, body=json.dumps(value).encode())


def _missing(code: str | None = None, headers: Mapping[str, str] | None = None) -> _Answer:
    """Answer 404; the clients tell by ``code`` which of their exceptions to raise."""
    said = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
    return _Answer(status=404, headers={**(headers or {}), **said})


def _info(repository: _Repository, path: str, request: _Request) -> _Answer:
    siblings = [
        {"rfilename": name, "size": file.size, "blobId": file.oid} for name, file in repository.files.items()
    ]
    flags = {"private": False, "gated": False, "disabled": False, "tags": []}
    identity = {"_id": repository.commit[:24], "id": repository.name, "sha": repository.commit, "lastModified": _DATE}
    return _json({**identity, **flags, "siblings": siblings})


def _tree(repository: _Repository, path: str, request: _Request) -> _Answer:
    if path and path not in repository.folders:
        return _missing("EntryNotFound")
    prefix = f"{path}/" if path else ""
    listed = [name for name in sorted([*repository.folders, *repository.files]) if name.startswith(prefix)]
    if request.query.get("recursive", ["false"])[0].lower() != "true":
        listed = [name for name in listed if "/" not in name.removeprefix(prefix)]
    return _json(repository.entries(listed))


def _paths_info(repository: _Repository, path: str, request: _Request) -> _Answer:
    return _json(repository.entries(request.form.get("paths", [])))


def _resolve(repository: _Repository, path: str, request: _Request) -> _Answer:
    """Answer with a file or with the part of it that a Range header names."""
    # Told with a missing file too: from it huggingface_hub learns in which commit the file is missing.
    commit = {"X-Repo-Commit": repository.commit}
    file = repository.files.get(path)
    if file is None:
        return _missing("EntryNotFound", commit)
    headers = {**commit, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    content = file.path.read_bytes()
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.byte_range)
    if asked is None or asked[0] == "bytes=-":
        return _Answer(headers=headers, body=content)
    first, last = asked.groups()
    start = int(first) if first else max(file.size - int(last), 0)
    stop = min(int(last) + 1, file.size) if first and last else file.size
    if start >= stop:
        return _Answer(status=416, headers={**headers, "Content-Range": f"bytes */{file.size}"})
    part = {"Content-Range": f"bytes {start}-{stop - 1}/{file.size}"}
    return _Answer(status=206, headers={**headers, **part}, body=content[start:stop])


_ENDPOINTS = {"revision": _info, "tree": _tree, "paths-info": _paths_info}


class _HubServer(ThreadingHTTPServer):
    """The listening socket with what it serves and a record of what it was asked."""

    # `datasets` opens many connections at once; one that finds the queue full waits a second to try again.
    request_queue_size = 64

    def __init__(self, repositories: Mapping[tuple[str, str], _Repository]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _HubRequests)

    def answer(self, request: _Request) -> _Answer:
        """Answer with what the path names: /api/KIND/REPOSITORY/... or, for files, [/datasets]/REPOSITORY/resolve/..."""
        endpoints = {"resolve": _resolve}
        match request.segments:
            case ["api", "models" | "datasets" as kind, *rest]:
                endpoints = _ENDPOINTS
            case ["api", *_]:
                return _missing()
            case ["datasets", *rest]:
                kind = "datasets"
            case rest:
                kind = "models"
        names = ["/".join(rest[:length]) for length in (2, 1)]  # a repository without an owner has one segment
        repository = next((self.repositories[kind, name] for name in names if (kind, name) in self.repositories), None)
        if repository is None:
            return _missing("RepoNotFound")
        match rest[len(repository.name.split("/")) :] or ["revision", _BRANCH]:
            case [action, revision, *path] if action in endpoints:
                if revision not in (_BRANCH, repository.commit):
                    return _missing("RevisionNotFound")
                return endpoints[action](repository, "/".join(path), request)
        return _missing()


class _HubRequests(BaseHTTPRequestHandler):
    """Reads a request off the socket and writes the server's answer."""

    server: _HubServer
    protocol_version = "HTTP/1.1"
    # Headers and body are two small writes; the second would wait for the first to be acknowledged.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.requests.append(f"{self.command} {unquote(url.path)}")
        request = _Request(
            segments=[unquote(segment) for segment in url.path.strip("/").split("/")],
            query=parse_qs(url.query),
            form=parse_qs(body),
            byte_range=self.headers.get("Range", ""),
        )
        answer = self.server.answer(request)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET
    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: ``LoopbackHub.requests`` is the log."""


class LoopbackHub:
    """Folders served as hub repositories, by repository id, for as long as the ``with`` block lasts.

    The folders are read once, here: write them first and leave them alone.
    """

    def __init__(self, *, models: Mapping[str, Path] = {}, datasets: Mapping[str, Path] = {}) -> None:
        served = [("models", *item) for item in models.items()] + [("datasets", *item) for item in datasets.items()]
        self._server = _HubServer({(kind, name): _read_repository(name, folder) for kind, name, folder in served})
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.requests = self._server.requests
        """Each request so far as "METHOD path": the path unquoted and without its query."""

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """Make the environment of a process whose hub clients know this hub alone and keep everything under ``cache``."""
        # What the machine sets (offline mode, tokens, other caches, a proxy) would lead the clients elsewhere.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")
        }
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # `datasets` counts a download by a request to a fixed address on the internet.
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }
