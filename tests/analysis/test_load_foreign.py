"""Scores of other programs: output folders of lm_eval, and the CSV of the Open LLM Leaderboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from boards import write_run
from fork_server import forked_python
from scipy import stats
from task_files import write_task
from tiny import write_tiny_model

from lm_harmony.analysis.load_lm_eval import lm_eval_files
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.paired import compare
from lm_harmony.analysis.pca import components
from lm_harmony.errors import UsageError

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "number {{number}} is",
    "doc_to_target": "label",
    "doc_to_choice": ["odd", "even"],
    "metric_list": [{"metric": "acc"}],
}

BY_FUNCTIONS = """
import sys
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

model, tasks, out = sys.argv[1:]
tracker = EvaluationTracker(output_path=out)
manager = TaskManager(include_path=tasks, include_defaults=False)
options = {"tasks": ["numbers"], "device": "cpu", "task_manager": manager, "evaluation_tracker": tracker}
results = simple_evaluate("hf", model_args=model, log_samples=True, **options)
samples = results.pop("samples")
tracker.save_results_aggregated(results=results, samples=samples)
tracker.save_results_samples(task_name="numbers", samples=samples["numbers"])
"""
"""Scores a model as the command line of lm_eval does."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run lm_eval itself on two tiny models and return its output folder."""
    folder = tmp_path_factory.mktemp("theirs")
    rows = [{"number": number, "label": number % 2} for number in range(20)]
    files = {"test": str(folder / "tasks" / "numbers" / "test.jsonl")}
    write_task(
        folder / "tasks", {"test": rows}, name="numbers", dataset_path="json", dataset_kwargs={"data_files": files}, **CHOICE
    )
    out = folder / "out"
    for seed in (0, 1):
        write_tiny_model(folder / f"model{seed}", seed=seed)
        model = f"pretrained={folder / f'model{seed}'}"
        words = ["--model", "hf", "--model_args", model, "--tasks", "numbers", "--device", "cpu"]
        words += ["--include_path", str(folder / "tasks"), "--output_path", str(out), "--log_samples"]
        by_command = ["-m", "lm_eval", *words]
        # The same by lm_eval's functions, without its search for all of its own tasks.
        by_functions = ["-c", BY_FUNCTIONS, model, str(folder / "tasks"), str(out)]
        done = subprocess.run([forked_python(), *(by_functions if seed else by_command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_output_folders_of_lm_eval_are_direct_scores(output: Path) -> None:
    matrix = ScoreMatrix.read(output)
    assert [Path(name).name for name in matrix.model_names] == ["model0", "model1"] and not matrix.has("trained")
    for name in matrix.model_names:
        [path] = [path for path in output.rglob("results_*.json") if name in path.read_text(encoding="utf-8")]
        expected = json.loads(path.read_text(encoding="utf-8"))["results"]["numbers"]
        assert matrix.direct.values.loc[name, "numbers"] == expected["acc,none"]
        assert matrix.direct.stderrs.loc[name, "numbers"] == expected["acc_stderr,none"]
        assert matrix.direct.counts.loc[name, "numbers"] == 20
    assert matrix.notes[-1] == "2 direct scores are from output folders of lm_eval"


def test_two_models_of_lm_eval_are_compared_on_the_same_questions(output: Path) -> None:
    [test] = compare(ScoreMatrix.read(output), *ScoreMatrix.read(output).model_names).tests
    assert (test.test, test.questions, test.note) == ("mcnemar", 20, "")
    outcomes = []
    for path in sorted(output.rglob("samples_numbers_*.jsonl")):
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        outcomes.append({sample["doc_hash"]: sample["acc"] for sample in samples})
    ahead = [sum(one[key] > other[key] for key in one) for one, other in (outcomes, outcomes[::-1])]
    assert test.p == pytest.approx(stats.binomtest(ahead[0], sum(ahead)).pvalue if sum(ahead) else 1.0)


def test_they_stand_beside_our_runs_which_are_kept_where_both_have_a_score(output: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    first, second = ScoreMatrix.read(output).model_names
    write_run(results, model=first, task="numbers", trained=0.75, direct=0.25, metric="acc,none")
    write_run(results, model=second, task="numbers", trained=0.5, metric="acc,none")
    for path in output.rglob("*.json*"):
        copy = results / "theirs" / path.relative_to(output)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    matrix = ScoreMatrix.read(results)
    assert matrix.direct.values.loc[first, "numbers"] == 0.25 and matrix.trained.values.loc[second, "numbers"] == 0.5
    assert matrix.direct.values.loc[second, "numbers"] == ScoreMatrix.read(output).direct.values.loc[second, "numbers"]
    assert "1 were left out, because a run of ours has the same score" in matrix.notes[-1]


def test_a_folder_that_a_study_removes_during_the_search_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, theirs, scandir = tmp_path / "a" / "run", tmp_path / "b" / "theirs", os.scandir
    for folder in (run / "checkpoints" / "epoch-1", run / "lm_eval", theirs):
        folder.mkdir(parents=True)
    for file in (run / "config.yaml", run / "lm_eval" / "results_ours.json", theirs / "results_theirs.json"):
        file.touch()

    def removed(folder: Any = ".") -> Any:
        """List a folder, before which one of another process's folders is removed."""
        if Path(folder).name == "gone":
            os.rmdir(folder)
        return scandir(folder)

    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(os, "scandir", removed)
    assert lm_eval_files(tmp_path) == [theirs / "results_theirs.json"]
    assert not (tmp_path / "gone").exists()  # negative control: it was removed during the search


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "it lacks the key 'model_name'"),
        ('{"model_name": "a"}', "it lacks the key 'results'"),
        ("[]", "it holds no JSON object"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_a_damaged_results_file_is_named(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "results_2026.json").write_text(content, encoding="utf-8")
    expected = f"results_2026.json: it is not a results file of lm_eval ({reason}). Remove it, or name another folder."
    with pytest.raises(UsageError, match=re.escape(expected)):
        ScoreMatrix.read(tmp_path)


SECOND = """\
eval_name,Model,fullname,Average ⬆️,#Params (B),Flagged,IFEval Raw,IFEval,BBH Raw,BBH,MUSR Raw,MUSR
a_bf16,<a href="https://x">lab/a</a>,lab/a,30.5,7.0,False,0.5,50.0,0.6,43.1,0.4,9.0
a_fp16,<a href="https://x">lab/a</a>,lab/a,31.5,7.0,False,0.51,51.0,0.61,44.1,0.41,9.1
b_bf16,<a href="https://x">lab/b</a>,lab/b,20.5,1.0,False,0.3,30.0,0.4,23.1,,
c_bf16,<a href="https://x">lab/c</a>,lab/c,90.5,1.0,True,0.9,90.0,0.9,93.1,0.9,99.0
d_bf16,<a href="https://x">lab/d</a>,lab/d,10.5,1.0,False,0.2,20.0,0.3,13.1,0.3,1.0
"""


def test_the_open_llm_leaderboard_is_read(tmp_path: Path) -> None:
    path = tmp_path / "open.csv"
    path.write_text(SECOND, encoding="utf-8")
    matrix = ScoreMatrix.read(path)
    assert matrix.model_names == ("lab/a", "lab/b", "lab/d") and set(matrix.benchmark_names) == {"BBH", "IFEval", "MUSR"}
    assert matrix.direct.values.loc["lab/a"].to_dict() == {"BBH": 0.61, "IFEval": 0.51, "MUSR": 0.41}
    assert [gap.model for gap in matrix.gaps("direct")] == ["lab/b"] and not matrix.has("trained")
    assert components(matrix, "direct").ranks.iloc[0] == 1
    path.write_text("Model,Average,ARC,HellaSwag\nx,50,60,70.5\ny,40,50,nan\n", encoding="utf-8")
    assert ScoreMatrix.read(path).direct.values.loc["x"].tolist() == [0.6, 0.705]
    path.write_text("Model,Average,ARC,HellaSwag\nx,50,160,70.5\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"line 2, column ARC: a score is from 0 to 100 \(got 160\)"):
        ScoreMatrix.read(path)
