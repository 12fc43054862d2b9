"""Forked processes equal those of the real interpreter: state, output, exit status and signals. Otherwise they are not forked."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage, CoverageData
from fork_server import forked_python

STATE = """
import json, os, random, sys, threading
import numpy, torch
flags = [sys.argv, sys.path, os.getcwd(), dict(os.environ), __name__, sys.stdin.read(), os.umask(0), os.getsid(0), os.getpgrp()]
torch_state = [torch.get_num_threads(), torch.is_grad_enabled(), str(torch.get_default_dtype())]
print(json.dumps([*flags, torch_state, threading.active_count(), sys.stdout.encoding, sys.stdout.line_buffering]))
print(random.random(), numpy.random.random(), torch.rand(1).item(), file=sys.stderr)
"""
IS_FORKED = "import sys; print('lm_harmony.api' in sys.modules)"
ENDS = {
    "a status": ("-c", "import sys; print('out'); sys.exit(3)"),
    "a large status": ("-c", "import sys; sys.exit(256 + 7)"),
    "a message": ("-c", "import sys; sys.exit('refused')"),
    "an error": ("-c", "def f():\n    raise KeyError('here')\nf()"),
    "an interrupt": ("-c", "raise KeyboardInterrupt"),
    "a killed process": ("-c", "import os; print('lost', end=''); os.kill(os.getpid(), 9)"),
    "functions at the end": ("-c", "import atexit; atexit.register(print, 'end'); print('begin')"),
    "a thread that goes on": (
        "-c",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    ),
    "our command": ("-m", "lm_harmony.cli", "models"),
    "an error of our command": ("-m", "lm_harmony.cli", "status", "absent.yaml"),
    "a wrong flag": ("-m", "lm_harmony.cli", "study", "--worker", "2"),
}
"""Programs that end in different ways."""


def run(python: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *words], capture_output=True, text=True, check=False, **options)


def both(*words: str, **options: Any) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    return run(forked_python(), *words, **options), run(sys.executable, *words, **options)


@pytest.mark.parametrize("kind", ["code", "module"])
def test_a_forked_process_has_the_state_of_a_real_one(kind: str, tmp_path: Path) -> None:
    (tmp_path / "state.py").write_text(STATE, encoding="utf-8")
    words = ("-c", STATE) if kind == "code" else ("-m", "state")
    environment = {**os.environ, "COLUMNS": "77", "LM_HARMONY_CACHE_DIR": str(tmp_path)}
    forked, real = both(*words, "a", "-b c", cwd=tmp_path, env=environment, input="line\n")
    assert real.returncode == 0, real.stderr
    for found, expected in zip(json.loads(forked.stdout), json.loads(real.stdout), strict=True):
        assert found == expected
    again = run(forked_python(), *words, cwd=tmp_path, env=environment, input="")
    assert not set(forked.stderr.split()) & set(again.stderr.split()), "two processes drew the same random numbers"


@pytest.mark.parametrize("end", ENDS)
def test_output_and_exit_status_equal_those_of_a_real_process(end: str, tmp_path: Path) -> None:
    forked, real = both(*ENDS[end], cwd=tmp_path)
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)


def low_limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def ignoring() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


CHANGED: dict[str, dict[str, Any]] = {
    "threads": {"env": {"OMP_NUM_THREADS": "2"}},
    "path of modules": {"env": {"PYTHONPATH": "elsewhere"}},
    "cache of the hub": {"env": {"HF_HOME": "elsewhere"}},
    "session": {"start_new_session": True},
    "process group": {"process_group": 0},
    "limit": {"preexec_fn": low_limit},
    "ignored signal": {"preexec_fn": ignoring},
    "priority": {"preexec_fn": lambda: os.nice(1)},
    "umask": {"umask": 0o077},
}
"""Options of a process that would get another state from the real interpreter than from the server."""


@pytest.mark.parametrize("changed", CHANGED)
def test_a_process_with_another_state_is_executed_by_the_real_interpreter(changed: str) -> None:
    assert run(forked_python(), "-c", IS_FORKED).stdout == "True\n"  # negative control
    assert run(sys.executable, "-c", IS_FORKED).stdout == "False\n"
    options = dict(CHANGED[changed])
    options["env"] = {**os.environ, **options.get("env", {})}
    assert run(forked_python(), "-c", IS_FORKED, **options).stdout == "False\n"


def test_a_process_has_the_variables_of_the_hub_of_its_own_server(tmp_path: Path) -> None:
    """Its server is forked from the process that another server is forked from. Libraries read these variables at imports."""
    code = "from huggingface_hub import constants as c; print(c.ENDPOINT, c.HF_HOME, c.HF_HUB_OFFLINE)"
    ancestors = "import psutil; print(*(parent.pid for parent in psutil.Process().parents()))"
    shown, above = list[str](), list[set[str]]()
    for number in range(2):
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{number}", "HF_HOME": str(tmp_path / f"{number}"), "HF_HUB_OFFLINE": f"{number}"}
        variables = {**os.environ, **hub}
        assert run(forked_python(variables), "-c", IS_FORKED, env=variables).stdout == "True\n"
        shown.append(run(forked_python(variables), "-c", code, env=variables).stdout)
        above.append(set(run(forked_python(variables), "-c", ancestors, env=variables).stdout.split()))
    assert shown == [f"http://127.0.0.1:{number} {tmp_path / str(number)} {bool(number)}\n" for number in range(2)]
    ours = set(run(sys.executable, "-c", ancestors).stdout.split())  # this process and its own ancestors
    assert len(above[0] & above[1] - ours) == 1 and ours < above[0]


def test_a_first_server_that_reads_a_variable_of_the_hub_is_refused(tmp_path: Path) -> None:
    code = "from fork_server import HUB, serve; import sys; serve([sys.argv[1]], sys.argv[2], unread=HUB)"
    done = run(sys.executable, "-c", code, "huggingface_hub.constants", str(tmp_path), cwd=Path(__file__).parent)
    assert done.returncode == 1 and "AssertionError: modules read variables: [" in done.stderr and "'HF_HOME'" in done.stderr
    done = run(sys.executable, "-c", code, "json", str(tmp_path), cwd=Path(__file__).parent, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr  # negative control


def test_options_scripts_and_inherited_descriptors_need_the_real_interpreter(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(IS_FORKED, encoding="utf-8")
    assert run(forked_python(), "-X", "dev", "-c", IS_FORKED).stdout == "False\n"
    assert run(forked_python(), str(tmp_path / "script.py")).stdout == "False\n"
    with (tmp_path / "script.py").open() as file:
        passed = run(forked_python(), "-c", IS_FORKED, pass_fds=[file.fileno()])
    assert passed.stdout == "False\n"


def test_coverage_is_measured_in_forked_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each process writes a file of its own. Without the variable none is written."""
    code = "from lm_harmony.demo.world import make_world; make_world(0)"
    settings = Coverage(data_file=str(tmp_path / "measured"), data_suffix=True, source=["lm_harmony"], config_file=False)
    subprocess.run([forked_python(), "-c", code], check=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("COVERAGE_PROCESS_CONFIG", settings.config.serialize())
    subprocess.run([forked_python(), "-c", code], check=True)
    (file,) = tmp_path.iterdir()
    (data := CoverageData(str(file))).read()
    (world,) = (name for name in data.measured_files() if name.endswith("demo/world.py"))
    assert len(data.lines(world) or ()) > 20


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


WAITING = """
import os, signal, time
signal.signal(signal.SIGHUP, lambda *_: print('hangup', flush=True))
try:
    print(os.getpid(), flush=True)
    while True: time.sleep(0.05)
except KeyboardInterrupt:
    print('interrupted')
    raise SystemExit(130)
"""


@pytest.mark.parametrize("program", ["forked", "real"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_signals_reach_the_process(program: str, number: signal.Signals, status: int) -> None:
    python = forked_python() if program == "forked" else sys.executable
    process = subprocess.Popen([python, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert (pid == process.pid) == (program == "real")
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "hangup\n"
    process.send_signal(number)
    assert process.communicate(timeout=120)[0] == ("interrupted\n" if number == signal.SIGINT else "")
    assert process.returncode == status
    assert eventually(lambda: not Path(f"/proc/{pid}").exists()), "the forked process outlived its caller"


def test_the_server_goes_on_after_callers_that_were_killed_at_any_time() -> None:
    for delay in range(10):
        process = subprocess.Popen([forked_python(), "-c", "import time; time.sleep(600)"])
        time.sleep(delay / 50)
        process.kill()
        process.wait()
    assert run(forked_python(), "-c", IS_FORKED).stdout == "True\n"
