"""A task's file is found by name, as in lm_eval, but without building lm_eval's task index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml
from rows import ROWS
from task_files import PARITY, write_rows, write_task

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.task_index import find_task_file, lm_eval_tasks_folder
from lm_harmony.errors import UsageError

RIVAL_ROWS = {"train": [{"question": "a", "label": 0}], "test": [{"question": "b", "label": 1}]}


def refusal(name: str, include_path: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        find_task_file(name, include_path)
    return str(caught.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_catalogued_tasks_are_at_the_path_of_the_catalogue(name: str) -> None:
    """A catalogued name needs no search. The file at its path defines the task of that name."""
    path = find_task_file(name)
    assert path == lm_eval_tasks_folder() / BENCHMARKS[name].path
    assert load_yaml(path, resolve_func=False)["task"] == name


@pytest.mark.parametrize(
    "name",
    [
        "copa",  # task: copa
        "swag",
        "wikitext",
        "lambada_openai",
        "mmlu_anatomy",  # "task": "mmlu_anatomy"
        "mmlu_pro_biology",  # task: "mmlu_pro_biology"
    ],
)
def test_other_tasks_are_found_by_search(name: str) -> None:
    """Any task of lm_eval is found, in whatever form its file gives the name."""
    assert name not in BENCHMARKS
    assert load_yaml(find_task_file(name), resolve_func=False)["task"] == name


def test_a_yaml_path_is_used_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that ends in .yaml or .yml is the path of a file. It may be relative to the working directory."""
    path = write_task(tmp_path, RIVAL_ROWS, **PARITY)
    short = path.rename(tmp_path / "own.yml")
    monkeypatch.chdir(tmp_path)
    assert find_task_file(str(short)) == find_task_file("own.yml") == short


def test_a_missing_yaml_file_is_refused_by_name() -> None:
    """If the YAML file does not exist, the message names its path."""
    assert "the file nowhere/own.yaml does not exist" in refusal("nowhere/own.yaml")


def test_include_path_comes_first(tmp_path: Path) -> None:
    """The user's own sst2 takes precedence over the catalogue and lm_eval. Other names are still found in lm_eval."""
    own = write_task(tmp_path / "deep", RIVAL_ROWS, name="sst2", **PARITY)
    assert find_task_file("sst2", tmp_path) == own
    assert find_task_file("sst2") == lm_eval_tasks_folder() / BENCHMARKS["sst2"].path
    assert find_task_file("copa", tmp_path) == find_task_file("copa")
    assert HarnessTask(find_task_file("sst2", tmp_path), tmp_path / "deep").documents("train").to_list() == RIVAL_ROWS["train"]


def test_a_name_that_two_files_of_include_path_define_is_refused(tmp_path: Path) -> None:
    """One file under two names is one, and so are copies that Jupyter keeps. A task of lm_eval is replaced, not refused."""
    own = write_task(tmp_path / "deep", RIVAL_ROWS, name="sst2", **PARITY)
    copy = tmp_path / ".ipynb_checkpoints" / "own.yaml"
    copy.parent.mkdir()
    copy.write_text(own.read_text(encoding="utf-8"), encoding="utf-8")
    link = tmp_path / "link.yaml"
    link.symlink_to(own)
    assert find_task_file("sst2", tmp_path).samefile(own)
    link.unlink()
    link.write_text("task: sst2\n", encoding="utf-8")
    assert f"task_name: 'sst2' is defined by several files, {own} and {link}. Remove one" in refusal("sst2", tmp_path)
    assert find_task_file("copa", tmp_path) == find_task_file("copa")  # negative control


def test_task_files_written_later_are_found(tmp_path: Path) -> None:
    """The user's folder is read at every look-up, so tasks can be added while a Python session is running."""
    assert "no task 'own'" in refusal("own", tmp_path)
    path = write_task(tmp_path, RIVAL_ROWS, **PARITY)
    assert find_task_file("own", tmp_path) == path


@pytest.mark.parametrize("kind", ["file", "nothing"])
def test_include_path_must_be_a_folder(tmp_path: Path, kind: str) -> None:
    """If include_path is a file or does not exist, the message names it."""
    place = tmp_path / "tasks"
    if kind == "file":
        place.write_text("", encoding="utf-8")
    assert f"include_path = {place} is not a folder" in refusal("sst2", place)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("hellaswg", "'hellaswag'"), ("arc_chalenge", "'arc_challenge'"), ("copaa", "'copa'"), ("own_parityy", "'own_parity'")],
)
def test_the_message_for_an_unknown_name_suggests_the_nearest(tmp_path: Path, name: str, nearest: str) -> None:
    """For a misspelled name, the message suggests the nearest name of the catalogue, the user or lm_eval."""
    write_task(tmp_path, RIVAL_ROWS, name="own_parity", **PARITY)
    message = refusal(name, tmp_path)
    assert f"lm_eval has no task {name!r}. Did you mean" in message
    assert nearest in message


def test_names_unlike_any_other_get_no_suggestion() -> None:
    """A name that is not similar to any other is refused without a suggestion."""
    message = refusal("qqqqzzzz0000")
    assert "lm_eval has no task 'qqqqzzzz0000'. `lm-harmony benchmarks`" in message


@pytest.mark.parametrize(
    "name",
    [
        "glue",  # tag: glue
        "mmlu",  # group: mmlu
        "ai2_arc",  # tag: a list of one
        "super-glue-lm-eval-v1",
        "math_word_problems",
    ],
)
def test_groups_and_tags_are_refused_as_such(name: str) -> None:
    """The message does not say that the name of a group of tasks is unknown."""
    message = refusal(name)
    assert f"{name!r} is a group of lm_eval tasks" in message
    assert "no task" not in message


@pytest.mark.parametrize(("name", "searches"), [("gsm8k", False), ("copa", True)])
def test_lm_evals_task_index_is_never_built(tmp_path: Path, name: str, searches: bool) -> None:
    """Loading a catalogued task opens only a few of lm_eval's 14,000 task files. Only other names need a search.

    lm_eval.tasks always imports its manager. The slow part is the manager's index, which opens all task files.
    """
    rows = {role: items for role, items in ROWS["gsm8k"].items()}
    if searches:
        rows = {
            role: [{"premise": "p", "question": "cause", "choice1": "a", "choice2": "b", "label": 0}]
            for role in ("train", "validation")
        }
    write_rows(tmp_path / name, rows)
    program = f"""
import json, sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
from pathlib import Path
from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.task_index import find_task_file
HarnessTask(find_task_file({name!r}), Path({str(tmp_path)!r}))
tasks = [file for file in opened if "/lm_eval/tasks/" in file and file.endswith("yaml")]
print(json.dumps([len(tasks), len(set(tasks)), "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, distinct, torch = json.loads(done.stdout.splitlines()[-1])
    assert (count > 10_000) == searches
    assert count <= distinct + 2  # the file itself is read again, as YAML
    assert searches or count <= 3
    assert not torch
