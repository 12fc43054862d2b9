"""Correlations of bits per byte (lower is better) with benchmarks, and of PC1 with model size."""

from __future__ import annotations

import numpy as np
import pytest
from boards import matrix_of, random_table
from scipy import stats

from lm_harmony.analysis.correlations import perplexity_agreement, scaling
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import ModelMetadata
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import Preparation, ScoreRow, ScoreRows
from lm_harmony.errors import UsageError

MODELS = ["Qwen/Qwen2.5-7B", "google/gemma-2-9b", "google/gemma-2-9b-it", "openai-community/gpt2", "mine"]
BITS = {"direct": [0.9, 0.8, 1.0, 1.5, 1.2], "trained": [0.85, 0.75, 0.8, 1.4, None]}
SCORES = {"direct": [0.6, 0.5, 0.8, 0.3, 0.4], "trained": [0.8, 0.85, 0.82, 0.4, 0.5]}


def _matrix() -> ScoreMatrix:
    preparations: tuple[Preparation, ...] = ("direct", "trained")
    rows = [
        ScoreRow(model=model, benchmark=task, preparation=preparation, value=values[preparation][place])
        for preparation in preparations
        for task, values in (("arc_easy", SCORES), ("corpus:w", BITS))
        for place, model in enumerate(MODELS)
    ]
    return ScoreMatrix.from_rows(ScoreRows(source="here", rows=tuple(rows)))


def test_lower_bits_agree_with_higher_scores() -> None:
    found = {(r.perplexity, r.downstream, r.group): r for r in perplexity_agreement(_matrix())}
    direct = found["direct", "direct", "all"]
    assert direct.mean_tau == pytest.approx(stats.kendalltau(-np.array(BITS["direct"]), SCORES["direct"]).statistic)
    crossed = found["direct", "trained", "all"]
    assert crossed.mean_tau == pytest.approx(stats.kendalltau(-np.array(BITS["direct"]), SCORES["trained"]).statistic)


def test_models_without_perplexity_are_left_out_by_name() -> None:
    found = {(r.perplexity, r.downstream, r.group): r for r in perplexity_agreement(_matrix())}
    trained = found["trained", "trained", "all"]
    assert trained.without_perplexity == ("mine",) and len(trained.models) == 4
    assert trained.mean_tau == pytest.approx(
        stats.kendalltau([-b for b in BITS["trained"][:4] if b], SCORES["trained"][:4]).statistic
    )
    assert ("direct", "direct", "base") in found and ("direct", "direct", "instruct") not in found  # one model is too few


def test_a_matrix_without_corpora_is_refused() -> None:
    with pytest.raises(UsageError, match="has no text corpus"):
        perplexity_agreement(matrix_of(random_table(4, 2)))


def test_compute_is_six_times_parameters_times_tokens() -> None:
    assert ModelMetadata(name="x", params_b=2, pretraining_tokens_b=300).compute == pytest.approx(3.6e21)
    assert ModelMetadata(name="x", params_b=2).compute is None


def test_pc1_is_correlated_with_known_sizes_only() -> None:
    matrix = ScoreMatrix.published()
    fitted = components(matrix)
    found = scaling(matrix, fitted)
    known = found.table[found.table["compute"].notna()]
    assert found.known == {"params_b": 61, "compute": len(known)} and len(known) == 37
    assert found.spearman["compute"] == pytest.approx(stats.spearmanr(known["compute"], known["pc1"]).statistic)
    assert found.pearson["params_b"] == pytest.approx(np.corrcoef(np.log(found.table["params_b"]), found.table["pc1"])[0, 1])
