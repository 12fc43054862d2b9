"""Removes secrets from messages and logs: values of environment variables that hold tokens or keys, and passwords in URLs.

No file of LM-Harmony contains the environment. Errors of other libraries may quote an address with a password, or a header.
A process of its own, which is a command or a worker, calls ``hide_secrets`` when it starts.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from typing import Any

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTHORIZATION", re.IGNORECASE)
_PLACE = re.compile(r"_(PATH|FILE|DIR|URL|PARALLELISM)$", re.IGNORECASE)
"""Ends of names of variables that hold no secret, such as HF_TOKEN_PATH."""
_SHORTEST = 8
"""Characters of the shortest secret. Shorter values, such as "test" or "false", occur in ordinary words."""
_IN_URL = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")
HIDDEN = "***"
"""What is shown in the place of a secret."""


def without_secrets(text: str) -> str:
    """Return ``text`` with ``HIDDEN`` in place of each secret of the environment, and of user and password in each URL."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET.search(name) and not _PLACE.search(name):
            text = text.replace(value, HIDDEN)
    return _IN_URL.sub(rf"\1{HIDDEN}@", text)


class SafeFormatter(logging.Formatter):
    """Formats log messages and tracebacks without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted message without secrets."""
        return without_secrets(super().format(record))


class _SafeStream(io.TextIOWrapper):
    """A stream that writes texts without secrets, such as tracebacks and warnings."""

    def write(self, text: str) -> int:
        super().write(without_secrets(text))
        return len(text)


def hide_secrets() -> None:
    """Keep secrets out of standard error and of every log message of this process, whichever library writes it."""
    # Handlers that libraries made when they were imported write to the old stream, so the messages themselves are changed.
    logging.setLogRecordFactory(_safe_record)
    if isinstance(sys.stderr, io.TextIOWrapper):
        old = sys.stderr
        sys.stderr = _SafeStream(old.buffer, old.encoding, old.errors, line_buffering=True)


def _safe_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    """Return a log record whose message and traceback are without secrets."""
    record = logging.LogRecord(*arguments, **options)
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):  # arguments that do not fit their message, which the handler reports
        return record
    record.msg, record.args = without_secrets(message), None
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = without_secrets(logging.Formatter().formatException(record.exc_info))
    return record
