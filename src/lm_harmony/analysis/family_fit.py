"""Ridge regression that is judged by what it predicts of families it has not seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PENALTIES = (0.0, 0.1, 1.0, 5.0)
"""Ridge penalties that are tried, on standardised scores."""
CONFIDENCE = 0.95
"""Intended share of intervals that hold the truth."""

Floats = npt.NDArray[np.float64]


class FamilyFit:
    """Ridge regressions of PC1 on some benchmarks: of all models, and of all but one family."""

    def __init__(self, scores: Floats, pc1: Floats, families: npt.NDArray[np.str_]) -> None:
        """Fit, and choose the penalty.

        Args:
            scores: models x benchmarks, standardised.
            pc1: by model.
            families: by model.
        """
        self.design: Floats = np.column_stack([np.ones(len(scores)), scores])
        self.families = families
        self._target = pc1
        self.penalty = min(PENALTIES, key=lambda penalty: float(((self.left_out(penalty) - self._target) ** 2).mean()))
        self.weights = self.solve(self.penalty)

    def solve(self, penalty: float, kept: npt.NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Return intercept and weights, fitted on the models that are kept."""
        design: Floats = self.design[kept]
        gram = design.T @ design + np.diag([0.0, *[penalty] * (design.shape[1] - 1)])
        return np.asarray(np.linalg.lstsq(gram, design.T @ self._target[kept], rcond=None)[0], dtype=np.float64)

    def left_out(self, penalty: float, kept: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Return each kept model's PC1, predicted without its family; NaN for the others."""
        kept = np.ones(len(self.design), dtype=bool) if kept is None else kept
        predicted = np.full(len(self.design), np.nan)
        for family in np.unique(self.families[kept]):
            members = kept & (self.families == family)
            predicted[members] = self.design[members] @ self.solve(penalty, kept & ~members)
        return predicted

    def intervals(self, rows: Floats, kept: npt.NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
        """Return the CV+ intervals of models, from the kept ones.

        Args:
            rows: models x (1, standardised scores).
            kept: models to fit on; None: all.
        """
        kept = np.ones(len(self.design), dtype=bool) if kept is None else kept
        misses = np.abs(self.left_out(self.penalty, kept) - self._target)[kept]
        fits = {family: self.solve(self.penalty, kept & (self.families != family)) for family in np.unique(self.families[kept])}
        predicted = rows @ np.array([fits[family] for family in self.families[kept]]).T
        cut = max(1, int((1 - CONFIDENCE) * (len(misses) + 1)))
        low, high = np.sort(predicted - misses, axis=1), np.sort(predicted + misses, axis=1)
        return low[:, cut - 1], high[:, len(misses) - cut]
