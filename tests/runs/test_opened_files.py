"""Files that only a task's own functions open are listed as sources, and files that belong to no project are not."""

from __future__ import annotations

import json
import os
import py_compile
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from micro import TASK, write_micro
from tiny import write_tiny_model

from lm_harmony.benchmarks.task_code import files_opened_by
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.sources import SourceCheck
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec

UTILS = """\
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))
import helper

sys.path.insert(0, "../more")
spelling = importlib.import_module("spelling")


def text(doc):
    return helper.WORD + spelling.spell(doc["number"])
"""
TWICE = """\
import json, os, sys
from pathlib import Path
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.setup import prepare
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec

recipe = Recipe(epochs=1, lora=Lora(target_modules=("all-linear",)))
benchmark = BenchmarkSpec(task="micro.yaml", data_dir=Path("."))
spec = RunSpec(model=ModelSpec(name="model"), benchmark=benchmark, recipe=recipe, execution=Execution(device="cpu"))
for edit in (False, True):
    if edit:
        path = Path("../lib/helper.py")
        times = path.stat()
        path.write_text(path.read_text().replace("number", "numbEr"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    run = prepare(spec)
    names = [source.name for source in run.sources if source.kind == "task"]
    print(json.dumps([names, run.splits.train[0].context.split()[0], run.fingerprints.run, run.direct_id]))
"""


def twice(folder: Path, script: str = TWICE) -> list[Any]:
    """Run ``script`` in a process that writes and reads bytecode; return its lines."""
    known = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_a_module_that_no_import_statement_locates_is_listed_whether_or_not_its_bytecode_exists(tmp_path: Path) -> None:
    """The second process imports ../lib/helper.py and ../more/spelling.py from the bytecode that the first one left."""
    folder, helper, spelling = tmp_path / "tasks", tmp_path / "lib" / "helper.py", tmp_path / "more" / "spelling.py"
    write_micro(folder)
    write_tiny_model(folder / "model")
    (folder / "micro.yaml").write_text(TASK.replace('"number {{number}} is"', "!function utils.text"))
    (folder / "utils.py").write_text(UTILS)
    for path in (helper, spelling):
        path.parent.mkdir()
    helper.write_text("WORD = 'number '\n")
    spelling.write_text("def spell(number):\n    return f'{number} is'\n")
    os.utime(helper, (1e9, 1e9))  # what is edited in one process keeps its time, which is what Python compares
    unchanged, edited = twice(folder)
    helper.write_text("WORD = 'number '\n")
    os.utime(helper, (1e9 + 9, 1e9 + 9))
    py_compile.compile(str(helper))
    assert all(list(path.parent.glob("__pycache__/*.pyc")) for path in (helper, spelling)), "or nothing is tested"
    assert twice(folder, TWICE.replace("(False, True)", "(False, False)")) == [unchanged, unchanged]
    assert set(unchanged[0]) == {"micro.yaml", "utils.py", "../lib/helper.py", "../more/spelling.py"} == set(edited[0])
    assert [unchanged[1], edited[1]] == ["number", "numbEr"], "a process asks what the edited module says"
    assert unchanged[2] != edited[2] and unchanged[3] != edited[3]


COUNTING = """\
import functools
import random
from pathlib import Path


@functools.cache
def words(name):
    return Path(__file__).with_name(name).read_text().split()


def results(doc, replies):
    random.random()
    return {"first": float(replies[0] in words("results.txt")), "second": (doc["label"], replies[0].split()[WANTED])}


def aggregate(items):
    return float(len(words("aggregation.txt")))


def stripped(replies, docs):
    return [each[0].strip(words("filter.txt")[0]) for each in replies]
"""
COUNTED = """\
task: micro
dataset_path: micro
output_type: generate_until
training_split: train
validation_split: validation
test_split: test
doc_to_text: "number {{number}} is"
doc_to_target: "{{['odd', 'even'][label]}}"
generation_kwargs: {until: ["."], max_gen_toks: 2}
process_results: !function utils.results
filter_list: [{name: own, filter: [{function: custom, filter_fn: !function utils.stripped}]}]
metric_list:
  - {metric: first, aggregation: mean, higher_is_better: true}
  - {metric: second, aggregation: !function utils.aggregate, higher_is_better: true}
"""


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(":", {"results.txt", "filter.txt", "aggregation.txt"}), ("99", {"results.txt", "filter.txt"})],
    ids=["counts", "fails on what was invented"],
)
def test_files_that_only_counting_opens_are_listed(wanted: str, expected: set[str], tmp_path: Path) -> None:
    """Word lists that a filter, process_results and an aggregation read lazily; where counting fails, those read before it."""
    write_micro(tmp_path)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "micro.yaml").write_text(COUNTED)
    (tmp_path / "utils.py").write_text(COUNTING.replace("WANTED", wanted))
    for name in ("results", "filter", "aggregation", "unread"):
        (tmp_path / f"{name}.txt").write_text("one two\n")
    spec = RunSpec(
        model=ModelSpec(name=str(tmp_path / "model")),
        benchmark=BenchmarkSpec(task=str(tmp_path / "micro.yaml"), data_dir=tmp_path),
        recipe=Recipe(epochs=1, lora=Lora(target_modules=("all-linear",))),
        execution=Execution(device="cpu"),
    )
    random.seed(1)
    expected_next = random.Random(1).random()
    run = set_up_run(spec)
    assert random.random() == expected_next, "what is drawn later is what it would have been"
    assert {source.name for source in run.sources if source.kind == "task"} == {"micro.yaml", "utils.py"} | expected
    (tmp_path / "unread.txt").write_text("three")
    assert SourceCheck().difference(run.sources, spec) is None
    (tmp_path / "results.txt").write_text("three")
    assert SourceCheck().difference(run.sources, spec) == "results.txt changed since"


def opened_by(module: Path, *files: Path | str) -> set[str]:
    """Return the names of the files that a module in ``module`` is seen to open."""
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text("def read(path):\n    open(path).close()\n")
    names: dict[str, Any] = {}
    exec(compile(module.read_text(), str(module), "exec"), names)
    with files_opened_by([module]) as found:
        for file in files:
            names["read"](file)
    return {path.name for path in found}


def written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("word")
    return path


@pytest.mark.parametrize("project", ["work", ".work"])
def test_a_file_is_hidden_only_as_seen_from_the_task(project: str, tmp_path: Path) -> None:
    """A project below a folder with a dot lists its word list, and neither kind of project lists what it hides itself."""
    folder = tmp_path / project / "tasks"
    shown: list[Path | str] = [
        written(folder / "words.txt"),
        written(folder.parent / "other" / "nouns.txt"),
        f"{folder}/../other/nouns.txt",
    ]
    hidden = [written(folder / ".cache" / "kept.txt"), written(folder / ".settings"), written(tmp_path / ".elsewhere" / "x.txt")]
    assert opened_by(folder / "utils.py", *shown, *hidden) == {"words.txt", "nouns.txt"}


def test_files_of_the_system_of_packages_and_of_caches_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    foreign: list[Path | str] = [
        *(written(tmp_path / "hub" / "a.json"), written(tmp_path / "caches" / "huggingface" / "b.json")),
        *(written(tmp_path / "lib" / "site-packages" / "c.txt"), written(tmp_path / "nltk_data" / "d.txt")),
        *(path for path in ("/proc/meminfo", "/sys/kernel/mm/transparent_hugepage/enabled") if Path(path).is_file()),
    ]
    assert opened_by(tmp_path / "tasks" / "utils.py", *foreign, written(tmp_path / "lib" / "words.txt")) == {"words.txt"}
