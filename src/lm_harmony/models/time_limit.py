"""A limit on the CPU time of Python code that others wrote, such as a chat template.

A watching thread raises an exception in the thread that runs the code. CPU time is measured, so a process that is suspended or
waits for a processor is not stopped. An operation of the interpreter that never returns to Python code cannot be stopped.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK = 0.2
"""Seconds between two looks of the watching thread."""
_IDLE_LOOKS = 50
"""Looks without a limited block after which the watching thread ends."""


class _Stopped(BaseException):
    """Raised in a thread whose block takes too long. It is no Exception, because the code may catch those."""


class _Watch:
    """The limited blocks of this process and the thread that watches them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, float] = {}
        self._thread: threading.Thread | None = None

    def add(self, thread: int, seconds: float) -> None:
        with self._lock:
            self._ends[thread] = time.process_time() + seconds
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="time limit", daemon=True)
                self._thread.start()

    def remove(self, thread: int) -> None:
        with self._lock:
            if self._ends.pop(thread, None) is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)  # one that was sent and not yet raised

    def _watch(self) -> None:
        idle = 0
        while True:
            time.sleep(_LOOK)
            with self._lock:
                idle = 0 if self._ends else idle + 1
                if idle > _IDLE_LOOKS:
                    self._thread = None
                    return
                for thread, end in self._ends.items():
                    if time.process_time() > end:
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stopped))


_WATCH = _Watch()


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Stop the block after ``seconds`` of CPU time of this process.

    Raises:
        TimeoutError: the block took longer.
    """
    thread = threading.get_ident()
    try:
        try:
            _WATCH.add(thread, seconds)
            yield
        finally:
            _WATCH.remove(thread)
    except _Stopped:
        _WATCH.remove(thread)
        raise TimeoutError(f"it takes more than {seconds:g} seconds of CPU time") from None
