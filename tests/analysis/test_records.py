"""Records of runs become cells: seeds averaged, mixtures refused, failures told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boards import write_failure, write_run

from lm_harmony import ScoreMatrix
from lm_harmony.analysis.board import own_board
from lm_harmony.analysis.records import combined
from lm_harmony.errors import UsageError
from lm_harmony.recipe import PUBLISHED
from lm_harmony.runs.hashes import sha256_of
from lm_harmony.runs.sources import Source


def test_seeds_are_averaged_and_their_spread_counts(tmp_path: Path) -> None:
    for seed, score in ((0, 0.5), (1, 0.6)):
        write_run(tmp_path, model="a", trained=score, direct=0.3, seed=seed, stderr=0.05)
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.seeds == (0, 1)
    assert matrix.trained.values.loc["a", "arc_easy"] == pytest.approx(0.55)
    assert matrix.trained.stderrs.loc["a", "arc_easy"] == pytest.approx(math.sqrt(0.05**2 + 0.005 / 2))
    assert matrix.direct.stderrs.loc["a", "arc_easy"] == pytest.approx(0.05)  # one direct score, shared by both seeds
    assert matrix.trained.counts.loc["a", "arc_easy"] == 100
    assert ScoreMatrix.from_records(tmp_path, seed=1).trained.values.loc["a", "arc_easy"] == 0.6


def test_an_unknown_standard_error_stays_unknown() -> None:
    assert combined([(0.5, 0.1), (0.7, None)]) == (pytest.approx(0.6), None)
    assert combined([]) == (None, None)


def test_several_recipes_for_one_score_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    write_run(tmp_path, model="a", seed=1, recipe=replace(PUBLISHED, epochs=PUBLISHED.epochs + 1))
    with pytest.raises(UsageError, match=r"recipe.epochs 5 and 6 .* Name a folder that holds one of them"):
        ScoreMatrix.from_records(tmp_path)


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", name="one")
    write_run(tmp_path, model="a", name="two")
    with pytest.raises(UsageError, match="are the same run"):
        ScoreMatrix.from_records(tmp_path)


def test_models_that_were_trained_otherwise_are_ranked_with_a_note(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    assert ScoreMatrix.from_records(tmp_path).notes == ()
    write_run(tmp_path, model="b", recipe=replace(PUBLISHED, epochs=1))
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.model_names == ("a", "b") and matrix.notes == ("arc_easy: its models were trained by 2 recipes",)
    assert matrix.notes[0] in own_board(matrix).notes


def test_runs_that_were_given_up_are_gaps_with_their_cause(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", direct=0.2)
    write_failure(tmp_path, model="b")
    gaps = ScoreMatrix.from_records(tmp_path).gaps()
    assert [(gap.model, gap.preparation, gap.cause) for gap in gaps] == [
        ("b", "direct", "ModelError: no weights"),
        ("b", "trained", "ModelError: no weights"),
    ]


def test_a_direct_score_that_was_not_asked_for_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    [gap] = ScoreMatrix.from_records(tmp_path).gaps()
    assert gap.preparation == "direct" and gap.cause.startswith("not asked for in ")


def test_recorded_metrics_and_directions_count(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", task="mine", metric="error,none", higher=False, trained=0.2)
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.oriented("trained").loc["a", "mine"] == -0.2
    write_run(tmp_path, model="b", task="mine", metric="acc,none")
    with pytest.raises(UsageError, match="several metrics"):
        ScoreMatrix.from_records(tmp_path)


def test_corpora_are_in_bits_per_byte_where_lower_is_better(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", task="corpus:wiki.txt", metric="bits_per_byte,none", higher=False, trained=0.9)
    [fact] = ScoreMatrix.from_records(tmp_path).benchmarks
    assert fact.is_perplexity and not fact.higher_is_better


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="results:"):
        ScoreMatrix.from_records(tmp_path / name)


def test_a_model_is_averaged_only_over_its_own_seeds(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", seed=0, trained=0.4)
    write_run(tmp_path, model="b", seed=1, trained=0.6)
    values = ScoreMatrix.from_records(tmp_path).trained.values["arc_easy"]
    assert np.allclose(values, [0.4, 0.6])


def test_scores_of_several_versions_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", versions={"lm_eval": "0.4.13", "lm-harmony": "0.1.0", "torch": "2.11"})
    write_run(tmp_path, model="b", versions={"lm_eval": "0.4.13", "lm-harmony": "0.1.0", "torch": "2.12"})
    assert ScoreMatrix.from_records(tmp_path).notes == ()
    write_run(tmp_path, model="c", versions={"lm_eval": "0.4.12", "lm-harmony": "0.1.0"})
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.notes == ("arc_easy: its scores mix versions of lm_eval: 0.4.12 in 1 runs, 0.4.13 in 2 runs",)
    assert matrix.notes[0] in own_board(matrix).notes


def test_runs_that_are_not_or_may_not_be_current_are_noted(tmp_path: Path) -> None:
    """A file is looked at where it was; one that is not there, as on another machine, says nothing."""
    task = tmp_path / "own.yaml"
    task.write_text("task: own\n")
    source = Source(kind="task", name="own.yaml", path=str(task), size=10, sha256=sha256_of(task))
    gone = Source(kind="rows", name="train.jsonl", path=str(tmp_path / "gone"), size=1, sha256="0")
    write_run(tmp_path / "results", model="a", sources=(source, gone))
    assert ScoreMatrix.from_records(tmp_path / "results").notes == ()
    task.write_text("task: owl\n")
    write_run(tmp_path / "results", model="b", sources=None)
    assert ScoreMatrix.from_records(tmp_path / "results").notes == (
        "arc_easy: 1 runs are not current: own.yaml changed since",
        "1 runs were made before sources were recorded: whether they are current cannot be told",
    )
