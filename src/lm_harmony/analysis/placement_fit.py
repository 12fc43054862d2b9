"""The regression of PC1 on the scores of some benchmarks, and how far it misses models of a family that it was not fitted on.

Let C be the covariance of the scores on a reference board and PC1 = l'z. The best linear prediction of PC1 from the scores on the
benchmarks k has the weights w = C_kk^-1 (C l)_k and the error u'(z - m) with u = l - w (w is 0 on the other benchmarks), of
variance u'C u. C is estimated by the mean of the sample covariance and of its factor model, in the manner of Ledoit and Wolf
(2003, Improved Estimation of the Covariance Matrix of Stock Returns).

u'C u is too small for a new model, because C was fitted to few models, and more so for one of a new family, because models of one
family deviate from the regression together. Both are measured by cross-validation on the reference board alone: some models are
predicted by a fit to the others. The mean of the squared errors, each divided by the variance that the fit says, is the
``misfit``. It multiplies u'C u. For a model of a family that the board has, a tenth of the models is left out at once, and
for a model of a new family a whole family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.pca import PC1_SCALE
from lm_harmony.analysis.placement_board import PlacementBoard

FACTORS = 2
"""Number of factors of the covariance's model."""
FACTOR_SHARE = 0.5
"""Weight of the factor model in the covariance; the rest is the weight of the sample covariance."""
_FACTOR_STEPS, _FACTOR_TOLERANCE = 200, 1e-12
"""Largest number of iterations, and the change of the specific variances, as a share of a column's variance, that ends them."""
_FOLDS = 10
"""Largest number of fits of a cross-validation. If there are more families, some are left out together."""
_CHOICES = 8
"""Random choices of benchmarks for each number of benchmarks, over which the misfit is averaged."""

Floats = npt.NDArray[np.float64]


def score_covariance(scores: Floats) -> Floats:
    """Return the mean of the sample covariance and of its factor model (iterated principal factors), columns x columns."""
    (covariance,) = _smoothed(np.cov(scores, rowvar=False)[None])
    return np.asarray(covariance)


def _smoothed(samples_FxKxK: Floats) -> Floats:
    """Return the mean of each sample covariance and of its factor model: F covariances of K columns."""
    variances_FxK = samples_FxKxK.diagonal(axis1=1, axis2=2)
    places = np.arange(variances_FxK.shape[1])
    common_FxKxK, specific_FxK = samples_FxKxK.copy(), variances_FxK * 0.3
    for _ in range(_FACTOR_STEPS):
        common_FxKxK[:, places, places] = variances_FxK - specific_FxK
        sizes, vectors = np.linalg.eigh(common_FxKxK)
        factors = vectors[:, :, -FACTORS:] * np.sqrt(np.maximum(sizes[:, None, -FACTORS:], 0.0))
        before, specific_FxK = specific_FxK, np.maximum(variances_FxK - (factors**2).sum(axis=2), 0.02 * variances_FxK)
        if (np.abs(specific_FxK - before) <= _FACTOR_TOLERANCE * variances_FxK).all():
            break
    modelled_FxKxK = factors @ factors.transpose(0, 2, 1)
    modelled_FxKxK[:, places, places] += specific_FxK
    return np.asarray((1 - FACTOR_SHARE) * samples_FxKxK + FACTOR_SHARE * modelled_FxKxK)


def regression_weights(covariance: Floats, loadings: Floats, places: Sequence[int], excess: Floats | float = 0.0) -> Floats:
    """Return the weights of the scores on some benchmarks in the prediction of PC1, shape (..., places).

    Args:
        covariance: of all scores, ... x benchmarks x benchmarks.
        loadings: of PC1, shape (benchmarks,).
        places: positions of the benchmarks with a score. If no benchmark is missing, the weights are the loadings.
        excess: variance of the scores on ``places`` beyond that in ``covariance``, shape (places,).
    """
    if len(places) == len(loadings):
        return np.broadcast_to(loadings, covariance.shape[:-1])
    chosen = np.asarray(places, dtype=np.int64)
    known = covariance[..., chosen[:, None], chosen] + np.diag(np.broadcast_to(excess, len(chosen)))
    return np.asarray(np.linalg.solve(known, (covariance @ loadings)[..., chosen, None])[..., 0])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold:
    """Models that are left out, and the fit to the others."""

    covariance: Floats
    """Covariance of the others, benchmarks x benchmarks."""
    deviations: Floats
    """Scores of the models left out minus the mean of the others, models x benchmarks."""
    factors: Floats
    """Factor of all variances of the models left out, shape (models,)."""


def _folds(board: PlacementBoard, groups: pd.Series[str]) -> list[_Fold]:
    numbers = {name: place % _FOLDS for place, name in enumerate(groups.unique())}
    parts = [members.index for _, members in groups.groupby(groups.map(numbers))]
    parts = [names for names in parts if len(board.scores) - len(names) > FACTORS]
    if not parts:
        return []
    rest = [board.scores.drop(index=names).to_numpy() for names in parts]
    covariances = _smoothed(np.stack([np.cov(others, rowvar=False) for others in rest]))
    return [
        _Fold(
            covariance=covariance,
            deviations=board.scores.loc[names].to_numpy() - others.mean(axis=0),
            factors=np.array([board.noise.factor(pc1) for pc1 in board.pc1[names]]),
        )
        for names, others, covariance in zip(parts, rest, covariances, strict=True)
    ]


@lru_cache(maxsize=128)
def misfit(board: PlacementBoard, *, new_family: bool) -> float:
    """Return the factor of u'C u that predictions of left-out models need: the mean over random benchmarks, at least 1.

    Args:
        board: models to fit on and to predict, and the factor of the variances of weak models.
        new_family: leave out whole families, for a model of a family that the board does not have.
    """
    loadings = board.reference.loadings[list(board.scores.columns)].to_numpy() * PC1_SCALE
    random = np.random.default_rng(0)
    counts = np.arange(1, len(loadings)).repeat(_CHOICES)
    chosen = [np.sort(random.permutation(len(loadings))[:count]).tolist() for count in counts]
    folds = _folds(board, board.families if new_family else pd.Series(board.pc1.index, index=board.pc1.index))
    if not folds:
        return 1.0
    covariances = np.stack([fold.covariance for fold in folds])
    rests = np.broadcast_to(loadings, (len(chosen), *covariances.shape[:2])).copy()  # choices x folds x benchmarks
    for rest, places in zip(rests, chosen, strict=True):
        rest[:, places] -= regression_weights(covariances, loadings, places)
    variances = ((rests[:, :, None] @ covariances)[:, :, 0] * rests).sum(axis=2)
    ratios = [
        ((rests[:, place] @ fold.deviations.T) ** 2 / np.outer(variances[:, place], fold.factors)).ravel()
        for place, fold in enumerate(folds)
    ]
    return max(1.0, float(np.concatenate([[1.0], *ratios]).mean()))
