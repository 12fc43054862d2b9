"""The settings of the C library's heap reach it, in the same process, and a user's own stand."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from lm_harmony.heap import start_tuned, tuned

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are glibc's settings")

FREED = """
import ctypes
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
pieces = [libc.malloc(1000) for _ in range(7)]
used = libc.mallinfo2().uordblks
for piece in pieces:
    libc.free(piece)
print(used - libc.mallinfo2().uordblks)
"""
"""Prints how many bytes seven freed pieces give back to the heap: none while glibc sets them aside."""


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env={**kept, **environment}
    )


def test_a_tuned_process_sets_no_freed_piece_aside() -> None:
    restarted = "from lm_harmony.heap import start_tuned; start_tuned()\n"
    assert int(python(restarted + FREED).communicate()[0]) >= 7_000
    assert int(python(FREED).communicate()[0]) < 7_000, "the negative control: glibc has changed, are the settings still needed?"


def test_the_program_goes_on_in_the_same_process_with_its_arguments() -> None:
    code = "import os, sys; from lm_harmony.heap import start_tuned; start_tuned(); print(os.getpid(), sys.argv[1:])"
    process = python(code, "--task_name", "two words")
    assert process.communicate()[0].split(maxsplit=1) == [str(process.pid), "['--task_name', 'two words']\n"]


def test_a_users_own_settings_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert tuned(os.environ) == {}
    start_tuned()  # returns: else this test would begin anew


def test_where_the_c_library_is_another_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert tuned({}) == {}
