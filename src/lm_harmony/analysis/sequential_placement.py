"""Where a model stands after some benchmarks: the distribution of its PC1 and rank, and the width expected after further ones.

The scores of a model on all benchmarks and its PC1 have a joint normal distribution, so that the scores on some benchmarks give
PC1 a normal distribution of known mean and variance. Let A be the covariance of the scores that a model would have without the
noise of a training, D the covariance of the noise of one training, V that of the shift between two trainings, and PC1 = l'z with
the standardised scores z of the reference board. D and V are from ``training_noise``; a factor g makes them larger for weak
models. The scores z' of another training have the covariance A + g D + g V, and their covariance with PC1 is A l, because both
trainings have independent noise. A + D is estimated by the mean of the sample covariance and of its factor model, in the manner
of Ledoit and Wolf (2003). The variance of PC1 after a set of benchmarks does not depend on their scores except through g, so that
the shrinking of the rank interval can be predicted before a benchmark is run. With all benchmarks, PC1 is not predicted but
computed: l'z'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr, ndtri

from lm_harmony.analysis.pca import PC1_SCALE
from lm_harmony.analysis.placement_board import PlacementBoard

CONFIDENCE = 0.95
"""Nominal coverage of intervals."""
FACTORS = 2
"""Number of factors of the covariance's model."""
FACTOR_SHARE = 0.5
"""Weight of the factor model in the covariance; the rest is the weight of the sample covariance."""
_FACTOR_STEPS = 200
_NOISE_STEPS = 3
"""Repetitions in which a model's PC1 gives the factor of its noise, and the factor gives PC1."""
_LEAST_VARIANCE = 1.0
"""Smallest variance of PC1 (times 100), which keeps rounding from making it negative."""

Floats = npt.NDArray[np.float64]
_NODES = ndtri((np.arange(32) + 0.5) / 32)
"""Quantiles of a standard normal variable: an expectation is the mean over these nodes. A width jumps where an end of the
interval passes a rival, so that quadrature for smooth functions is worse."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a model stands after some benchmarks."""

    pc1: float
    """Expected PC1 on the reference board, times 100."""
    sd: float
    """Standard deviation of PC1, times 100."""
    best: int
    """Best rank of the interval, counted from 1."""
    worst: int
    """Worst rank of the interval."""
    noise: float
    """Factor g of the variances of the noise between trainings, for a model with this PC1."""

    @property
    def width(self) -> int:
        """Places between the best and the worst rank; 0 if the rank is certain."""
        return self.worst - self.best

    @property
    def low(self) -> float:
        """Lower end of the 95% interval of PC1."""
        return self.pc1 - float(ndtri((1 + CONFIDENCE) / 2)) * self.sd

    @property
    def high(self) -> float:
        """Upper end of the 95% interval of PC1."""
        return self.pc1 + float(ndtri((1 + CONFIDENCE) / 2)) * self.sd


class SequentialPlacement:
    """A normal distribution of all scores of a new training and of PC1, and the models that a new one is ranked among."""

    def __init__(self, board: PlacementBoard, rivals: pd.Series[float] | None = None) -> None:
        """Estimate the distribution.

        Args:
            board: models to fit on, without the model that is placed, and the noise between two trainings.
            rivals: PC1 of the models to rank among; None: those of ``board``.
        """
        self.tasks = tuple(board.scores.columns)
        scores, self.noise = board.scores.to_numpy(), board.noise
        self.loadings: Floats = board.reference.loadings[list(self.tasks)].to_numpy() * PC1_SCALE
        run = self.noise.run.reindex(self.tasks).fillna(0.0).to_numpy()
        self.run: Floats = np.diag(run**2) + self.noise.common_run**2
        self.shift: Floats = self.noise.shift**2 * np.eye(len(run)) + self.noise.common_shift**2
        self.exact: Floats = _covariance(scores) - self.run
        self.means: Floats = scores.mean(axis=0)
        self.usual_errors: Floats = np.nan_to_num(board.stderrs.reindex(self.tasks).to_numpy())
        self.rivals: Floats = np.sort((board.pc1 if rivals is None else rivals).to_numpy())

    def position(self, scores: Mapping[str, float], errors: Mapping[str, float]) -> Position:
        """Return where a model stands.

        Args:
            scores: standardised score by benchmark; empty: what is known of any model.
            errors: standard error by benchmark, in standardised units; the usual one is used where it is not given. Only an
                excess over the usual one matters, because the covariance contains the usual one.
        """
        places, factor = self._places(scores), 1.0
        own = np.array([scores[self.tasks[place]] for place in places])
        for _ in range(_NOISE_STEPS if places else 1):
            weights = self._weights(places, errors, factor)
            mean = float(self.means @ self.loadings + weights @ (own - self.means[places]))
            sd = float(np.sqrt(self.variance(scores, errors, factor)))
            used, factor = factor, self.noise.factor(mean)
        best, worst = rank_intervals(np.array([mean]), np.array([sd]), self.rivals)
        return Position(pc1=mean, sd=sd, best=int(best[0]), worst=int(worst[0]), noise=used)

    def covariance(self, factor: float = 1.0) -> Floats:
        """Return the covariance of the scores of another training, for models with this factor of the noise."""
        return np.asarray(self.exact + factor * (self.run + self.shift))

    def variance(self, known: Sequence[str] | Mapping[str, float], errors: Mapping[str, float], factor: float = 1.0) -> float:
        """Return the variance of PC1 (times 100) once the benchmarks ``known`` have scores with these standard errors."""
        places, loadings = self._places(known), self.loadings
        weights = self._weights(places, errors, factor)
        missing = float(loadings @ (self.exact + factor * self.run) @ loadings - 2 * weights @ (self.exact @ loadings)[places])
        return max(missing + float(weights @ self._measured(places, errors, factor) @ weights), _LEAST_VARIANCE)

    def expected_widths(
        self, position: Position, known: Sequence[str], more: Sequence[Sequence[str]], errors: Mapping[str, float]
    ) -> Floats:
        """Predict the width of the rank interval after further benchmarks.

        Args:
            position: where the model stands after the benchmarks ``known``.
            known: benchmarks with a score.
            more: sets of further benchmarks.
            errors: standard error by benchmark as for ``position``, also of those without a score.

        Returns:
            Equally probable widths in places, shape (sets, nodes).
        """
        variances = np.minimum([self.variance([*known, *names], errors, position.noise) for names in more], position.sd**2)
        means = position.pc1 + np.sqrt(position.sd**2 - variances)[:, None] * _NODES
        best, worst = rank_intervals(means.ravel(), np.sqrt(variances).repeat(len(_NODES)), self.rivals)
        return (worst - best).reshape(means.shape).astype(np.float64)

    def _places(self, names: Sequence[str] | Mapping[str, float]) -> list[int]:
        known = set(names)
        return [place for place, task in enumerate(self.tasks) if task in known]

    def _weights(self, places: list[int], errors: Mapping[str, float], factor: float) -> Floats:
        """Return the weights of the scores, shape (places,): in the expectation of PC1, or in PC1 if no score is missing."""
        if len(places) == len(self.tasks):
            return self.loadings
        return np.asarray(np.linalg.solve(self._measured(places, errors, factor), (self.exact @ self.loadings)[places]))

    def _measured(self, places: list[int], errors: Mapping[str, float], factor: float) -> Floats:
        """Return the covariance of scores with these standard errors, places x places."""
        usual = self.usual_errors[places]
        own = np.array([errors.get(self.tasks[place], error) for place, error in zip(places, usual, strict=True)])
        own = np.where(np.isfinite(own), own, usual)
        return np.asarray(self.covariance(factor)[np.ix_(places, places)] + np.diag(np.maximum(own**2 - usual**2, 0.0)))


def rank_intervals(means: Floats, sds: Floats, rivals: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the shortest intervals of ranks that hold at least 95% of the probability; of equally short ones the likeliest.

    A model's rank is 1 + the number of rivals with a larger PC1.

    Args:
        means: expected PC1 of each model, shape (models,).
        sds: its standard deviation, shape (models,).
        rivals: PC1 of the other models in ascending order, shape (rivals,).
    """
    count = len(rivals)
    lower_ends, upper_ends = np.concatenate([[-np.inf], rivals]), np.concatenate([rivals, [np.inf]])
    below = ndtr((upper_ends - means[:, None]) / sds[:, None])  # probability of the best rank count + 1, ..., 1 and all worse
    limits = means[:, None] + sds[:, None] * ndtri(np.maximum(below - CONFIDENCE, 0.0))
    start = np.searchsorted(rivals, limits, side="right")  # the largest of the lower ends that are at most the limit
    widths = np.where(below >= CONFIDENCE, np.arange(count + 1) - start, count + 1)
    held = below - ndtr((lower_ends[start] - means[:, None]) / sds[:, None])
    chosen = np.argmin(widths - held / 2, axis=1)
    return count + 1 - chosen, count + 1 - start[np.arange(len(means)), chosen]


def _covariance(scores: Floats) -> Floats:
    """Return the mean of the sample covariance and of its factor model (iterated principal factors), columns x columns."""
    sample = np.cov(scores, rowvar=False)
    specific = sample.diagonal() * 0.3
    for _ in range(_FACTOR_STEPS):
        sizes, vectors = np.linalg.eigh(sample - np.diag(specific))
        factors = vectors[:, -FACTORS:] * np.sqrt(np.maximum(sizes[-FACTORS:], 0.0))
        specific = np.maximum(sample.diagonal() - (factors**2).sum(axis=1), 0.02 * sample.diagonal())
    return np.asarray((1 - FACTOR_SHARE) * sample + FACTOR_SHARE * (factors @ factors.T + np.diag(specific)))
