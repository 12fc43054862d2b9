"""Placements and boards judged by repetition: trainings with a known noise, and small parts of ``bench.coverage``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of
from trainings import TASKS, known_board, known_trainings

from bench.coverage import board_coverage, placement_coverage
from lm_harmony.analysis.bootstrap import pc1_intervals
from lm_harmony.analysis.placement import published_placement
from lm_harmony.analysis.training_noise import TrainingNoise, estimate_noise, noise_csv, published_noise


def test_the_parts_of_the_difference_are_estimated() -> None:
    random = np.random.default_rng(0)
    size, run = 4_000, np.linspace(0.05, 0.3, 12)
    shifts = 0.4 + 0.1 * random.normal(size=12)
    difference = shifts + np.sqrt(2) * (run * random.normal(size=(size, 12)) + 0.07 * random.normal(size=(size, 1)))
    found = estimate_noise(pd.DataFrame(difference))
    assert np.allclose(found.run, run, atol=0.01) and found.common_run == pytest.approx(0.07, abs=0.01)
    assert found.common_shift == pytest.approx(shifts.mean(), abs=0.01) and found.shift == pytest.approx(
        shifts.std(ddof=1), abs=0.01
    )


@pytest.mark.parametrize("count", [3, 8])
def test_placements_hold_when_a_training_of_known_noise_is_repeated(count: int) -> None:
    boards = [known_board(*known_trainings(seed)) for seed in range(4)]
    covered = [placement_coverage(*board, count, subsets=1)["pc1"] for board in boards]
    # The shift of a training is common to its placements, so that four trainings leave an error of some percent.
    assert 0.9 <= np.mean(covered) <= 0.995
    if count == TASKS:  # without noise between trainings, a computed PC1 has no interval at all
        assert placement_coverage(*boards[0], count, subsets=1, estimated=False)["pc1"] == 0


def test_twice_the_covariance_with_the_target_is_what_a_repetition_adds() -> None:
    """With all benchmarks and PC1 itself as the target, it is the variance of the difference of two trainings."""
    target, tasks = pd.Series([0.5, 0.5, 0.7], index=list("abc")), list("abc")
    noise = TrainingNoise(run=pd.Series([0.1, 0.2, 0.3], index=tasks), common_run=0.05, shift=0.04, common_shift=0.03)
    random, size = np.random.default_rng(0), 400_000
    draws = np.sqrt(2) * (noise.run.to_numpy() * random.normal(size=(size, 3)) + 0.05 * random.normal(size=(size, 1)))
    draws += 0.04 * random.normal(size=(size, 3)) + 0.03 * random.normal(size=(size, 1))
    found = noise.repeat_variance(target.to_numpy(), tasks, target)
    assert found == pytest.approx(float((draws @ target.to_numpy()).var()), rel=0.01)
    # A prediction from one benchmark, fitted on the first training: y - w z holds e already, z + d has another e.
    weight, first, again = 1.2, *(0.1 * random.normal(size=(2, size)))
    fitted, repeated = (target["a"] * first - weight * used for used in (first, again))
    alone = TrainingNoise(run=noise.run, common_run=0.0, shift=0.0, common_shift=0.0)
    assert alone.repeat_variance(np.array([weight]), ["a"], target) == pytest.approx(repeated.var() - fitted.var(), rel=0.03)


def test_the_shipped_noise_covers_all_benchmarks_of_the_published_board() -> None:
    noise = published_noise()
    assert list(noise.run.index) == list(published_placement().scores.columns) and noise.run.between(0, 0.3).all()
    assert noise_csv(noise).count("\n") == 28
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
