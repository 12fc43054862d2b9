"""Python code that a task brings: each file is named before it runs, and ``--no-allow_task_code`` refuses it before it runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from micro import TASK, write_micro
from task_files import PARITY, examples, numbers, own_task
from tiny import write_tiny_model

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.benchmarks.foreign_code import check_task_code, foreign_code
from lm_harmony.benchmarks.task_files import task_files
from lm_harmony.cli.main import main
from lm_harmony.errors import BenchmarkError, UsageError

ROWS = {"train": numbers(4), "test": numbers(4, 10)}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Return a folder with a model and a benchmark whose module writes the file ``ran`` when it is imported."""
    write_micro(tmp_path)
    write_tiny_model(tmp_path / "model")
    include = tmp_path / "tasks"
    include.mkdir()
    (include / "micro.yaml").write_text(TASK + "process_docs: !function own_functions.same\n", encoding="utf-8")
    text = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\ndef same(docs):\n    return docs\n"
    (include / "own_functions.py").write_text(text, encoding="utf-8")
    return tmp_path


def words(world: Path, *more: str) -> list[str]:
    flags = {
        "base_model": world / "model",
        "task_name": "micro",
        "include_path": world / "tasks",
        "data_dir": world,
        "results_dir": world / "results",
        "exp_name": "one",
        "device": "cpu",
        "train_param.num_train_epochs": 1,
    }
    return ["run", *[str(word) for flag, value in flags.items() for word in (f"--{flag}", value)], *more]


def test_run_names_each_file_whose_code_runs_and_refuses_it_on_request(
    world: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(words(world, "--no-allow_task_code")) == 1
    said = capsys.readouterr().err
    assert f"allow_task_code = false: benchmark micro runs the Python code of {world / 'tasks' / 'own_functions.py'}." in said
    assert said.count("\n") == 1 and "Traceback" not in said
    assert not (world / "ran").exists() and not (world / "results" / "one").exists()
    with caplog.at_level(logging.INFO, logger="lm_harmony"):
        assert main(words(world)) == 0
    assert f"benchmark micro runs the Python code of {world / 'tasks' / 'own_functions.py'}." in caplog.messages
    assert (world / "ran").exists()  # negative control: the code does run
    (world / "ran").unlink()
    assert main(words(world, "--only_evaluate", "--no-allow_task_code")) == 1
    assert "allow_task_code = false" in capsys.readouterr().err and not (world / "ran").exists()


def test_a_study_refuses_code_before_its_first_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = {
        "models": ["model"],
        "benchmarks": ["micro"],
        "include_path": "tasks",
        "data_dir": ".",
        "execution": {"device": "cpu", "allow_task_code": False},
    }
    for command in ("study", "plan", "fetch"):
        (world / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        assert main([command, str(world / "study.yaml")]) == 1
        said = capsys.readouterr().err
        assert "allow_task_code = false: benchmark micro runs the Python code of" in said and said.count("\n") == 1
        assert not (world / "ran").exists() and not (world / "results").exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("process_docs: !function shutil.rmtree", "the installed module shutil"),
        ("metric_list: [{metric: squad}]", "the metric squad from the hub"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]", "the metric acc from the hub"),
    ],
)
def test_code_that_is_no_file_of_the_task_is_named(tmp_path: Path, line: str, code: str) -> None:
    (tmp_path / "own.yaml").write_text(f"include: base.yaml\ntask: own\n{line}\n", encoding="utf-8")
    (tmp_path / "base.yaml").write_text(TASK, encoding="utf-8")
    with pytest.raises(UsageError, match=f"benchmark {tmp_path / 'own.yaml'} runs {code}. Read this code"):
        check_task_code(str(tmp_path / "own.yaml"), allowed=False)
    (tmp_path / "own.yaml").write_text("include: base.yaml\ntask: own\n", encoding="utf-8")
    check_task_code(str(tmp_path / "own.yaml"), allowed=False)  # negative control: without the line


def test_the_tasks_of_lm_eval_need_no_permission() -> None:
    for task in BENCHMARKS:
        check_task_code(task, allowed=False)
    files = task_files("mnli")
    assert any(path.suffix == ".py" for path in files.code.values())  # negative control: it has code, which lm_eval ships
    assert not list(foreign_code(files))


@pytest.mark.parametrize("field", ["doc_to_text", "doc_to_target", "doc_to_choice"])
def test_a_template_of_a_task_cannot_reach_python(tmp_path: Path, field: str) -> None:
    """Without a sandbox, this template lists every class of the process, and one of them starts programs."""
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BenchmarkError, match="unsafe"):
        examples(own_task(tmp_path, ROWS, **{**PARITY, field: escape}), "train")
    examples(own_task(tmp_path, ROWS, name="harmless", **PARITY), "train")
