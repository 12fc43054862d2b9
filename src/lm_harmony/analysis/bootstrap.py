"""Confidence intervals of PC1 and of its rank, by a bootstrap over test examples and over benchmarks.

Each draw resamples the scores (from a normal distribution around the measured score with its standard error, which represents
resampling the test examples) and the benchmarks (with replacement). It then standardises the columns and computes PC1 of the
resampled matrix. Scores are drawn independently, although models that answer the same questions have correlated errors. The
intervals of ranks are therefore conservative: rather too wide than too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import PC1_SCALE, components
from lm_harmony.analysis.score_rows import CompletePart, Preparation
from lm_harmony.analysis.significance import tie_groups

DRAWS = 1_000
"""Number of bootstrap draws."""
CONFIDENCE = 0.95
"""Nominal coverage: the share of draws inside an interval."""
_CHUNK = 4_000_000
"""Number of scores drawn at once; it limits memory to 32 MB per array."""

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
    """Models, best first, x (pc1, low, high, rank, rank_low, rank_high, group): PC1 times 100 with its percentile interval, the
    rank with its interval (best, worst), and the tie group. A model is in the tie group of a better model unless the better
    one is ahead in 97.5% of the draws."""
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
    """Bootstrap PC1 and its rank on the complete part of ``matrix``.

    Raises:
        UsageError: as ``components``.
    """
    fitted = components(matrix, preparation)
    part = matrix.subset(fitted.basis.models, fitted.basis.benchmarks)
    order = fitted.pc1.sort_values(ascending=False, kind="stable").index
    values = part.oriented(preparation).loc[order].to_numpy()
    errors = part.scores(preparation).stderrs.loc[order]
    drawn = _draws(values, np.nan_to_num(errors.to_numpy()), examples, benchmarks, draws, seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    drawn_ranks = _ranks(drawn)
    rank_low, rank_high = np.quantile(drawn_ranks, [tail, 1 - tail], axis=0)
    table = pd.DataFrame(
        {
            "pc1": fitted.pc1[order],
            "low": low,
            "high": high,
            "rank": fitted.ranks[order],
            "rank_low": np.floor(rank_low).astype(int),
            "rank_high": np.ceil(rank_high).astype(int),
            "group": tie_groups(len(order), lambda leader: (drawn[:, [leader]] > drawn).mean(axis=0) >= 1 - tail),
        }
    )
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


def _ranks(drawn: Floats) -> npt.NDArray[np.int64]:
    return np.argsort(np.argsort(-drawn, axis=1, kind="stable"), axis=1, kind="stable") + 1


def _draws(values: Floats, errors: Floats, examples: bool, benchmarks: bool, draws: int, seed: int) -> Floats:
    """Return PC1 times 100, draws x models."""
    random = np.random.default_rng(seed)
    models, tasks = values.shape
    step = max(1, _CHUNK // values.size)
    found = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        weights = random.multinomial(tasks, np.full(tasks, 1 / tasks), size=count) if benchmarks else np.ones((count, tasks))
        scores = values + (random.standard_normal((count, models, tasks)) * errors if examples else np.zeros((count, 1, 1)))
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
    return (weighted @ (vectors * signs[:, None])[:, :, None])[:, :, 0] * PC1_SCALE  # type: ignore[no-any-return]
