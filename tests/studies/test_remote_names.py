"""Names of objects in a store cannot lead out of the working copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from lm_harmony.runs.remote import RemoteSync


def test_an_object_whose_name_leads_out_of_the_results_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_HARMONY_CACHE_DIR", str(tmp_path / "cache" / "deep"))
    memory = MemoryFileSystem()
    memory.store.clear()
    for name in ("task/run/record.json", "../../escaped/record.json", "task/../../../escaped/record.json"):
        memory.store[f"/results/{name}"] = MemoryFile(memory, f"/results/{name}", b"{}")
    remote = RemoteSync("memory://results")
    assert sum("escaped" in name for name in remote.filesystem.find("/results")) == 2  # negative control: they are in the store
    assert list(remote.list_files("")) == ["task/run/record.json"]
    remote.pull_outcomes()
    remote.pull("task/run")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["record.json"]
    assert not list(tmp_path.rglob("escaped"))
    memory.store.clear()
