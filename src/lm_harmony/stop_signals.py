"""SIGTERM and SIGHUP end a process as Ctrl-C does: with-blocks are left, so leases are released, and the exit status tells."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_STOPPED: list[int] = []
"""Signals that this process has received, in their order."""
_LOST: list[int] = []
"""The first signal, as long as nobody has caught its exception. Python drops exceptions in __del__ and in weakref callbacks."""


def stop_on_signals(*, once: bool = False) -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread.

    Args:
        once: ignore a second signal, instead of ending the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _STOPPED.append(number)
        if len(_STOPPED) == 1:
            _LOST.append(number)
            raise KeyboardInterrupt
        if not once:
            os._exit(exit_status())

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(getattr(signal, name), stop)


def raise_if_stopped() -> None:
    """Raise KeyboardInterrupt once more if it was raised for a signal and no command has caught it (``stop_caught``).

    Long loops call this after each step. Without it, a signal that arrives while Python runs a __del__ method would be lost.
    """
    if _LOST and threading.current_thread() is threading.main_thread():
        _LOST.clear()
        raise KeyboardInterrupt


def stop_caught() -> None:
    """Note that the exception of a signal has arrived, so that ``raise_if_stopped`` lets the work after it finish."""
    _LOST.clear()


def exit_status() -> int:
    """Return the exit status of a process that was stopped: 128 and the number of the first signal."""
    return 128 + (_STOPPED[0] if _STOPPED else signal.SIGINT)


def stopped_by() -> str:
    """Return what stopped this process, for messages: "Ctrl-C", "SIGTERM" or "SIGHUP"."""
    first = _STOPPED[0] if _STOPPED else signal.SIGINT
    return "Ctrl-C" if first == signal.SIGINT else signal.Signals(first).name
