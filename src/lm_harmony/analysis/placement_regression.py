"""The regression behind placements: PC1 predicted from a few benchmarks, validated on model families that the fit has not seen.

PC1 of the reference board's models is regressed on their standardised scores on some benchmarks. The regression is a ridge
regression with an unpenalised intercept. Its penalty is the one of ``PENALTIES`` with the smallest squared error in
leave-one-family-out cross-validation. Whole families are left out because models of one family resemble each other: leaving
out single models would underestimate the error. Prediction intervals are CV+ intervals (Barber, Candes, Ramdas, Tibshirani 2021)
with families as folds. They assume no distribution, only that the error on a new model is like the error on a new family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import ReferenceBoard
from lm_harmony.analysis.training_noise import NO_NOISE, TrainingNoise
from lm_harmony.errors import UsageError

PENALTIES = (0.0, 0.1, 1.0, 5.0)
"""Ridge penalties to choose from, for standardised scores."""
CONFIDENCE = 0.95
"""Nominal coverage of prediction intervals."""

Floats = npt.NDArray[np.float64]


class LeaveOneFamilyOutRidge:
    """Ridge regressions of PC1 on some benchmarks: one on all models, and one without each family."""

    def __init__(self, scores: Floats, pc1: Floats, families: npt.NDArray[np.str_]) -> None:
        """Choose the penalty by cross-validation and fit on all models.

        Args:
            scores: standardised scores, shape (models, benchmarks).
            pc1: first principal component, shape (models,).
            families: family names, shape (models,).
        """
        self.design: Floats = np.column_stack([np.ones(len(scores)), scores])
        self.families = families
        self._target = pc1
        self.penalty = min(PENALTIES, key=lambda penalty: float(((self.predict_left_out(penalty) - self._target) ** 2).mean()))
        self.weights = self.solve(self.penalty)

    def solve(self, penalty: float, kept: npt.NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Return intercept and weights, shape (1 + benchmarks,), fitted on the models selected by ``kept``."""
        design: Floats = self.design[kept]
        gram = design.T @ design + np.diag([0.0, *[penalty] * (design.shape[1] - 1)])
        return np.asarray(np.linalg.lstsq(gram, design.T @ self._target[kept], rcond=None)[0], dtype=np.float64)

    def predict_left_out(self, penalty: float, kept: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Return PC1 of each kept model, predicted by the fit without its family, shape (models,); NaN for other models."""
        kept = np.ones(len(self.design), dtype=bool) if kept is None else kept
        predicted = np.full(len(self.design), np.nan)
        for family in np.unique(self.families[kept]):
            members = kept & (self.families == family)
            predicted[members] = self.design[members] @ self.solve(penalty, kept & ~members)
        return predicted

    def intervals(self, rows: Floats, kept: npt.NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
        """Return lower and upper ends of the CV+ prediction intervals of some models.

        Args:
            rows: a one and the standardised scores of each model, shape (models to predict, 1 + benchmarks).
            kept: models to fit on, shape (models,); None: all.
        """
        kept = np.ones(len(self.design), dtype=bool) if kept is None else kept
        residuals = np.abs(self.predict_left_out(self.penalty, kept) - self._target)[kept]
        fits = {family: self.solve(self.penalty, kept & (self.families != family)) for family in np.unique(self.families[kept])}
        predicted = rows @ np.array([fits[family] for family in self.families[kept]]).T
        cut = max(1, int((1 - CONFIDENCE) * (len(residuals) + 1)))
        low, high = np.sort(predicted - residuals, axis=1), np.sort(predicted + residuals, axis=1)
        return low[:, cut - 1], high[:, len(residuals) - cut]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacementBoard:
    """The scores, PC1 and families of the models that placements are fitted on."""

    reference: ReferenceBoard
    """Reference board whose PC1 is predicted."""
    scores: pd.DataFrame
    """Scores standardised as on the reference board, larger is better; models x benchmarks."""
    pc1: pd.Series[float]
    """First principal component by model, times 100."""
    families: pd.Series[str]
    """Family by model; a model without a known family forms its own."""
    train_rows: pd.Series[float]
    """Training rows by benchmark, before caps; NaN: not known."""
    stderrs: pd.Series[float]
    """Mean standard error by benchmark, in standardised units; NaN: not known."""
    noise: TrainingNoise = NO_NOISE
    """What differs between the training of the reference board and that of a new model."""

    def without(self, models: Sequence[str]) -> PlacementBoard:
        """Return the board without some models; the reference board and the PC1 values stay the same."""
        if not set(models) & set(self.pc1.index):
            return self
        kept = [name for name in self.pc1.index if name not in set(models)]
        return replace(self, scores=self.scores.loc[kept], pc1=self.pc1[kept], families=self.families[kept])


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacementValidation:
    """Leave-one-family-out errors of placements by some benchmarks."""

    benchmarks: tuple[str, ...]
    """Benchmarks that PC1 was predicted from."""
    penalty: float
    """Ridge penalty with the smallest ``rmse``; choosing it so makes ``rmse`` slightly optimistic."""
    predicted: pd.Series[float]
    """PC1 of each model, predicted without its family."""
    tau: float
    """Kendall's tau-b between ``predicted`` and the PC1 of the reference board, over all its models."""
    rmse: float
    """Root mean squared error of PC1, times 100."""
    rank_error: float
    """Mean absolute error of the rank."""
    coverage: float
    """Share of models whose PC1 lies in the interval that was made without their family."""


def placement_board(matrix: ScoreMatrix, reference: ReferenceBoard, noise: TrainingNoise = NO_NOISE) -> PlacementBoard:
    """Standardise the scores of the reference board's models, taken from ``matrix``; ``noise``: of a repeated training.

    Raises:
        UsageError: the models are of fewer than three families, too few to leave one out.
    """
    part = matrix.subset(reference.models, reference.benchmarks)
    families = pd.Series({model.name: model.family or model.name for model in part.models})
    if families.nunique() < 3:
        raise UsageError(
            f"placement: {reference.name} has models of {families.nunique()} families, but at least 3 are needed. Add models."
        )
    stderrs = part.scores(reference.preparation).stderrs.mean() / reference.scales
    rows = {benchmark.task: np.nan if benchmark.train_rows is None else benchmark.train_rows for benchmark in part.benchmarks}
    return PlacementBoard(
        reference=reference,
        scores=(part.oriented(reference.preparation) - reference.means) / reference.scales,
        pc1=reference.pc1,
        families=families,
        train_rows=pd.Series(rows),
        stderrs=stderrs,
        noise=noise,
    )


@lru_cache(maxsize=128)  # most models of a study have the same benchmarks
def fit_placement(board: PlacementBoard, benchmarks: tuple[str, ...]) -> LeaveOneFamilyOutRidge:
    """Return the regression of PC1 on ``benchmarks``, fitted on the models of ``board``."""
    return LeaveOneFamilyOutRidge(
        board.scores[list(benchmarks)].to_numpy(), board.pc1.to_numpy(), board.families.to_numpy(dtype=str)
    )


def validate(board: PlacementBoard, benchmarks: Sequence[str]) -> PlacementValidation:
    """Predict the PC1 of every model of ``board`` from ``benchmarks`` with its family left out, and return the errors."""
    return _validate(board, tuple(benchmarks))


@lru_cache(maxsize=128)
def _validate(board: PlacementBoard, benchmarks: tuple[str, ...]) -> PlacementValidation:
    fit = fit_placement(board, benchmarks)
    truth = board.pc1.to_numpy()
    predicted = fit.predict_left_out(fit.penalty)
    covered = np.zeros(len(truth), dtype=bool)
    for family in np.unique(fit.families):
        members = fit.families == family
        low, high = fit.intervals(fit.design[members], ~members)
        covered[members] = (low <= truth[members]) & (truth[members] <= high)
    ahead = truth[None, :] > predicted[:, None]
    np.fill_diagonal(ahead, False)
    true_ranks = board.pc1.rank(ascending=False).to_numpy()
    return PlacementValidation(
        benchmarks=benchmarks,
        penalty=fit.penalty,
        predicted=pd.Series(predicted, index=board.pc1.index),
        tau=kendall(pd.Series(predicted, index=board.pc1.index), board.pc1),
        rmse=float(np.sqrt(((predicted - truth) ** 2).mean())),
        rank_error=float(np.abs(1 + ahead.sum(axis=1) - true_ranks).mean()),
        coverage=float(covered.mean()),
    )
