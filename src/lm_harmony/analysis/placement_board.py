"""The models of a reference board in the form that placements are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import ReferenceBoard
from lm_harmony.analysis.training_noise import NO_NOISE, TrainingNoise
from lm_harmony.errors import UsageError


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
