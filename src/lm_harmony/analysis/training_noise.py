"""How far a score moves when the experiment is repeated: the variance of a training run, and of a shift of a whole training.

There are two published trainings of the same 61 models on the same 24 benchmarks: the board that ships with the package, and the
matrix of the paper. Let d[i, b] be the difference of model i on benchmark b between the two, in units of the published board's
standard deviation of b. Its parts are

    d[i, b] = M + S[b] + C[i] + E[i, b]

M is a shift of all scores of one training and S[b] a further shift of one benchmark, for example by another version of a library.
C[i] and E[i, b] are the difference of two training runs of one model: on all benchmarks alike, and on one benchmark. The variance
of C and E of one run is half of that of the difference. ``training_noise.csv`` has the standard deviations, one line each: of E
for 24 benchmarks, and of M, S and C. ``python -m bench.training_noise`` made it from the two matrices by ``estimate_noise``. M
was observed once and S 24 times, so their standard deviations are rough.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
FILE = "training_noise.csv"
"""File with columns quantity, benchmark (empty: all) and sd (in standard deviations of the published board)."""


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

    def repeat_variance(self, weights: Floats, tasks: list[str], target: pd.Series[float]) -> float:
        """Return what a repeated training adds to the variance of a prediction that was fitted on a single training.

        Let z be the scores that the fit has seen, y = l'z the target that contains them, and z + d the scores of another
        training. The residual y - w'z of the fit contains the noise e of its own training already. With the covariance D of one
        training run, the expectation of (y - w'(z + d))^2 is that of (y - w'z)^2 plus 2 w'Dl + w'Vw. V is the covariance of the
        shift between two trainings. A proof needs E[e e'] = D and the independence of both trainings.

        Args:
            weights: weights w of the prediction on standardised scores, shape (tasks,).
            tasks: benchmarks that the prediction uses.
            target: weights l of the target, by benchmark.
        """
        own = self.run.reindex(tasks).fillna(0.0).to_numpy() ** 2
        same = float((weights * own * target[tasks].to_numpy()).sum() + self.common_run**2 * weights.sum() * target.sum())
        shifts = float(self.common_shift**2 * weights.sum() ** 2 + self.shift**2 * (weights**2).sum())
        return max(0.0, 2 * same + shifts)


NO_NOISE = TrainingNoise(run=pd.Series(dtype=float), common_run=0.0, shift=0.0, common_shift=0.0)
"""Two trainings give equal scores."""


def estimate_noise(difference: pd.DataFrame) -> TrainingNoise:
    """Return the moments of the difference between two trainings.

    Args:
        difference: standardised scores of one training minus those of the other, models x benchmarks, without gaps.
    """
    means = difference.mean()
    covariance = difference.cov().to_numpy()
    common = max(0.0, float(covariance[~np.eye(len(covariance), dtype=bool)].mean()))
    own = np.maximum(0.0, covariance.diagonal() - common)
    return TrainingNoise(
        run=pd.Series(np.sqrt(own / 2), index=difference.columns),
        common_run=float(np.sqrt(common / 2)),
        shift=float(means.std(ddof=1)),
        common_shift=abs(float(means.mean())),
    )


@cache
def published_noise() -> TrainingNoise:
    """Return the noise between the two published trainings, from ``training_noise.csv``."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    common = {row["quantity"]: float(row["sd"]) for row in rows if not row["benchmark"]}
    run = {row["benchmark"]: float(row["sd"]) for row in rows if row["benchmark"]}
    return TrainingNoise(run=pd.Series(run), **common)


def noise_csv(noise: TrainingNoise) -> str:
    """Return the text of ``training_noise.csv``, four decimals."""
    common = {"common_run": noise.common_run, "shift": noise.shift, "common_shift": noise.common_shift}
    lines = [f"run,{task},{sd:.4f}" for task, sd in noise.run.items()] + [f"{name},,{sd:.4f}" for name, sd in common.items()]
    return "\n".join(["quantity,benchmark,sd", *lines]) + "\n"
