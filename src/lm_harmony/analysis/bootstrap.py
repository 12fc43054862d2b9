"""Confidence intervals of PC1 and of its rank, by a bootstrap over test examples and over benchmarks.

Each draw resamples the scores (from a normal distribution around the measured score with its standard error, which represents
resampling the test examples) and the benchmarks (with replacement). It then standardises the columns and computes PC1 of the
resampled matrix. Scores are drawn independently, although models that answer the same questions have correlated errors. The
intervals of ranks are therefore conservative: rather too wide than too narrow.

Three corrections make the intervals hold on small boards (``python -m bench.coverage`` shows their coverage in simulations):

- An interval is the wider one of the percentile and the basic (pivotal) bootstrap interval, in which a draw d of an estimate e
  counts as 2e - d. Noise pulls PC1 of the best and the worst models towards the middle, and the draws have that noise twice.
- K benchmarks drawn with replacement have a variance of (K - 1) / K of the true one. Deviations are therefore multiplied by
  sqrt(K / (K - 1)) (Hesterberg 2015, What Teachers Should Know About the Bootstrap, on narrowness in small samples). With fewer
  than ``MIN_BENCHMARKS`` benchmarks there is no interval.
- Drawn noise is divided by the square root of the share of a column's variance that is not noise, because measured columns are
  already wider than the true ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import benchmark_order
from lm_harmony.analysis.pca import PC1_SCALE, components
from lm_harmony.analysis.score_rows import CompletePart, Preparation
from lm_harmony.analysis.significance import tie_groups

DRAWS = 1_000
"""Number of bootstrap draws."""
CONFIDENCE = 0.95
"""Nominal coverage: the share of draws inside an interval."""
MIN_BENCHMARKS = 4
"""Smallest number of benchmarks to resample: with three, simulated intervals hold 91% of the models, and 82% of the best ones."""
_MIN_RELIABILITY = 0.25
"""Smallest share of a column's variance that counts as not noise."""
_CHUNK = 4_000_000
"""Number of scores drawn at once; it limits memory to 32 MB per array."""

COLUMNS = ("pc1", "low", "high", "rank", "rank_low", "rank_high", "group")
"""Columns of ``PC1Intervals.table``."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PC1Intervals:
    """PC1 and rank of every model with bootstrap intervals."""

    preparation: Preparation
    """Preparation of the scores."""
    basis: CompletePart
    """Models and benchmarks that PC1 is computed from."""
    examples: bool
    """Whether test examples were resampled."""
    benchmarks: bool
    """Whether benchmarks were resampled."""
    draws: int
    """Number of bootstrap draws."""
    table: pd.DataFrame
    """Models, best first, x (pc1, low, high, rank, rank_low, rank_high, group): PC1 times 100 with its interval, the rank with
    its interval (best, worst), and the tie group. A model is in the tie group of a better model unless the better one is ahead in
    97.5% of the draws. All but pc1 and rank are NaN if there are too few benchmarks to resample."""
    without_stderr: tuple[str, ...]
    """Benchmarks with scores of unknown standard error, which were not resampled."""


def pc1_intervals(
    matrix: ScoreMatrix,
    preparation: Preparation = "trained",
    *,
    examples: bool = True,
    benchmarks: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> PC1Intervals:
    """Bootstrap PC1 and its rank on the complete part of ``matrix``, whatever the order of its models and benchmarks.

    Raises:
        UsageError: as ``components``.
    """
    fitted = components(matrix, preparation)
    part = in_fixed_order(matrix.subset(fitted.basis.models, fitted.basis.benchmarks))
    order = fitted.pc1[list(part.model_names)].sort_values(ascending=False, kind="stable").index
    values = part.oriented(preparation).loc[order].to_numpy()
    errors = part.scores(preparation).stderrs.loc[order]
    table = pd.DataFrame({"pc1": fitted.pc1[order], "rank": fitted.ranks[order]})
    if benchmarks and values.shape[1] < MIN_BENCHMARKS:
        table = table.reindex(columns=COLUMNS)
    else:
        drawn = _draws(values, np.nan_to_num(errors.to_numpy()), examples, benchmarks, draws, seed)
        tasks = values.shape[1]
        table = _with_intervals(table, drawn, np.sqrt(tasks / (tasks - 1)) if benchmarks else 1.0)
    unknown = tuple(task for task in errors if examples and errors[task].isna().any())
    return PC1Intervals(
        preparation=preparation,
        basis=fitted.basis,
        examples=examples,
        benchmarks=benchmarks,
        draws=draws,
        table=table,
        without_stderr=unknown,
    )


def in_fixed_order(matrix: ScoreMatrix) -> ScoreMatrix:
    """Return the matrix with its models sorted by name and its benchmarks as in the catalogue.

    Random draws belong to the positions of scores. So the results depend on the order of a matrix unless it is always the same.
    """
    return matrix.subset(sorted(matrix.model_names), sorted(matrix.benchmark_names, key=benchmark_order))


def rank_errors(
    matrix: ScoreMatrix, preparation: Preparation = "trained", *, draws: int = DRAWS, seed: int = 0
) -> pd.Series[float]:
    """Return the standard deviation of each model's rank by PC1 over draws of test examples and benchmarks.

    Raises:
        UsageError: as ``components``.
    """
    basis = components(matrix, preparation).basis
    part = in_fixed_order(matrix.subset(basis.models, basis.benchmarks))
    values, tasks = part.oriented(preparation).to_numpy(), len(basis.benchmarks)
    errors = np.nan_to_num(part.scores(preparation).stderrs.to_numpy())
    spread = _ranks(_draws(values, errors, True, True, draws, seed)).std(axis=0) * np.sqrt(tasks / (tasks - 1))
    return pd.Series(spread, index=part.model_names)[list(basis.models)]


def rank_moves(before: ScoreMatrix, after: ScoreMatrix, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Return how the rank by PC1 of the trained scores moves between two matrices of the same models and benchmarks.

    Each draw resamples the same benchmarks in both. Noise is drawn independently, although both have the same test questions, so
    that the intervals are rather too wide than too narrow.

    Returns:
        Models, in the order of ``before``, x (before, after, move, low, high): both ranks, the first minus the second, which is
        positive where the rank is better in ``after``, and its interval. low and high are NaN if there are too few benchmarks.

    Raises:
        UsageError: as ``components``.
    """
    models = list(before.model_names)
    matrices = [in_fixed_order(matrix) for matrix in (before, after.subset(models, before.benchmark_names))]
    fitted = [components(matrix) for matrix in matrices]
    ranks = [found.ranks for found in fitted]
    table = pd.DataFrame({"before": ranks[0], "after": ranks[1], "move": ranks[0] - ranks[1]})
    tasks = len(before.benchmarks)
    if tasks < MIN_BENCHMARKS:
        return table.assign(low=np.nan, high=np.nan).loc[models]
    drawn = []
    for number, (matrix, found) in enumerate(zip(matrices, fitted, strict=True)):
        values, errors = matrix.oriented("trained").to_numpy(), np.nan_to_num(matrix.trained.stderrs.to_numpy())
        estimate = found.pc1.to_numpy()
        deviation = np.sqrt(tasks / (tasks - 1)) * (_draws(values, errors, True, True, draws, seed, noise=number) - estimate)
        drawn.append((_ranks(estimate + deviation), _ranks(estimate - deviation)))  # percentile and basic
    tail = (1 - CONFIDENCE) / 2
    moved = [first - second for first, second in zip(*drawn, strict=True)]
    low, high = _hull([np.quantile(moves, [tail, 1 - tail], axis=0) for moves in moved])
    return table.assign(low=np.floor(low).astype(int), high=np.ceil(high).astype(int)).loc[models]


def _with_intervals(table: pd.DataFrame, drawn: Floats, widening: float) -> pd.DataFrame:
    """Return the table (pc1, rank) with the other columns of ``PC1Intervals.table``.

    Args:
        table: models, best first.
        drawn: PC1 times 100, draws x models.
        widening: factor of the draws' deviations from PC1.
    """
    estimate, tail = table["pc1"].to_numpy(), (1 - CONFIDENCE) / 2
    percentile, basic = (estimate + sign * widening * (drawn - estimate) for sign in (1, -1))
    low, high = _hull([np.quantile(values, [tail, 1 - tail], axis=0) for values in (percentile, basic)])
    rank_low, rank_high = _hull([np.quantile(_ranks(values), [tail, 1 - tail], axis=0) for values in (percentile, basic)])

    def worse_than(leader: int) -> npt.NDArray[np.bool_]:
        shares = [(values[:, [leader]] > values).mean(axis=0) for values in (percentile, basic)]
        return np.asarray(np.minimum(*shares) >= 1 - tail)

    found = table.assign(
        low=low,
        high=high,
        rank_low=np.floor(rank_low).astype(int),
        rank_high=np.ceil(rank_high).astype(int),
        group=tie_groups(len(table), worse_than),
    )
    return found[list(COLUMNS)]


def _hull(intervals: list[Floats]) -> tuple[Floats, Floats]:
    """Return the lowest lower ends and the highest upper ends of intervals, each of shape (2, models)."""
    stacked = np.stack(intervals)
    return stacked[:, 0].min(axis=0), stacked[:, 1].max(axis=0)


def _ranks(drawn: Floats) -> npt.NDArray[np.int64]:
    """Return ranks, draws x models; ties share the better rank, as in ``pca.ranks``."""
    order = np.argsort(-drawn, axis=1)
    ordered = np.take_along_axis(drawn, order, axis=1)
    firsts = np.zeros(drawn.shape, dtype=np.int64)
    firsts[:, 1:] = np.where(ordered[:, 1:] != ordered[:, :-1], np.arange(1, drawn.shape[1]), 0)
    found = np.empty_like(firsts)
    np.put_along_axis(found, order, np.maximum.accumulate(firsts, axis=1) + 1, axis=1)
    return found


def _draws(
    values: Floats, errors: Floats, examples: bool, benchmarks: bool, draws: int, seed: int, *, noise: int | None = None
) -> Floats:
    """Return PC1 times 100, draws x models.

    ``noise`` is a seed of the noise alone, so that matrices of one shape get the same benchmarks and independent noise.
    """
    random = np.random.default_rng(seed)
    questions = random if noise is None else np.random.default_rng((seed, noise))
    models, tasks = values.shape
    reliability = 1 - (errors**2).mean(axis=0) / np.maximum(values.var(axis=0), 1e-300)
    errors = errors / np.sqrt(np.maximum(reliability, _MIN_RELIABILITY))
    step = max(1, _CHUNK // values.size)
    found = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        weights = random.multinomial(tasks, np.full(tasks, 1 / tasks), size=count) if benchmarks else np.ones((count, tasks))
        scores = values + (questions.standard_normal((count, models, tasks)) * errors if examples else np.zeros((count, 1, 1)))
        found.append(_weighted_pc1(scores, weights.astype(float)))
    return np.concatenate(found)


def _weighted_pc1(scores: Floats, weights: Floats) -> Floats:
    """Return PC1 times 100, draws x models, of matrices that contain each benchmark as often as its weight.

    Args:
        scores: draws x models x benchmarks.
        weights: draws x benchmarks.
    """
    centred = scores - scores.mean(axis=1, keepdims=True)
    scales = np.sqrt((centred**2).mean(axis=1, keepdims=True))
    # k copies of a column have the same effect on the decomposition as one column times sqrt(k).
    weighted = centred / np.where(scales > 0, scales, 1) * np.sqrt(weights)[:, None, :]
    vectors = np.linalg.eigh(weighted.transpose(0, 2, 1) @ weighted).eigenvectors[:, :, -1]
    signs = np.where((vectors * np.sqrt(weights)).sum(axis=1) < 0, -1.0, 1.0)
    # A matrix product may round equal rows differently. Summed row by row, models with equal scores stay tied.
    found = np.einsum("dmt,dt->dm", weighted, vectors * signs[:, None])
    return found * PC1_SCALE  # type: ignore[no-any-return]
