"""A damaged part of an unfinished run is set aside with one line, and the run ends with the record of an uninterrupted one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.caches import RunCaches
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.record import EpochLine, EpochRecord, RunRecord
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

CACHES = RunCaches()


class Stopping(RunStore):
    """A store whose run is stopped after its second epoch."""

    def add_epoch(self, epoch: EpochRecord, *arguments: Any) -> None:
        super().add_epoch(epoch, *arguments)
        if epoch.epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = tmp_path_factory.mktemp("inputs")
    return RunSpec(
        model=ModelSpec(name=str(write_tiny_model(folder / "model"))),
        benchmark=BenchmarkSpec(task=str(write_micro(folder)), data_dir=folder),
        recipe=Recipe(epochs=3, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        direct=True,
        execution=Execution(device="cpu", use_git=False),
    )


@pytest.fixture(scope="module")
def uninterrupted(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return train_before_test(spec, RunStore(tmp_path_factory.mktemp("uninterrupted") / "run"), caches=CACHES)


@pytest.fixture(scope="module")
def stopped(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was stopped after its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        train_before_test(spec, Stopping(folder), caches=CACHES)
    assert [epoch.epoch for epoch in RunStore(folder).epochs()] == [1, 2]
    return folder


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def flipped(path: Path) -> None:
    """Change one bit in the middle of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 8] ^= 2
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def torn_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def blank_line(path: Path) -> None:
    path.write_text(path.read_text().replace("\n", "\n\n", 1))


def foreign_line(path: Path) -> None:
    path.write_text(path.read_text() + '{"artist": "nobody"}\n')


def doubled_line(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))


def changed_digit(path: Path) -> None:
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + second.replace('"acc_norm,none": 0.', '"acc_norm,none": 0.9'))


def changed_value(path: Path) -> None:
    text = path.read_text()
    changed = re.sub(r"(acc_norm,none\W+|learning_rate: )0\.", r"\g<1>0.9", text, count=1)
    assert changed != text
    path.write_text(changed)


def own_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        found.getMessage() for found in caplog.records if found.levelname == "WARNING" and found.name.startswith("lm_harmony")
    ]


WEIGHTS = "checkpoints/epoch-2/weights/adapter_model.safetensors"
OPTIMIZER = "checkpoints/epoch-2/optimizer.safetensors"
DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("config.yaml", garbage, "config.yaml cannot be read: it is not UTF-8"),
    ("config.yaml", empty, "config.yaml cannot be read"),
    ("config.yaml", missing, "config.yaml is missing"),
    ("direct.json", garbage, "direct.json cannot be read: it is not UTF-8"),
    ("config.yaml", changed_value, "config.yaml cannot be read: check differs from the checksum"),
    ("direct.json", missing, ""),
    ("direct.json", changed_value, "direct.json cannot be read: check differs from the checksum"),
    ("samples_direct.jsonl", missing, "samples_direct.jsonl cannot be read: No such file"),
    ("samples_direct.jsonl", torn_line, "samples_direct.jsonl cannot be read: it differs from its checksum"),
    ("epochs.jsonl", garbage, "epochs.jsonl cannot be read: it is not UTF-8"),
    ("epochs.jsonl", missing, ""),
    ("epochs.jsonl", torn_line, ""),
    ("epochs.jsonl", blank_line, "epochs.jsonl cannot be read: line 2 is not JSON"),
    ("epochs.jsonl", foreign_line, "epochs.jsonl cannot be read: line 3: field"),
    ("epochs.jsonl", doubled_line, "epochs.jsonl cannot be read: line 3 is of epoch 2"),
    ("epochs.jsonl", changed_digit, "epochs.jsonl cannot be read: line 2: "),
    ("checkpoints", missing, "checkpoints/epoch-2/"),
    ("checkpoints/epoch-2", missing, "checkpoints/epoch-2/"),
    (WEIGHTS, missing, f"{WEIGHTS} cannot be read: No such file"),
    (WEIGHTS, flipped, f"{WEIGHTS} differs from its checksum"),
    (WEIGHTS, truncated, f"{WEIGHTS} differs from its checksum"),
    (OPTIMIZER, missing, f"{OPTIMIZER} cannot be read: No such file"),
    (OPTIMIZER, flipped, f"{OPTIMIZER} differs from its checksum"),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGES, ids=[f"{name} {damage.__name__}" for name, damage, _ in DAMAGES])
def test_a_damaged_part_changes_no_number(
    spec: RunSpec,
    uninterrupted: RunRecord,
    stopped: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
    said: str,
) -> None:
    store = RunStore(tmp_path / "run")
    shutil.copytree(stopped, store.folder)
    damage(store.folder / name)
    record = train_before_test(spec, store, resume=True, caches=CACHES)
    assert record == uninterrupted and store.record() == uninterrupted
    assert [line.epoch for line in store.epoch_lines()] == [1, 2, 3]
    assert not (store.folder / "checkpoints").exists()
    warnings = own_warnings(caplog)
    assert len(warnings) == bool(said), warnings
    for warning in warnings:
        assert f"{store.folder}/" in warning and said in warning and "It was set aside, and " in warning and "\n" not in warning


@pytest.mark.parametrize("names", [("epochs.jsonl", "checkpoints"), ("direct.json", "samples_direct.jsonl")])
def test_files_of_another_run_are_set_aside(
    spec: RunSpec, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...]
) -> None:
    """Two results folders that are copied into one may mix the files of runs. Every single file is undamaged."""
    other = replace(spec, seed=1)
    reference = train_before_test(other, RunStore(tmp_path / "reference"), caches=CACHES)
    store = RunStore(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_before_test(other, Stopping(store.folder), caches=CACHES)
    for name in names:
        missing(store.folder / name)
        (shutil.copytree if (stopped / name).is_dir() else shutil.copy)(stopped / name, store.folder / name)
    record = train_before_test(other, store, resume=True, caches=CACHES)
    assert record == reference and store.record() == reference
    (warning,) = own_warnings(caplog)
    assert f"{store.folder / names[0]} cannot be read: " in warning
    assert "it is of a run with another request or other files. It was set aside, and " in warning


def test_an_undamaged_run_continues_after_its_last_epoch(
    spec: RunSpec, uninterrupted: RunRecord, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Negative control. An empty record, which a machine without power may leave, is no record."""
    store = RunStore(tmp_path / "run")
    shutil.copytree(stopped, store.folder)
    before = store.epoch_lines()
    (store.folder / "record.json").touch()
    assert not store.is_finished()
    assert train_before_test(spec, store, resume=True, caches=CACHES) == uninterrupted
    assert store.epoch_lines()[:2] == before, "an epoch was trained again"
    assert not own_warnings(caplog)


def test_a_line_without_checksums_is_read(stopped: Path) -> None:
    """Versions 0.2 and earlier wrote none."""
    line = RunStore(stopped).epoch_lines()[0]
    assert line.checkpoint
    old = RunStore(stopped.parent / "old")
    old.folder.mkdir()
    old.write_epochs([EpochLine(**{name: getattr(line, name) for name in line.record.__dataclass_fields__})])
    text = (old.folder / "epochs.jsonl").read_text()
    (old.folder / "epochs.jsonl").write_text(re.sub(r', "checkpoint": {}, "check": "[0-9a-f]{16}"', "", text))
    assert "check" not in (old.folder / "epochs.jsonl").read_text()
    assert old.epochs() == RunStore(stopped).epochs()[:1]
