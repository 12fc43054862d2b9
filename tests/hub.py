"""A Hugging Face hub on loopback: a real HTTP server for the real clients, so tests need neither network nor fakes.

It serves local folders as repositories to ``huggingface_hub``, ``datasets`` and ``from_pretrained``. These read
HF_ENDPOINT when they are imported, so a test runs them in a subprocess under ``LoopbackHub.environment``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_Fields = Mapping[str, list[str]]  # of a request's query and form
_BRANCH = "main"
_ARC_CHOICES = pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))])
_ARC_SCHEMA = pa.schema({"id": pa.string(), "question": pa.string(), "choices": _ARC_CHOICES, "answerKey": pa.string()})


def write_arc_dataset(folder: Path, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write ``rows`` in the layout of ARC-Easy in allenai/ai2_arc: the card, and one parquet file for each split."""
    (folder / "ARC-Easy").mkdir(parents=True)
    for split, split_rows in rows.items():
        table = pa.Table.from_pylist(split_rows, schema=_ARC_SCHEMA)
        pq.write_table(table, folder / "ARC-Easy" / f"{split}-00000-of-00001.parquet")
    files = [{"split": split, "path": f"ARC-Easy/{split}-*"} for split in rows]
    card = yaml.safe_dump({"configs": [{"config_name": "ARC-Easy", "data_files": files}]}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{card}---\n\n# ARC\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A complete response. For HEAD, the body is omitted but its length is still sent."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class _Repository:
    """The contents of a folder's files by path, at their one commit."""

    name: str
    files: Mapping[str, bytes]

    @cached_property
    def commit(self) -> str:
        """Digest of paths and contents, so that the clients' caches never confuse two contents."""
        return _digest(repr(sorted((path, _blob_id(content)) for path, content in self.files.items())).encode())

    @cached_property
    def folders(self) -> frozenset[str]:
        return frozenset(str(parent) for path in self.files for parent in PurePosixPath(path).parents[:-1])

    def entries(self, paths: Iterable[str]) -> list[dict[str, Any]]:
        """Describe those of ``paths`` that exist, as the hub's tree and paths-info endpoints do."""
        found = []
        for path in paths:
            if path in self.files:
                content = self.files[path]
                found.append({"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)})
            elif path in self.folders:
                found.append({"type": "directory", "path": path, "size": 0, "oid": _digest(path.encode())})
        return found


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _blob_id(content: bytes) -> str:
    """Git's blob id of a file, which the hub sends in listings and as the ETag."""
    return _digest(b"blob %d\0" % len(content) + content)


def _read_repository(name: str, folder: Path) -> _Repository:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if not files:
        raise ValueError(f"{folder} holds no file to serve as {name}")
    return _Repository(name=name, files=files)


def _json(value: object) -> _Answer:
    return _Answer(headers={"Content-Type": "application/json"}, body=json.dumps(value).encode())


def _missing(code: str = "", headers: Mapping[str, str] | None = None) -> _Answer:
    """Answer 404. From ``code`` the clients select the exception that they raise."""
    return _Answer(status=404, headers={**(headers or {}), "X-Error-Code": code} if code else {})


def _info(repository: _Repository, path: str, fields: _Fields) -> _Answer:
    siblings = [
        {"rfilename": name, "size": len(content), "blobId": _blob_id(content)} for name, content in repository.files.items()
    ]
    return _json({"id": repository.name, "sha": repository.commit, "tags": [], "siblings": siblings})


def _tree(repository: _Repository, path: str, fields: _Fields) -> _Answer:
    if path and path not in repository.folders:
        return _missing("EntryNotFound")
    prefix = f"{path}/" if path else ""
    listed = [name for name in sorted([*repository.folders, *repository.files]) if name.startswith(prefix)]
    if fields.get("recursive", ["false"])[0].lower() != "true":
        listed = [name for name in listed if "/" not in name.removeprefix(prefix)]
    return _json(repository.entries(listed))


def _paths_info(repository: _Repository, path: str, fields: _Fields) -> _Answer:
    return _json(repository.entries(fields.get("paths", [])))


def _resolve(repository: _Repository, path: str, fields: _Fields) -> _Answer:
    # Sent for a missing file too: huggingface_hub reads from it the commit in which the file is missing.
    headers = {"X-Repo-Commit": repository.commit}
    content = repository.files.get(path)
    if content is None:
        return _missing("EntryNotFound", headers)
    return _Answer(headers={**headers, "ETag": f'"{_blob_id(content)}"', "Accept-Ranges": "bytes"}, body=content)


def _part(answer: _Answer, byte_range: str) -> _Answer:
    """Cut ``answer`` to the bytes of a Range header. Return all bytes if the header is empty or has another form."""
    parsed = re.fullmatch(r"bytes=(\d*)-(\d*)", byte_range)
    if parsed is None or parsed[0] == "bytes=-" or "Accept-Ranges" not in answer.headers:
        return answer
    (first, last), size = parsed.groups(), len(answer.body)
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        return _Answer(status=416, headers={**answer.headers, "Content-Range": f"bytes */{size}"})
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return _Answer(status=206, headers=headers, body=answer.body[start:stop])


@dataclass(frozen=True, kw_only=True)
class HubCommit:
    """A commit that a client has sent."""

    repository: str
    is_pull_request: bool
    private: bool | None
    """Whether the repository is private; None: it existed."""
    header: Mapping[str, str]
    files: Mapping[str, bytes]


class _HubServer(ThreadingHTTPServer):
    """The listening socket, its repositories, and a log of the requests it received."""

    # `datasets` opens many connections at once. If the queue is full, a connection is retried after a second.
    request_queue_size = 64

    def __init__(
        self, repositories: Mapping[tuple[str, str], _Repository], earlier: Mapping[tuple[str, str], _Repository], port: int
    ) -> None:
        self.repositories, self.earlier = dict(repositories), earlier
        self.requests: list[str] = []
        self.commits: list[HubCommit] = []
        self.private: dict[str, bool] = {}
        self.slow: set[str] = set()
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", port), _HubRequests)

    def write(self, segments: list[str], fields: _Fields, body: str) -> _Answer | None:
        """Answer requests that create a repository or a commit in a model's; None: it is another one."""
        lines = [json.loads(line) for line in body.splitlines()] if body.startswith("{") else [{}]
        match segments:
            case ["api", "validate-yaml"]:
                return _json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                name = "/".join(filter(None, (lines[0].get("organization"), lines[0]["name"])))
                if name.startswith("forbidden/"):
                    return _Answer(status=403, headers={"X-Error-Message": "You have no right to write here."})
                known = self.repositories.setdefault(("models", name), _Repository(name=name, files={}))
                if not known.files:
                    self.private[name] = lines[0].get("visibility") == "private"
                return _json({"url": f"http://127.0.0.1:{self.server_port}/{name}", "id": name})
            case ["api", "models", *repository, "preupload", _]:
                modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]
                return _json({"files": modes})
            case ["api", "models", *repository, "commit", _]:
                name, header = "/".join(repository), lines[0]["value"]
                if ("models", name) not in self.repositories:
                    return _missing("RepoNotFound")
                files = {line["value"]["path"]: b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
                proposed, private = "create_pr" in fields, self.private.get(name)
                self.commits.append(
                    HubCommit(repository=name, is_pull_request=proposed, private=private, header=header, files=files)
                )
                if not proposed:
                    before = self.repositories["models", name].files
                    self.repositories["models", name] = _Repository(name=name, files={**before, **files})
                url = f"http://127.0.0.1:{self.server_port}/{name}"
                pull = {"pullRequestUrl": f"{url}/discussions/1"} if proposed else {}
                return _json({"success": True, "commitOid": "0" * 40, "commitUrl": f"{url}/commit/{'0' * 40}", **pull})
        return None

    def answer(self, segments: list[str], fields: _Fields) -> _Answer:
        """Answer requests for /api/KIND/REPOSITORY/... and, for files, [/datasets]/REPOSITORY/resolve/..."""
        endpoints = {"resolve": _resolve}
        match segments:
            case ["api", "models" | "datasets" as kind, *rest]:
                endpoints = {"revision": _info, "tree": _tree, "paths-info": _paths_info}
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
        match rest[repository.name.count("/") + 1 :] or ["revision", _BRANCH]:
            case [action, revision, *path] if action in endpoints:
                before = self.earlier.get((kind, repository.name))
                if before is not None and revision == before.commit:
                    repository = before
                elif revision not in (_BRANCH, repository.commit):
                    return _missing("RevisionNotFound")
                return endpoints[action](repository, "/".join(path), fields)
        return _missing()


class _HubRequests(BaseHTTPRequestHandler):
    """Reads a request off the socket and writes the server's answer."""

    server: _HubServer
    protocol_version = "HTTP/1.1"
    # Headers and body are two small writes. With Nagle's algorithm, the second waits for the acknowledgement of the first.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.requests.append(f"{self.command} {unquote(url.path)}")
        if any(name in url.path for name in self.server.slow):
            self.server.ended.wait()
        # Segments are unquoted separately, because a revision can contain a quoted slash.
        segments = [unquote(segment) for segment in url.path.strip("/").split("/")]
        fields = {**parse_qs(url.query), **parse_qs(body)}
        answer = self.server.write(segments, fields, body) if self.command == "POST" else None
        answer = answer or _part(self.server.answer(segments, fields), self.headers.get("Range", ""))
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing. ``LoopbackHub.requests`` is the log."""


class LoopbackHub:
    """Folders served as hub repositories, by repository id, for as long as the ``with`` block lasts.

    The folders are read once, in ``__init__``. Later changes are ignored. ``earlier`` holds folders of repositories as they
    were one commit before. ``port`` is 0 for any free one. A request whose path contains one of ``slow`` is answered when
    the block ends.
    """

    def __init__(
        self,
        *,
        models: Mapping[str, Path] = {},
        datasets: Mapping[str, Path] = {},
        earlier: Mapping[str, Path] = {},
        port: int = 0,
    ) -> None:
        served = [("models", *item) for item in models.items()] + [("datasets", *item) for item in datasets.items()]
        kinds = dict.fromkeys(models, "models") | dict.fromkeys(datasets, "datasets")
        before = {(kinds[name], name): _read_repository(name, folder) for name, folder in earlier.items()}
        now = {(kind, name): _read_repository(name, folder) for kind, name, folder in served}
        self._server = _HubServer(now, before, port)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.requests, self.slow = self._server.requests, self._server.slow
        """Requests received so far, each as "METHOD path". The path is unquoted and has no query."""
        self.commits = self._server.commits
        """Commits and pull requests received so far."""

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the environment of a process whose clients use only this hub and store everything under ``cache``."""
        # Settings of the machine (offline mode, tokens, other caches, a proxy) would make the clients use other addresses.
        foreign = re.compile(r"(HF_|HUGGING|TRANSFORMERS_).*|.*_proxy", re.IGNORECASE)
        return {
            **{name: value for name, value in os.environ.items() if not foreign.fullmatch(name)},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # `datasets` counts downloads with a request to a fixed address on the internet.
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }
