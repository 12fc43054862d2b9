"""Ray clusters on this machine, with workers that start in a fraction of a second."""

from __future__ import annotations

import os
from pathlib import Path

from fork_server import forked_python

NODE = {"num_cpus": 1, "memory": 4 << 30}
"""Resources of a node that executes runs."""
QUICK = {"health_check_initial_delay_ms": 100, "health_check_period_ms": 100, "worker_niceness": 0}
"""Options of a cluster that notices a lost node after half a second instead of twelve, and whose workers have the usual
priority, not the lowest but four."""
FORK = """\
import os, signal, sys

signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
os.setpgid(0, {group})
os.closerange(3, 256)
of_a_worker = [word for word in sys.argv[2:] if not word.startswith(("--language=", "--serialized-runtime-env-context="))]
os.execv({python!r}, [{python!r}, "-m", "ray._private.workers.default_worker", *of_a_worker])
"""
"""Program with which Ray starts a worker of a node. It takes the state that ``forked_python`` needs in order to fork."""


def forked_ray_workers(folder: Path) -> dict[str, str]:
    """Return the option of a node whose workers are forked from a process that has imported the libraries.

    Args:
        folder: folder for the program that Ray executes instead of its own ``setup_worker.py``.
    """
    program = folder / "fork_worker.py"  # Ray would skip a setup_worker.py where there is nothing to set up
    program.write_text(FORK.format(group=os.getpgrp(), python=forked_python()), encoding="utf-8")
    return {"setup_worker_path": str(program)}
