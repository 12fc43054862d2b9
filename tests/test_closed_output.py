"""A reader that leaves, as ``| head`` does, ends every command quietly, and an output that cannot be written is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden_study import COMMANDS

PRINTING = [["--version"], ["--help"], ["benchmarks"], ["models"], ["leaderboard", "--published"]]
PRINTING += [[command, "--help"] for command in COMMANDS]


def harmony(words: list[str], output: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "lm_harmony.cli", *words]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_reader_that_leaves_ends_the_command_quietly(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = harmony(words, write)
    finally:
        os.close(write)
    assert (done.stderr, done.returncode) == ("", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("words", [["--version"], ["benchmarks"]], ids=" ".join)
def test_an_output_on_a_full_disk_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = harmony(words, full.fileno())
    assert done.stderr == "lm-harmony: the output cannot be written: No space left on device. Write it to another place.\n"
    assert done.returncode == 1
