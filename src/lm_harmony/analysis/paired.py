"""Comparison of two models benchmark by benchmark: differences of scores and their significance.

If the outcomes of both models on the same questions are known, the test is paired. For outcomes that are right or wrong it is
McNemar's exact test: a binomial test with probability 1/2 on the questions that only one of the models answers correctly. For
other outcomes it is a paired bootstrap, which resamples the questions for both models together. Without outcomes it is a z-test
with the standard errors of the scores. p-values are corrected over the benchmarks of one preparation by Holm's method.

With n questions, the variance of the difference in the paired bootstrap is n / (n - 1) times that of the draws (Hesterberg 2015,
What Teachers Should Know About the Bootstrap), plus s^2 / seeds for each model with several seeds, where s is the standard
deviation between the scores of its seeds: all seeds have the same questions, so that resampling these does not show it. The
p-value is that of Student's t with the degrees of freedom of Welch and Satterthwaite, and at least 2^(1 - n), the smallest one
of a sign test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import BenchmarkMetadata
from lm_harmony.analysis.outcomes import Outcomes, read_outcomes, score_of
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.analysis.significance import holm
from lm_harmony.errors import StoreError, UsageError

DRAWS = 2_000
"""Number of draws of the paired bootstrap."""
_CHUNK = 2_000_000
"""Number of questions with up to eight columns that are drawn at once; it limits memory."""

Test = Literal["mcnemar", "paired bootstrap", "z", "none"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The test of the difference between two models on one benchmark."""

    benchmark: str
    """Task name of the benchmark."""
    preparation: Preparation
    """Preparation of both models."""
    first: float
    """Score of the first model, in the metric's unit."""
    second: float
    """Score of the second model, in the metric's unit."""
    difference: float
    """Difference of the oriented scores, first minus second: positive if the first model is better."""
    stderr: float | None
    """Standard error of the difference, from paired outcomes if they are known; None: not known."""
    test: Test
    """Name of the test; "none": no standard errors are known."""
    questions: int | None
    """Number of common test questions of a paired test; None: the test is not paired."""
    p: float | None
    """Two-sided p-value; None: no test."""
    holm: float | None = None
    """p-value after Holm's correction over the benchmarks of this preparation; None: no test."""
    note: str = ""
    """Reason why the test is not paired although outcomes were stored."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The tests of two models on every benchmark that both have scores on."""

    first: str
    """Name of the first model."""
    second: str
    """Name of the second model."""
    tests: tuple[PairedTest, ...]
    """Tests of the direct scores, then of the trained scores; benchmarks in the order of the matrix."""
    left_out: tuple[tuple[str, Preparation], ...]
    """Benchmarks that only one of the models has a score on, with the preparation."""


def compare(matrix: ScoreMatrix, first: str, second: str, *, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Test the difference between two models of ``matrix`` on every benchmark that both have scores on.

    Raises:
        UsageError: a model is unknown, both models are the same, or they have no benchmark in common.
    """
    if first == second:
        raise UsageError(f"compare: the two models must differ (got {first!r} twice). Name another model.")
    pair = matrix.subset(models=[first, second])
    tests: list[PairedTest] = []
    left_out = []
    for preparation in matrix.preparations:
        values = pair.scores(preparation).values
        found = []
        for benchmark in pair.benchmarks:
            known = values[benchmark.task].notna()
            if known.all():
                found.append(_test_difference(pair, benchmark, preparation, draws, seed))
            elif known.any():
                left_out.append((benchmark.task, preparation))
        corrected = holm(np.array([np.nan if test.p is None else test.p for test in found]))
        tests += [replace(test, holm=None if np.isnan(p) else float(p)) for test, p in zip(found, corrected, strict=True)]
    if not tests:
        raise UsageError(
            f"compare: {first} and {second} have no benchmark in common in {matrix.source}. Run both on the same one."
        )
    return Comparison(first=first, second=second, tests=tuple(tests), left_out=tuple(left_out))


def _test_difference(
    pair: ScoreMatrix, benchmark: BenchmarkMetadata, preparation: Preparation, draws: int, seed: int
) -> PairedTest:
    scores = pair.scores(preparation)
    first, second = (float(value) for value in scores.values[benchmark.task])
    stderr = float(np.hypot(*scores.stderrs[benchmark.task]))
    sign = 1.0 if benchmark.higher_is_better else -1.0
    known = bool(np.isfinite(stderr))
    test = PairedTest(
        benchmark=benchmark.task,
        preparation=preparation,
        first=first,
        second=second,
        difference=sign * (first - second),
        stderr=stderr if known else None,
        test="z" if known else "none",
        questions=None,
        p=_z(first - second, stderr) if known else None,
    )
    files = [pair.samples.get((name, benchmark.task, preparation), ()) for name in pair.model_names]
    if not all(files):
        return test
    try:
        one, other = (read_outcomes(paths, benchmark.metric) for paths in files)
    except StoreError as error:  # the scores are known, so a test without pairing remains
        return replace(test, note=str(error))
    if one is None or other is None:
        return replace(test, note=f"no paired test supports the outcomes of {benchmark.metric}")
    if one.questions != other.questions:
        return replace(test, note="the two models have different test questions")
    if not np.allclose([one.seed_scores.mean(), other.seed_scores.mean()], [first, second]):
        reason = ", because its tasks count equally" if one.of_group else ""
        return replace(test, note=f"the score of {benchmark.task} does not follow from its questions alone{reason}")
    return _paired(test, one, other, draws, seed)


def _paired(test: PairedTest, first: Outcomes, second: Outcomes, draws: int, seed: int) -> PairedTest:
    questions = len(first.questions)
    if first.is_binary and second.is_binary:
        difference = first.columns[:, 0] - second.columns[:, 0]
        stderr = float(difference.std(ddof=1) / np.sqrt(questions)) if questions > 1 else None
        return replace(
            test,
            test="mcnemar",
            questions=questions,
            stderr=stderr,
            p=mcnemar(int((difference > 0).sum()), int((difference < 0).sum())),
        )
    if questions == 1:
        return replace(test, test="paired bootstrap", questions=1, stderr=None, p=1.0)
    drawn = paired_bootstrap(first, second, draws=draws, seed=seed)
    parts = [(float(drawn.var(ddof=1)) * questions / (questions - 1), questions - 1)]
    scores = [outcomes.seed_scores for outcomes in (first, second)]
    parts += [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in scores if len(values) > 1]
    stderr = math.sqrt(sum(variance for variance, _ in parts))
    p = max(_t(test.difference, parts), 2.0 ** (1 - questions))
    return replace(test, test="paired bootstrap", questions=questions, stderr=stderr, p=p)


def _t(difference: float, parts: Sequence[tuple[float, int]]) -> float:
    """Return the two-sided p-value of a difference by Student's t; ``parts``: parts of its variance, with degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if difference == 0 or variance == 0:
        return float(difference == 0)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(variance), freedom))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        only_first: number of questions that only the first model answers correctly.
        only_second: number of questions that only the second model answers correctly.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_bootstrap(first: Outcomes, second: Outcomes, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Return differences of the score, first minus second, of shape (draws,), on questions resampled for both models together."""
    random = np.random.default_rng(seed)
    seeds = [outcomes.seeds or (outcomes.columns,) for outcomes in (first, second)]
    both = np.hstack([*seeds[0], *seeds[1]])
    questions, width = len(both), first.columns.shape[1]
    step = max(1, _CHUNK // (questions * -(-both.shape[1] // 8)))
    found = []
    for start in range(0, draws, step):
        picks = random.integers(questions, size=(min(step, draws - start), questions))
        scores = score_of(first.kind, both[picks].sum(axis=1).reshape(len(picks), -1, width))  # draws x seeds of both models
        found.append(scores[:, : len(seeds[0])].mean(axis=1) - scores[:, len(seeds[0]) :].mean(axis=1))
    return np.concatenate(found)


def _z(difference: float, stderr: float) -> float:
    if difference == 0:
        return 1.0
    return float(2 * stats.norm.sf(abs(difference) / stderr)) if stderr > 0 else 0.0
