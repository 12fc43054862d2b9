"""Placement one benchmark after another: against brute force on small boards, and with scores that are only noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of
from scipy import stats
from trainings import known_board, known_trainings

from bench.sequential import sequential_placements
from lm_harmony.analysis.pca import fit_reference
from lm_harmony.analysis.placement_board import PlacementBoard, placement_board
from lm_harmony.analysis.placement_order import OUT_OF_REACH, Progress, planned_order
from lm_harmony.analysis.sequential_placement import SequentialPlacement, rank_intervals
from lm_harmony.analysis.training_noise import NO_NOISE, TrainingNoise

SPECIFIC = {"exact": 0.1, "fair": 0.6, "good": 0.3, "poor": 2.0}
"""Benchmark -> standard deviation of what it measures besides the ability."""


def small_board(models: int = 40, seed: int = 0) -> PlacementBoard:
    random = np.random.default_rng(seed)
    ability = random.normal(size=models)
    scores = {task: ability + sd * random.normal(size=models) for task, sd in SPECIFIC.items()}
    matrix = matrix_of(pd.DataFrame(scores, index=[f"m{i}" for i in range(models)]))
    noise = TrainingNoise(run=pd.Series(0.1, index=list(SPECIFIC)), common_run=0.05, shift=0.05, common_shift=0.05)
    return placement_board(matrix, fit_reference(matrix), noise)


@pytest.fixture(scope="module")
def board() -> PlacementBoard:
    return small_board()


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (-3.0, 0.2), (2.5, 0.5), (9.0, 1.0), (0.3, 30.0)])
def test_rank_intervals_are_the_nearest_to_95_percent_by_brute_force(mean: float, sd: float) -> None:
    rivals = np.sort(np.random.default_rng(1).normal(size=12) * 2)
    # The probability of each rank: a model of rank r has r - 1 rivals above it.
    edges = np.concatenate([[-np.inf], rivals, [np.inf]])
    shares = np.diff(stats.norm.cdf(edges, mean, sd))[::-1]
    held = {(a, b): shares[a : b + 1].sum() for a in range(13) for b in range(a, 13)}
    likeliest = [max((pair for pair in held if pair[1] - pair[0] == width), key=lambda pair: held[pair]) for width in range(13)]
    best, worst = min(likeliest, key=lambda pair: abs(held[pair] - 0.95))
    found = rank_intervals(np.array([mean]), np.array([sd]), rivals)
    assert (found[0][0], found[1][0]) == (best + 1, worst + 1)
    # It is the shortest interval with at least 95%, or has one rank less.
    shortest = min(pair[1] - pair[0] for pair in held if held[pair] >= 0.95 - 1e-12)
    assert worst - best in (shortest, shortest - 1)


@pytest.mark.parametrize("sd", [0.2, 0.6, 2.0])
def test_rank_intervals_hold_95_percent_on_average(sd: float) -> None:
    """Negative control: the shortest intervals with at least 95% hold more. Truths are drawn from each model's distribution."""
    random = np.random.default_rng(2)
    rivals, means = np.sort(random.normal(size=40)), random.normal(size=4_000)
    best, worst = rank_intervals(means, np.full(4_000, sd), rivals)
    truths = 1 + (rivals > (means + sd * random.normal(size=4_000))[:, None]).sum(axis=1)
    held = np.mean((best <= truths) & (truths <= worst))
    ends = np.concatenate([[-np.inf], rivals, [np.inf]])
    below = stats.norm.cdf((ends - means[:, None]) / sd)
    masses = [below[:, length:] - below[:, :-length] for length in range(1, 42)]
    longest = np.max([mass.max(axis=1) * (mass.max(axis=1) < 0.95) for mass in masses], axis=0)
    shortest = np.min([np.where(mass.max(axis=1) >= 0.95, mass.max(axis=1), 1.0) for mass in masses], axis=0)
    assert held == pytest.approx(0.95, abs=0.012) and shortest.mean() > held
    assert np.all(longest <= 0.95)


def test_the_position_equals_a_regression_where_there_is_no_noise(board: PlacementBoard) -> None:
    """Without noise and with the sample covariance alone, the conditional mean is the least squares prediction."""
    placement = SequentialPlacement(replace(board, noise=NO_NOISE))
    scores = board.scores
    placement.exact = np.cov(scores.to_numpy(), rowvar=False)
    fit = stats.linregress(scores["good"], board.pc1)
    found = placement.position({"good": 0.7}, {})
    assert found.pc1 == pytest.approx(fit.intercept + 0.7 * fit.slope)
    assert found.low < found.pc1 < found.high and found.best <= found.worst


def test_the_variance_is_that_of_simulated_trainings(board: PlacementBoard) -> None:
    """Draw exact scores, the noise of two trainings and their shift, and predict the first PC1 from the second training."""
    placement, random, size = SequentialPlacement(board), np.random.default_rng(0), 200_000
    noise, loadings = board.noise, board.reference.loadings[list(SPECIFIC)].to_numpy() * 100
    run = np.diag(noise.run.to_numpy() ** 2) + noise.common_run**2
    shift = noise.shift**2 * np.eye(4) + noise.common_shift**2
    same = placement.covariance() - shift
    exact = random.multivariate_normal(np.zeros(4), same - run, size)
    first, second = (exact + random.multivariate_normal(np.zeros(4), run, size) for _ in range(2))
    second = second + random.multivariate_normal(np.zeros(4), shift, size)
    weights = np.linalg.lstsq(second[:, :2], first @ loadings, rcond=None)[0]
    residuals = first @ loadings - second[:, :2] @ weights
    assert placement.variance(["exact", "fair"], {}) == pytest.approx(residuals.var(), rel=0.02)


def test_a_computed_pc1_has_the_variance_of_two_trainings(board: PlacementBoard) -> None:
    placement, random, size = SequentialPlacement(board), np.random.default_rng(0), 400_000
    noise, loadings = board.noise, placement.loadings
    moved = np.sqrt(2) * (noise.run.to_numpy() * random.normal(size=(size, 4)) + noise.common_run * random.normal(size=(size, 1)))
    moved += noise.shift * random.normal(size=(size, 4)) + noise.common_shift * random.normal(size=(size, 1))
    assert placement.variance(list(SPECIFIC), {}) == pytest.approx(float((moved @ loadings).var()), rel=0.01)
    scores = dict.fromkeys(SPECIFIC, 0.5)
    assert placement.position(scores, {}).pc1 == pytest.approx(0.5 * loadings.sum())


def test_weak_models_have_wider_intervals_where_noise_grows(board: PlacementBoard) -> None:
    grown = SequentialPlacement(replace(board, noise=replace(board.noise, growth=-2.0)))
    even = SequentialPlacement(board)
    for placement, ratio in ((grown, 1.5), (even, 1.0)):
        weak, strong = (placement.position(dict.fromkeys(SPECIFIC, score), {}) for score in (-1.5, 1.5))
        assert weak.sd / strong.sd >= ratio and (placement is grown or weak.sd == pytest.approx(strong.sd))
    weak = grown.position({"good": -1.5}, {})
    assert weak.noise == pytest.approx(grown.noise.factor(weak.pc1), rel=0.02)  # the repetitions have settled


def test_few_test_questions_widen_the_interval(board: PlacementBoard) -> None:
    placement = SequentialPlacement(board)
    usual, coarse = (placement.position({"good": 0.5}, {"good": error}) for error in (float("nan"), 1.0))
    assert coarse.sd > 1.2 * usual.sd and coarse.width >= usual.width


@pytest.mark.parametrize("costs", [dict.fromkeys(SPECIFIC, 1.0), {"exact": 50.0, "good": 1.0, "fair": 0.2, "poor": 0.01}])
def test_the_next_benchmark_is_the_best_by_brute_force(board: PlacementBoard, costs: dict[str, float]) -> None:
    """The expected width is computed here over 400 equally probable scores of each benchmark, each with its own position."""
    placement = SequentialPlacement(board)
    progress = Progress(placement=placement, scores={"poor": 0.2}, errors={})
    gains = {}
    for task in ("exact", "good", "fair"):
        # Given the score on poor, the score on the task is normal.
        place, poor = (list(SPECIFIC).index(name) for name in (task, "poor"))
        cover = placement.covariance()
        slope = cover[place, poor] / cover[poor, poor]
        mean = placement.means[place] + slope * (0.2 - placement.means[poor])
        sd = np.sqrt(cover[place, place] - slope * cover[place, poor])
        drawn = stats.norm.ppf((np.arange(400) + 0.5) / 400, mean, sd)
        widths = [placement.position({"poor": 0.2, task: float(score)}, {}).width for score in drawn]
        gains[task] = (progress.position.width - np.mean(widths)) / costs[task]
        assert progress.expected([task])[0] == pytest.approx(np.mean(widths), abs=0.3)
    assert progress.next_benchmark(costs) == max(gains, key=lambda task: gains[task])


def test_the_plan_lists_all_benchmarks_and_its_widths_shrink(board: PlacementBoard) -> None:
    progress = Progress(placement=SequentialPlacement(board), scores={}, errors={})
    plan = planned_order(progress, {"exact": 8.0, "good": 1.0, "poor": 1.0}, 12)
    assert plan[0].task == "good" and {one.task for one in plan} == {"exact", "good", "poor"}
    widths = [one.width for one in plan]
    assert widths == sorted(widths, reverse=True) and plan[0].reached <= plan[-1].reached


def test_each_rule_stops_a_placement(board: PlacementBoard) -> None:
    placement = SequentialPlacement(board)
    start = Progress(placement=placement, scores={}, errors={})
    assert start.stop(39, SPECIFIC) is not None and start.stop(20, SPECIFIC) is None
    assert start.stop(1, SPECIFIC) is None and start.expected(list(SPECIFIC), 1)[1] < OUT_OF_REACH
    begun = Progress(placement=placement, scores={"poor": 0.1}, errors={})
    assert begun.stop(1, SPECIFIC) == "out of reach" and begun.stop(20, SPECIFIC) is None
    after = Progress(placement=placement, scores={"exact": 0.1, "good": 0.1}, errors={})
    assert after.stop(after.position.width, SPECIFIC) == "narrow" and after.stop(after.position.width - 1, SPECIFIC) != "narrow"
    assert after.stop(None, SPECIFIC) is None
    whole = Progress(placement=placement, scores=dict.fromkeys(SPECIFIC, 0.1), errors={})
    assert whole.stop(None, SPECIFIC) == "no benchmark left" and whole.next_benchmark(dict.fromkeys(SPECIFIC, 1.0)) is None


def test_scores_that_are_only_noise_give_an_interval_that_holds() -> None:
    """The placed models have scores that are independent of their PC1: the board's noise says so, and intervals stay wide."""
    random, names, columns = np.random.default_rng(0), [f"m{i}" for i in range(80)], list(SPECIFIC)
    matrix = matrix_of(pd.DataFrame(random.normal(size=(80, 4)), names, columns))
    board = placement_board(matrix, fit_reference(matrix))
    unrelated = pd.DataFrame(random.normal(size=(80, 4)), names, columns)
    wide = replace(board, noise=replace(NO_NOISE, run=pd.Series(1.0, index=columns)))
    covered = sequential_placements(wide, unrelated, 5, families_out=False)
    assert covered["rank"].mean() >= 0.92 and (covered["reason"] == "out of reach").mean() > 0.9
    trusting = sequential_placements(board, unrelated, 5, families_out=False)  # negative control: noise that is not counted
    assert trusting["rank"].mean() < 0.5


def test_intervals_hold_when_a_training_of_known_noise_is_repeated() -> None:
    found = [sequential_placements(*known_board(*known_trainings(seed)), 8, families_out=False) for seed in range(4)]
    # The shift of a training is common to its placements, so that four trainings leave an error of some percent.
    assert np.mean([one["rank"].mean() for one in found]) >= 0.92
    blind = [known_board(*known_trainings(seed)) for seed in range(4)]
    found = [sequential_placements(replace(board, noise=NO_NOISE), second, 8, families_out=False) for board, second in blind]
    assert np.mean([one["rank"].mean() for one in found]) < 0.9  # negative control


def test_the_cheapest_benchmark_is_not_run_first_if_it_tells_nothing(board: PlacementBoard) -> None:
    """Negative control: the order by cost alone starts with the poor benchmark and spends more."""
    rows = replace(board, train_rows=pd.Series({"exact": 900.0, "fair": 500.0, "good": 600.0, "poor": 400.0}))
    informed, by_cost = (
        sequential_placements(rows, board.scores, 14, by_cost=order, families_out=False) for order in (False, True)
    )
    assert informed["rank"].mean() >= 0.92 and by_cost["rank"].mean() >= 0.92
    assert informed["rows"].mean() < 0.8 * by_cost["rows"].mean()
