"""What each benchmark is worth for ranking models, in one table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.noise_ceiling import noise_ceiling
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.analysis.significance import distinguishable_pairs
from lm_harmony.errors import UsageError, counted

COLUMNS = ("signal_to_noise", "distinguishable", "retest_tau", "pearson_rest", "tau_rest", "mean_tau", "mean_pearson")
"""Columns of the table of ``benchmark_quality``."""


def benchmark_quality(matrix: ScoreMatrix, preparation: Preparation = "trained") -> pd.DataFrame:
    """Return the quality of every benchmark of the complete part of ``matrix``, benchmarks x ``COLUMNS``; NaN: not known.

    ``signal_to_noise`` is the standard deviation of the models' true scores divided by the root mean square of their standard
    errors, sqrt(reliability / (1 - reliability)). ``distinguishable`` is the share of pairs of models that differ after Holm's
    correction. ``retest_tau`` is the expected tau of two measurements with other questions (``noise_ceiling``). ``pearson_rest``
    and ``tau_rest`` are the correlations with PC1 of the other benchmarks. ``mean_tau`` and ``mean_pearson`` are the means over
    all other benchmarks, the rows of the paper's figures.

    Raises:
        UsageError: fewer than three benchmarks have scores of all models, or PC1 cannot be computed.
    """
    part, _ = matrix.downstream().complete(preparation)
    if len(part.benchmarks) < 3:
        raise UsageError(
            f"benchmark quality: {matrix.source} has {counted(len(part.benchmarks), 'benchmark')} without gaps, but 3 are needed."
        )
    table = pd.DataFrame(np.nan, index=list(part.benchmark_names), columns=list(COLUMNS))
    try:
        ceiling = noise_ceiling(part, preparation)
        ratio = ceiling.reliability / (1 - ceiling.reliability)
        table["signal_to_noise"], table["retest_tau"] = np.sqrt(ratio), ceiling.retest
    except UsageError:  # without standard errors, the other columns are still known
        pass
    table["distinguishable"] = distinguishable_pairs(part, preparation)["holm"]
    values = part.oriented(preparation)
    pearson, tau = values.corr(), values.corr(method=lambda a, b: kendall(pd.Series(a), pd.Series(b)))
    for task in part.benchmark_names:
        others = [other for other in part.benchmark_names if other != task]
        pc1 = components(part.subset(benchmarks=others), preparation).pc1
        table.loc[task, "pearson_rest"], table.loc[task, "tau_rest"] = values[task].corr(pc1), kendall(values[task], pc1)
        table.loc[task, "mean_tau"], table.loc[task, "mean_pearson"] = (
            tau.loc[task, others].mean(),
            pearson.loc[task, others].mean(),
        )
    return table
