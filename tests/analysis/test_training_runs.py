"""Checkpoints of training runs: names, curves, noise against signal, and decisions of small models and early checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lm_harmony.analysis.load_records import model_names
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import model_metadata
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.analysis.training_runs import PC1, TrainingRuns, training_runs
from lm_harmony.models.checkpoint_names import checkpoint_of
from lm_harmony.report.figures import write_figures
from lm_harmony.report.report_folder import summary_lines, write_tables
from lm_harmony.runs.spec import ModelSpec

PYTHIA = "EleutherAI/pythia-410m-deduped"
TASKS = ("arc_easy", "sciq", "piqa")


def matrix_of(scores: Mapping[str, tuple[float, ...]], parameters: Mapping[str, int] | None = None) -> ScoreMatrix:
    """Return a matrix whose direct scores are those of three benchmarks by model; trained scores are 0.1 higher."""
    rows = [
        ScoreRow(model=model, benchmark=task, preparation=preparation, value=value + extra, stderr=0.01, count=100)
        for model, values in scores.items()
        for task, value in zip(TASKS, values, strict=True)
        for preparation, extra in (("direct", 0.0), ("trained", 0.1))
    ]
    return ScoreMatrix.from_rows(ScoreRows(source="here", rows=tuple(rows), parameters=parameters or {}))  # type: ignore[arg-type]


def found_in(matrix: ScoreMatrix, **options: float) -> TrainingRuns:
    fitted = {one: components(matrix, one) for one in ("direct", "trained")}
    found = training_runs(matrix, fitted, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


RUNS = {
    "/a/small/checkpoint-100": (0.30, 0.40, 0.55),
    "/a/small/checkpoint-1000": (0.34, 0.44, 0.56),
    "/a/small/checkpoint-200": (0.32, 0.45, 0.54),
    "/b/large/step1-tokens1M": (0.40, 0.50, 0.60),
    "/b/large/step2-tokens2M": (0.50, 0.46, 0.64),
    "/b/large/step3-tokens3M": (0.42, 0.56, 0.62),
    "owner/other": (0.60, 0.38, 0.70),
}


@pytest.mark.parametrize(
    ("name", "run", "step", "tokens"),
    [
        (f"{PYTHIA}@step1000", PYTHIA, 1000, 1000 * 2_097_152),
        (f"{PYTHIA}@main", PYTHIA, None, 300e9),
        ("allenai/OLMo-2@stage1-step10000-tokens21B", "allenai/OLMo-2", 10_000, 21e9),
        ("allenai/OLMo-2@main", "allenai/OLMo-2", None, None),
        ("owner/x@v2", "owner/x", None, None),
        ("/runs/mine/checkpoint-500", "/runs/mine", 500, None),
        ("/runs/mine/iter_0002000", "/runs/mine", 2000, None),
        ("/runs/mine/step81-tokens83K", "/runs/mine", 81, 83e3),
    ],
)
def test_a_name_says_run_step_and_tokens(name: str, run: str, step: int | None, tokens: float | None) -> None:
    found = checkpoint_of(name)
    assert found is not None
    assert (found.run, found.step) == (run, step) and found.tokens == pytest.approx(tokens)


@pytest.mark.parametrize("name", [PYTHIA, "gpt2", "owner/step-1", "./step5", "/models/pythia-410m", "published"])
def test_other_names_are_no_checkpoints(name: str) -> None:
    """Negative control: a name on the hub, and a folder that is no step."""
    assert checkpoint_of(name) is None


def test_checkpoints_are_one_family_with_their_own_tokens() -> None:
    early, late = model_metadata(f"{PYTHIA}@step1000"), model_metadata(PYTHIA)
    assert (early.family, early.kind, early.params_b) == (late.family, late.kind, late.params_b)
    assert early.pretraining_tokens_b == pytest.approx(2.097152) and late.pretraining_tokens_b == pytest.approx(300)
    assert model_metadata("/runs/mine/checkpoint-500").family == "mine"
    assert model_metadata("/runs/mine/final").family is None


def test_a_model_with_several_revisions_is_several_models() -> None:
    models = [ModelSpec(name=PYTHIA, revision="step1"), ModelSpec(name=PYTHIA), ModelSpec(name="gpt2", revision="v2")]
    name_of = model_names(models)
    assert [name_of(model) for model in models] == [f"{PYTHIA}@step1", f"{PYTHIA}@main", "gpt2"]
    assert model_names(models[:1])(models[0]) == PYTHIA  # as boards named it before


def test_curves_are_in_the_order_of_the_steps() -> None:
    curves = found_in(matrix_of(RUNS), tokens_per_step=512).curves
    one = curves[(curves["run"] == "/a/small") & (curves["benchmark"] == "arc_easy") & (curves["preparation"] == "trained")]
    assert list(one["step"]) == [100, 200, 1000] and list(one["score"]) == pytest.approx([0.40, 0.42, 0.44])
    assert list(one["tokens"]) == [100 * 512, 200 * 512, 1000 * 512] and list(one["stderr"]) == [0.01] * 3
    other = curves[(curves["run"] == "/b/large") & (curves["benchmark"] == PC1) & (curves["preparation"] == "direct")]
    assert list(other["tokens"]) == [1e6, 2e6, 3e6]  # the tokens in a name count more than its steps
    fitted = components(matrix_of(RUNS), "direct").pc1
    assert list(other["score"]) == pytest.approx([fitted[f"/b/large/step{n}-tokens{n}M"] for n in (1, 2, 3)])
    assert "owner/other" not in set(curves["model"])


@pytest.mark.parametrize("last", [2, 3, 9])
def test_noise_is_between_checkpoints_and_signal_between_models(last: int) -> None:
    noise = found_in(matrix_of(RUNS), last=last).noise.set_index(["preparation", "benchmark"]).loc["direct", "arc_easy"]
    ends = [[0.30, 0.32, 0.34][-last:], [0.40, 0.50, 0.42][-last:]]
    expected = np.sqrt(np.mean([np.var(end, ddof=1) for end in ends]))
    assert noise["noise"] == pytest.approx(expected)
    assert noise["signal"] == pytest.approx(0.60 - 0.34)  # last checkpoints of the two runs, and the other model
    assert noise["signal_to_noise"] == pytest.approx((0.60 - 0.34) / expected)
    assert (noise["runs"], noise["checkpoints"]) == (2, min(last, 3))


def test_small_models_and_early_checkpoints_decide_for_large_and_last_ones() -> None:
    """Three families of two sizes: on arc_easy all pairs keep their order, on sciq one of three, and on piqa one is tied."""
    scores = {
        "/r/x/step1": (0.1, 0.3, 0.5), "/r/x/step2": (0.2, 0.3, 0.5),
        "/r/y/step1": (0.2, 0.2, 0.5), "/r/y/step2": (0.3, 0.4, 0.6),
        "EleutherAI/pythia-70m-deduped": (0.1, 0.3, 0.4), "EleutherAI/pythia-1b-deduped": (0.4, 0.3, 0.4),
        "google/gemma-2b": (0.2, 0.2, 0.5), "google/gemma-7b": (0.5, 0.5, 0.5),
        "Qwen/Qwen1.5-0.5B": (0.3, 0.1, 0.5), "Qwen/Qwen1.5-14B": (0.6, 0.4, 0.6),
    }  # fmt: skip
    decisions = found_in(matrix_of(scores)).decisions.set_index(["comparison", "preparation", "benchmark"])
    small = decisions.loc["small for large", "direct"]
    assert list(small.loc["arc_easy"]) == [3, 1.0] and list(small.loc["sciq"]) == [3, pytest.approx(1 / 3)]
    assert small.loc["piqa", "pairs"] == 2 and small.loc["piqa", "accuracy"] == 1.0
    early = decisions.loc["checkpoint 1 of 2 for the last", "direct"]
    assert list(early.loc["arc_easy"]) == [1, 1.0] and list(early.loc["sciq"]) == [1, 0.0] and early.loc["piqa", "pairs"] == 0


def test_the_order_of_models_does_not_matter() -> None:
    forward, backward = found_in(matrix_of(RUNS)), found_in(matrix_of(dict(reversed(RUNS.items()))))
    assert forward.noise.equals(backward.noise) and forward.decisions.equals(backward.decisions)
    assert list(forward.curves["model"]) == list(backward.curves["model"])


def test_a_matrix_without_two_checkpoints_has_no_such_tables(tmp_path: Path) -> None:
    """Negative control: its folder is that of an analysis without checkpoints."""
    single = {
        name: values for name, values in RUNS.items() if "checkpoint-" not in name and "step2" not in name and "step3" not in name
    }
    made = analyze_matrix(matrix_of({**single, "a/b": (0.5, 0.5, 0.5)}))
    assert made.training_runs is None
    assert not [path for path in write_tables(made, tmp_path) if "checkpoint" in path.name or "decision_accuracy" in path.name]


def test_the_folder_has_tables_sentences_and_curves(tmp_path: Path) -> None:
    made = analyze_matrix(matrix_of(RUNS))
    names = {path.name for path in write_tables(made, tmp_path)}
    assert {"checkpoints.csv", "checkpoint_noise.csv", "decision_accuracy.csv"} <= names
    lines = "\n".join(summary_lines(made))
    assert "checkpoints: 6 of 2 training runs" in lines and "signal-to-noise of the last checkpoints, trained: " in lines
    assert "decision accuracy, direct, checkpoint 2 of 3 for the last: " in lines
    assert "checkpoints.png" in {path.name for path in write_figures(made, tmp_path)}
