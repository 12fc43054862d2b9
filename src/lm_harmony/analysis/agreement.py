"""Agreement of benchmarks on the order of models: Kendall's tau-b, Pearson's r and decision accuracy of every two benchmarks.

Kendall's tau-b (Kendall 1945) of two benchmarks is (C - D) / sqrt(n_1 n_2). C and D are the numbers of concordant and discordant
pairs of models. n_1 and n_2 are the numbers of pairs that are not tied on the first and on the second benchmark. Decision
accuracy is C / (C + D), the share of concordant pairs among those that are tied on neither. Every two benchmarks are compared on
the models that have scores on both.
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
"""Size classes in billions of parameters: lower bound (included) and upper bound (excluded)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankAgreement:
    """Agreement between the columns of two tables; each result is a table of left columns x right columns."""

    tau: pd.DataFrame
    """Kendall's tau-b; NaN where all models are tied on one of the two."""
    decision: pd.DataFrame
    """Decision accuracy: share of concordant pairs among the pairs of models that are tied on neither."""
    models: pd.DataFrame
    """Number of models that have both scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Pairwise agreement of the benchmarks for one preparation."""

    preparation: Preparation
    """Preparation of the scores."""
    models: tuple[str, ...]
    """Models that are compared; ``common`` has the number for each pair of benchmarks."""
    benchmarks: tuple[str, ...]
    """Benchmarks, in the order of the tables."""
    tau: pd.DataFrame
    """Kendall's tau-b, benchmarks x benchmarks."""
    pearson: pd.DataFrame
    """Pearson's correlation, benchmarks x benchmarks."""
    decision: pd.DataFrame
    """Decision accuracy, benchmarks x benchmarks."""
    common: pd.DataFrame
    """Number of models with scores on both, benchmarks x benchmarks."""
    categories: tuple[str, ...]
    """Category of each benchmark, in the order of the tables."""

    @property
    def mean_tau(self) -> float:
        """Mean of tau over all pairs of different benchmarks."""
        return float(pd.Series(upper_triangle(self.tau)).mean())

    @property
    def mean_pearson(self) -> float:
        """Mean of Pearson's correlation over all pairs of different benchmarks."""
        return float(pd.Series(upper_triangle(self.pearson)).mean())

    @property
    def mean_decision(self) -> float:
        """Mean decision accuracy over all pairs of different benchmarks."""
        return float(pd.Series(upper_triangle(self.decision)).mean())

    def by_category(self) -> pd.DataFrame:
        """Return mean tau of each category: categories x (benchmarks, within, across, mean).

        ``within`` is the mean over pairs inside the category (NaN for a single benchmark), ``across`` the mean over pairs with
        other categories, and ``mean`` the mean over both.
        """
        tau = self.tau.to_numpy()
        different = ~np.eye(len(self.benchmarks), dtype=bool)
        names = np.array(self.categories)
        table = {}
        for category in dict.fromkeys(self.categories):
            inside = names == category
            within = _mean(tau[np.ix_(inside, inside)][different[np.ix_(inside, inside)]])
            across = _mean(tau[np.ix_(inside, ~inside)])
            # A pair inside the category counts for both of its benchmarks, so this is the mean of the benchmarks' means.
            table[category] = [int(inside.sum()), within, across, _mean(tau[inside][different[inside]])]
        return pd.DataFrame.from_dict(table, orient="index", columns=["benchmarks", "within", "across", "mean"])


@dataclass(frozen=True, kw_only=True, eq=False)
class AgreementChange:
    """Agreement of the benchmarks before and after train-before-test."""

    direct: Agreement
    """Agreement of the direct scores."""
    trained: Agreement
    """Agreement of the trained scores."""
    pairs: int
    """Number of pairs of benchmarks that have a tau for both preparations."""
    improved: float
    """Share of these pairs whose tau is larger after training."""


def agreement(matrix: ScoreMatrix, preparation: Preparation = "trained") -> Agreement:
    """Return the agreement of every two benchmarks of ``matrix``.

    Raises:
        UsageError: the matrix has no scores of that preparation, or fewer than two benchmarks or models.
    """
    if not matrix.has(preparation):
        raise UsageError(f"agreement: {matrix.source} has no {preparation} scores. {_remedy(preparation)}")
    if len(matrix.benchmarks) < 2 or len(matrix.models) < 2:
        raise UsageError(f"agreement: {matrix.source} has fewer than two benchmarks or two models. Run more of them.")
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
    """Return the agreement of the benchmarks of ``matrix`` before and after training.

    Raises:
        UsageError: ``agreement`` raises it for one of the preparations.
    """
    direct, trained = agreement(matrix, "direct"), agreement(matrix, "trained")
    before, after = upper_triangle(direct.tau), upper_triangle(trained.tau)
    both = np.isfinite(before) & np.isfinite(after)
    improved = float((after > before)[both].mean()) if both.any() else float("nan")
    return AgreementChange(direct=direct, trained=trained, pairs=int(both.sum()), improved=improved)


def rank_agreement(left: pd.DataFrame, right: pd.DataFrame) -> RankAgreement:
    """Return the agreement of every column of ``left`` with every column of ``right``.

    Args:
        left: oriented scores, models x benchmarks.
        right: oriented scores of the same models, models x benchmarks.
    """
    first = _order(left)
    second = first if right is left else _order(right)
    both_known = first.known.T @ second.known
    # Only pairs of models with scores in both columns count. Signs are 0 elsewhere, so the products need no mask.
    difference = _sum_over_pairs(first.signs, second.signs)
    untied = _sum_over_pairs(np.abs(first.signs), np.abs(second.signs))
    untied_left = _sum_over_pairs(np.abs(first.signs), second.known_pairs)
    untied_right = _sum_over_pairs(first.known_pairs, np.abs(second.signs))
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = difference / np.sqrt(untied_left * untied_right)
        decision = (difference + untied) / 2 / untied
    table = {"index": left.columns, "columns": right.columns}
    return RankAgreement(
        tau=pd.DataFrame(tau, **table),
        decision=pd.DataFrame(decision, **table),
        models=pd.DataFrame(both_known.astype(int), **table),
    )


def kendall(left: pd.Series[float], right: pd.Series[float]) -> float:
    """Return Kendall's tau-b of two series over the same models."""
    return float(rank_agreement(left.to_frame("left"), right.reindex(left.index).to_frame("right")).tau.iloc[0, 0])


def agreement_by(matrix: ScoreMatrix, grouping: Grouping) -> pd.DataFrame:
    """Return the benchmarks' mean tau over the models of each family, kind or size class.

    The table is groups x (models, direct, trained). Groups of fewer than three models have NaN.
    """
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
    """Return the family, kind or size class of a model, or "unknown"."""
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
    """Pairs of models x columns: 1 if the first model is better, -1 if the second is, 0 if they are tied or one is missing."""
    known_pairs: npt.NDArray[np.floating[Any]]
    """Pairs of models x columns: 1 where both scores are known, else 0."""
    known: npt.NDArray[np.floating[Any]]
    """Models x columns: 1 where the score is known, else 0."""


def _order(table: pd.DataFrame) -> _Order:
    values = table.to_numpy(dtype=float)
    known = np.isfinite(values)
    first, second = np.triu_indices(len(values), k=1)
    pairs = known[first] & known[second]
    signs = np.where(pairs, np.sign(np.nan_to_num(values)[first] - np.nan_to_num(values)[second]), 0)
    # float32 counts pairs exactly up to 2^24, which is the number of pairs of 5,793 models.
    kind = np.float32 if len(first) < 2**24 else np.float64
    return _Order(signs.astype(kind), pairs.astype(kind), known.astype(kind))


def _sum_over_pairs(left: npt.NDArray[np.floating[Any]], right: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return sums of products over pairs of models, columns of ``left`` x columns of ``right``."""
    return (left.T @ right).astype(np.float64)


def _mean(values: npt.NDArray[np.float64]) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _remedy(preparation: Preparation) -> str:
    return "Run without --no-eval_before_train (direct: true)." if preparation == "direct" else "Run with the test split scored."
