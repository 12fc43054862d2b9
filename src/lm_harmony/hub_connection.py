"""Whether the Hugging Face hub answers. Without it, libraries read only the hub's cache on this machine, and do so at once.

Left alone, huggingface_hub repeats the request for each file for 23 seconds, which makes minutes for one model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from huggingface_hub import constants, get_session

log = logging.getLogger(__name__)

REQUEST_SECONDS = 3.0
"""Timeout of one request to the hub, in seconds."""
_ATTEMPTS = 2
_CONNECTION = frozenset(("ConnectionError", "ConnectError", "ConnectTimeout", "ProxyError"))
"""Names of the error classes of HTTP libraries that mean that there is no connection."""


@dataclass
class _Connection:
    """What this process knows about its connection."""

    answered: bool = False
    """The hub answered once. Interruptions after that are left to the libraries, which repeat a request."""
    only_cache: bool = False
    """This module switched the libraries to the cache."""


_connection = _Connection()


def is_connection_error(error: BaseException) -> bool:
    """Return whether an error of an HTTP library means that there is no connection."""
    return not _CONNECTION.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def is_transport_error(error: BaseException) -> bool:
    """Return whether an error of an HTTP library means that there is no connection, or that it broke off or was too slow."""
    return is_connection_error(error) or any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def missing_hub() -> str | None:
    """Ask the hub whether it answers, and switch its libraries to their cache while it does not.

    ``huggingface_hub``, ``transformers``, ``datasets`` and PEFT look at ``huggingface_hub.constants.HF_HUB_OFFLINE`` for each
    request. It is set here as the environment variable of that name would set it, until the hub answers.

    Returns:
        Why the hub is not asked, as the middle of a sentence; None: it answers.
    """
    if _connection.answered:
        return None
    if constants.HF_HUB_OFFLINE and not _connection.only_cache:
        return "HF_HUB_OFFLINE is set, so that the hub is not asked"
    constants.HF_HUB_OFFLINE = False
    error = None
    for _ in range(_ATTEMPTS):
        error = _request()
        if error is None:
            _connection.answered, _connection.only_cache = True, False
            return None
    constants.HF_HUB_OFFLINE = True
    reason = f"{constants.ENDPOINT} cannot be reached ({error})"
    if not _connection.only_cache:
        log.warning("%s. Models and rows of the hub are read from its cache on this machine.", reason)
    _connection.only_cache = True
    return reason


def _request() -> str | None:
    """Send one request. Return why nobody can be reached; None: there was an answer of any kind, or only a slow one."""
    try:
        get_session().head(constants.ENDPOINT, timeout=REQUEST_SECONDS)
    except Exception as error:  # noqa: BLE001 - each HTTP library has its own errors
        if is_connection_error(error):
            return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return None
