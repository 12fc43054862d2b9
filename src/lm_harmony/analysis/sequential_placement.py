"""Where a model stands after some benchmarks: the distribution of its PC1 and rank, and the width expected after further ones.

PC1 is predicted by the regression on the scores of some benchmarks (``placement_fit``), which is fitted to the reference board
and applied to the scores of another training. With all benchmarks, PC1 is not predicted but computed: l'z. Let w be the weights
of the scores in the prediction, u = l - w, C the covariance of the scores on the reference board, D that of the noise of one
training, V that of the shift between two trainings (``training_noise``), and f the misfit of models of a new family. The
difference between the PC1 of the reference board and the prediction has the variance

    g (f u'C u + w'(2 D + V) w + 2 u'D w)

where 2 D + V is the covariance of the difference between two trainings, and the last term is there because the noise of the
first training is in PC1 and in that difference. The factor g makes all variances larger for weak models. The variance does not
depend on the scores except through g, so that the shrinking of the rank interval can be predicted before a benchmark is run.

The weights are those of the regression within one training, and not those that would be best by D and V. The latter contain
contrasts between benchmarks in which a common shift cancels. Such contrasts are estimated from few models, and fail for models
that are unlike them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr, ndtri

from lm_harmony.analysis.pca import PC1_SCALE
from lm_harmony.analysis.placement_board import PlacementBoard
from lm_harmony.analysis.placement_fit import misfit, regression_weights, score_covariance

CONFIDENCE = 0.95
"""Nominal coverage of intervals."""
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

    def __init__(self, board: PlacementBoard, rivals: pd.Series[float] | None = None, *, family: str | None = None) -> None:
        """Estimate the distribution.

        Args:
            board: models to fit on, without the model that is placed, and the noise between two trainings.
            rivals: PC1 of the models to rank among; None: those of ``board``.
            family: family of the model that is placed. A family that ``board`` does not have, or None (not known), has wider
                intervals.
        """
        self._board, self._family = board, family
        self.tasks = tuple(board.scores.columns)
        scores, self.noise = board.scores.to_numpy(), board.noise
        self.loadings: Floats = board.reference.loadings[list(self.tasks)].to_numpy() * PC1_SCALE
        run = self.noise.run.reindex(self.tasks).fillna(0.0).to_numpy()
        self.run: Floats = np.diag(run**2) + self.noise.common_run**2
        self.shift: Floats = self.noise.shift**2 * np.eye(len(run)) + self.noise.common_shift**2
        self.exact: Floats = score_covariance(scores) - self.run
        self.means: Floats = scores.mean(axis=0)
        self.usual_errors: Floats = np.nan_to_num(board.stderrs.reindex(self.tasks).to_numpy())
        self.rivals: Floats = np.sort((board.pc1 if rivals is None else rivals).to_numpy())

    @cached_property
    def misfit(self) -> float:
        """Factor f of the variance of the regression, by cross-validation on the board."""
        return misfit(self._board, new_family=self._family not in set(self._board.families))

    def position(self, scores: Mapping[str, float], errors: Mapping[str, float]) -> Position:
        """Return where a model stands.

        Args:
            scores: standardised score by benchmark; empty: what is known of any model.
            errors: standard error by benchmark, in standardised units; the usual one is used where it is not given. Only an
                excess over the usual one matters, because the covariance contains the usual one.
        """
        places = self._places(scores)
        own = np.array([scores[self.tasks[place]] for place in places])
        weights = self._weights(places, self._excess(places, errors))
        mean = float(self.means @ self.loadings + weights @ (own - self.means[places]))
        factor = self.noise.factor(mean) if places else 1.0
        sd = float(np.sqrt(self.variance(scores, errors, factor, self.misfit)))
        best, worst = rank_intervals(np.array([mean]), np.array([sd]), self.rivals)
        return Position(pc1=mean, sd=sd, best=int(best[0]), worst=int(worst[0]), noise=factor)

    def covariance(self, factor: float = 1.0) -> Floats:
        """Return the covariance of the scores of another training, for models with this factor of the noise."""
        return np.asarray(self.exact + factor * (self.run + self.shift))

    def variance(
        self, known: Sequence[str] | Mapping[str, float], errors: Mapping[str, float], factor: float = 1.0, misfit: float = 1.0
    ) -> float:
        """Return the variance of PC1 (times 100) once the benchmarks ``known`` have scores with these standard errors.

        Args:
            known: benchmarks with a score.
            errors: standard errors as for ``position``.
            factor: factor g of all variances.
            misfit: factor f of the variance of the regression.
        """
        places = self._places(known)
        excess = self._excess(places, errors)
        weights = np.zeros_like(self.loadings)
        weights[places] = self._weights(places, excess)
        rest = self.loadings - weights
        predicted = float(rest @ (self.exact + self.run) @ rest + 2 * rest @ self.run @ weights)
        repeated = float(weights @ (2 * self.run + self.shift) @ weights)
        # If nearly all is noise, the first part is negative, and a misfit must not make the sum smaller.
        variance = factor * (max(predicted, misfit * predicted) + repeated) + float(weights[places] ** 2 @ excess)
        return max(variance, _LEAST_VARIANCE)

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
        after, factor = [[*known, *names] for names in more], position.noise
        variances = np.minimum([self.variance(names, errors, factor, self.misfit) for names in after], position.sd**2)
        # The expectation moves by what the regression says, without the misfit.
        moved = self.variance(known, errors, factor) - np.array([self.variance(names, errors, factor) for names in after])
        means = position.pc1 + np.sqrt(np.maximum(moved, 0.0))[:, None] * _NODES
        best, worst = rank_intervals(means.ravel(), np.sqrt(variances).repeat(len(_NODES)), self.rivals)
        return (worst - best).reshape(means.shape).astype(np.float64)

    def _places(self, names: Sequence[str] | Mapping[str, float]) -> list[int]:
        known = set(names)
        return [place for place, task in enumerate(self.tasks) if task in known]

    def _weights(self, places: list[int], excess: Floats) -> Floats:
        """Return the weights of the scores of another training, shape (places,)."""
        within = self.exact + self.run
        weights = regression_weights(within, self.loadings, places, excess)
        if not 0 < len(places) < len(self.tasks):
            return weights
        spread = weights @ (within + self.shift)[np.ix_(places, places)] @ weights + weights**2 @ excess
        return weights * np.clip(weights @ (self.exact @ self.loadings)[places] / spread, 0.0, 1.0)

    def _excess(self, places: list[int], errors: Mapping[str, float]) -> Floats:
        """Return the variance of scores with these standard errors beyond that with the usual ones, shape (places,)."""
        usual = self.usual_errors[places]
        own = np.array([errors.get(self.tasks[place], error) for place, error in zip(places, usual, strict=True)])
        return np.asarray(np.maximum(np.where(np.isfinite(own), own, usual) ** 2 - usual**2, 0.0))


def rank_intervals(means: Floats, sds: Floats, rivals: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the intervals of ranks whose probability is nearest to 95%, as best ranks and worst ranks, each of shape (models,).

    A model's rank is 1 + the number of rivals with a larger PC1. Of all intervals of one length the likeliest counts. Ranks are
    whole numbers, so that the shortest interval with at least 95% would hold more than 95% on average. Therefore the one with one
    rank less is returned where its probability is nearer to 95%.

    Args:
        means: expected PC1 of each model, shape (models,).
        sds: its standard deviation, shape (models,).
        rivals: PC1 of the other models in ascending order, shape (rivals,).
    """
    below = ndtr((np.concatenate([[-np.inf], rivals, [np.inf]]) - means[:, None]) / sds[:, None])
    count = len(rivals) + 1
    # For each upper end, the largest lower end of an interval with at least 95%. The ends limit the ranks count, ..., 1.
    limits = means[:, None] + sds[:, None] * ndtri(np.maximum(below - CONFIDENCE, 0.0))
    lengths = np.arange(count + 1) - np.searchsorted(rivals, limits, side="right")
    lengths = np.where(below >= CONFIDENCE, lengths, count).min(axis=1)
    start, held = _likeliest(below, lengths)
    shorter_start, shorter_held = _likeliest(below, np.maximum(lengths - 1, 1))
    is_nearer = CONFIDENCE - shorter_held < held - CONFIDENCE
    lengths = np.where(is_nearer, np.maximum(lengths - 1, 1), lengths)
    start = np.where(is_nearer, shorter_start, start)
    return count + 1 - start - lengths, count - start


def _likeliest(below: Floats, lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return where the likeliest interval of each model starts, and its probability.

    Args:
        below: probability below each end of a rank, models x (ranks + 1).
        lengths: number of ranks in the interval, shape (models,).
    """
    stops = np.arange(below.shape[1]) + lengths[:, None]
    inside = stops < below.shape[1]
    held = np.where(inside, np.take_along_axis(below, np.where(inside, stops, 0), axis=1) - below, -1.0)
    return held.argmax(axis=1), held.max(axis=1)
