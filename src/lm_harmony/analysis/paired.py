"""Two models, benchmark by benchmark: which is better, and whether the difference can be told from chance.

Where both models' outcomes on the same questions were kept, the test is paired: McNemar's exact test where outcomes are right or
wrong (of the questions that only one model answers, how many are each one's: a binomial test with 1/2), else a paired bootstrap
(questions drawn anew for both models together; p = 2 min(share <= 0, share >= 0) of the differences, at least 2 / (draws + 1)).
Without outcomes the test is z with the scores' standard errors. p-values are corrected over the benchmarks of one preparation by
Holm's method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import BenchmarkMetadata
from lm_harmony.analysis.outcomes import Outcomes, read_outcomes, score_of
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation
from lm_harmony.analysis.significance import holm
from lm_harmony.errors import StoreError, UsageError

DRAWS = 2_000
"""Draws of the paired bootstrap."""
_CHUNK = 2_000_000
"""Questions that are drawn at once."""

Test = Literal["mcnemar", "paired bootstrap", "z", "none"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Two models on one benchmark."""

    benchmark: str
    """The task."""
    preparation: Preparation
    """How both were prepared."""
    first: float
    """Score of the first model, in the metric's unit."""
    second: float
    """Score of the second."""
    difference: float
    """How much better the first is: positive is better whichever direction the metric has."""
    stderr: float | None
    """Standard error of the difference, from paired outcomes where they were kept; None: not known."""
    test: Test
    """Which test; "none": no standard errors are known."""
    questions: int | None
    """Test questions that both answered, where the test is paired."""
    p: float | None
    """Two-sided p-value; None without a test."""
    holm: float | None = None
    """The same corrected over the benchmarks of this preparation."""
    note: str = ""
    """Why the test is not paired, where outcomes were kept."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on every benchmark that both have."""

    first: str
    """A model."""
    second: str
    """Another."""
    tests: tuple[PairedTest, ...]
    """Direct, then trained; in the matrix's order."""
    left_out: tuple[tuple[str, Preparation], ...]
    """Benchmarks that only one of them has, and in which preparation."""


def compare(matrix: ScoreMatrix, first: str, second: str, *, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare two models of ``matrix``.

    Raises:
        UsageError: a model is unknown, both are the same, or they share no benchmark.
    """
    if first == second:
        raise UsageError(f"compare needs two different models, got {first!r} twice. Name another one.")
    pair = matrix.subset(models=[first, second])
    tests: list[PairedTest] = []
    left_out = []
    for preparation in PREPARATIONS:
        values = pair.scores(preparation).values
        found = []
        for fact in pair.benchmarks:
            known = values[fact.task].notna()
            if known.all():
                found.append(_compare_on(pair, fact, preparation, draws, seed))
            elif known.any():
                left_out.append((fact.task, preparation))
        corrected = holm(np.array([np.nan if test.p is None else test.p for test in found]))
        tests += [replace(test, holm=None if np.isnan(p) else float(p)) for test, p in zip(found, corrected, strict=True)]
    if not tests:
        raise UsageError(f"compare: {first} and {second} share no benchmark in {matrix.source}. Run both on one.")
    return Comparison(first=first, second=second, tests=tuple(tests), left_out=tuple(left_out))


def _compare_on(pair: ScoreMatrix, fact: BenchmarkMetadata, preparation: Preparation, draws: int, seed: int) -> PairedTest:
    scores = pair.scores(preparation)
    first, second = (float(value) for value in scores.values[fact.task])
    stderr = float(np.hypot(*scores.stderrs[fact.task]))
    sign = 1.0 if fact.higher_is_better else -1.0
    known = bool(np.isfinite(stderr))
    test = PairedTest(
        benchmark=fact.task,
        preparation=preparation,
        first=first,
        second=second,
        difference=sign * (first - second),
        stderr=stderr if known else None,
        test="z" if known else "none",
        questions=None,
        p=_z(first - second, stderr) if known else None,
    )
    files = [pair.samples.get((name, fact.task, preparation), ()) for name in pair.model_names]
    if not all(files):
        return test
    try:
        one, other = (read_outcomes(paths, fact.metric) for paths in files)
    except StoreError as error:  # the scores are there: only the pairing is lost
        return replace(test, note=str(error))
    if one is None or other is None:
        return replace(test, note=f"outcomes of {fact.metric} are of a kind that no paired test knows")
    if one.questions != other.questions:
        return replace(test, note="the two models were asked different questions")
    return _paired(test, one, other, sign, draws, seed)


def _paired(test: PairedTest, first: Outcomes, second: Outcomes, sign: float, draws: int, seed: int) -> PairedTest:
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
    drawn = sign * paired_bootstrap(first, second, draws=draws, seed=seed)
    p = min(1.0, 2 * (1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))) / (draws + 1))
    return replace(test, test="paired bootstrap", questions=questions, stderr=float(drawn.std(ddof=1)), p=p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        only_first: questions that only the first model answers.
        only_second: questions that only the second model answers.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_bootstrap(first: Outcomes, second: Outcomes, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Return ``draws`` differences of the score, first minus second, on questions drawn anew for both together."""
    random = np.random.default_rng(seed)
    both = np.hstack([first.columns, second.columns])
    questions, width = len(both), first.columns.shape[1]
    step = max(1, _CHUNK // questions)
    found = []
    for start in range(0, draws, step):
        picks = random.integers(questions, size=(min(step, draws - start), questions))
        sums = both[picks].sum(axis=1)
        found.append(score_of(first.kind, sums[:, :width]) - score_of(second.kind, sums[:, width:]))
    return np.concatenate(found)


def _z(difference: float, stderr: float) -> float:
    if difference == 0:
        return 1.0
    return float(2 * stats.norm.sf(abs(difference) / stderr)) if stderr > 0 else 0.0
