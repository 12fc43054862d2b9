"""Processes load their models one after another where host memory is short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lm_harmony.models.loading_turn import loading_turn

HOLD = """
import sys
from pathlib import Path
from lm_harmony.models.loading_turn import loading_turn
with loading_turn(1 << 60, Path(sys.argv[1])):
    print("loading", flush=True)
    sys.stdin.readline()
"""


def test_a_second_loading_waits_until_the_first_one_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin is not None and first.stdout is not None
    assert first.stdout.readline() == "loading\n"
    second = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert second.stdin is not None and second.stdout is not None
        with loading_turn(1, tmp_path) as waited:  # the negative control: plenty of memory needs no turn
            assert not waited
        first.kill()  # the lock is released however the process ends
        first.wait()
        assert second.stdout.readline() == "loading\n"
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
