"""Removes secrets from messages and logs: values of environment variables that hold tokens or keys, and passwords in URLs.

No file of LM-Harmony contains the environment. Errors of other libraries may quote an address with a password, or a header.
"""

from __future__ import annotations

import logging
import os
import re

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
