"""A moto S3 server on the loopback interface. It runs in a separate process, and tests access it over HTTP."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.request import urlopen

import boto3

BUCKET = "harmony"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the endpoint of a server with one empty bucket. All tests of a process share the server."""
    endpoint = _endpoint()
    with urlopen(f"{endpoint}/moto-api/reset", data=b"", timeout=60):
        client(endpoint).create_bucket(Bucket=BUCKET)
    yield endpoint


@cache
def _endpoint() -> str:
    """Start a server that ends with this process, and return its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Its standard input closes when this process ends, even if exit functions do not run, as in workers of pytest-xdist.
    code = (
        "import os, sys, threading\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n"
        f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, **quiet)
    while True:
        assert server.poll() is None, "the server ended"
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return f"http://127.0.0.1:{port}"
        time.sleep(0.1)


def client(endpoint: str):  # type: ignore[no-untyped-def]
    """Return an S3 client that is independent of the code under test."""
    secret = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=endpoint, **secret)


def keys(endpoint: str) -> set[str]:
    """Return the names of all objects."""
    pages = client(endpoint).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return {item["Key"] for page in pages for item in page.get("Contents", ())}
