"""The command line as a user runs it, in separate processes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fork_server import forked_python
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.cli.main import main
from lm_harmony.errors import HarmonyError
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.study import Study


def harmony(
    *arguments: str, cwd: Path | None = None, forked: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``lm-harmony`` in a separate process, which imports all libraries itself unless it is ``forked``."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    return subprocess.run(
        [forked_python(variables) if forked else sys.executable, "-m", "lm_harmony.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=variables,
        check=False,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_micro(folder)
    write_tiny_model(folder / "model")
    return folder


def status_of(*arguments: str) -> int:
    """Run the command line in this process and return its exit status."""
    try:
        return main(arguments)
    except SystemExit as usage:  # tyro exits this way after an invalid flag
        return int(usage.code or 0)


def run_arguments(world: Path, *more: str) -> list[str]:
    flags = {
        "base_model": "model",
        "task_name": "micro.yaml",
        "data_dir": ".",
        "device": "cpu",
        "train_param.num_train_epochs": "2",
    }
    return ["run", *[word for flag, value in flags.items() for word in (f"--{flag}", value)], *more]


def test_the_help_lists_the_commands() -> None:
    done = harmony("--help", forked=False)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("run", "benchmarks", "models", "demo"))


def test_a_closed_output_pipe_gives_no_traceback() -> None:
    """``lm-harmony run --help | head -1``: no traceback."""
    command = f"{sys.executable} -m lm_harmony.cli run --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage:")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_catalogues_are_listed_completely() -> None:
    benchmarks, models = (harmony(command, COLUMNS="40", forked=False) for command in ("benchmarks", "models"))
    assert "commonsense_qa" in benchmarks.stdout and "exact_match,remove_whitespace" in benchmarks.stdout
    assert "EleutherAI/pythia-70m-deduped" in models.stdout and "meta-llama/Meta-Llama-3-8B-Instruct" in models.stdout


def test_a_run_shows_its_epochs_and_its_table(world: Path, tmp_path: Path) -> None:
    flags = run_arguments(world, "--eval_before_train", "--results_dir", str(tmp_path), "--train_param.packing")
    done = harmony(*flags, cwd=world, forked=False)
    assert done.returncode == 0, done.stderr
    assert "--train_param.packing has no effect: the engine packs sequences by itself" in done.stderr
    phases = [line.split(": ")[0] for line in done.stderr.splitlines() if line.endswith((" documents", " training rows"))]
    epochs = [f"{kind}epoch {number}/2" for number in (1, 2) for kind in ("", "validation of ")]
    assert phases == ["direct test", *epochs, "test"] and "\ndirect score: acc" in done.stderr
    assert done.stderr.count("epoch 1: loss") == done.stderr.count("epoch 2: loss") == 1 and " of 2 chosen" in done.stderr
    assert "direct" in done.stdout and "train-before-test" in done.stdout and "acc_norm,none" in done.stdout
    [folder] = (tmp_path / "micro" / "model").glob("seed0-*")
    record = RunStore(folder).record()
    assert "epoch 1: loss" in (folder / "log.txt").read_text()
    again = harmony(*run_arguments(world, "--results_dir", str(tmp_path)), cwd=world)
    assert again.returncode == 1 and "--overwrite" in again.stderr and "Traceback" not in again.stderr
    scored = harmony(*run_arguments(world, "--only_evaluate", "--results_dir", str(tmp_path)), cwd=world)
    assert scored.returncode == 0, scored.stderr
    assert record.trained is not None
    assert f"{record.trained.metrics['acc_norm,none']:.4f}" in scored.stdout


def test_every_command_with_a_table_writes_it_for_programs(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers are numbers in JSON, and standard output has nothing else."""

    def printed(*words: str) -> tuple[str, str]:
        assert status_of(*words) == 0, capsys.readouterr().err
        return capsys.readouterr()

    monkeypatch.chdir(world)
    values = {"models": ["./model"], "benchmarks": ["micro.yaml"], "data_dir": ".", "recipe": {"epochs": 1}, "direct": False}
    study = {**values, "execution": {"device": "cpu"}, "results_dir": str(tmp_path / "study")}
    (world / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")

    out, errors = printed(*run_arguments(world, "--results_dir", str(tmp_path / "run"), "--format", "json"))
    (folder,) = (tmp_path / "run" / "micro" / "model").iterdir()
    record = RunStore(folder).record()
    trained, direct = record.trained, record.direct
    assert trained is not None and direct is not None and f"Record, samples and adapter: {folder}" in errors
    rows = json.loads(out)
    assert {row["metric"]: row["trained"] for row in rows} == trained.metrics and rows[0]["metric"] == "acc_norm,none"
    assert rows[0]["trained_stderr"] == trained.stderrs["acc_norm,none"] and rows[0]["direct"] == direct.metrics["acc_norm,none"]

    out, _ = printed("plan", "study.yaml", "--hardware", "h100", "--format", "json")
    (row,) = json.loads(out)
    assert row["model"] == "model" and row["runs"] == 1 and row["hours"] > 0 and row["memory in bytes"] > 1e6
    for words, state in (("--dry_run --format csv", "waiting"), ("--workers 1 --format csv", "finished")):
        out, _ = printed("study", "study.yaml", *words.split())
        (run,) = csv.DictReader(io.StringIO(out))
        assert state in run.values()
    out, errors = printed("place", "published", "--model", "Qwen/Qwen2.5-7B", "--format", "json")
    (row,) = json.loads(out)
    assert (row["rank"], row["of"]) == (14, 61) and row["rank_low"] < 14 < row["rank_high"] and "rank 14 (6 to 18)" in errors


def test_a_study_counts_a_run_of_the_same_folder_that_was_carried_out_alone(world: Path, tmp_path: Path) -> None:
    """Another learning rate is another run beside it."""
    results = ("--results_dir", str(tmp_path / "results"))
    for rate in (("--train_param.learning_rate", "1e-3"), ()):
        done = harmony(*run_arguments(world, *results, *rate), cwd=world)
        assert done.returncode == 0, done.stderr
    models, recipe = [str(world / "model")], {"epochs": 2}
    study = {"models": models, "benchmarks": [str(world / "micro.yaml")], "data_dir": str(world), "recipe": recipe}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "direct": False}), encoding="utf-8")
    status = Study.read(tmp_path / "study.yaml").status()
    assert len(status.finished) == 1 and not status.waiting
    assert len(list((tmp_path / "results" / "micro" / "model").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--train_param.learning_rat", "1e-4"), 2, "--train_param.learning_rate"),
        (("--train_param.learning_rate", "-1"), 1, "train_param.learning_rate must be a positive number, got -1.0"),
        (("--exp_name", "../out"), 1, "exp_name must be a relative path without '..', got '../out'"),
        (("--exp_name", "/abs"), 1, "exp_name must be a relative path"),
        (("--train_param.metric_for_best_model", "eval_acc_norn,none"), 1, "Did you mean 'acc_norm,none'"),
        (("--train_param.fp16",), 1, "--dtype bfloat16"),
        (("--train_param.eval_strategy", "steps"), 1, "train_param.eval_strategy = 'steps' is not supported (allowed: epoch)"),
        (("--train_param.seed", "1", "--random_seed", "2"), 1, "contradicts random_seed = 2"),
        (("--train_param.report_to", "tensorbord"), 1, "Did you mean 'tensorboard'"),
        (("--dataset_param.apply_chat_template",), 1, "has no chat template"),
        (("--dataset_param.max_num_test", "0"), 1, "dataset_param.max_num_test must be at least 1, got 0"),
        (("--device", "cuda:7"), 1, "device 'cuda:7' cannot be used"),
        (("--include_path", "nowhere"), 1, "include_path"),
    ],
)
def test_invalid_input_is_refused_in_one_line_with_a_remedy(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    task = ("--task_name", "micro") if "--include_path" in arguments else ()
    monkeypatch.chdir(world)
    assert status_of(*run_arguments(world, *task, "--results_dir", str(tmp_path / "results"), *arguments)) == status
    assert message in (error := capsys.readouterr().err) and "Traceback" not in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--task_name", "arc_eazy", "Did you mean 'arc_easy'"),
        ("--task_name", "glue", "group"),
        ("--task_name", "wikitext_nowhere.yaml", "does not exist"),
        ("--base_model", "nobody/nothing", "cannot be loaded"),
        ("--base_model", ".", "config.json"),
        ("--data_dir", "nowhere", "train.jsonl does not exist"),
    ],
)
def test_unknown_names_are_reported(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.chdir(world)
    arguments = run_arguments(world, "--results_dir", str(tmp_path / "results"), flag, value)
    assert status_of(*arguments) == 1
    assert message in (error := capsys.readouterr().err) and "Traceback" not in error
    assert not (tmp_path / "results").exists()
    with pytest.raises(HarmonyError, match=re.escape(message)):
        main([*arguments, "--debug"])


def test_ctrl_c_says_how_to_resume_and_the_resumed_run_equals_an_uninterrupted_one(world: Path, tmp_path: Path) -> None:
    write_micro(tmp_path, sizes={"train": 160, "validation": 8, "test": 12})
    write_tiny_model(tmp_path / "model")
    arguments = run_arguments(tmp_path, "--results_dir", "stopped", "--exp_name", "one", "--train_param.num_train_epochs", "6")
    command = [forked_python(), "-m", "lm_harmony.cli", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    store = RunStore(tmp_path / "stopped" / "one")
    deadline = time.monotonic() + 120
    while not store.epochs() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "--resume_from_checkpoint" in output and "Traceback" not in output
    assert store.epochs() and not store.is_finished()
    assert harmony(*arguments, "--resume_from_checkpoint", cwd=tmp_path).returncode == 0
    uninterrupted = run_arguments(tmp_path, "--results_dir", "whole", "--exp_name", "one", "--train_param.num_train_epochs", "6")
    assert harmony(*uninterrupted, cwd=tmp_path).returncode == 0
    assert store.record() == RunStore(tmp_path / "whole" / "one").record()
