"""A record is current only if every source file has the same bytes as when it was made. Other files do not matter."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from fork_server import forked_python
from micro import SIZES, TASK, write_micro
from rich.console import Console
from tiny import CHAT_TEMPLATE, write_tiny_model

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.task_code import unload_modules
from lm_harmony.errors import BenchmarkError, NotCurrent, UsageError
from lm_harmony.progress import display
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs import file_hashes
from lm_harmony.runs.file_hashes import LARGE, SMALL, HashCache, cache_folder
from lm_harmony.runs.protocol import score_again, train_before_test
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.sources import SourceCheck, model_sources, task_sources
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

RECIPE = Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))
BASE = TASK.replace("task: micro\n", "")
UTILS = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import wording

WORDS = Path(__file__).parents[1] / "words"


def text(doc):
    return wording.QUESTION.format((WORDS / "numbers.txt").read_text().split()[0], doc["number"])
"""


def write_jsonl_task(folder: Path) -> None:
    """Write a task with nested includes, a function whose module imports another one, and rows through `dataset_path: json`."""
    write_micro(folder / "given")
    (folder / "tasks" / "deep").mkdir(parents=True)
    (folder / "tasks" / "deep" / "base.yaml").write_text(BASE)
    (folder / "tasks" / "middle.yaml").write_text("include: deep/base.yaml\n")
    (folder / "tasks" / "utils.py").write_text(UTILS)
    (folder / "tasks" / "wording.py").write_text('QUESTION = "{} {} is"\n')
    (folder / "words").mkdir()
    (folder / "words" / "numbers.txt").write_text("number count\n")
    (folder / "words" / "unread.txt").write_text("number count\n")
    rows = {split: str(folder / "given" / "micro" / f"{split}.jsonl") for split in SIZES}
    cached = {"cache_dir": str(folder / "cache")}
    own = {"include": "middle.yaml", "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": rows, **cached}}
    text = yaml.safe_dump(own) + "doc_to_text: !function utils.text\n"
    (folder / "tasks" / "named_otherwise.yaml").write_text(text)


def write_rows_and_tasks(folder: Path) -> None:
    """Write rows as JSONL, CSV, Parquet and a folder of files, with a task for each format."""
    write_jsonl_task(folder)
    rows = {split: [json.loads(line) for line in (folder / "given" / "micro" / f"{split}.jsonl").open()] for split in SIZES}
    import pandas as pd

    for split, found in rows.items():
        table = pd.DataFrame(found)
        table.to_csv(folder / f"{split}.csv", index=False)
        table.to_parquet(folder / f"{split}.parquet")
        (folder / "set").mkdir(exist_ok=True)
        shutil.copy(folder / "given" / "micro" / f"{split}.jsonl", folder / "set" / f"{split}.jsonl")
    for kind in ("csv", "parquet"):
        named = {"data_files": {split: str(folder / f"{split}.{kind}") for split in SIZES}, "cache_dir": str(folder / "cache")}
        config = yaml.safe_load(TASK) | {"dataset_path": kind, "dataset_kwargs": named}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(config))
    cached = {"dataset_kwargs": {"cache_dir": str(folder / "cache")}}
    (folder / "folder.yaml").write_text(yaml.safe_dump(yaml.safe_load(TASK) | {"dataset_path": str(folder / "set")} | cached))


def write_model(folder: Path) -> Path:
    """Write a model with sharded weights, a chat template, generation settings and code."""
    from tiny import tiny_module, tiny_tokenizer

    tiny_module().save_pretrained(folder, max_shard_size="60KB")
    tiny_tokenizer(bos=True).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "custom.py").write_text("VALUE = 1\n")
    (folder / "README.md").write_text("A model.\n")
    (folder / "trainer_state.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_rows_and_tasks(folder)
    write_model(folder / "model")
    (folder / "corpus").mkdir()
    for role in SIZES:
        (folder / "corpus" / f"{role}.txt").write_text(f"One text of {role}.\n\nAnother text of {role}.\n")
    (folder / "rows" / "own").mkdir(parents=True)
    for split in SIZES:
        shutil.copy(folder / "given" / "micro" / f"{split}.jsonl", folder / "rows" / "own")
    return folder


def spec_of(world: Path, kind: str) -> RunSpec:
    """Return a run whose benchmark has one kind of source."""
    tasks = world / "tasks"
    benchmarks = {
        "include_path": BenchmarkSpec(task="own", include_path=tasks),
        "data_dir": BenchmarkSpec(task=str(tasks / "named_otherwise.yaml"), data_dir=world / "rows"),
        "corpus": BenchmarkSpec(task=f"corpus:{world / 'corpus'}"),
        **{name: BenchmarkSpec(task=str(world / f"{name}.yaml")) for name in ("csv", "parquet", "folder")},
    }
    return RunSpec(
        model=ModelSpec(name=str(world / "model")),
        benchmark=benchmarks[kind],
        recipe=RECIPE,
        direct=True,
        execution=Execution(device="cpu"),
    )


TASK_FILES = {"named_otherwise.yaml", "middle.yaml", "deep/base.yaml", "utils.py", "wording.py", "../words/numbers.txt"}
ROWS = {"train", "validation", "test"}
MODEL_FILES = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "custom.py"),
    "model.safetensors.index.json",
}
KINDS: dict[str, tuple[set[str], str]] = {
    "include_path": (TASK_FILES, ".jsonl"),
    "data_dir": (TASK_FILES, ".jsonl"),
    "corpus": ({"corpus.yaml"}, ".txt"),
    "csv": ({"csv.yaml"}, ".csv"),
    "parquet": ({"parquet.yaml"}, ".parquet"),
    "folder": ({"folder.yaml"}, ".jsonl"),
}


@pytest.fixture(scope="module")
def records(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RunRecord, RunStore]]:
    """Return a function that executes the run on a kind of source, once for all tests."""
    known: dict[str, tuple[RunRecord, RunStore]] = {}

    def get(kind: str) -> tuple[RunRecord, RunStore]:
        if kind not in known:
            store = RunStore(tmp_path_factory.mktemp("runs") / kind)
            known[kind] = train_before_test(spec_of(world, kind), store), store
        return known[kind]

    return get


def flip(path: Path) -> None:
    """Change the second last byte of a file, but not its size and modification time."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_not_current_after_one_byte_of_a_source_file_changed(
    world: Path, records: Callable[[str], tuple[RunRecord, RunStore]], kind: str
) -> None:
    record, store = records(kind)
    assert store.record() == record and record.sources
    code, suffix = KINDS[kind]
    assert {source.name for source in record.sources if source.kind == "task"} == code
    assert {Path(source.name).stem for source in record.sources if source.kind == "rows"} == ROWS
    assert {Path(source.name).suffix for source in record.sources if source.kind == "rows"} == {suffix}
    files = {source.name for source in record.sources if source.kind == "model"}
    assert files >= MODEL_FILES
    assert len([name for name in files if name.endswith(".safetensors")]) > 1, "the weights are in shards"
    assert SourceCheck().difference(record.sources, record.spec) is None
    for source in record.sources:
        path = Path(str(source.path))
        if not path.is_relative_to(world):
            continue  # corpus.yaml is part of the package
        before = path.stat()
        content = path.read_bytes()
        flip(path)
        assert SourceCheck().difference(record.sources, record.spec) == f"{source.name} changed since"
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert SourceCheck().difference(record.sources, record.spec) is None


def test_changes_of_files_that_no_run_reads_are_ignored(
    world: Path, records: Callable[[str], tuple[RunRecord, RunStore]]
) -> None:
    record, _ = records("include_path")
    for path in (
        *(world / "model" / "README.md", world / "model" / "trainer_state.json", world / "tasks" / "other.yaml"),
        *(world / "given" / "micro" / "notes.jsonl", world / "given" / "micro.yaml", world / "tasks" / "unused.py"),
        world / "words" / "unread.txt",
    ):
        with path.open("a") as file:
            file.write("# more\n")
        assert SourceCheck().difference(record.sources, record.spec) is None
    for source in record.sources or ():
        os.utime(str(source.path))  # another modification time, the same content
    assert SourceCheck().difference(record.sources, record.spec) is None


def test_the_difference_names_added_and_missing_files(
    world: Path, records: Callable[[str], tuple[RunRecord, RunStore]], tmp_path: Path
) -> None:
    record, _ = records("include_path")
    added, template = world / "model" / "adapter_config.json", world / "model" / "chat_template.jinja"
    added.write_text("{}")
    template.rename(tmp_path / "kept")
    difference = SourceCheck().difference(record.sources, record.spec)
    added.unlink()
    (tmp_path / "kept").rename(template)
    assert difference == "chat_template.jinja no longer there; adapter_config.json added since"
    shard = next(source for source in record.sources or () if source.name.endswith(".safetensors"))
    earlier = [*(record.sources or ()), *(replace(shard, name=name) for name in ("notes.txt", "pytorch_model.bin"))]
    assert SourceCheck().difference(earlier, record.spec) is None, "an earlier record lists files that no run reads"
    assert SourceCheck().difference([*earlier, replace(shard, name="b.model")], record.spec) == "b.model no longer read"
    elsewhere = replace(record.spec, benchmark=replace(record.spec.benchmark, data_dir=world / "rows"))
    difference = str(SourceCheck().difference(record.sources, elsewhere))
    assert "validation.jsonl no longer read; own/train.jsonl, own/validation.jsonl, own/test.jsonl added since" in difference


def test_a_run_with_relative_names_is_current_from_any_working_folder(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data_files`, `dataset_path` and the model are relative paths. An edited file is detected from any working folder."""
    shutil.copytree(world / "model", tmp_path / "model")
    shutil.copytree(world / "set", tmp_path / "set")
    base = yaml.safe_load(TASK)
    for name, rows in {
        "patterns": {"dataset_path": "json", "dataset_kwargs": {"data_files": {split: f"set/{split}.jsonl" for split in SIZES}}},
        "folder": {"dataset_path": "set"},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(base | rows))
        spec = replace(spec_of(world, "folder"), model=ModelSpec(name="model"))
        spec = replace(spec, benchmark=BenchmarkSpec(task=str(tmp_path / f"{name}.yaml")))
        monkeypatch.chdir(tmp_path)
        recorded = (*task_sources(spec.benchmark), *model_sources(spec.model))
        assert {source.kind for source in recorded} == {"task", "rows", "model"}
        assert SourceCheck().difference(recorded, spec) is None
        monkeypatch.chdir(world)  # this folder also has a model and a set, so the relative names exist here too
        assert SourceCheck().difference(recorded, spec) is None
        (tmp_path / "empty").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "empty")
        assert SourceCheck().difference(recorded, spec) is None
        for file in ("set/test.jsonl", "model/config.json"):
            flip(tmp_path / file)
            assert str(SourceCheck().difference(recorded, spec)).endswith(f"{Path(file).name} changed since")
            flip(tmp_path / file)
        (tmp_path / "set" / "test.jsonl").rename(tmp_path / "kept")
        assert str(SourceCheck().difference(recorded, spec)).endswith("test.jsonl no longer there")
        (tmp_path / "kept").rename(tmp_path / "set" / "test.jsonl")


def test_rows_are_told_apart_where_tasks_of_a_group_have_folders_with_files_of_equal_names(world: Path, tmp_path: Path) -> None:
    base = yaml.safe_load(TASK)
    for name in ("one", "two"):
        shutil.copytree(world / "set", tmp_path / name / "rows")
        config = base | {"task": name, "dataset_path": str(tmp_path / name / "rows")}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    group = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    spec = replace(spec_of(world, "folder"), benchmark=BenchmarkSpec(task=str(tmp_path / "both.yaml")))
    recorded = (*task_sources(spec.benchmark), *model_sources(spec.model))
    assert len([source for source in recorded if source.kind == "rows"]) == 2 * len(SIZES)
    for name in ("one", "two"):
        flip(tmp_path / name / "rows" / "test.jsonl")
        assert SourceCheck().difference(recorded, spec) == f"{name}/test.jsonl changed since"
        flip(tmp_path / name / "rows" / "test.jsonl")


@pytest.mark.parametrize("named_by", ["data_files", "absolute data_files", "card"])
def test_files_that_a_data_set_names_outside_of_its_folder_are_sources(named_by: str, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "set", tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    files = {split: f"../elsewhere/{split}.jsonl" for split in SIZES}
    options: dict[str, Any] = {"cache_dir": str(tmp_path / "cache")}
    if named_by == "card":
        listed = [{"split": split, "path": path} for split, path in files.items()]
        card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": listed}]})
        (tmp_path / "set" / "README.md").write_text(f"---\n{card}---\n")
    elif named_by == "data_files":
        options["data_files"] = files
    else:
        options["data_files"] = {split: str(tmp_path / "elsewhere" / f"{split}.jsonl") for split in SIZES}
    config = yaml.safe_load(TASK) | {"dataset_path": str(tmp_path / "set"), "dataset_kwargs": options}
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(config))
    spec = replace(spec_of(world, "folder"), benchmark=BenchmarkSpec(task=str(tmp_path / "outside.yaml")))
    run = set_up_run(spec)
    assert SourceCheck().difference(run.sources, spec) is None
    test = tmp_path / "elsewhere" / "test.jsonl"
    times = test.stat()
    test.write_text(test.read_text().replace('"number": 32', '"number": 99', 1))
    os.utime(test, ns=(times.st_atime_ns, times.st_mtime_ns))
    shown = "elsewhere/test.jsonl" if named_by == "card" else "../elsewhere/test.jsonl"
    assert SourceCheck().difference(run.sources, spec) == f"{shown} changed since"
    assert set_up_run(spec).splits.test[0].document["number"] == 99


def test_local_files_that_a_url_names_are_sources(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "set", tmp_path / "set")
    files = {split: f"file://{tmp_path}/set/{split}.jsonl" for split in SIZES}
    options = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    config = yaml.safe_load(TASK) | {"dataset_path": "json", "dataset_kwargs": options}
    (tmp_path / "url.yaml").write_text(yaml.safe_dump(config))
    spec = replace(spec_of(world, "folder"), benchmark=BenchmarkSpec(task=str(tmp_path / "url.yaml")))
    run = set_up_run(spec)
    test = tmp_path / "set" / "test.jsonl"
    times = test.stat()
    test.write_text(test.read_text().replace('"number": 32', '"number": 99', 1))
    os.utime(test, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert SourceCheck().difference(run.sources, spec) == f"{test} changed since"
    assert set_up_run(spec).splits.test[0].document["number"] == 99
    remote = {split: f"https://example.org/{split}.jsonl" for split in SIZES}
    (tmp_path / "url.yaml").write_text(yaml.safe_dump(config | {"dataset_kwargs": {"data_files": remote}}))
    assert not [source for source in task_sources(spec.benchmark) if source.kind == "rows" and source.path]


def test_files_in_a_local_archive_whose_edits_datasets_does_not_see_are_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.zip").write_bytes(b"PK")
    archived = {split: f"zip://{split}.jsonl::{tmp_path}/rows.zip" for split in SIZES}
    config = yaml.safe_load(TASK) | {"dataset_path": "json", "dataset_kwargs": {"data_files": archived}}
    (tmp_path / "archive.yaml").write_text(yaml.safe_dump(config))
    spec = replace(spec_of(world, "folder"), benchmark=BenchmarkSpec(task=str(tmp_path / "archive.yaml")))
    with pytest.raises(BenchmarkError, match=r"does not see edits\. Give the archive itself \(.*/rows\.zip\), or extract it"):
        set_up_run(spec)


def test_the_file_of_a_prompt_is_a_source(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval opens the file of ``use_prompt`` by its path from the working folder."""
    prompt = {"prompts": {"one": {"doc_to_text": "number {{number}} is", "doc_to_target": "{{label}}"}}}
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(prompt))
    config = yaml.safe_load(TASK) | {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "use_prompt": "prompts.yaml:one",
    }
    shutil.copytree(world / "given" / "micro", tmp_path / "micro")
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    spec = replace(spec_of(world, "folder"), benchmark=BenchmarkSpec(task=str(tmp_path / "micro.yaml"), data_dir=tmp_path))
    run = set_up_run(spec)
    assert run.splits.test[0].requests[0].context == "number 32 is"
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(prompt).replace("number {{", "Number {{"))
    for folder in (tmp_path, world):
        monkeypatch.chdir(folder)
        assert SourceCheck().difference(run.sources, spec) == "prompts.yaml changed since"


def test_weights_that_an_index_or_a_configuration_names_elsewhere_are_sources(world: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / "shards").mkdir()
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "shards" / file.name)
    index["weight_map"] = {weight: f"shards/{file}" for weight, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    spec = replace(spec_of(world, "folder"), model=ModelSpec(name=str(folder)))
    run = set_up_run(spec)  # transformers reads these files
    shards = sorted(set(index["weight_map"].values()))
    assert [source.name for source in run.sources if source.name.startswith("shards/")] == shards
    flip(folder / shards[0])
    assert SourceCheck().difference(run.sources, spec) == f"{shards[0]} changed since"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "best/consolidated.safetensors"}))
    (folder / "best").mkdir()
    (folder / "best" / "consolidated.safetensors").write_bytes(b"1")
    assert "best/consolidated.safetensors" in {source.name for source in model_sources(spec.model)}


def test_a_data_dir_without_the_rows_is_not_current(
    world: Path, records: Callable[[str], tuple[RunRecord, RunStore]], tmp_path: Path
) -> None:
    """The recorded files still exist in the other folder, but the request does not name them any more."""
    record, _ = records("data_dir")
    spec = replace(record.spec, benchmark=replace(record.spec.benchmark, data_dir=tmp_path))
    difference = SourceCheck().difference(record.sources, spec)
    assert difference == "own/train.jsonl, own/validation.jsonl, own/test.jsonl no longer read"


def test_a_record_stays_current_if_the_folder_is_moved(
    world: Path, records: Callable[[str], tuple[RunRecord, RunStore]], tmp_path: Path
) -> None:
    record, _ = records("data_dir")
    shutil.copytree(world, tmp_path / "moved")
    assert SourceCheck().difference(record.sources, spec_of(tmp_path / "moved", "data_dir")) is None
    flip(tmp_path / "moved" / "tasks" / "wording.py")
    assert SourceCheck().difference(record.sources, spec_of(tmp_path / "moved", "data_dir")) == "wording.py changed since"


def test_a_run_that_is_not_current_cannot_be_repeated_resumed_or_scored_again(world: Path, tmp_path: Path) -> None:
    """The error names the changed file and the remedy."""
    shutil.copytree(world, tmp_path / "world")
    spec = spec_of(tmp_path / "world", "data_dir")
    store = RunStore(tmp_path / "run")
    record = train_before_test(spec, store)
    with pytest.raises(UsageError, match=r"holds a finished run\. Add --overwrite"):
        train_before_test(spec, store)
    path = tmp_path / "world" / "rows" / "own" / "test.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"label": 1', b'"label": 0', 1))
    with pytest.raises(NotCurrent, match=r"not current: own/test\.jsonl changed since\. Restore .* --overwrite"):
        train_before_test(spec, store)
    with pytest.raises(NotCurrent, match=r"own/test\.jsonl changed since\. Restore"):
        score_again(store)
    (store.folder / "record.json").rename(tmp_path / "record.json")
    with pytest.raises(NotCurrent, match=r"resume_from_checkpoint: .*own/test\.jsonl changed since"):
        train_before_test(spec, store, resume=True)
    path.write_bytes(content)
    (tmp_path / "record.json").rename(store.folder / "record.json")
    assert score_again(store).trained == record.trained


def test_a_changed_module_is_imported_again(world: Path, tmp_path: Path) -> None:
    """One changed byte in an imported module changes the fingerprints in the same process, even with the same file time."""
    shutil.copytree(world, tmp_path / "world")
    spec = spec_of(tmp_path / "world", "data_dir")
    before = set_up_run(spec).fingerprints
    assert set_up_run(spec).fingerprints == before
    path = tmp_path / "world" / "tasks" / "wording.py"
    times = path.stat()
    path.write_text(path.read_text().replace("{} {} is", "{} {}  is"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert set_up_run(spec).fingerprints != before


PROCESSING = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import spelling


def one(doc):
    return {"question": "number " + spelling.spell(doc["number"])}


def process(rows):
    return rows.map(one)
"""


def test_rows_are_processed_again_after_process_docs_is_edited(world: Path, tmp_path: Path) -> None:
    """`datasets` caches processed rows on disk under the function's name. The cache must not be used for an edited function."""
    utils, spelling, task = tmp_path / "utils.py", tmp_path / "spelling.py", tmp_path / "processed.yaml"
    utils.write_text(PROCESSING)
    spelling.write_text("def spell(number):\n    return str(number)\n")
    rows = {split: str(world / "given" / "micro" / f"{split}.jsonl") for split in SIZES}
    options = {"data_files": rows, "cache_dir": str(tmp_path / "cache")}
    config = yaml.safe_load(TASK) | {"dataset_path": "json", "dataset_kwargs": options, "doc_to_text": "{{question}} is"}
    task.write_text(yaml.safe_dump(config) + "process_docs: !function utils.process\n")
    first = HarnessTask(task)
    assert first.documents("test")[0]["question"] == "number 32"
    assert first.lm_eval_config()["config"]["dataset_kwargs"] == options, "the results file has other options than the task"
    for path, old, new, question in (
        (utils, '"number "', '"numbEr "', "numbEr 32"),
        (spelling, "str(number)", "str(number + 1)", "numbEr 33"),
    ):
        path.write_text(path.read_text().replace(old, new))
        unload_modules([utils, spelling])
        assert HarnessTask(task).documents("test")[0]["question"] == question


@pytest.mark.parametrize("processing", ["", "process_docs: !function utils.process\n"])
def test_edited_rows_with_the_same_modification_time_are_read_again(processing: str, world: Path, tmp_path: Path) -> None:
    """`datasets` identifies files by name and modification time. A copy or an archive may restore that time."""
    shutil.copytree(world / "given" / "micro", tmp_path / "rows")
    (tmp_path / "utils.py").write_text("def process(rows):\n    return rows.map(lambda doc: doc)\n")
    files = {split: str(tmp_path / "rows" / f"{split}.jsonl") for split in SIZES}
    options = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    config = yaml.safe_load(TASK) | {"dataset_path": "json", "dataset_kwargs": options}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config) + processing)
    assert HarnessTask(tmp_path / "task.yaml").documents("test")[0]["number"] == 32
    datasets.load_dataset("json", **options)  # writes a cache of the first rows
    before = (tmp_path / "rows" / "test.jsonl").stat()
    text = (tmp_path / "rows" / "test.jsonl").read_text()
    (tmp_path / "rows" / "test.jsonl").write_text(text.replace('"number": 32', '"number": 99', 1))
    os.utime(tmp_path / "rows" / "test.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert datasets.load_dataset("json", **options)["test"][0]["number"] == 32, "negative control: datasets detects no change"
    assert HarnessTask(tmp_path / "task.yaml").documents("test")[0]["number"] == 99


CUSTOM = """\
import datasets
from datasets import load_dataset


def rows(files, cache_dir, **_):
    made = load_dataset("json", data_files=files, cache_dir=cache_dir)
    made["test"] = datasets.Dataset.from_json(files["test"], cache_dir=cache_dir)
    return made
"""


def test_edited_rows_that_custom_dataset_loads_are_read_again(world: Path, tmp_path: Path) -> None:
    """``custom_dataset`` may load files with any function of `datasets`. Edited files have the same modification time."""
    shutil.copytree(world / "given" / "micro", tmp_path / "rows")
    (tmp_path / "utils.py").write_text(CUSTOM)
    files = {split: str(tmp_path / "rows" / f"{split}.jsonl") for split in SIZES}
    options = {"files": files, "cache_dir": str(tmp_path / "cache")}
    text = yaml.safe_dump(yaml.safe_load(TASK) | {"dataset_kwargs": options})
    (tmp_path / "task.yaml").write_text(text + "custom_dataset: !function utils.rows\n")
    assert HarnessTask(tmp_path / "task.yaml").documents("test")[0]["number"] == 32
    direct_options = {"data_files": files, "cache_dir": options["cache_dir"]}
    assert datasets.load_dataset("json", **direct_options)["train"][0]["number"] == 0
    for split, old in (("train", 0), ("test", 32)):
        path = tmp_path / "rows" / f"{split}.jsonl"
        before = path.stat()
        path.write_text(path.read_text().replace(f'"number": {old}', '"number": 99', 1))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert datasets.load_dataset("json", **direct_options)["train"][0]["number"] == 0, (
        "negative control: datasets detects no change"
    )
    edited = HarnessTask(tmp_path / "task.yaml")
    assert [edited.documents(role)[0]["number"] for role in ("train", "test")] == [99, 99]


GENERATED = """\
import json
from datasets import Dataset, DatasetDict


def lines(path):
    with open(path) as file:
        yield from map(json.loads, file)


def rows(folder, splits, **_):
    made = {split: Dataset.from_generator(lines, gen_kwargs={"path": f"{folder}/{split}.jsonl"}) for split in splits}
    return DatasetDict(made)
"""


def test_edited_rows_that_a_generator_of_the_task_yields_are_read_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` identifies a generator by its name and arguments, so it detects no edit of the file or of the function."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shutil.copytree(world / "given" / "micro", tmp_path / "rows")
    (tmp_path / "utils.py").write_text(GENERATED)
    fields = {"dataset_kwargs": {"folder": str(tmp_path / "rows"), "splits": list(SIZES)}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(yaml.safe_load(TASK) | fields) + "custom_dataset: !function utils.rows\n")
    assert HarnessTask(tmp_path / "task.yaml").documents("test")[0]["number"] == 32
    unload_modules([tmp_path / "utils.py"])
    names: dict[str, Any] = {}
    exec(GENERATED, names)
    arguments = {"folder": str(tmp_path / "rows"), "splits": ["test"]}
    assert names["rows"](**arguments)["test"][0]["number"] == 32
    path = tmp_path / "rows" / "test.jsonl"
    path.write_text(path.read_text().replace('"number": 32', '"number": 99', 1))
    assert names["rows"](**arguments)["test"][0]["number"] == 32, "negative control: datasets detects no change"
    assert HarnessTask(tmp_path / "task.yaml").documents("test")[0]["number"] == 99


def test_processes_that_open_a_task_at_the_same_time_convert_its_rows_once(world: Path, tmp_path: Path) -> None:
    """The first process converts the rows. No other process converts or moves them, at the same time or later."""
    files = {split: str(world / "given" / "micro" / f"{split}.jsonl") for split in SIZES}
    options = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(yaml.safe_load(TASK) | {"dataset_path": "json", "dataset_kwargs": options}))
    code = (
        "import sys, time; from pathlib import Path; from lm_harmony.benchmarks.harness import HarnessTask\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(5): print(HarnessTask(Path(sys.argv[1])).documents('test')[0]['number'])"
    )
    line = [forked_python(), "-c", code, str(task)]
    pipe = subprocess.PIPE
    workers = [subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert (output.split(), worker.returncode) == (["32"] * 5, 0), errors
    made = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*.arrow")}
    assert len(made) == len(SIZES)
    assert HarnessTask(task).documents("test")[0]["number"] == 32
    now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*.arrow")}
    assert now == made, "opening the task again converted rows"
    datasets.load_dataset("json", **options, download_mode="reuse_cache_if_exists")
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) > len(made), "negative control: other cache keys give other files"


def test_a_cached_model_is_loaded_again_after_its_folder_changed(world: Path, tmp_path: Path) -> None:
    from lm_harmony.runs.caches import ModelCache

    shutil.copytree(world, tmp_path / "world")
    spec = spec_of(tmp_path / "world", "data_dir")
    cache = ModelCache()
    first = cache.get(spec)
    assert cache.get(spec) is first
    write_tiny_model(tmp_path / "world" / "model", seed=1)
    (tmp_path / "world" / "model" / "model.safetensors.index.json").unlink()
    second = cache.get(spec)
    assert cache.loads == 2 and second.checksum != first.checksum and second.sources != first.sources


def run_command(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    line = [forked_python(), "-m", "lm_harmony.cli", "run", "--base_model", "model", "--task_name", "micro.yaml"]
    line += ["--data_dir", ".", "--device", "cpu", "--train_param.num_train_epochs", "1"]
    line += ["--peft_config.target_modules", "all-linear", *flags]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_line_names_the_changed_file(tmp_path: Path) -> None:
    write_micro(tmp_path)
    write_tiny_model(tmp_path / "model")
    assert run_command(tmp_path).returncode == 0
    flip(tmp_path / "model" / "model.safetensors")
    for flags in ((), ("--only_evaluate",)):
        done = run_command(tmp_path, *flags)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "model.safetensors changed since. Restore" in done.stderr and "--overwrite" in done.stderr


def test_the_command_line_names_what_differs_from_a_finished_run_of_the_same_name(tmp_path: Path) -> None:
    """A command that scores the run again must not print its score as that of another model, task or setting."""
    write_micro(tmp_path)
    for seed, name in enumerate(("model", "other")):
        write_tiny_model(tmp_path / name, seed=seed)
    write_tiny_model(tmp_path / "elsewhere" / "model", seed=1)
    (tmp_path / "second.yaml").write_text(TASK.replace("task: micro", "task: second"))
    shutil.copytree(tmp_path / "micro", tmp_path / "second")
    shutil.copytree(tmp_path / "micro", tmp_path / "changed" / "micro")
    (tmp_path / "changed" / "micro" / "test.jsonl").write_text('{"number": 32, "label": 0}\n')
    name = ("--exp_name", "one")
    assert run_command(tmp_path, *name).returncode == 0
    rate = "recipe.learning_rate was 2e-05, is 0.01"
    for flags, said in (
        (("--train_param.learning_rate", "0.01"), rate),
        (("--only_evaluate", "--train_param.learning_rate", "0.01"), rate),
        (("--only_evaluate", "--base_model", "other"), "model.name was model, is other"),
        (("--only_evaluate", "--task_name", "second.yaml"), "task was micro, is second"),
        (("--only_evaluate", "--base_model", "elsewhere/model"), "model.safetensors changed since"),
        (("--only_evaluate", "--data_dir", "changed"), "micro/test.jsonl changed since"),
    ):
        done = run_command(tmp_path, *name, *flags)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert said in " ".join(done.stderr.split()), done.stderr
    assert run_command(tmp_path, *name, "--only_evaluate").returncode == 0


SETTLED = 0.2
"""Seconds after which the tests of cached hashes count a file as settled."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HashCache:
    monkeypatch.setattr(file_hashes, "UNSETTLED", SETTLED - 0.1)
    return HashCache(tmp_path / "cache")


def write_settled(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    time.sleep(SETTLED)
    return path


def test_a_hash_of_a_large_file_is_reused_by_other_processes(cache: HashCache, tmp_path: Path) -> None:
    path = write_settled(tmp_path / "weights", b"x" * SMALL)
    first = cache.sha256_of(path)
    assert (cache.sha256_of(path), cache.reads) == (first, 1)
    other = HashCache(cache.folder)
    assert (other.sha256_of(path), other.reads) == (first, 0)
    # A truncated line, as a killed process leaves it, is skipped.
    with (cache.folder / "hashes.jsonl").open("a") as file:
        file.write('{"path": "/x", "sta\n')
    third = HashCache(cache.folder)
    assert (third.sha256_of(path), third.reads) == (first, 0)


def test_hashing_a_large_file_shows_a_progress_bar_the_first_time(
    cache: HashCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, shown = write_settled(tmp_path / "weights.safetensors", bytes(SMALL)), list[str]()
    with display(Console(file=io.StringIO())) as progress:
        add = progress.add_task
        monkeypatch.setattr(progress, "add_task", lambda text, **options: shown.append(text) or add(text, **options))
        cache.sha256_of(weights)
        cache.sha256_of(weights)  # negative control: the hash is cached
        cache.sha256_of(write_settled(tmp_path / "config.json", b"{}"))  # negative control: it is small
    assert shown == ["hashing weights.safetensors"]


def test_of_two_processes_only_one_reads_a_large_file(tmp_path: Path) -> None:
    """The second process waits for the first one, although the file was written just before."""
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(LARGE)
    code = (
        "import logging, sys; from pathlib import Path; from lm_harmony.runs.file_hashes import HashCache\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "cache = HashCache(Path(sys.argv[1])); print(cache.sha256_of(Path(sys.argv[2])), cache.reads)"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "cache"), str(path)]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    results = [out.split() for out, _ in outputs]
    assert results[0][0] == results[1][0] == hashlib.sha256(bytes(LARGE)).hexdigest()
    assert sorted(reads for _, reads in results) == ["0", "1"]
    waiting = [errors.count(f"waiting for another process that reads {path}") for _, errors in outputs]
    assert waiting == [int(reads == "0") for _, reads in results], "a waiting process must log that it waits, once"


def test_a_hash_depends_on_the_content_and_not_on_the_modification_time(cache: HashCache, tmp_path: Path) -> None:
    """One changed byte changes the hash, although size and time stay. Another time does not change it."""
    path = write_settled(tmp_path / "weights", b"x" * SMALL)
    first = cache.sha256_of(path)
    flip(path)
    assert cache.sha256_of(path) != first
    flip(path)
    os.utime(path)
    assert cache.sha256_of(path) == first


def test_the_hash_of_a_file_that_has_just_changed_is_not_cached(tmp_path: Path) -> None:
    """File times have a limited resolution, so a second change may give the same times. Such a file is read again."""
    cache, path = HashCache(tmp_path / "cache"), tmp_path / "weights"
    path.write_bytes(b"x" * SMALL)
    cache.sha256_of(path)
    cache.sha256_of(path)
    assert cache.reads == 2 and not (cache.folder / "hashes.jsonl").exists()
    time.sleep(file_hashes.UNSETTLED + 0.1)
    cache.sha256_of(path)
    cache.sha256_of(path)
    assert cache.reads == 3


def test_the_hash_of_a_file_with_a_future_modification_time_is_cached(cache: HashCache, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * SMALL)
    os.utime(path, (time.time() + 86400,) * 2)
    time.sleep(SETTLED)
    first = cache.sha256_of(path)
    assert (cache.sha256_of(path), cache.reads) == (first, 1)
    flip(path)  # does not change that time
    assert cache.sha256_of(path) != first and cache.reads == 2


def test_without_a_writable_cache_hashes_are_computed_again_with_one_warning(
    cache: HashCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning is logged for large files only."""
    cache.folder.write_text("a file where the folder belongs")
    path = write_settled(tmp_path / "weights", b"x" * SMALL)
    assert cache.sha256_of(path) == cache.sha256_of(path)
    assert not caplog.messages
    for name in ("large", "larger"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(LARGE)
    digests = {cache.sha256_of(tmp_path / name) for name in ("large", "larger")}
    assert digests == {hashlib.sha256(bytes(LARGE)).hexdigest()}
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "hashes.jsonl cannot be written" in warning and "Set LM_HARMONY_CACHE_DIR" in warning


def test_hashes_need_neither_file_locks_nor_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no fcntl. The user of a container may have no entry in the user database."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from pathlib import Path; from lm_harmony.runs.file_hashes import HashCache\n"
        "print(HashCache(Path(sys.argv[1])).sha256_of(Path(sys.argv[2])))"
    )
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGE)
    line = [sys.executable, "-c", code, str(tmp_path / "cache"), str(tmp_path / "large")]
    output = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert output.strip() == hashlib.sha256(bytes(LARGE)).hexdigest()

    def raise_key_error(user: int) -> Any:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", raise_key_error)
    for name in ("LM_HARMONY_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "lm-harmony"
    monkeypatch.delenv("HOME")
    assert cache_folder().is_relative_to(tempfile.gettempdir()) and str(os.getuid()) in cache_folder().name


def test_sources_of_lm_evals_own_tasks_are_found_without_importing_lm_eval() -> None:
    code = (
        "import sys; from lm_harmony.benchmarks.task_files import task_files\n"
        "for name in ('rte', 'hellaswag', 'mmlu_anatomy', 'gsm8k'):\n"
        "    found = task_files(name); print(name, sorted(found.code), found.datasets[0][0])\n"
        "assert not {'lm_eval', 'torch', 'datasets'} & set(sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "hellaswag ['hellaswag.yaml', 'utils.py'] Rowan/hellaswag" in output
    assert "_default_template_yaml" in output


def test_sources_of_the_hub_have_a_repository_and_a_revision(world: Path) -> None:
    (source,) = model_sources(ModelSpec(name="nobody/nothing", revision="v1"))
    assert (source.name, source.revision, source.path) == ("nobody/nothing", "v1", None)
    hub = [source for source in task_sources(BenchmarkSpec(task="rte")) if source.path is None]
    assert [(source.kind, source.revision) for source in hub] == [("rows", "main")]


def record_from(values: Any) -> RunRecord:
    return RunRecord.from_dict(json.loads(json.dumps(values)))


def test_a_record_without_sources_can_be_read_but_is_not_current(records: Callable[[str], tuple[RunRecord, RunStore]]) -> None:
    record, _ = records("data_dir")
    values = record.to_dict()
    assert record_from(values) == record
    old = record_from({key: value for key, value in values.items() if key not in ("sources", "asked")})
    assert old.sources is None
    assert SourceCheck().difference(old.sources, old.spec) == "made before sources were recorded"
