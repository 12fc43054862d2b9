"""Any write of a run may fail: the cause is named with its folder, finished records stay readable, and the run goes on later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from disk_faults import started

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
TURNS = 12
TEXTS = {
    "ENOSPC": "No space left on device",
    "EIO": "Input/output error",
    "EROFS": "Read-only file system",
    "EDQUOT": "quota exceeded",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return started(tmp_path_factory.mktemp("faults"), TURNS)


def test_a_write_that_fails_is_named_and_the_run_goes_on_afterwards(found: dict[str, Any]) -> None:
    assert found["operations"] > 60 and len(found["outcomes"]) == TURNS
    outcomes = set()
    for turn, name, at, lasting, outcome, cause, same, complete, left in found["outcomes"]:
        where = f"turn {turn}: {name} at operation {at}, lasting {lasting}: {outcome}, {cause}"
        assert same, f"a record with other numbers after {where}"
        assert complete, f"not finished afterwards, {where}"
        assert not left, f"{left} left by {where}"
        assert outcome in ("finished", "no_room"), where  # a failed touch of the lease, for example, ends nothing
        if outcome == "no_room":
            assert found["results"] in cause and TEXTS[name] in cause and "\n" not in cause, where
        outcomes.add(outcome)
    assert "no_room" in outcomes  # negative control: the faults had an effect


def test_every_file_is_on_disk_before_it_takes_its_name(found: dict[str, Any]) -> None:
    """Each rename comes after an fsync of the file, or of every file of the folder, and before an fsync of its folder."""
    lines = [line.split("\t") for line in Path(found["log"]).read_text().splitlines()]
    renames = [place for place, (what, _, target) in enumerate(lines) if what == "rename" and ".part" not in target]
    assert len(renames) > 10
    written: set[str] = set()
    for place, (what, path, target) in enumerate(lines):
        if what in ("write", "create") and not Path(path).name.startswith(".tmp"):  # safetensors' own name, before it renames
            written.add(path)
        if what == "fsync":
            written.discard(path)
        if place in renames:
            unsynced = [name for name in written if name == path or name.startswith(f"{path}/")]
            assert not unsynced, f"{target} took its name before {unsynced} were on disk"
            folder = str(Path(target).parent)
            assert ["fsync", folder, ""] in lines[place:], f"the name of {target} was not synced"
    names = {Path(lines[place][2]).name for place in renames}
    expected = {"weights", "optimizer.safetensors", "adapter", "samples_test.jsonl", "record.json", "epochs.jsonl", "config.yaml"}
    assert names >= expected
