"""Placements and boards judged by repetition: trainings with a known noise, and small parts of ``bench.coverage``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of
from trainings import TASKS, known_board, known_trainings

from bench.coverage import board_coverage, left_out, placement_coverage
from lm_harmony.analysis.bootstrap import pc1_intervals
from lm_harmony.analysis.placement import published_placement
from lm_harmony.analysis.training_noise import estimate_noise, noise_csv, published_noise


def test_the_parts_of_the_difference_are_estimated() -> None:
    random = np.random.default_rng(0)
    size, run = 4_000, np.linspace(0.05, 0.3, 12)
    shifts = 0.4 + 0.1 * random.normal(size=12)
    difference = shifts + np.sqrt(2) * (run * random.normal(size=(size, 12)) + 0.07 * random.normal(size=(size, 1)))
    pc1 = pd.Series(random.normal(size=size) * 500)
    found = estimate_noise(pd.DataFrame(difference), pc1)
    assert found.growth == pytest.approx(0, abs=0.05)
    assert np.allclose(found.run, run, atol=0.01) and found.common_run == pytest.approx(0.07, abs=0.01)
    assert found.common_shift == pytest.approx(shifts.mean(), abs=0.01) and found.shift == pytest.approx(
        shifts.std(ddof=1), abs=0.01
    )


def test_noise_that_grows_for_weak_models_is_estimated() -> None:
    random, size = np.random.default_rng(1), 2_000
    pc1 = pd.Series(random.normal(size=size) * 500)
    spread = np.exp(-0.9 * pc1.to_numpy() / 2000)[:, None]
    difference = pd.DataFrame(spread * np.sqrt(2) * 0.2 * random.normal(size=(size, 12)))
    difference.loc[0] = 0.0  # a model whose scores are equal in both trainings
    found = estimate_noise(difference, pc1)
    assert found.growth == pytest.approx(-0.9, abs=0.06)
    assert np.mean([found.factor(value) for value in pc1]) == pytest.approx(1)
    assert np.allclose(found.run, 0.2 * np.exp(found.offset / 2), rtol=0.05)


@pytest.mark.parametrize("count", [3, 8])
def test_placements_hold_when_a_training_of_known_noise_is_repeated(count: int) -> None:
    boards = [known_board(*known_trainings(seed)) for seed in range(4)]
    covered = [placement_coverage(*board, left_out(*board), count, subsets=1) for board in boards]
    # The shift of a training is common to its placements, so that four trainings leave an error of some percent.
    assert 0.9 <= np.mean([one["pc1"] for one in covered]) <= 0.995
    assert 0.9 <= np.mean([one["rank"] for one in covered]) <= 0.995
    if count == TASKS:  # without noise between trainings, a computed PC1 has hardly an interval at all
        blind = left_out(*boards[0], estimated=False)
        assert placement_coverage(*boards[0], blind, count, subsets=1)["pc1"] < 0.2


def test_intervals_of_a_new_family_hold() -> None:
    """Models of one family deviate together from the others. Negative control: intervals for models of a family that is known."""
    covered, trusting = [], []
    for seed in range(6):
        board, second = known_board(*known_trainings(seed, family_sd=0.6))
        placements = left_out(board, second, family=True)
        covered.append(placement_coverage(board, second, placements, 2, subsets=2)["pc1"])
        for placement in placements.values():
            placement.misfit = 1.0
        trusting.append(placement_coverage(board, second, placements, 2, subsets=2)["pc1"])
    assert np.mean(covered) >= 0.92 and np.mean(trusting) < np.mean(covered) - 0.02


def test_the_shipped_noise_covers_all_benchmarks_of_the_published_board() -> None:
    noise = published_noise()
    assert list(noise.run.index) == list(published_placement().scores.columns) and noise.run.between(0, 0.3).all()
    assert noise_csv(noise).count("\n") == 30
    assert published_placement().noise is noise


@pytest.mark.parametrize(("models", "tasks"), [(12, 4), (8, 6)])
def test_intervals_of_small_boards_hold_in_simulation(models: int, tasks: int) -> None:
    found = board_coverage(models, tasks, 25)
    assert found["all"] >= 0.92 and min(found["best"], found["worst"]) >= 0.88
    assert board_coverage(models, tasks, 25, specific=1.0)["all"] >= 0.92


def test_intervals_over_test_questions_hold_for_the_extreme_models() -> None:
    found = board_coverage(30, 12, 25, benchmarks=False)
    assert found["all"] >= 0.92 and min(found["best"], found["worst"]) >= 0.85


def test_three_benchmarks_have_no_interval() -> None:
    random = np.random.default_rng(0)
    scores = pd.DataFrame(random.normal(size=(9, 1)) + random.normal(size=(9, 3)), columns=["a", "b", "c"])
    table = pc1_intervals(matrix_of(scores, stderr=0.1)).table
    assert table[["low", "high", "rank_low", "rank_high", "group"]].isna().all(axis=None)
    assert list(table["rank"]) == list(range(1, 10))
    assert pc1_intervals(matrix_of(scores, stderr=0.1), benchmarks=False).table["low"].notna().all()
