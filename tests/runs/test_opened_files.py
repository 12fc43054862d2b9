"""Files that a task's functions open are listed as sources. Files of the system, of packages and of caches are not."""

from __future__ import annotations

import json
import os
import py_compile
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fork_server import forked_python
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
SET_UP_TWICE = """\
import json, os, sys
from pathlib import Path
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.setup import set_up_run
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
    run = set_up_run(spec)
    names = [source.name for source in run.sources if source.kind == "task"]
    print(json.dumps([names, run.splits.train[0].context.split()[0], run.fingerprints.run, run.direct_score_id()]))
"""


def run_script(folder: Path, script: str = SET_UP_TWICE) -> list[Any]:
    """Run ``script`` in a process that writes and reads bytecode. Return its parsed output lines."""
    known = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [forked_python(known), "-c", script], cwd=folder, env=known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_a_module_imported_through_sys_path_is_listed_with_and_without_bytecode(tmp_path: Path) -> None:
    """The second process imports ../lib/helper.py and ../more/spelling.py from the bytecode that the first process wrote."""
    folder, helper, spelling = tmp_path / "tasks", tmp_path / "lib" / "helper.py", tmp_path / "more" / "spelling.py"
    write_micro(folder)
    write_tiny_model(folder / "model")
    (folder / "micro.yaml").write_text(TASK.replace('"number {{number}} is"', "!function utils.text"))
    (folder / "utils.py").write_text(UTILS)
    for path in (helper, spelling):
        path.parent.mkdir()
    helper.write_text("WORD = 'number '\n")
    spelling.write_text("def spell(number):\n    return f'{number} is'\n")
    # The script restores this time after its edit: Python compares times to decide whether bytecode is current.
    os.utime(helper, (1e9, 1e9))
    unchanged, edited = run_script(folder)
    helper.write_text("WORD = 'number '\n")
    os.utime(helper, (1e9 + 9, 1e9 + 9))
    py_compile.compile(str(helper))
    assert all(list(path.parent.glob("__pycache__/*.pyc")) for path in (helper, spelling)), "no bytecode was written"
    assert run_script(folder, SET_UP_TWICE.replace("(False, True)", "(False, False)")) == [unchanged, unchanged]
    assert set(unchanged[0]) == {"micro.yaml", "utils.py", "../lib/helper.py", "../more/spelling.py"} == set(edited[0])
    assert [unchanged[1], edited[1]] == ["number", "numbEr"], "the contexts come from the edited module"
    assert unchanged[2] != edited[2] and unchanged[3] != edited[3]


SCORING_FUNCTIONS = """\
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
SCORED_TASK = """\
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
    ids=["scoring succeeds", "scoring fails on the invented answer"],
)
def test_files_that_only_scoring_functions_open_are_listed(wanted: str, expected: set[str], tmp_path: Path) -> None:
    """A filter, process_results and an aggregation read word lists lazily. If scoring fails, the files read before are listed."""
    write_micro(tmp_path)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "micro.yaml").write_text(SCORED_TASK)
    (tmp_path / "utils.py").write_text(SCORING_FUNCTIONS.replace("WANTED", wanted))
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
    assert random.random() == expected_next, "the random state is not changed"
    assert {source.name for source in run.sources if source.kind == "task"} == {"micro.yaml", "utils.py"} | expected
    (tmp_path / "unread.txt").write_text("three")
    assert SourceCheck().difference(run.sources, spec) is None
    (tmp_path / "results.txt").write_text("three")
    assert SourceCheck().difference(run.sources, spec) == "results.txt changed since"


def opened_by(module: Path, *files: Path | str) -> set[str]:
    """Write a module to ``module``, let it open ``files``, and return the names of the recorded files."""
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text("def read(path):\n    open(path).close()\n")
    names: dict[str, Any] = {}
    exec(compile(module.read_text(), str(module), "exec"), names)
    with files_opened_by([module]) as found:
        for file in files:
            names["read"](file)
    return {path.name for path in found}


def create_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("word")
    return path


@pytest.mark.parametrize("project", ["work", ".work"])
def test_a_file_is_hidden_only_by_dot_names_below_the_common_folder_with_the_task(project: str, tmp_path: Path) -> None:
    """A project in a folder whose name starts with a dot lists its files. Hidden files inside a project are not listed."""
    folder = tmp_path / project / "tasks"
    shown: list[Path | str] = [
        create_file(folder / "words.txt"),
        create_file(folder.parent / "other" / "nouns.txt"),
        f"{folder}/../other/nouns.txt",
    ]
    hidden = [
        create_file(folder / ".cache" / "kept.txt"),
        create_file(folder / ".settings"),
        create_file(tmp_path / ".elsewhere" / "x.txt"),
    ]
    assert opened_by(folder / "utils.py", *shown, *hidden) == {"words.txt", "nouns.txt"}


def test_files_of_the_system_of_packages_and_of_caches_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    excluded: list[Path | str] = [
        *(create_file(tmp_path / "hub" / "a.json"), create_file(tmp_path / "caches" / "huggingface" / "b.json")),
        *(create_file(tmp_path / "lib" / "site-packages" / "c.txt"), create_file(tmp_path / "nltk_data" / "d.txt")),
        *(path for path in ("/proc/meminfo", "/sys/kernel/mm/transparent_hugepage/enabled") if Path(path).is_file()),
    ]
    assert opened_by(tmp_path / "tasks" / "utils.py", *excluded, create_file(tmp_path / "lib" / "words.txt")) == {"words.txt"}
