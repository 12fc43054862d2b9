"""Principal components of the score matrix, and the reference board: a fit that the PC1 of new models is computed with.

Scores are oriented so that larger is better. Each benchmark's column is standardised over the models (mean 0, population standard
deviation 1, as on the published board). The resulting matrix Z (models x benchmarks) has the singular value decomposition
Z = U S V'. The component scores are U S, reported times 100. The share of variance of component k is S_k^2 / sum(S^2), and its
loadings are column k of V. Components that have no variance beyond rounding are left out, because their directions are arbitrary.
N models have at most N - 1 components, because their columns are centred.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import CompletePart, Preparation
from lm_harmony.errors import UsageError, counted

PC1_SCALE = 100
"""Component scores are reported times this factor."""
FORMAT = 1
"""Version of the computation; it is part of the fingerprint."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Principal components of the scores of one preparation."""

    preparation: Preparation
    """Preparation of the scores."""
    basis: CompletePart
    """Models and benchmarks that the components are computed from."""
    explained: tuple[float, ...]
    """Share of the variance of each component, largest first; the shares sum to 1."""
    loadings: pd.DataFrame
    """Loadings, benchmarks x components (columns 1, 2, ...); each column is a unit vector."""
    scores: pd.DataFrame
    """Component scores times 100, models x components."""
    means: pd.Series[float]
    """Mean of each benchmark's oriented scores, in the metric's unit."""
    scales: pd.Series[float]
    """Population standard deviation of each benchmark, in the metric's unit."""

    @property
    def pc1(self) -> pd.Series[float]:
        """The score of each model on the first component, times 100."""
        return self.scores[1]

    @property
    def ranks(self) -> pd.Series[int]:
        """The rank of each model by PC1; 1 is the best, ties share the better rank."""
        return ranks(self.pc1)


def components(matrix: ScoreMatrix, preparation: Preparation = "trained") -> Components:
    """Return the principal components of the complete part of ``matrix``, including its text corpora.

    Use ``matrix.downstream()`` to leave text corpora out. There are as many components as the rank of the standardised matrix, by
    the rule of ``numpy.linalg.matrix_rank`` with the rounding error of the scores. The sign of each component is chosen so that
    its loadings have a positive sum. On the first component, better models therefore have higher scores. If the sum is 0, as for
    two benchmarks with opposite orders, the benchmark whose name comes first has a positive loading.

    Raises:
        UsageError: fewer than two models or benchmarks are left, or all models have the same score on a benchmark.
    """
    part, basis = matrix.complete(preparation)
    if len(basis.models) < 2 or len(basis.benchmarks) < 2:
        raise UsageError(
            f"components of the {preparation} scores need two models and two benchmarks without gaps, but "
            f"{matrix.source} has only {basis}. Run what is missing, or choose other models and benchmarks."
        )
    values = part.oriented(preparation)
    means, scales = values.mean(), values.std(ddof=0)
    constant = [task for task, scale in scales.items() if scale <= 1e-12 * max(1.0, abs(means[task]))]
    if constant:
        raise UsageError(
            f"components: every model has the same {preparation} score on {', '.join(map(str, constant))}. "
            "Leave the benchmark out, or add models."
        )
    standardised = np.ascontiguousarray((values - means) / scales)
    _, sizes, right = np.linalg.svd(standardised, full_matrices=False)
    # A standardised score has the rounding error of its score, divided by the scale of its column.
    rounding = np.finfo(np.float64).eps * max(1.0, float((values.abs().max() / scales).max()))
    rank = min(int((sizes > sizes[0] * max(values.shape) * rounding).sum()), len(values) - 1)
    sizes, right = sizes[:rank], right[:rank]
    sums, first = right.sum(axis=1), right[:, values.columns.get_loc(min(values.columns))]
    signs = np.where(np.abs(sums) < 1e-9, first, sums)  # a sum of 0 has the sign of its rounding
    right = right * np.where(signs < 0, -1.0, 1.0)[:, None]
    # U S is Z V. Summed row by row, models with equal scores get the same bits, and so one rank. U differs by rounding.
    scores = np.column_stack([(standardised * loadings).sum(axis=1) for loadings in right])
    numbers = range(1, len(sizes) + 1)
    return Components(
        preparation=preparation,
        basis=basis,
        explained=tuple(float(share) for share in sizes**2 / (sizes**2).sum()),
        loadings=pd.DataFrame(right.T, index=values.columns, columns=numbers),
        scores=pd.DataFrame(scores * PC1_SCALE, index=values.index, columns=numbers),
        means=means,
        scales=scales,
    )


def ranks(pc1: pd.Series[float]) -> pd.Series[int]:
    """Return ranks, 1 for the largest value. Ties share the better rank, and NaN has no rank."""
    return pc1.rank(ascending=False, method="min").astype("Int64")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceBoard:
    """A fixed fit of the first component: new models are projected onto it and change the PC1 of no other model."""

    name: str
    """Name of the scores that it was fitted on."""
    preparation: Preparation
    """Preparation of the scores."""
    means: pd.Series[float]
    """Mean of the oriented scores by benchmark, in the metric's unit."""
    scales: pd.Series[float]
    """Population standard deviation by benchmark, in the metric's unit."""
    loadings: pd.Series[float]
    """Loadings of the first component by benchmark; a unit vector."""
    pc1: pd.Series[float]
    """PC1 of the fitted models, times 100."""
    explained: float
    """Share of the variance that the first component explains."""

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of the benchmarks that it was fitted on."""
        return tuple(self.loadings.index)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it was fitted on."""
        return tuple(self.pc1.index)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of a hash of its values to 9 significant digits; equal fingerprints give equal PC1."""
        tables = {name: getattr(self, name).to_dict() for name in ("means", "scales", "loadings", "pc1")}
        values = {"format": FORMAT, "name": self.name, "preparation": self.preparation, "explained": self.explained, **tables}
        return hashlib.sha256(json.dumps(_rounded(values), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Return name, size and fingerprint, as tables and pages show them."""
        size = f"{counted(len(self.models), 'model')} x {counted(len(self.benchmarks), 'benchmark')}"
        return f"{self.name}, {self.preparation}, {size}, reference {self.fingerprint} (format {FORMAT})"

    def project(self, oriented: pd.DataFrame) -> pd.Series[float]:
        """Return PC1 of models, times 100; NaN for a model that lacks one of the board's benchmarks.

        Args:
            oriented: oriented scores (``ScoreMatrix.oriented``), models x benchmarks; other benchmarks are ignored.
        """
        scores = oriented.reindex(columns=list(self.benchmarks))
        return ((scores - self.means) / self.scales * self.loadings).sum(axis=1, skipna=False) * PC1_SCALE


def fit_reference(matrix: ScoreMatrix, preparation: Preparation = "trained") -> ReferenceBoard:
    """Return the reference board fitted on the complete part of ``matrix``.

    Raises:
        UsageError: as ``components``.
    """
    fitted = components(matrix, preparation)
    return ReferenceBoard(
        name=matrix.source,
        preparation=preparation,
        means=fitted.means,
        scales=fitted.scales,
        loadings=fitted.loadings[1],
        pc1=fitted.pc1,
        explained=fitted.explained[0],
    )


def _rounded(value: Any) -> Any:
    """Return nested values with floats rounded to 9 significant digits, so that linear algebra libraries agree."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.9g}") if isinstance(value, float) else value
