"""The commands leaderboard, analyze, compare and place as a user runs them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boards import write_run
from micro import write_micro
from test_cli import harmony, status_of
from tiny import write_tiny_model

from lm_harmony.recipe import PUBLISHED

TASKS = ("arc_easy", "sciq", "piqa")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    random = np.random.default_rng(0)
    for number, model in enumerate(("local/a", "local/b", "local/c", "local/d")):
        for task in TASKS:
            outcomes = [float(x) for x in random.random(60) < 0.4 + 0.12 * number]
            score = float(np.mean(outcomes))
            write_run(folder, model=model, task=task, trained=score, direct=score - 0.1, stderr=0.06, outcomes=outcomes)
    return folder


def test_the_published_board_needs_no_results() -> None:
    done = harmony("leaderboard", "--published", "--format", "csv", forked=False)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0 and len(rows) == 61 and rows[0]["model"] == "Qwen/Qwen2.5-14B" and rows[-1]["rank"] == "61"
    shown = harmony("leaderboard", "--published").stdout
    assert "Reference: the published board" in shown and "PC1 explains 85.5% of the variance" in shown


def test_notes_on_mixed_recipes_reach_who_reads_csv(results: Path, tmp_path: Path) -> None:
    """They go to standard error, so that standard output stays a table, and into a table of their own."""
    mixed = shutil.copytree(results, tmp_path / "mixed")
    recipe = replace(PUBLISHED, quantize="nf4")
    for number, task in enumerate(TASKS):
        write_run(mixed, model="local/e", task=task, trained=0.3 + 0.1 * number, recipe=recipe)
    note = "sciq: 1 of 5 runs has weights quantized to nf4, which is another recipe"
    done = harmony("leaderboard", str(mixed), "--format", "csv")
    assert note in done.stderr.splitlines() and len(list(csv.DictReader(io.StringIO(done.stdout)))) == 5
    assert note not in harmony("leaderboard", str(results), "--format", "csv").stderr  # negative control
    harmony("analyze", str(mixed), "--no-figures", "-o", str(tmp_path / "analysis"))
    with (tmp_path / "analysis" / "tables" / "notes.csv").open(encoding="utf-8", newline="") as file:
        assert {"table": "leaderboard_trained", "note": note} in csv.DictReader(file)


def test_the_published_board_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lm_harmony.cli.main import main; main(['leaderboard', '--published']);"
        "heavy = ('torch', 'transformers', 'lm_eval', 'datasets', 'matplotlib', 'plotly', 'sklearn');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_a_folder_of_runs_is_ranked(results: Path) -> None:
    done = harmony("leaderboard", str(results), "--format", "json")
    board = json.loads(done.stdout)
    assert board["rows"][0]["model"] == "local/d" and board["preparation"] == "trained"
    assert harmony("leaderboard", str(results), "--preparation", "direct").returncode == 0
    assert "| ~" in harmony("leaderboard", str(results), "--published", "--format", "markdown").stdout


def test_analyze_writes_tables_and_figures(results: Path, tmp_path: Path) -> None:
    done = harmony("analyze", str(results), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/figures/tau.pdf").is_file() and (tmp_path / "out/tables/tau_trained.csv").is_file()
    assert "agreement, trained" in (tmp_path / "out/summary.md").read_text(encoding="utf-8")
    assert harmony("analyze", str(results), "-o", str(tmp_path / "plain"), "--no-figures").returncode == 0
    assert not (tmp_path / "plain/figures").exists()


def test_without_the_extra_analyze_names_the_package_to_install(results: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib/__init__.py").write_text("raise ModuleNotFoundError(name='matplotlib')", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = harmony("analyze", str(results), "-o", str(tmp_path / "out"), PYTHONPATH=path, forked=False)
    assert done.returncode == 1 and "pip install 'lm-harmony[figures]'" in done.stderr and not (tmp_path / "out").exists()


def test_compare_pairs_outcomes(results: Path) -> None:
    done = harmony("compare", str(results), "local/d", "local/a")
    assert done.returncode == 0 and "mcnemar (60)" in done.stdout and "first: local/d, second: local/a" in done.stdout


def test_folders_of_finished_runs_can_be_compared(tmp_path: Path) -> None:
    task = write_micro(tmp_path)
    for seed in (1, 2):
        write_tiny_model(tmp_path / f"model{seed}", seed=seed)
        words = ["run", "--base_model", f"model{seed}", "--task_name", str(task), "--data_dir", ".", "--device", "cpu"]
        done = harmony(
            *words, "--train_param.num_train_epochs", "1", "--exp_name", f"e{seed}", "--eval_before_train", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    compared = harmony("compare", "results", "model1", "model2", cwd=tmp_path)
    assert compared.stdout.count("mcnemar (12)") == 2, compared.stdout + compared.stderr  # direct and trained
    board = harmony("leaderboard", "results", cwd=tmp_path)
    assert "model1" in board.stdout and "no PC1" in board.stdout


def test_a_damaged_record_is_reported_with_the_board(tmp_path: Path) -> None:
    for number, model in enumerate(("local/a", "local/b", "local/c")):
        for task in TASKS:
            store = write_run(tmp_path, model=model, task=task, trained=0.3 + 0.1 * number + 0.01 * len(task))
    (store.folder / "record.json").write_text("{", encoding="utf-8")
    file = store.folder / "record.json"
    done = harmony("leaderboard", str(tmp_path))
    assert done.returncode == 0 and f"left out: {file} cannot be read: it is not JSON" in done.stdout
    assert all(model in done.stdout for model in ("local/a", "local/b", "local/c"))
    markdown = harmony("leaderboard", str(tmp_path), "--format", "markdown").stdout
    assert f"{file} cannot be read" in markdown.replace("\\", "")
    assert f"{file} cannot be read" in json.dumps(json.loads(harmony("leaderboard", str(tmp_path), "--format", "json").stdout))
    analyzed = harmony("analyze", str(tmp_path), "-o", str(tmp_path / "out"), "--no-figures")
    assert analyzed.returncode == 0 and f"{file} cannot be read" in analyzed.stdout


def test_a_board_that_was_written_can_be_read_again_with_its_corpora(tmp_path: Path) -> None:
    """The wide layout names corpora as runs record them."""
    for number, model in enumerate(("local/a", "local/b")):
        write_run(tmp_path / "runs", model=model, trained=0.5 + 0.1 * number)
        write_run(
            tmp_path / "runs",
            model=model,
            task="corpus-wiki",
            metric="bits_per_byte,none",
            higher=False,
            trained=1.2 - 0.1 * number,
        )
    (tmp_path / "board.csv").write_text(harmony("leaderboard", str(tmp_path / "runs"), "--format", "csv").stdout)
    again = harmony("leaderboard", str(tmp_path / "board.csv"), "--format", "json")
    assert again.returncode == 0, again.stderr
    assert "corpus-wiki" in again.stdout


def test_a_score_out_of_its_range_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("model,arc_easy\na,50\nb,150\n", encoding="utf-8")
    done = harmony("leaderboard", str(tmp_path / "scores.csv"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "scores.csv, line 3, column arc_easy: a score of acc_norm,none is from 0 to 100 percent (got 150)" in done.stderr


def test_place_predicts_a_rank_and_selects_benchmarks(results: Path) -> None:
    done = harmony("place", str(results), "--model", "local/d", "--suggest", "2", forked=False)
    assert "predicted from piqa, sciq, arc_easy" in done.stdout and "Kendall's tau" in done.stdout
    assert "suggested: anli_r1, arc_easy (already measured): tau 0.936" in done.stdout
    assert harmony("place", "--suggest", "1").returncode == 0


def test_the_name_published_selects_the_published_board() -> None:
    done = harmony("place", "published", "--model", "google/gemma-2-2b")
    assert "rank 31 (" in done.stdout and "computed from all its benchmarks" in done.stdout


def test_analyze_published_has_the_published_models_and_the_audit_of_new_ones(tmp_path: Path) -> None:
    alone = harmony("analyze", "--published", "-o", str(tmp_path / "alone"), "--no-figures")
    assert alone.returncode == 0 and "audit:" not in alone.stdout  # the published board has no direct scores
    for number in range(4):
        for task in TASKS:
            scores = {"trained": 0.3 + 0.1 * number + 0.01 * len(task), "direct": 0.6 - 0.1 * number + 0.01 * len(task)}
            write_run(tmp_path / "runs", model=f"local/m{number}", task=task, **scores)
    both = harmony("analyze", str(tmp_path / "runs"), "--published", "-o", str(tmp_path / "both"), "--no-figures")
    assert both.returncode == 0, both.stderr
    assert "audit: 100.0% of the pairs of models have another order by PC1 after training" in both.stdout
    lines = (tmp_path / "both" / "tables" / "audit.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5 and all(line.startswith("local/m") for line in lines[1:])
    assert "61 models" in alone.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analyze"], "results is missing. Give a folder of runs or"),
        (["leaderboard"], "results is missing. Give a folder of runs or"),
        (["leaderboard", "nowhere"], "neither a folder nor"),
        (["leaderboard", "--published", "--preparation", "direct"], "only trained scores"),
        (["leaderboard", "{empty}"], "no finished run lies below"),
        (["analyze", "{empty}"], "no finished run lies below"),
        (["analyze", "{results}", "--bump", "arc_easy", "arc_hard"], "Did you mean 'arc_easy'?"),
        (["compare", "{results}", "local/a", "local/z"], "model 'local/z' is not in"),
        (["compare", "{results}", "local/a", "local/a"], "the two models must differ"),
        (["place"], "ask for benchmarks with --suggest"),
        (["place", "--model", "x"], "Give a folder of runs"),
        (["place", "--model", "x", "--suggest", "1"], "Give the folder with the runs of 'x'"),
        (["place", "{results}"], "has 4 models. Name one with --model"),
        (
            ["analyze", "{results}", "--no-figures", "-o", "/dev/null"],
            "output: /dev/null is a file, so /dev/null cannot be a folder.",
        ),
        (["place", "--suggest", "9"], "between 1 and 6 (got 9)"),
    ],
)
def test_user_errors_give_a_remedy_and_no_traceback(
    words: list[str], message: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [word.format(results=results, empty=empty) for word in words]
    assert status_of(*arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("lm-harmony: ") and message in shown and "Traceback" not in shown
