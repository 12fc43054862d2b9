"""Two simulated trainings of the same models, with a noise that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from boards import matrix_of

from lm_harmony.analysis.pca import fit_reference
from lm_harmony.analysis.placement_board import PlacementBoard, placement_board
from lm_harmony.analysis.training_noise import TrainingNoise

MODELS, TASKS, FAMILIES = 30, 8, 5
NOISE = TrainingNoise(run=pd.Series(np.linspace(0.05, 0.3, TASKS)), common_run=0.05, shift=0.1, common_shift=0.08)
"""The noise of the simulated trainings, in units of the exact scores' standard deviation, which is near 1."""


def known_trainings(seed: int, family_sd: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of the same models in two trainings, models x benchmarks.

    Args:
        seed: of the random numbers.
        family_sd: standard deviation of what the models of a family have in common on one benchmark, besides their ability.
    """
    random = np.random.default_rng(seed)
    ability = random.normal(size=(FAMILIES, 1)).repeat(MODELS // FAMILIES, axis=0) * 0.6 + 0.8 * random.normal(size=(MODELS, 1))
    exact = (ability + 0.4 * random.normal(size=(MODELS, TASKS))) / np.sqrt(1.16)
    if family_sd:
        exact += family_sd * random.normal(size=(FAMILIES, TASKS)).repeat(MODELS // FAMILIES, axis=0)
    trainings = []
    for _ in range(2):
        run = NOISE.run.to_numpy() * random.normal(size=exact.shape) + NOISE.common_run * random.normal(size=(MODELS, 1))
        shift = NOISE.shift * random.normal(size=TASKS) + NOISE.common_shift * random.normal()
        trainings.append(exact + run + shift / np.sqrt(2))
    first, second = (
        pd.DataFrame(scores, index=[f"m{i}" for i in range(MODELS)], columns=[f"b{i}" for i in range(TASKS)])
        for scores in trainings
    )
    return first, second


def known_board(first: pd.DataFrame, second: pd.DataFrame) -> tuple[PlacementBoard, pd.DataFrame]:
    """Return a board of the first training that knows the noise, and the second one's scores in its units."""
    matrix = matrix_of(first)
    reference = fit_reference(matrix)
    noise = replace(NOISE, run=pd.Series(NOISE.run.to_numpy(), index=first.columns))
    families = pd.Series([f"f{i // (MODELS // FAMILIES)}" for i in range(MODELS)], index=first.index)
    board = replace(placement_board(matrix, reference, noise), families=families)
    return board, (second - reference.means) / reference.scales
