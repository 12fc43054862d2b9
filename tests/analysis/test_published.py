"""The board in the package reproduces the published one."""

from __future__ import annotations

import csv
import json
import re
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from boards import published_ranks
from scipy import stats
from shared import REFERENCE, needs_reference

from lm_harmony.analysis.audit import audit, flips
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components, fit_reference
from lm_harmony.analysis.published import TEST_ROWS
from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.models.catalogue import MODELS


@pytest.fixture(scope="module")
def published() -> ScoreMatrix:
    return ScoreMatrix.published()


def _percent() -> pd.DataFrame:
    from importlib import resources

    text = resources.files("lm_harmony.analysis").joinpath("published_leaderboard.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return pd.DataFrame([{task: float(row[task]) for task in BENCHMARKS} for row in rows], index=[row["model"] for row in rows])


def test_the_board_has_the_catalogued_models_and_benchmarks_without_gaps(published: ScoreMatrix) -> None:
    assert set(published.model_names) == set(MODELS)
    assert published.benchmark_names == tuple(BENCHMARKS)
    assert published.gaps("trained") == () and not published.has("direct")


def test_pc1_ranks_and_explained_variance_equal_the_published_values(published: ScoreMatrix) -> None:
    fitted, places = components(published), published_ranks()
    assert max(abs(fitted.pc1[model] - place.pc1) for model, place in places.items()) < 0.01  # a tolerance of 0.6 would be enough
    assert {model: int(fitted.ranks[model]) for model in places} == {model: place.rank for model, place in places.items()}
    assert fitted.explained[0] == pytest.approx(0.855, abs=0.0005)


def test_scores_of_two_decimals_would_swap_two_published_ranks() -> None:
    values = _percent()
    standard = ((values - values.mean()) / values.std(ddof=0)).to_numpy()
    left, sizes, right = np.linalg.svd(standard, full_matrices=False)
    pc1 = pd.Series(left[:, 0] * sizes[0] * np.sign(right[0].sum()) * 100, index=values.index)
    ranks, places = pc1.rank(ascending=False).astype(int), published_ranks()
    assert max(abs(pc1[model] - place.pc1) for model, place in places.items()) == pytest.approx(0.081, abs=0.001)
    sample = pc1 * (60 / 61) ** 0.5  # with the sample's standard deviation
    assert max(abs(sample[model] - place.pc1) for model, place in places.items()) == pytest.approx(11.1, abs=0.1)
    swapped = sorted(model for model in values.index if ranks[model] != places[model].rank)
    assert swapped == ["01-ai/Yi-1.5-6B", "01-ai/Yi-1.5-6B-Chat"]


def test_every_published_accuracy_is_an_integer_number_of_test_questions() -> None:
    for task, column in _percent().items():
        rows = TEST_ROWS[str(task)]
        if task != "cola":
            counted = (column / 100 * rows).round()
            assert (counted / rows * 100 - column).abs().max() <= 0.005 + 1e-9, task


def test_wrong_numbers_of_test_questions_would_not_fit() -> None:
    column = _percent()["rte"]
    possible = {round(100 * right / 277, 2) for right in range(278)}
    assert len(possible) / 10_001 == pytest.approx(0.028, abs=0.0005)  # of all numbers with two decimals
    for rows in (276, 278, 3000 // 11):
        assert ((column / 100 * rows).round() / rows * 100 - column).abs().max() > 0.01


def test_standard_errors_are_binomial_and_unknown_for_a_correlation(published: ScoreMatrix) -> None:
    p = published.trained.values.loc["openai-community/gpt2", "rte"]
    assert published.trained.stderrs.loc["openai-community/gpt2", "rte"] == pytest.approx((p * (1 - p) / 276) ** 0.5)
    assert published.trained.stderrs["cola"].isna().all()
    assert published.trained.counts.loc["openai-community/gpt2", "rte"] == 277


def test_the_reference_has_a_name_and_a_fingerprint_that_identify_it(published: ScoreMatrix) -> None:
    reference = fit_reference(published)
    assert "61 models x 24 benchmarks" in str(reference) and reference.fingerprint in str(reference)
    other = fit_reference(published.subset(models=published.model_names[1:]))
    assert other.fingerprint != reference.fingerprint


@needs_reference
def test_the_shipped_table_is_the_reference_table() -> None:
    with (REFERENCE / "published_leaderboard.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"]: (int(row["rank"]), float(row["pc1"])) for row in rows} == {
        model: (place.rank, place.pc1) for model, place in published_ranks().items()
    }
    assert (_percent() == pd.DataFrame([{t: float(r[t]) for t in BENCHMARKS} for r in rows], index=_percent().index)).all(
        axis=None
    )


@needs_reference
def test_the_papers_standard_errors_are_binomial_with_the_same_test_rows() -> None:
    paper = ScoreMatrix.from_json(REFERENCE / "paper_results.json")
    for task, rows in TEST_ROWS.items():
        if task != "cola":
            p, stderr = paper.trained.values[task], paper.trained.stderrs[task]
            assert np.allclose(stderr, np.sqrt(p * (1 - p) / (rows - 1)), rtol=1e-9), task


@needs_reference
def test_the_papers_matrix_gives_the_papers_values() -> None:
    from lm_harmony.analysis.agreement import agreement_change
    from lm_harmony.analysis.correlations import perplexity_agreement

    paper = ScoreMatrix.from_json(REFERENCE / "paper_results.json")
    downstream = paper.downstream()
    change = agreement_change(downstream)
    assert (round(change.direct.mean_tau, 2), round(change.trained.mean_tau, 2)) == (0.52, 0.76)
    assert (round(change.direct.mean_pearson, 2), round(change.trained.mean_pearson, 2)) == (0.66, 0.85)
    assert change.improved > 0.99
    assert (change.trained.by_category()["mean"] > change.direct.by_category()["mean"]).all()
    assert round(components(downstream, "direct").explained[0], 2) == 0.70
    assert round(components(downstream, "trained").explained[0], 2) == 0.86
    means = {(r.perplexity, r.downstream, r.group): round(r.mean_tau, 2) for r in perplexity_agreement(paper)}
    assert means["direct", "direct", "all"] == 0.48 and means["trained", "trained", "all"] == 0.74
    assert means["direct", "trained", "base"] == 0.78


def _raw_pc1(scores: pd.DataFrame) -> tuple[pd.Series[float], npt.NDArray[np.float64]]:
    """Return PC1 and the variance explained by each component, by numpy alone."""
    standard = (scores - scores.mean()) / scores.std(ddof=0)
    variances, vectors = np.linalg.eigh(np.corrcoef(standard.to_numpy().T))
    return standard @ (vectors[:, -1] * np.sign(vectors[:, -1].sum())), variances[::-1] / variances.sum()


def _changed_pairs(one: pd.Series[float], other: pd.Series[float]) -> float:
    """Return the share of pairs of models that two scores order differently, counted pair by pair."""
    pairs = list(combinations(one.index, 2))
    return sum((one[a] > one[b]) != (other[a] > other[b]) for a, b in pairs) / len(pairs)


@needs_reference
def test_components_flips_and_leads_equal_those_of_the_raw_matrices(published: ScoreMatrix) -> None:
    """Components and flips of ``analyze`` and ``audit``, and those in docs/analysis.md, against numpy and scipy."""
    path = REFERENCE / "paper_results.json"
    raw, paper = json.loads(path.read_text(encoding="utf-8")), ScoreMatrix.from_json(path)
    direct, direct_shares = _raw_pc1(pd.DataFrame(raw["direct_eval"])[list(BENCHMARKS)])
    trained, trained_shares = _raw_pc1(pd.DataFrame(raw["train_before_test"])[list(BENCHMARKS)])
    for preparation, shares, documented in (
        ("direct", direct_shares, [0.696, 0.126, 0.037, 0.03, 0.024]),
        ("trained", trained_shares, [0.864, 0.067, 0.024, 0.012, 0.007]),
    ):
        fitted = components(paper.downstream(), preparation)  # type: ignore[arg-type]
        assert np.allclose(fitted.explained, shares, atol=1e-12)
        assert np.round(shares[:5], 3).tolist() == documented, preparation

    found = audit(paper)
    assert found.table["flagged"].sum() == 8
    assert found.flips == _changed_pairs(direct, trained) and round(found.flips, 3) == 0.104
    assert found.flips == pytest.approx((1 - stats.kendalltau(direct, trained[direct.index]).statistic) / 2)
    # Two trainings: the scores of the paper, and those of the published board, which two decimals would not give exactly.
    again, _ = _raw_pc1(published.trained.values)
    assert flips(components(published).pc1, components(paper.downstream()).pc1) == _changed_pairs(again, trained)
    assert round(_changed_pairs(again, trained), 3) == 0.023
    pairs = [(re.sub(r"-(Instruct|Chat|it)$", "", name), name) for name in direct.index]
    pairs = [(base, name) for base, name in pairs if base != name and base in direct.index]
    leads = [np.mean([pc1[name] > pc1[base] for base, name in pairs]) for pc1 in (direct, trained)]
    assert found.leads is not None and found.leads[["direct", "trained"]].mean().tolist() == leads
    assert (len(pairs), [round(lead, 2) for lead in leads]) == (24, [0.88, 0.29])
