"""The C library's heap, as training needs it: in few pieces, and given back when it is not used.

glibc sets small freed pieces aside for the next small request. Each tensor is cut out of the heap with such pieces around it (its
address is aligned), and what is set aside keeps the room of freed tensors from growing together again: of SmolLM2-135M's training
a tenth of all memory was lost in between (docs/performance.md). Without setting aside nothing was slower.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping

_TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def tuned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what ``environment`` lacks for a process that trains; nothing where the user, or another C library, has a say."""
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in environment:
        return {}
    return {"GLIBC_TUNABLES": _TUNABLES}


def start_tuned() -> None:
    """Begin this process's program anew if it was not started as ``tuned`` says: glibc reads its settings only then."""
    missing = tuned(os.environ)
    if missing and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def give_back_freed() -> None:
    """Return to the system what this process has freed: glibc keeps it, and what comes next finds only part of it useful."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
