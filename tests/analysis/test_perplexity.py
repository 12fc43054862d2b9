"""Perplexity against benchmarks: lower bits per byte are better, and models without them are named."""

from __future__ import annotations

import numpy as np
import pytest
from boards import matrix_of, random_table
from scipy import stats

from lm_harmony.analysis.correlations import perplexity_agreement
from lm_harmony.analysis.matrix import ScoreMatrix
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


def test_without_corpora_it_says_so() -> None:
    with pytest.raises(UsageError, match="has no text corpus"):
        perplexity_agreement(matrix_of(random_table(4, 2)))
