"""A signal stops a process: also where Python drops the exception, and a second one at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

LOST = """
import os, signal, sys, weakref
from lm_harmony.progress import track
from lm_harmony.stop_signals import exit_status, stop_on_signals

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):  # Python calls the handler here
        pass

class WithDel:
    __del__ = interrupt

class Plain:
    pass

stop_on_signals()
done = 0
try:
    for number in {steps}:
        if number == 3 and {where!r} == "__del__":
            WithDel()
        elif number == 3:
            thing = Plain()
            watched = weakref.ref(thing, interrupt)
            del thing
        done = number
except KeyboardInterrupt:
    print("stopped after", done)
    sys.exit(exit_status())
print("went on to", done)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("where", ["__del__", "a weakref callback"])
def test_a_stop_that_python_drops_takes_effect_at_the_next_step(where: str) -> None:
    done = run(LOST.format(steps="track(range(100), 'steps', total=100)", where=where))
    assert "KeyboardInterrupt" in done.stderr and "ignored" in done.stderr, "Python did not drop the exception"
    assert (done.stdout, done.returncode) == ("stopped after 3\n", 128 + signal.SIGTERM)
    lost = run(LOST.format(steps="range(100)", where=where))  # negative control: steps that look at no flag
    assert (lost.stdout, lost.returncode) == ("went on to 99\n", 0)


def test_a_stop_that_was_caught_is_raised_only_once() -> None:
    code = (
        "import os, signal\n"
        "from lm_harmony.progress import track\n"
        "from lm_harmony.stop_signals import stop_caught, stop_on_signals\n"
        "stop_on_signals()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGHUP)\n    signal.pause()\n"
        "except KeyboardInterrupt:\n    stop_caught()\n"
        "print(sum(track(range(4), 'cleaning up', total=4)))\n"
    )
    done = run(code)
    assert (done.stdout, done.returncode) == ("6\n", 0), done.stderr
    again = run(code.replace("    stop_caught()\n", "    pass\n"))  # negative control
    assert again.returncode != 0 and "KeyboardInterrupt" in again.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    code = (
        "import signal, time\n"
        "from lm_harmony.stop_signals import stop_on_signals\n"
        "stop_on_signals()\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    print('cleaning up', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "cleaning up\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + number, "")
