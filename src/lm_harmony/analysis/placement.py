"""Where a new model stands on the published board, from the few benchmarks it was scored on.

PC1 of the board's models is regressed on their standardised scores on those benchmarks (ridge with a free intercept; the penalty
is the one of ``PENALTIES`` that leaves the smallest error when whole families are left out). Families are left out because models
of one family resemble each other: leaving out single models would flatter the error. Intervals are CV+ (Barber, Candes, Ramdas,
Tibshirani 2021) with families as folds: no distribution is assumed, only that a new model errs as a new family did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import ndtri

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.family_fit import CONFIDENCE, FamilyFit, Floats
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import SHOWN, ReferenceBoard
from lm_harmony.errors import UsageError

_NORMAL = float(ndtri((1 + CONFIDENCE) / 2))
"""Standard errors of a normal distribution's half interval."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacementBoard:
    """What placements are fitted on."""

    reference: ReferenceBoard
    """Whose PC1 is predicted."""
    scores: pd.DataFrame
    """Models x benchmarks: standardised as the reference does, larger is better."""
    pc1: pd.Series[float]
    """By model, times 100."""
    families: pd.Series[str]
    """Family by model; a model without a known one is a family of its own."""
    train_rows: pd.Series[float]
    """Training rows by benchmark, before caps."""
    stderrs: pd.Series[float]
    """Mean standard error by benchmark, standardised; NaN: not known."""

    def without(self, models: Sequence[str]) -> PlacementBoard:
        """Return the board without some models; the reference and its PC1 stay."""
        if not set(models) & set(self.pc1.index):
            return self
        kept = [name for name in self.pc1.index if name not in set(models)]
        return replace(self, scores=self.scores.loc[kept], pc1=self.pc1[kept], families=self.families[kept])


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """How well some benchmarks place models of families that the fit has not seen."""

    benchmarks: tuple[str, ...]
    """The benchmarks."""
    penalty: float
    """The ridge penalty that was chosen (by ``rmse``, which is thereby slightly flattered)."""
    predicted: pd.Series[float]
    """PC1 of each model, predicted without its family."""
    tau: float
    """Kendall's tau-b between ``predicted`` and the reference's PC1, over all its models."""
    rmse: float
    """Root mean squared error of PC1, times 100."""
    rank_error: float
    """Mean absolute error of the rank."""
    coverage: float
    """Share of models whose PC1 lies in an interval made without their family."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model stands."""

    model: str
    """The model."""
    benchmarks: tuple[str, ...]
    """The benchmarks it was placed by."""
    missing: tuple[str, ...]
    """Benchmarks of the reference that it lacks."""
    pc1: float
    """Its PC1 on the reference, times 100: exact where nothing is missing, else predicted."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    rank: int
    """The place it would take among the reference's other models."""
    rank_low: int
    """Its best place."""
    rank_high: int
    """Its worst place."""
    of: int
    """How many other models it is ranked among."""
    outside: tuple[str, ...]
    """Benchmarks on which it lies outside of what the reference's models scored: there the fit extrapolates."""
    validation: Validation
    """How well these benchmarks place the reference's models."""


def placement_board(matrix: ScoreMatrix, reference: ReferenceBoard) -> PlacementBoard:
    """Lay out the reference's models for placement; ``matrix`` has their scores.

    Raises:
        UsageError: the models are of fewer than three families, so that none can be left out.
    """
    part = matrix.subset(reference.models, reference.benchmarks)
    families = pd.Series({model.name: model.family or model.name for model in part.models})
    if families.nunique() < 3:
        raise UsageError(f"placement needs models of three families, {reference.name} has {families.nunique()}.")
    stderrs = part.scores(reference.preparation).stderrs.mean() / reference.scales
    return PlacementBoard(
        reference=reference,
        scores=(part.oriented(reference.preparation) - reference.means) / reference.scales,
        pc1=reference.pc1,
        families=families,
        train_rows=pd.Series({fact.task: np.nan if fact.train_rows is None else fact.train_rows for fact in part.benchmarks}),
        stderrs=stderrs,
    )


def validate(board: PlacementBoard, benchmarks: Sequence[str]) -> Validation:
    """Predict every model of ``board`` from ``benchmarks`` with its family left out."""
    return _validated(board, tuple(benchmarks))


@lru_cache(maxsize=128)
def _validated(board: PlacementBoard, benchmarks: tuple[str, ...]) -> Validation:
    fit = _fit(board, benchmarks)
    truth = board.pc1.to_numpy()
    predicted = fit.left_out(fit.penalty)
    covered = np.zeros(len(truth), dtype=bool)
    for family in np.unique(fit.families):
        held = fit.families == family
        low, high = fit.intervals(fit.design[held], ~held)
        covered[held] = (low <= truth[held]) & (truth[held] <= high)
    ahead = truth[None, :] > predicted[:, None]
    np.fill_diagonal(ahead, False)
    places = board.pc1.rank(ascending=False).to_numpy()
    return Validation(
        benchmarks=benchmarks,
        penalty=fit.penalty,
        predicted=pd.Series(predicted, index=board.pc1.index),
        tau=kendall(pd.Series(predicted, index=board.pc1.index), board.pc1),
        rmse=float(np.sqrt(((predicted - truth) ** 2).mean())),
        rank_error=float(np.abs(1 + ahead.sum(axis=1) - places).mean()),
        coverage=float(covered.mean()),
    )


def place(board: PlacementBoard, model: str, oriented: pd.Series[float], stderrs: pd.Series[float]) -> Placement:
    """Say where a model stands. A model that is on the board itself is left out of what it is placed by.

    Args:
        board: what to place it on.
        model: its name.
        oriented: its scores by benchmark, in the benchmarks' own units, turned so that larger is better; NaN: not measured.
        stderrs: their standard errors; NaN: not known.

    Raises:
        UsageError: it has none of the reference's benchmarks.
    """
    reference = board.reference
    known = oriented.reindex(reference.benchmarks).dropna()
    if known.empty:
        raise UsageError(
            f"model {model!r} has no {reference.preparation} score on any benchmark of {reference.name}. "
            f"Run one of {', '.join(reference.benchmarks)}."
        )
    others = board.without([model])
    tasks = list(known.index)
    scaled = (known - reference.means[tasks]) / reference.scales[tasks]
    errors = np.nan_to_num((stderrs.reindex(tasks) / reference.scales[tasks]).to_numpy())
    missing = tuple(task for task in reference.benchmarks if task not in tasks)
    if missing:
        pc1, low, high = _predicted(others, scaled, errors)
    else:
        pc1 = float(reference.project(oriented.to_frame().T).iloc[0])
        noise = _NORMAL * float(np.sqrt(((reference.loadings[tasks].to_numpy() * SHOWN * errors) ** 2).sum()))
        low, high = pc1 - noise, pc1 + noise
    ranks = [1 + int((others.pc1 > value).sum()) for value in (pc1, high, low)]
    seen, own = others.scores[tasks].to_numpy(), scaled.to_numpy()
    beyond = (own < seen.min(axis=0)) | (own > seen.max(axis=0))
    return Placement(
        model=model,
        benchmarks=tuple(tasks),
        missing=missing,
        pc1=pc1,
        low=low,
        high=high,
        rank=ranks[0],
        rank_low=ranks[1],
        rank_high=ranks[2],
        of=len(others.pc1),
        outside=tuple(task for task, is_beyond in zip(tasks, beyond, strict=True) if is_beyond),
        validation=validate(others, tasks),
    )


def _predicted(board: PlacementBoard, scaled: pd.Series[float], errors: Floats) -> tuple[float, float, float]:
    """Return PC1 and its interval from some benchmarks.

    Args:
        board: without the model.
        scaled: the model's scores by benchmark, standardised.
        errors: their standard errors, standardised; 0: not known.
    """
    tasks = list(scaled.index)
    fit = _fit(board, tuple(tasks))
    row = np.concatenate([[1.0], scaled.to_numpy()])
    pc1, (lows, highs) = float(row @ fit.weights), fit.intervals(row[None, :])
    low, high = min(float(lows[0]), pc1), max(float(highs[0]), pc1)
    # The fit's misses hold test errors of the usual size already; what the model's own have beyond them comes on top.
    excess = np.maximum(0, errors**2 - np.nan_to_num(board.stderrs[tasks].to_numpy()) ** 2)
    noise = _NORMAL * np.sqrt((fit.weights[1:] ** 2 * excess).sum())
    return pc1, pc1 - float(np.hypot(pc1 - low, noise)), pc1 + float(np.hypot(high - pc1, noise))


def predict(board: PlacementBoard, tasks: list[str], scaled: pd.DataFrame, *, penalty: float) -> Floats:
    """Return PC1 of models, times 100, by the fit of ``board`` on ``tasks``.

    Args:
        board: what is fitted.
        tasks: benchmarks.
        scaled: models x ``tasks``, standardised as the reference does.
        penalty: of the ridge regression.
    """
    weights = _fit(board, tuple(tasks)).solve(penalty)
    return weights[0] + scaled[tasks].to_numpy() @ weights[1:]  # type: ignore[no-any-return]


@lru_cache(maxsize=128)  # the models of one study mostly have the same benchmarks
def _fit(board: PlacementBoard, tasks: tuple[str, ...]) -> FamilyFit:
    return FamilyFit(board.scores[list(tasks)].to_numpy(), board.pc1.to_numpy(), board.families.to_numpy(dtype=str))
