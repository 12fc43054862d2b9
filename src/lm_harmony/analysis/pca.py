"""Principal components of the score matrix, and the fitted board that a new model is measured against.

Every benchmark's column is standardised over the models (mean 0, population standard deviation 1, as the published board does),
turned so that larger is better, and the matrix Z (models x benchmarks) is decomposed: Z = U S V'. Component scores are U S,
shown times 100; a component's share of the variance is S_k^2 / sum(S^2); its loadings are the columns of V.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import Basis, Preparation
from lm_harmony.errors import UsageError

PC1_SCALE = 100
"""Component scores are shown times this."""
FORMAT = 1
"""Version of the arithmetic and of ``ReferenceBoard.to_dict``."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Principal components of one preparation."""

    preparation: Preparation
    """Of which scores."""
    basis: Basis
    """The models and benchmarks they stand on."""
    explained: tuple[float, ...]
    """Share of the variance of each component, largest first; they sum to 1."""
    loadings: pd.DataFrame
    """Benchmarks x components (columns 1, 2, ...): unit vectors."""
    scores: pd.DataFrame
    """Models x components, times 100."""
    means: pd.Series[float]
    """Mean of each benchmark, in its unit, turned so that larger is better."""
    scales: pd.Series[float]
    """Population standard deviation of each benchmark, in its unit."""

    @property
    def pc1(self) -> pd.Series[float]:
        """The first component's scores by model, times 100."""
        return self.scores[1]

    @property
    def ranks(self) -> pd.Series[int]:
        """Rank by PC1; 1 is the best, equals share the better rank."""
        return ranks(self.pc1)


def components(matrix: ScoreMatrix, preparation: Preparation = "trained") -> Components:
    """Decompose the complete part of ``matrix``; text corpora take part if they are in it (``matrix.downstream()`` has none).

    Each component is turned so that its loadings sum to a positive number: of the first, better is higher.

    Raises:
        UsageError: fewer than two models or benchmarks are left, or a benchmark has one score for all models.
    """
    part, basis = matrix.complete(preparation)
    if len(basis.models) < 2 or len(basis.benchmarks) < 2:
        raise UsageError(
            f"components of the {preparation} scores need two models and two benchmarks without gaps; "
            f"{matrix.source} leaves {basis}. Run what is missing, or choose models and benchmarks."
        )
    values = part.oriented(preparation)
    means, scales = values.mean(), values.std(ddof=0)
    constant = [task for task, scale in scales.items() if scale <= 1e-12]
    if constant:
        raise UsageError(
            f"components: every model has the same {preparation} score on {', '.join(map(str, constant))}. "
            "Leave the benchmark out, or add models."
        )
    left, sizes, right = np.linalg.svd(((values - means) / scales).to_numpy(), full_matrices=False)
    signs = np.where(right.sum(axis=1) < 0, -1.0, 1.0)
    numbers = range(1, len(sizes) + 1)
    return Components(
        preparation=preparation,
        basis=basis,
        explained=tuple(float(share) for share in sizes**2 / (sizes**2).sum()),
        loadings=pd.DataFrame((right * signs[:, None]).T, index=values.columns, columns=numbers),
        scores=pd.DataFrame(left * sizes * signs * PC1_SCALE, index=values.index, columns=numbers),
        means=means,
        scales=scales,
    )


def ranks(pc1: pd.Series[float]) -> pd.Series[int]:
    """Return ranks, 1 for the largest; equals share the better rank, NaN stays without a rank."""
    return pc1.rank(ascending=False, method="min").astype("Int64")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceBoard:
    """A fitted board: what a new model's PC1 is computed with, so that it moves nobody else's."""

    name: str
    """What it was fitted on, in words."""
    preparation: Preparation
    """Of which scores."""
    means: pd.Series[float]
    """By benchmark, in its unit, turned so that larger is better."""
    scales: pd.Series[float]
    """Population standard deviations by benchmark."""
    loadings: pd.Series[float]
    """Of the first component, by benchmark; a unit vector."""
    pc1: pd.Series[float]
    """By model, times 100."""
    explained: float
    """The first component's share of the variance."""

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Benchmarks that it stands on."""
        return tuple(self.loadings.index)

    @property
    def models(self) -> tuple[str, ...]:
        """Models that it stands on."""
        return tuple(self.pc1.index)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of everything in it, to 9 significant digits: two boards with equal ones give equal PC1."""
        return hashlib.sha256(json.dumps(_rounded(self.to_dict()), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        """Name it as tables and pages do."""
        size = f"{len(self.models)} models x {len(self.benchmarks)} benchmarks"
        return f"{self.name}, {self.preparation}, {size}, reference {self.fingerprint} (format {FORMAT})"

    def project(self, oriented: pd.DataFrame) -> pd.Series[float]:
        """Return PC1 of models by this board; NaN for a model that lacks one of its benchmarks.

        Args:
            oriented: scores, larger is better (``ScoreMatrix.oriented``); further benchmarks are not read.
        """
        scores = oriented.reindex(columns=list(self.benchmarks))
        return ((scores - self.means) / self.scales * self.loadings).sum(axis=1, skipna=False) * PC1_SCALE

    def rank(self, pc1: float) -> int:
        """Return the place that a PC1 would take among the board's models."""
        return 1 + int((self.pc1 > pc1).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        tables = {key: getattr(self, key).to_dict() for key in ("means", "scales", "loadings", "pc1")}
        return {"format": FORMAT, "name": self.name, "preparation": self.preparation, "explained": self.explained, **tables}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReferenceBoard:
        """Rebuild what ``to_dict`` returned.

        Raises:
            UsageError: another format.
        """
        if values.get("format") != FORMAT:
            raise UsageError(f"reference board: format {values.get('format')!r} is not {FORMAT}. Fit the board again.")
        tables = {key: pd.Series(values[key], dtype=float) for key in ("means", "scales", "loadings", "pc1")}
        return cls(name=values["name"], preparation=values["preparation"], explained=values["explained"], **tables)


def fit_reference(matrix: ScoreMatrix, preparation: Preparation = "trained") -> ReferenceBoard:
    """Fit a board on the complete part of a matrix.

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
    """Round floats, all the way down, so that the last bits of two linear algebra libraries do not count."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.9g}") if isinstance(value, float) else value
