"""A results folder of somebody else: whatever its files hold, a run is a gap with its cause, in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import write_run

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.errors import DamagedFile
from lm_harmony.runs.file_values import read_yaml, without_check
from lm_harmony.runs.record import RunConfig
from lm_harmony.runs.store import RunStore
from lm_harmony.runs.untrusted_files import MOST_JSON, MOST_YAML

MEMORY = 2 << 30
"""Bytes of address space that a process may take for reading hostile records, above what its libraries take."""


def sparse(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes that takes no disk space."""
    with path.open("wb") as file:
        file.truncate(size)


def rewritten(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    values = without_check(json.loads(path.read_text()))
    change(values)
    path.write_text(json.dumps(values))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep lists": (lambda path: path.write_text("[" * 100_000), "it is nested too deep"),
    "deep mappings": (lambda path: path.write_text('{"a":' * 100_000), "it is nested too deep"),
    "larger than the memory": (lambda path: sparse(path, 1 << 42), "more than the largest that is read"),
    "just too large": (lambda path: sparse(path, MOST_JSON + 1), "more than the largest that is read"),
    "many small lists": (lambda path: path.write_text("[" + "[]," * (MOST_JSON // 3 - 2) + "[]]"), "cannot be read"),
    "not UTF-8": (lambda path: path.write_bytes(b'{"format": "\xff\xfe"}'), "it is not UTF-8"),
    "half a surrogate": (lambda path: rewritten(path, lambda values: values.update(benchmark="\ud800")), "cannot be read"),
    "NaN": (lambda path: rewritten(path, lambda values: values["trained"]["metrics"].update(x=float("nan"))), "finite"),
    "an integer of many digits": (lambda path: path.write_text('{"format": ' + "9" * 100_000 + "}"), "cannot be read"),
    "a number beyond the largest": (lambda path: path.write_text('{"format": 1e999}'), "cannot be read"),
    "a key given twice": (lambda path: path.write_text('{"format": 1, "format": 2}'), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "not finished"),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_a_hostile_record_is_a_gap_with_its_cause(tmp_path: Path, damage: str) -> None:
    write_run(tmp_path, model="a", trained=0.4)
    write_run(tmp_path, model="b", trained=0.6)
    store = write_run(tmp_path, model="c", trained=0.9)
    assert not ScoreMatrix.from_records(tmp_path).gaps("trained")  # negative control
    change, cause = HOSTILE[damage]
    change(store.folder / "record.json")
    (gap,) = ScoreMatrix.from_records(tmp_path).gaps("trained")
    assert gap.model == "c" and cause in gap.cause and "\n" not in gap.cause and len(gap.cause) < 1_000


@pytest.mark.parametrize("name", ["record.json", "failure.json", "config.yaml"])
def test_a_pipe_or_a_device_in_the_place_of_a_file_ends_no_command_in_waiting(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, model="a", trained=0.4)
    store = write_run(tmp_path, model="b", trained=0.6)
    (store.folder / "record.json").unlink()
    if name != "record.json":
        (store.folder / "failure.json").write_text("{}")
        (store.folder / name).unlink(missing_ok=True)
    os.mkfifo(store.folder / name)
    matrix = ScoreMatrix.from_records(tmp_path)  # would wait for ever for a writer
    assert next(iter(matrix.model_names)) == "a"
    if name == "failure.json":
        with pytest.raises(DamagedFile, match="it is a pipe or a device, not a file"):
            store.failure()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (BOMB, "line 2 has a YAML alias, which no run writes"),
        ("[" * 100_000, "it is nested too deep"),
        ("- " * 100_000, "it is nested too deep"),
        ("!!python/object/apply:os.system [true]", "it is not YAML"),
        ("x" * (MOST_YAML + 1), "more than the largest that is read"),
    ],
    ids=["aliases", "deep flow", "deep blocks", "a Python object", "large"],
)
def test_a_hostile_config_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DamagedFile, match=cause):
        read_yaml(path, RunConfig)
    assert RunStore(tmp_path).requested() is None


def test_hostile_records_take_bounded_memory(tmp_path: Path) -> None:
    """A process with little memory reads all of them; with the file as a list of values, without bounds, it would not."""
    write_run(tmp_path, model="a", trained=0.4)
    for number, (change, _) in enumerate(HOSTILE.values()):
        change(write_run(tmp_path, model=f"hostile{number}", trained=0.5).folder / "record.json")
    code = (
        "import pathlib, resource, sys\n"
        "from lm_harmony.analysis.matrix import ScoreMatrix\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + {MEMORY},) * 2)\n"
        "print(len(ScoreMatrix.from_records(pathlib.Path(sys.argv[1])).gaps('trained')))\n"
        "try:\n"
        "    (open(sys.argv[2], 'rb').read())\n"
        "except MemoryError:\n"
        "    print('too large')\n"
    )
    largest = next(tmp_path.rglob("record.json")).with_name("largest")
    sparse(largest, 1 << 42)  # negative control: reading it as it is does not fit
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(largest)], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == [str(len(HOSTILE)), "too large"], done.stderr
