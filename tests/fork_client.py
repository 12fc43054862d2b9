"""Program that asks a fork server for a process of Python and behaves as that process. See ``fork_server``.

A forked process takes most of its state from the server. Where the caller would give it another state, and where the interpreter
gets options of its own, the real interpreter is executed instead.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
from typing import Any

MEASURED = "COVERAGE_PROCESS_CONFIG"
"""Environment variable that lets a process measure coverage. A server does not have it: only what it forks is measured."""
LATE = (
    *(MEASURED, "COLUMNS", "LINES", "NO_COLOR", "LM_HARMONY_CACHE_DIR", "PYTEST_CURRENT_TEST", "PWD", "OLDPWD", "SHLVL", "_"),
    *("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_LD_PRELOAD_ON_WORKERS", "SPT_NOENV", "PYTHONBREAKPOINT"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"),
    *("MODEL", "DATA", "TASK"),  # the reader's own variables in commands of the documents
)
"""Environment variables that may differ from the server's. They are read by functions, not by imports."""
RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that this process sends on to the forked process."""
NUMBER = struct.Struct("!i")
"""Format of the numbers that client and server exchange: a length, a process, an exit status."""


def process_state(unread: str | None) -> dict[str, Any]:
    """Return what a process inherits from its parent, except its standard streams, its folder and the variables in LATE.

    Args:
        unread: beginning of the names of other variables that are left out.
    """
    limits = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
    os.umask(mask := os.umask(0))
    names = [name for name in os.environ if name not in LATE and not (unread and name.startswith(unread))]
    return {
        "unread": unread,
        "environment": {name: os.environ[name] for name in names},
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
        "terminals": [os.isatty(descriptor) for descriptor in range(3)],
        "limits": [list(resource.getrlimit(limit)) for limit in limits],
        "umask": mask,
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "processors": sorted(os.sched_getaffinity(0)),
        "session": [os.getsid(0), os.getpgrp()],
        "ignored signals": [int(number) for number in RELAYED if signal.getsignal(number) is signal.SIG_IGN],
        "blocked signals": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
    }


def main(interpreter: str, folder: str, program: str, *words: str) -> None:
    """Execute Python with ``words``, in a process that the server below ``folder`` forks, or in the real interpreter.

    Args:
        interpreter: path of the real interpreter.
        folder: folder of the server's socket and of its state.
        program: path that the forked process has as ``sys.executable``.
        words: arguments of the interpreter.
    """
    with open(f"{folder}/state.json", encoding="utf-8") as file:
        state = json.load(file)
    if words[:1] not in (("-m",), ("-c",)) or process_state(state["unread"]) != state:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and an executed program would inherit that
            signal.signal(number, signal.SIG_DFL)
        os.execv(interpreter, [interpreter, *words])
    signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{folder}/socket")
    request = json.dumps([program, words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [NUMBER.pack(len(request))], [0, 1, 2])
    server.sendall(request)
    (pid,) = NUMBER.unpack(server.recv(NUMBER.size, socket.MSG_WAITALL))
    for number in set(RELAYED) - {signal.Signals(ignored) for ignored in state["ignored signals"]}:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RELAYED)
    (status,) = NUMBER.unpack(server.recv(NUMBER.size, socket.MSG_WAITALL))
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
