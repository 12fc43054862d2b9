"""Do benchmarks order models alike? Kendall's tau-b, Pearson's r and decision accuracy between every two of them.

tau-b (Kendall 1945) of two benchmarks is (C - D) / sqrt(n_1 n_2): C and D are the pairs of models that they order alike and
unlike, n_1 and n_2 the pairs that the first and the second tell apart. Decision accuracy is C / (C + D), over the pairs that
both tell apart. Gaps: every two benchmarks are compared on the models that have both scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import ModelMetadata
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.errors import UsageError

Grouping = Literal["family", "kind", "size"]
SIZES = ((0.0, 1.0), (1.0, 3.0), (3.0, 8.0), (8.0, float("inf")))
"""Classes of size in billions of parameters: from, up to but without."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankAgreement:
    """Agreement between the columns of two tables: all three tables are left benchmarks x right benchmarks."""

    tau: pd.DataFrame
    """Kendall's tau-b; NaN where one of the two tells no models apart."""
    decision: pd.DataFrame
    """Share of the pairs of models that both tell apart and order alike."""
    models: pd.DataFrame
    """Models that have both scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """How the benchmarks of one preparation agree."""

    preparation: Preparation
    """Of which scores."""
    models: tuple[str, ...]
    """Models looked at; ``common`` has how many each pair stands on."""
    benchmarks: tuple[str, ...]
    """Benchmarks, in the tables' order."""
    tau: pd.DataFrame
    """Kendall's tau-b, benchmarks x benchmarks."""
    pearson: pd.DataFrame
    """Pearson's correlation, benchmarks x benchmarks."""
    decision: pd.DataFrame
    """Decision accuracy, benchmarks x benchmarks."""
    common: pd.DataFrame
    """Models that each two benchmarks share."""
    categories: tuple[str, ...]
    """Category of each benchmark."""

    @property
    def mean_tau(self) -> float:
        """Mean of tau over all pairs of different benchmarks."""
        return float(np.nanmean(upper_triangle(self.tau)))

    @property
    def mean_pearson(self) -> float:
        """Mean of Pearson's correlation over all pairs of different benchmarks."""
        return float(np.nanmean(upper_triangle(self.pearson)))

    @property
    def mean_decision(self) -> float:
        """Mean decision accuracy over all pairs of different benchmarks."""
        return float(np.nanmean(upper_triangle(self.decision)))

    def by_benchmark(self) -> pd.Series[float]:
        """Return each benchmark's mean tau with all others."""
        others = self.tau.where(~np.eye(len(self.benchmarks), dtype=bool))
        return others.mean(axis=1)

    def by_category(self) -> pd.DataFrame:
        """Return mean tau of each category: within it (NaN: one benchmark), with the others, and both together."""
        tau = self.tau.to_numpy()
        different = ~np.eye(len(self.benchmarks), dtype=bool)
        names = np.array(self.categories)
        table = {}
        for category in dict.fromkeys(self.categories):
            inside = names == category
            within = _mean(tau[np.ix_(inside, inside)][different[np.ix_(inside, inside)]])
            across = _mean(tau[np.ix_(inside, ~inside)])
            # A pair inside the category counts for each of its two benchmarks, so this is the mean of their own means.
            table[category] = [int(inside.sum()), within, across, _mean(tau[inside][different[inside]])]
        return pd.DataFrame.from_dict(table, orient="index", columns=["benchmarks", "within", "across", "mean"])


@dataclass(frozen=True, kw_only=True, eq=False)
class AgreementChange:
    """What train-before-test does to agreement."""

    direct: Agreement
    """Of the untouched models."""
    trained: Agreement
    """After train-before-test."""
    pairs: int
    """Pairs of benchmarks with a tau in both."""
    improved: float
    """Share of them whose tau is larger after training."""


def agreement(matrix: ScoreMatrix, preparation: Preparation = "trained") -> Agreement:
    """Compare every two benchmarks of ``matrix``.

    Raises:
        UsageError: that preparation has no scores, or there are fewer than two benchmarks or models.
    """
    if not matrix.has(preparation):
        raise UsageError(f"agreement: {matrix.source} has no {preparation} scores. {_remedy(preparation)}")
    if len(matrix.benchmarks) < 2 or len(matrix.models) < 2:
        raise UsageError(f"agreement needs two benchmarks and two models, {matrix.source} has fewer. Run more of them.")
    values = matrix.oriented(preparation)
    ordered = rank_agreement(values, values)
    return Agreement(
        preparation=preparation,
        models=matrix.model_names,
        benchmarks=matrix.benchmark_names,
        tau=ordered.tau,
        pearson=values.corr(method="pearson", min_periods=2),
        decision=ordered.decision,
        common=ordered.models,
        categories=tuple(benchmark.category for benchmark in matrix.benchmarks),
    )


def agreement_change(matrix: ScoreMatrix) -> AgreementChange:
    """Compare agreement before and after training, on the benchmarks and models of ``matrix``.

    Raises:
        UsageError: as ``agreement``, for either preparation.
    """
    direct, trained = agreement(matrix, "direct"), agreement(matrix, "trained")
    before, after = upper_triangle(direct.tau), upper_triangle(trained.tau)
    both = np.isfinite(before) & np.isfinite(after)
    improved = float((after > before)[both].mean()) if both.any() else float("nan")
    return AgreementChange(direct=direct, trained=trained, pairs=int(both.sum()), improved=improved)


def rank_agreement(left: pd.DataFrame, right: pd.DataFrame) -> RankAgreement:
    """Compare every column of ``left`` with every column of ``right``; both have the same models as rows, larger is better."""
    first, second = _order(left), _order(right)
    both_known = first.known.T @ second.known
    # Of two columns only pairs of models count that both have: signs are 0 elsewhere, so products need no further mask.
    balance = _counted(first.signs, second.signs)
    told = _counted(np.abs(first.signs), np.abs(second.signs))
    told_left = _counted(np.abs(first.signs), second.known_pairs)
    told_right = _counted(first.known_pairs, np.abs(second.signs))
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = balance / np.sqrt(told_left * told_right)
        decision = (balance + told) / 2 / told
    table = {"index": left.columns, "columns": right.columns}
    return RankAgreement(
        tau=pd.DataFrame(tau, **table),
        decision=pd.DataFrame(decision, **table),
        models=pd.DataFrame(both_known.astype(int), **table),
    )


def kendall(left: pd.Series[float], right: pd.Series[float]) -> float:
    """Return Kendall's tau-b of two series with the same models."""
    return float(rank_agreement(left.to_frame("left"), right.reindex(left.index).to_frame("right")).tau.iloc[0, 0])


def agreement_by(matrix: ScoreMatrix, grouping: Grouping) -> pd.DataFrame:
    """Return mean tau within each family, kind or class of size: group x (models, direct, trained); NaN under three models."""
    groups: dict[str, list[str]] = {_size(*size): [] for size in SIZES} if grouping == "size" else {}
    for model in matrix.models:
        groups.setdefault(group_of(model, grouping), []).append(model.name)
    table = {}
    for group, names in groups.items():
        if not names:
            continue
        part = matrix.subset(models=names)
        means = [
            agreement(part, preparation).mean_tau if len(names) > 2 and part.has(preparation) else float("nan")
            for preparation in ("direct", "trained")
        ]
        table[group] = [len(names), *means]
    return pd.DataFrame.from_dict(table, orient="index", columns=["models", "direct", "trained"])


def group_of(model: ModelMetadata, grouping: Grouping) -> str:
    """Return the family, kind or class of size of a model, or "unknown"."""
    if grouping != "size":
        return getattr(model, grouping) or "unknown"
    if model.params_b is None:
        return "unknown"
    [(low, high)] = [size for size in SIZES if size[0] <= model.params_b < size[1]]
    return _size(low, high)


def _size(low: float, high: float) -> str:
    return f"{low:g} B and more" if high == float("inf") else f"{low:g} to {high:g} B"


def upper_triangle(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the values of a symmetric table above its diagonal."""
    rows, columns = np.triu_indices(len(table), k=1)
    return table.to_numpy(dtype=float)[rows, columns]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Order:
    signs: npt.NDArray[np.floating[Any]]
    """Pairs of models x columns: 1 the first is better, -1 the second, 0 equal or unknown."""
    known_pairs: npt.NDArray[np.floating[Any]]
    """Pairs of models x columns: 1 where both scores are there."""
    known: npt.NDArray[np.floating[Any]]
    """Models x columns: 1 where the score is there."""


def _order(table: pd.DataFrame) -> _Order:
    values = table.to_numpy(dtype=float)
    known = np.isfinite(values)
    first, second = np.triu_indices(len(values), k=1)
    pairs = known[first] & known[second]
    signs = np.where(pairs, np.sign(np.nan_to_num(values)[first] - np.nan_to_num(values)[second]), 0)
    # Counts of pairs stay exact in float32 up to 2^24: 5,793 models.
    kind = np.float32 if len(first) < 2**24 else np.float64
    return _Order(signs.astype(kind), pairs.astype(kind), known.astype(kind))


def _counted(left: npt.NDArray[np.floating[Any]], right: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return sums over pairs of models, columns of ``left`` x columns of ``right``."""
    return (left.T @ right).astype(np.float64)


def _mean(values: npt.NDArray[np.float64]) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _remedy(preparation: Preparation) -> str:
    return "Run with --eval_before_train (direct: true)." if preparation == "direct" else "Run with the test split scored."
