"""How scores go with other quantities: PC1 with model size and pre-training compute, benchmark scores with perplexity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lm_harmony.analysis.agreement import rank_agreement
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import Components
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation
from lm_harmony.errors import UsageError

COMPARISONS: tuple[tuple[Preparation, Preparation], ...] = (("direct", "direct"), ("trained", "trained"), ("direct", "trained"))
"""Compared pairs: (preparation of the perplexity, preparation of the benchmark scores)."""
ALL_MODELS = "all"
"""Name of the group of all models."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """PC1 beside model size and pre-training compute, with correlations."""

    table: pd.DataFrame
    """Models x (family, kind, params_b in billions, compute in FLOPs, pc1 times 100); NaN: not known."""
    pearson: dict[str, float]
    """Pearson correlation of PC1 with the logarithm of "params_b" and of "compute", over models where it is known."""
    spearman: dict[str, float]
    """Spearman rank correlation of PC1 with "params_b" and with "compute"."""
    known: dict[str, int]
    """Number of models with a known "params_b" and with a known "compute"."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PerplexityAgreement:
    """Kendall's tau-b of bits per byte on text corpora with benchmark scores."""

    perplexity: Preparation
    """Preparation of the models whose bits per byte are used."""
    downstream: Preparation
    """Preparation of the models whose benchmark scores are used."""
    group: str
    """Group of models: "all", or a kind: "base", "instruct", "unknown"."""
    models: tuple[str, ...]
    """Models of the group that have bits per byte on every corpus in that preparation."""
    without_perplexity: tuple[str, ...]
    """Models of the group that were left out because a corpus is missing."""
    tau: pd.DataFrame
    """Kendall's tau-b, corpora x benchmarks; NaN where all models are tied on one of the two."""
    pearson: pd.DataFrame
    """Pearson's correlation of the oriented scores, corpora x benchmarks; NaN where all models have one value."""

    @property
    def mean_tau(self) -> float:
        """Mean of tau over corpora and benchmarks."""
        return float(self.tau.stack().mean())

    @property
    def mean_pearson(self) -> float:
        """Mean of Pearson's correlation over corpora and benchmarks."""
        return float(self.pearson.stack().mean())


def scaling(matrix: ScoreMatrix, fitted: Components) -> Scaling:
    """Correlate PC1 with parameters and with pre-training compute (6 x parameters x tokens).

    Models with unknown size or unknown number of tokens have NaN there and are left out of that correlation.

    Args:
        matrix: scores with the models' metadata.
        fitted: principal components with the models' PC1.
    """
    models = [model for model in matrix.models if model.name in fitted.pc1.index]
    table = pd.DataFrame(
        {
            "family": [model.family or "unknown" for model in models],
            "kind": [model.kind or "unknown" for model in models],
            "params_b": [np.nan if model.params_b is None else model.params_b for model in models],
            "compute": [np.nan if model.compute is None else model.compute for model in models],
            "pc1": [float(fitted.pc1[model.name]) for model in models],
        },
        index=[model.name for model in models],
    )
    pearson, spearman, known = {}, {}, {}
    for size in ("params_b", "compute"):
        sized = table[table[size].notna()]
        known[size] = len(sized)
        varied = len(sized) > 2 and sized[size].nunique() > 1
        pearson[size] = float(stats.pearsonr(np.log(sized[size]), sized["pc1"]).statistic) if varied else float("nan")
        spearman[size] = float(stats.spearmanr(sized[size], sized["pc1"]).statistic) if varied else float("nan")
    return Scaling(table=table, pearson=pearson, spearman=spearman, known=known)


def perplexity_agreement(matrix: ScoreMatrix) -> tuple[PerplexityAgreement, ...]:
    """Compare every text corpus of ``matrix`` with every benchmark, for all models and for each kind of model.

    Lower bits per byte are better, so tau is positive where models with lower perplexity have better scores. Comparisons are left
    out if a preparation has no scores. Groups of fewer than three models are left out.

    Raises:
        UsageError: the matrix has no text corpus, or nothing but text corpora.
    """
    corpora, downstream = matrix.perplexities(), matrix.downstream()
    if not corpora.benchmarks or not downstream.benchmarks:
        what = "text corpus" if not corpora.benchmarks else "benchmark beside text corpora"
        raise UsageError(f"perplexity: {matrix.source} has no {what}. Run one, such as --task_name corpus:texts.jsonl.")
    kinds = dict.fromkeys(model.kind or "unknown" for model in matrix.models)
    found = []
    for perplexity, scores in COMPARISONS:
        if not corpora.has(perplexity) or not downstream.has(scores):
            continue
        known = corpora.oriented(perplexity).notna().all(axis=1)
        for group in (ALL_MODELS, *kinds):
            members = [model.name for model in matrix.models if group in (ALL_MODELS, model.kind or "unknown")]
            models = [name for name in members if known[name]]
            if len(models) < 3:
                continue
            left, right = corpora.oriented(perplexity).loc[models], downstream.oriented(scores).loc[models]
            found.append(
                PerplexityAgreement(
                    perplexity=perplexity,
                    downstream=scores,
                    group=group,
                    models=tuple(models),
                    without_perplexity=tuple(name for name in members if not known[name]),
                    tau=rank_agreement(left, right).tau,
                    pearson=pd.DataFrame({task: left.corrwith(right[task]) for task in right}),
                )
            )
    return tuple(found)


def perplexity_change(matrix: ScoreMatrix) -> pd.DataFrame:
    """Compare direct with trained bits per byte: corpora x (models, tau, pearson, direct, trained), means in bits per byte.

    The table is empty if no corpus has both for three models.
    """
    corpora = matrix.perplexities()
    table = {}
    for task in corpora.benchmark_names:
        both = pd.DataFrame({name: corpora.scores(name).values[task] for name in PREPARATIONS}).dropna()
        if len(both) > 2:
            tau = float(rank_agreement(both[["direct"]], both[["trained"]]).tau.iloc[0, 0])
            pearson = float(both["direct"].corr(both["trained"]))
            table[task] = [len(both), tau, pearson, both["direct"].mean(), both["trained"].mean()]
    return pd.DataFrame.from_dict(table, orient="index", columns=["models", "tau", "pearson", "direct", "trained"])
