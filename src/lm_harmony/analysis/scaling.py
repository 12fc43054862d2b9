"""PC1 against what a model cost: its parameters, and its pre-training compute (6 x parameters x tokens)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import Components


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """How PC1 goes with size."""

    table: pd.DataFrame
    """Models x (family, kind, params_b in billions, compute in FLOPs, pc1 times 100); NaN: not known."""
    pearson: dict[str, float]
    """"params_b" and "compute" -> Pearson's correlation of PC1 with their logarithm, over the models where it is known."""
    spearman: dict[str, float]
    """The same with Spearman's rank correlation."""
    known: dict[str, int]
    """The same: on how many models."""


def scaling(matrix: ScoreMatrix, fitted: Components) -> Scaling:
    """Lay PC1 beside size; models whose size or tokens nobody published have NaN and do not count in the correlations.

    Args:
        matrix: has the models' facts.
        fitted: has their PC1.
    """
    facts = [model for model in matrix.models if model.name in fitted.pc1.index]
    table = pd.DataFrame(
        {
            "family": [model.family or "unknown" for model in facts],
            "kind": [model.kind or "unknown" for model in facts],
            "params_b": [np.nan if model.params_b is None else model.params_b for model in facts],
            "compute": [np.nan if model.compute is None else model.compute for model in facts],
            "pc1": [float(fitted.pc1[model.name]) for model in facts],
        },
        index=[model.name for model in facts],
    )
    pearson, spearman, known = {}, {}, {}
    for size in ("params_b", "compute"):
        there = table[table[size].notna()]
        known[size] = len(there)
        varied = len(there) > 2 and there[size].nunique() > 1
        pearson[size] = float(stats.pearsonr(np.log(there[size]), there["pc1"]).statistic) if varied else float("nan")
        spearman[size] = float(stats.spearmanr(there[size], there["pc1"]).statistic) if varied else float("nan")
    return Scaling(table=table, pearson=pearson, spearman=spearman, known=known)
