"""A proxy on the loopback interface between a client and an S3 server. Some requests meet a fault, drawn from a seed."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "timeout", "late 500", "late reset", "late timeout")
"""What happens to a request. A late fault comes after the server has carried the request out, so that only the answer is lost."""
READ_TIMEOUT = 1
"""Seconds after which the client gives up on an answer (``CLIENT``). The proxy keeps a request in silence for longer."""
CLIENT = {"FSSPEC_S3": f'{{"config_kwargs": {{"read_timeout": {READ_TIMEOUT}}}}}'}
"""Environment of a client that waits for no more than READ_TIMEOUT."""
_CODES = {"500": "InternalError", "503": "SlowDown"}


class FaultyProxy:
    """The proxy. It serves while its with-block is executed, and counts faults and requests."""

    def __init__(
        self,
        endpoint: str,
        *,
        seed: int = 0,
        rate: float = 0.0,
        faults: Iterable[str] = FAULTS,
        only: Callable[[str, str], bool] = lambda method, path: True,
    ) -> None:
        """Describe the proxy.

        Args:
            endpoint: URL of the server.
            seed: seed of the faults.
            rate: share of the requests that meet a fault.
            faults: the faults to draw from.
            only: whether a request may meet a fault, by its method and path.
        """
        self.faults, self.rate, self.only = tuple(faults), rate, only
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self._draw, self._lock, self._server_at = random.Random(seed), threading.Lock(), urlsplit(endpoint).netloc

    def __enter__(self) -> Self:
        proxy = self

        class Handler(_Handler):
            faulty = proxy

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    def next_fault(self, method: str, path: str) -> str | None:
        """Draw the fault of a request, or None."""
        with self._lock:
            self.requests += 1
            fault = self._draw.choice(self.faults) if self._draw.random() < self.rate and self.only(method, path) else None
            if fault is not None:
                self.counts[fault] += 1
            return fault

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
        """Let the server carry a request out, and return its answer."""
        connection = HTTPConnection(self._server_at, timeout=60)
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), content


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients are killed while they wait for an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyProxy

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faulty.next_fault(self.command, self.path) or ""
        status, headers, content = 0, list[tuple[str, str]](), b""
        if not fault or fault.startswith("late"):
            given = {name: value for name, value in self.headers.items() if name != "Expect"}
            status, headers, content = self.faulty.forward(self.command, self.path, body, given)
        what = fault.removeprefix("late ")
        if what == "timeout":
            time.sleep(READ_TIMEOUT + 0.5)
        if what in ("timeout", "reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if what:
            status, headers = int(what), [("Content-Type", "application/xml")]
            content = f"<?xml version='1.0'?><Error><Code>{_CODES[what]}</Code><Message>Fault.</Message></Error>".encode()
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle
