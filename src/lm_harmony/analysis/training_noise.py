"""How far a score moves when the experiment is repeated: the variance of a training run, and of a shift of a whole training.

There are two published trainings of the same 61 models on the same 24 benchmarks: the board that ships with the package, and the
matrix of the paper. Let d[i, b] be the difference of model i on benchmark b between the two, in units of the published board's
standard deviation of b. Its parts are

    d[i, b] = g[i] (M + S[b] + C[i] + E[i, b]),    g[i]^2 = exp(growth * PC1[i] / 1000 - offset)

M is a shift of all scores of one training and S[b] a further shift of one benchmark, for example by another library version.
C[i] and E[i, b] are the difference of two training runs of one model: on all benchmarks alike, and on one benchmark. The variance
of C and E of one run is half of that of the difference. g[i] says that the scores of weak models move further than those of
strong ones. The growth is the slope of the logarithm of the mean square of d[i, :] on PC1 (Harvey 1976, Estimating Regression
Models with Multiplicative Heteroscedasticity). The offset makes the mean of g[i]^2 over the models 1.

``training_noise.csv`` has the standard deviations of E for 24 benchmarks and of M, S and C, and growth and offset, one line each.
``python -m bench.training_noise`` made it from the two matrices by ``estimate_noise``. M was observed once and S 24 times, so
their standard deviations are rough.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd

FILE = "training_noise.csv"
"""File with columns quantity, benchmark (empty: all) and value (in standard deviations of the published board)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingNoise:
    """Standard deviations of what differs between two trainings, in standardised units (``pca.ReferenceBoard.scales``)."""

    run: pd.Series[float]
    """Of one training run on one benchmark, by benchmark."""
    common_run: float
    """Of one training run on all benchmarks of a model alike."""
    shift: float
    """Of the difference between two trainings that all scores of one benchmark share."""
    common_shift: float
    """Of the difference between two trainings that all scores of all benchmarks share."""

    growth: float = 0.0
    """Change of the logarithm of all these variances for 1,000 points of a model's PC1 (times 100); 0: equal for all models."""
    offset: float = 0.0
    """Logarithm of the mean of exp(growth * PC1 / 1000) over the models of the board."""

    def factor(self, pc1: float) -> float:
        """Return the factor of all variances for a model with this PC1; its mean over the models of the board is 1."""
        return float(np.exp(self.growth * pc1 / 1000 - self.offset))


NO_NOISE = TrainingNoise(run=pd.Series(dtype=float), common_run=0.0, shift=0.0, common_shift=0.0)
"""Two trainings give equal scores."""


def estimate_noise(difference: pd.DataFrame, pc1: pd.Series[float]) -> TrainingNoise:
    """Return the moments of the difference between two trainings.

    Args:
        difference: standardised scores of one training minus those of the other, models x benchmarks, without gaps.
        pc1: PC1 of the models, times 100.
    """
    squares = (difference**2).mean(axis=1)
    strength = pc1[difference.index] / 1000
    moved = squares > 0  # a model with equal scores in both trainings has no logarithm
    growth = float(np.polynomial.Polynomial.fit(strength[moved], np.log(squares[moved]), 1).convert().coef[1])
    factors = np.exp(growth * strength)
    even = difference.div(np.sqrt(factors / factors.mean()), axis=0)
    means, covariance = even.mean(), even.cov().to_numpy()
    common = max(0.0, float(covariance[~np.eye(len(covariance), dtype=bool)].mean()))
    own = np.maximum(0.0, covariance.diagonal() - common)
    return TrainingNoise(
        run=pd.Series(np.sqrt(own / 2), index=difference.columns),
        common_run=float(np.sqrt(common / 2)),
        shift=float(means.std(ddof=1)),
        common_shift=abs(float(means.mean())),
        growth=growth,
        offset=float(np.log(factors.mean())),
    )


@cache
def published_noise() -> TrainingNoise:
    """Return the noise between the two published trainings, from ``training_noise.csv``."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    common = {row["quantity"]: float(row["value"]) for row in rows if not row["benchmark"]}
    run = {row["benchmark"]: float(row["value"]) for row in rows if row["benchmark"]}
    return TrainingNoise(run=pd.Series(run), **common)


def noise_csv(noise: TrainingNoise) -> str:
    """Return the text of ``training_noise.csv``, four decimals."""
    lines = [f"run,{task},{sd:.4f}" for task, sd in noise.run.items()]
    lines += [f"{name},,{getattr(noise, name):.4f}" for name in ("common_run", "shift", "common_shift", "growth", "offset")]
    return "\n".join(["quantity,benchmark,value", *lines]) + "\n"
