"""For every kind of damage to a file of a run, a one-line error names the file, the field and the remedy."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from boards import write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.benchmarks.types import Score
from lm_harmony.cli.main import main
from lm_harmony.errors import DamagedFile, NotCurrent
from lm_harmony.recipe import PUBLISHED
from lm_harmony.runs.caches import DirectScoreCache
from lm_harmony.runs.conflicts import refuse_other_content, refuse_other_request
from lm_harmony.runs.file_values import read_json_lines, without_check
from lm_harmony.runs.record import Failure, RunRecord, Sample
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

SPEC = RunSpec(model=ModelSpec(name="a"), benchmark=BenchmarkSpec(task="arc_easy"))


def check_resume(store: RunStore) -> None:
    config = store.config()
    assert config is not None
    with contextlib.suppress(NotCurrent):  # whether the request still matches is not tested here
        refuse_other_request(store.folder, config, SPEC)
    refuse_other_content(store.folder, config, data="f", asked=None, sources=())


READERS: dict[str, Callable[[RunStore], object]] = {
    "record.json": RunStore.record,
    "config.yaml": check_resume,
    "direct.json": RunStore.direct_score,
    "failure.json": RunStore.failure,
    "epochs.jsonl": RunStore.epochs,
    "samples_direct.jsonl": lambda store: read_json_lines(store.folder / "samples_direct.jsonl", Sample),
}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """Return a run's folder with one file of each kind."""
    source = Source(kind="rows", name="train.jsonl", path="/gone", size=1, sha256="0")
    store = write_run(tmp_path, model="a", direct=0.5, versions={"torch": "2.11"}, sources=(source,))
    samples = ({"doc_id": 0}, {"doc_id": 1})
    store.write_direct_score(Score(metrics={"acc,none": 0.5}, stderrs={"acc,none": None}, documents=3, samples=samples))
    store.write_failure(Failure(kind="ModelError", cause="no weights", attempts=1, log_tail=("one", "two")))
    store.add_epoch(store.record().epochs[0])
    for read in READERS.values():
        read(store)  # negative control
    return store


def values_of(file: Path) -> Any:
    """Return what the file, or its first line, holds, without the checksum that a changed value would not match."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        return without_check(yaml.safe_load(text))
    return without_check(json.loads(text.splitlines()[0] if file.suffix == ".jsonl" else text))


def write_values(file: Path, values: Any) -> None:
    file.write_text(yaml.safe_dump(values) if file.suffix == ".yaml" else json.dumps(values) + "\n", encoding="utf-8")


def cause_of(store: RunStore, name: str) -> str:
    """Return the part of the error message between the name of the damaged file and the remedy."""
    with pytest.raises(DamagedFile) as found:
        READERS[name](store)
    message, start = str(found.value), f"{store.folder / name} cannot be read: "
    end = f". Restore the file, or remove {store.folder} and carry the run out again."
    assert message.startswith(start) and message.endswith(end) and "\n" not in message and "pydantic" not in message
    return message.removeprefix(start).removesuffix(end)


DAMAGES = {
    "truncated": (b"{", "not JSON"),
    "truncated YAML": (b"a: [", "not "),
    "a list": (b"[]", ""),
    "of another program": (b'{"artist": "nobody"}', ""),
    "of a newer version": (b'{"format": 99}', ""),
    "without fields": (b'{"format": 1}', ""),
    "binary": (b"\xff\xfe\x00", "it is not UTF-8"),
    "null": (b"null", ""),
    "empty": (b"", ""),
    "a number": (b"3", ""),
    "nested too deep": (b"[" * 100_000, "nested too deep"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_the_error_names_a_damaged_file_and_the_remedy(store: RunStore, name: str, damage: str) -> None:
    content, cause = DAMAGES[damage]
    (store.folder / name).write_bytes(content + b"\n")
    if name != "config.yaml" or damage in ("binary", "nested too deep"):
        assert cause in cause_of(store, name)
    else:
        cause_of(store, name)


@pytest.mark.parametrize("name", READERS)
def test_the_error_names_a_folder_that_has_the_name_of_a_file(store: RunStore, name: str) -> None:
    (store.folder / name).unlink()
    (store.folder / name).mkdir()
    assert cause_of(store, name) == "Is a directory"


NAN = float("nan")
WRONG: list[tuple[str, str, Any, str]] = [
    ("record.json", "metric", 5, "field metric = 5: it must be a valid string"),
    ("record.json", "chosen_epoch", 1.5, "field chosen_epoch = 1.5: it must be a valid integer"),
    ("record.json", "higher_is_better", "yes", "field higher_is_better = 'yes': it must be a valid boolean"),
    ("record.json", "trained.metrics.acc_norm,none", NAN, "field trained.metrics.acc_norm,none = nan: it must be a finite number"),  # noqa: E501
    ("record.json", "direct.stderrs.acc_norm,none", "low", "field direct.stderrs.acc_norm,none = 'low': it must be a valid number"),  # noqa: E501
    ("record.json", "epochs.0.loss", True, "field epochs.0.loss = True: it must be a valid number"),
    ("record.json", "environment.versions", ["0.4"], "field environment.versions = ['0.4']: it must be an object"),
    ("record.json", "sources.0.path", 5, "field sources.0.path = 5: it must be a valid string"),
    ("record.json", "sources.0.kind", "cells", "field sources.0.kind = 'cells': it must be 'task', 'rows' or 'model'"),
    ("record.json", "spec.recipe.epochs", -5, "field spec.recipe: train_param.num_train_epochs must be at least 1, got -5"),
    ("record.json", "spec.execution.trackers", "wandb", "field spec.execution.trackers = 'wandb': it must be a valid array"),
    ("record.json", "costs.training_seconds", "1", "field costs.training_seconds = '1': it must be a valid number"),
    ("record.json", "format", 2, "format = 2 is not the record format 1. Read it with the LM-Harmony that wrote it"),
    ("config.yaml", "seed", "0", "field seed = '0': it must be a valid integer"),
    ("config.yaml", "model.revision", None, "field model.revision = None: it must be a valid string"),
    ("config.yaml", "recipe.learning_rate", "2e-5", "field recipe.learning_rate = '2e-5': it must be a valid number"),
    ("config.yaml", "recipe.lora.r", 0, "field recipe.lora: peft_config.r must be at least 1, got 0"),
    ("direct.json", "documents", 3.0, "field documents = 3.0: it must be a valid integer"),
    ("direct.json", "metrics.acc,none", NAN, "field metrics.acc,none = nan: it must be a finite number"),
    ("failure.json", "attempts", "1", "field attempts = '1': it must be a valid integer"),
    ("failure.json", "log_tail", "one", "field log_tail = 'one': it must be a valid array"),
    ("epochs.jsonl", "loss", NAN, "line 1: field loss = nan: it must be a finite number"),
    ("epochs.jsonl", "validation", [], "line 1: field validation = []: it must be an object"),
    ("samples_direct.jsonl", "doc_id", "0", "line 1: the content: doc_id must be an integer, got '0'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value", "cause"), WRONG, ids=[f"{name} {field}" for name, field, *_ in WRONG])
def test_the_error_names_the_field_of_a_wrong_value(store: RunStore, name: str, field: str, value: Any, cause: str) -> None:
    values: Any = values_of(store.folder / name)
    *path, last = field.split(".")
    part = values
    for key in path:
        part = part[int(key) if key.isdigit() else key]
    part[last] = value
    write_values(store.folder / name, values)
    assert cause_of(store, name) == cause


@pytest.mark.parametrize("name", [name for name in READERS if name != "samples_direct.jsonl"])
def test_the_error_names_a_missing_and_an_unknown_field(store: RunStore, name: str) -> None:
    file = store.folder / name
    values = values_of(file)
    line = "line 1: " if file.suffix == ".jsonl" else ""
    missing = {"record.json": "metric", "config.yaml": "benchmark", "direct.json": "metrics", "failure.json": "cause"}
    field = missing.get(name, "loss")
    write_values(file, {key: value for key, value in values.items() if key != field})
    assert cause_of(store, name) == f"{line}field {field} is missing"
    write_values(file, {**values, "colour": "red"})
    assert cause_of(store, name) == f"{line}field colour is unknown"
    write_values(file, values)
    READERS[name](store)  # negative control


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANY = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ANY, data=st.data())
def test_any_value_in_any_field_is_read_or_gives_a_one_line_error(store: RunStore, value: Any, data: st.DataObject) -> None:
    """A random value replaces a random value. The file is read, or the error names it or the file whose checksum it holds."""
    name = data.draw(st.sampled_from(sorted(READERS)))
    file = store.folder / name
    before = file.read_bytes()
    values: Any = values_of(file)
    part, keys = values, list(values)
    while keys:
        key = data.draw(st.sampled_from(keys))
        inner = part[key]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        if not keys or data.draw(st.booleans()):
            part[key] = value
            break
        part = inner
    write_values(file, values)
    named, message = file, f"{file} cannot be read: "
    if name == "direct.json" and values["samples_sha256"] != json.loads(before)["samples_sha256"]:
        named = store.folder / "samples_direct.jsonl"
    try:
        READERS[name](store)
    except DamagedFile as error:
        message = str(error)
    file.write_bytes(before)
    assert message.startswith((f"{file} cannot be read: ", f"{named} cannot be read: ")) and "\n" not in message


@pytest.mark.parametrize("name", READERS)
def test_no_changed_byte_changes_a_value(store: RunStore, name: str) -> None:
    """One byte after the other is changed in ways that a digit, a letter or a space may survive as another one."""
    file = store.folder / name
    whole = {"config.yaml": store.config, "samples_direct.jsonl": store.direct_score}
    read = whole.get(name) or partial(READERS[name], store)
    expected, content, unread = read(), file.read_bytes(), 0
    for place, flipped in itertools.product(range(len(content)), (0x01, 0x55)):
        file.write_bytes(content[:place] + bytes([content[place] ^ flipped]) + content[place + 1 :])
        try:
            found = read()
            torn = name == "epochs.jsonl" and place == len(content) - 1 and found == ()  # the line without its end is left out
            assert torn or found == expected, (place, content[max(place - 40, 0) : place + 40])
        except DamagedFile:
            unread += 1
    assert unread > len(content), "too few changes were noticed"


@pytest.mark.parametrize("name", [name for name in READERS if name != "samples_direct.jsonl"])
def test_a_file_without_checksum_is_read(store: RunStore, name: str) -> None:
    """Versions 0.2 and earlier wrote none. Negative control of the test above: such a file is read with its changed value."""
    values, file = values_of(store.folder / name), store.folder / name
    assert '"check"' in file.read_text() or "check:" in file.read_text()
    expected = READERS[name](store)
    write_values(file, values)
    assert READERS[name](store) == expected
    if name != "config.yaml":
        numbers = {"direct.json": "documents", "failure.json": "attempts", "epochs.jsonl": "tokens"}
        number = numbers.get(name, "chosen_epoch")
        write_values(file, {**values, number: values[number] + 1})
        assert READERS[name](store) != expected


def test_a_truncated_epoch_line_is_ignored_and_a_truncated_sample_line_is_an_error(store: RunStore) -> None:
    for name in ("epochs.jsonl", "samples_direct.jsonl"):
        with (store.folder / name).open("a", encoding="utf-8") as file:
            file.write('{"doc_id": 2, "epo')
    assert [epoch.epoch for epoch in store.epochs()] == [1]
    assert cause_of(store, "samples_direct.jsonl").startswith("line 3 is not JSON: ")


def test_a_record_is_unchanged_after_writing_and_reading(store: RunStore) -> None:
    """Integers stay integers, because the fingerprints of 1 and 1.0 differ."""
    record = store.record()
    for rate in (0, 0.0, 1):
        recipe = replace(PUBLISHED, weight_decay=rate)
        changed = replace(record, spec=replace(record.spec, recipe=recipe))
        store.write_record(changed)
        assert store.record() == changed and store.record().spec.recipe.fingerprint() == recipe.fingerprint()
    assert RunRecord.from_dict(record.to_dict()) == record


def test_a_command_on_a_run_with_a_damaged_file_prints_the_error_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--base_model", str(write_tiny_model(tmp_path / "model")), "--task_name", str(write_micro(tmp_path))]
    words += ["--data_dir", str(tmp_path), "--results_dir", str(tmp_path), "--exp_name", "one", "--resume_from_checkpoint"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "record.json").write_bytes(b"\xff\xfe\x00")
    assert main([*words, "--device", "cpu"]) == 1
    errors = " ".join(capsys.readouterr().err.split())
    assert "one/record.json cannot be read: it is not UTF-8: " in errors
    assert "Restore the file" in errors and "Traceback" not in errors


def test_a_damaged_score_in_the_direct_score_cache_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = DirectScoreCache(tmp_path)
    score = Score(metrics={"acc,none": 0.5}, stderrs={"acc,none": None}, documents=1, samples=({"doc_id": 0},))
    shared.put("0123", score)
    assert shared.get("0123") == score and not caplog.messages  # negative control
    for name in ("direct.json", "samples_direct.jsonl"):
        for content in (b"{\n", b"[]\n"):
            (tmp_path / "0123" / name).write_bytes(content)
            caplog.clear()
            assert shared.get("0123") is None
            (warning,) = caplog.messages
            assert warning.startswith("the direct score is computed again: ") and f"{name} cannot be read" in warning
        shared.put("0123", score)
        assert shared.get("0123") == score
