"""The noise ceiling, benchmark quality, the audit and the logit scale: against simulation, scipy and hand-made boards."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from page_boards import small_board
from scipy import special, stats

from lm_harmony.analysis.audit import audit, base_of, flips
from lm_harmony.analysis.benchmark_quality import benchmark_quality
from lm_harmony.analysis.bootstrap import rank_errors
from lm_harmony.analysis.correlations import perplexity_agreement, perplexity_change
from lm_harmony.analysis.logit_scale import logit_matrix
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.noise_ceiling import ceiling_by, noise_ceiling
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.subsets import chosen_models
from lm_harmony.errors import UsageError


def _noisy(exact: np.ndarray, errors: np.ndarray, random: np.random.Generator) -> pd.DataFrame:
    scores = exact + errors * random.normal(size=exact.shape)
    return pd.DataFrame(scores, index=[f"m{i}" for i in range(len(exact))], columns=[f"b{i}" for i in range(exact.shape[1])])


def test_the_ceiling_is_the_tau_of_benchmarks_that_differ_by_noise_only() -> None:
    random = np.random.default_rng(0)
    exact, stderr = np.repeat(random.normal(size=(40, 1)), 2, axis=1), 0.5
    scores = [_noisy(exact, np.full((40, 2), stderr), random) for _ in range(150)]
    found = [noise_ceiling(matrix_of(table, stderr=stderr)) for table in scores]
    expected = np.mean([stats.kendalltau(table["b0"], table["b1"]).statistic for table in scores])
    assert np.mean([ceiling.mean_ceiling for ceiling in found]) == pytest.approx(expected, abs=0.02)
    assert np.mean([ceiling.mean_tau for ceiling in found]) == pytest.approx(expected)
    assert np.mean([ceiling.retest["b0"] for ceiling in found]) == pytest.approx(expected, abs=0.02)
    # Both benchmarks have the same true scores, so that their correlation without noise is 1.
    assert np.mean([ceiling.disattenuated.loc["b0", "b1"] for ceiling in found]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("models", [6, 15])
def test_the_ceiling_of_few_models_is_not_too_low(models: int) -> None:
    random, shape, found = np.random.default_rng(models), (models, 5), []
    for _ in range(150):
        table = _noisy(np.repeat(random.normal(size=(models, 1)), 5, axis=1), np.full(shape, 0.5), random)
        found.append(noise_ceiling(matrix_of(table, stderr=0.5)))
    expected = 2 / np.pi * np.arcsin(1 / 1.25)  # Kendall's tau of a normal distribution with this correlation
    assert np.mean([ceiling.mean_ceiling for ceiling in found]) == pytest.approx(expected, abs=0.03)


def test_without_noise_the_ceiling_is_one_and_correlations_stay() -> None:
    table = random_table(20, 3)
    found = noise_ceiling(matrix_of(table, stderr=0.0))
    assert np.allclose(found.ceiling, 1) and np.allclose(found.disattenuated, table.corr()) and found.share == found.mean_tau


def test_the_reliability_is_one_minus_the_share_of_noise() -> None:
    table = random_table(20, 2)
    found = noise_ceiling(matrix_of(table, stderr=0.4))
    assert np.allclose(found.reliability, 1 - 0.16 / table.var(ddof=0))
    expected = stats.pearsonr(table["b0"], table["b1"]).statistic / np.sqrt(found.reliability.prod())
    assert found.disattenuated.loc["b0", "b1"] == pytest.approx(expected)
    with pytest.raises(UsageError, match="0 benchmarks with trained scores and standard errors"):
        noise_ceiling(matrix_of(table))


def test_the_published_board_is_near_its_ceiling() -> None:
    found = noise_ceiling(ScoreMatrix.published())
    assert "cola" not in found.benchmarks and 0.89 < found.share < 0.92
    sizes = ceiling_by(ScoreMatrix.published(), "size", "trained")
    assert (
        list(sizes.index) == ["0 to 1 B", "1 to 3 B", "3 to 8 B", "8 B and more"]
        and (sizes["ceiling"] < found.mean_ceiling).all()
    )


def test_the_quality_of_a_benchmark_is_measured_without_it() -> None:
    table = random_table(25, 4)
    found = benchmark_quality(matrix_of(table, stderr=0.2))
    others = components(matrix_of(table[["b1", "b2", "b3"]])).pc1
    assert found.loc["b0", "pearson_rest"] == pytest.approx(stats.pearsonr(table["b0"], others).statistic)
    assert found.loc["b0", "tau_rest"] == pytest.approx(stats.kendalltau(table["b0"], others).statistic)
    assert found.loc["b0", "signal_to_noise"] == pytest.approx(np.sqrt(table["b0"].var(ddof=0) - 0.04) / 0.2)
    taus = [stats.kendalltau(table["b0"], table[other]).statistic for other in ("b1", "b2", "b3")]
    assert found.loc["b0", "mean_tau"] == pytest.approx(np.mean(taus))
    assert found.loc["b0", "mean_pearson"] == pytest.approx(table.corr().loc["b0", ["b1", "b2", "b3"]].mean())
    assert benchmark_quality(matrix_of(table))[["signal_to_noise", "retest_tau"]].isna().all(axis=None)


def test_the_audit_finds_the_model_that_was_prepared() -> None:
    random = np.random.default_rng(0)
    ability = np.linspace(2, -2, 16)[:, None]
    trained, direct = (_noisy(ability + 0.1 * random.normal(size=(16, 6)), np.full((16, 6), 0.05), random) for _ in range(2))
    direct.loc["m10"] += 2.0
    found = audit(matrix_of(trained, direct, stderr=0.05))
    assert list(found.table.index[found.table["flagged"]]) == ["m10"]
    assert found.table.loc["m10", "difference"] >= 6 and found.leads is None
    assert not audit(matrix_of(trained, direct.drop("m10"), stderr=0.05)).table["flagged"].any()
    expected = (
        1
        - stats.kendalltau(
            *(components(matrix_of(**{name: table}), name).pc1 for name, table in _both(trained, direct))
        ).statistic
    ) / 2
    assert found.flips == pytest.approx(expected)


def test_an_audit_hardly_depends_on_its_draws() -> None:
    random = np.random.default_rng(1)
    trained, direct = (random_table(12, 6) + 0.3 * random.normal(size=(12, 6)) for _ in range(2))
    matrix = matrix_of(trained, direct, stderr=0.1)
    table = audit(matrix).table.sort_index()
    errors = [rank_errors(matrix, name, draws=50_000, seed=1).sort_index() for name in ("direct", "trained")]
    assert abs(np.hypot(*errors) / table["error"] - 1).max() < 0.025


def _both(trained: pd.DataFrame, direct: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [("trained", trained), ("direct", direct)]


def test_instruct_models_are_paired_with_their_base() -> None:
    assert [base_of(name) for name in ("a/B-Instruct", "a/B-Chat", "g-2b-it", "a/B")] == ["a/B", "a/B", "g-2b", "a/B"]
    table = random_table(4, 3).set_axis(["x", "x-Instruct", "y", "z"])
    table.loc["x-Instruct"] = table.max() + 1
    found = audit(matrix_of(table, -table, stderr=0.1))
    assert found.leads is not None and found.leads.loc[("x", "x-Instruct")].tolist() == [False, True]
    assert flips(table["b0"], -table["b0"]) == 1
    with pytest.raises(UsageError, match="of 0 models on 3 benchmarks"):
        audit(matrix_of(table))


def test_log_odds_are_those_of_the_way_from_chance_to_the_best() -> None:
    matrix = small_board()
    found = logit_matrix(matrix)
    share = (matrix.trained.values["arc_easy"] - 0.25) / 0.75
    assert np.allclose(found.trained.values["arc_easy"], special.logit(share.clip(0.01, 0.99)))
    step = 1e-6
    slope = (special.logit((matrix.trained.values["arc_easy"] + step - 0.25) / 0.75) - special.logit(share)) / step
    inside = share.between(0.011, 0.989)
    assert np.allclose(found.trained.stderrs["arc_easy"][inside], (0.01 * slope)[inside], rtol=1e-4)
    assert found.trained.values["corpus:wiki"].equals(matrix.trained.values["corpus:wiki"])
    assert "unchanged: corpus:wiki" in found.notes[-1]


def test_models_are_chosen_by_family_kind_and_size() -> None:
    published = ScoreMatrix.published()
    assert set(chosen_models(published, families=["Gemma"], kinds=["base"]).model_names) == {
        "google/gemma-2-2b", "google/gemma-2-9b", "google/gemma-2b", "google/gemma-7b",
    }  # fmt: skip
    assert {model.params_b for model in chosen_models(published, size=(0, 0.2)).models} <= {0.07, 0.124, 0.16}
    with pytest.raises(UsageError, match=r"family: 'gemma' is not in .* Did you mean"):
        chosen_models(published, families=["gemma"])
    with pytest.raises(UsageError, match="none of the 61 models"):
        chosen_models(published, ["GPT-2"], ["instruct"])


def test_perplexity_has_pearson_too_and_direct_is_compared_with_trained() -> None:
    matrix = small_board()
    [trained] = [
        found
        for found in perplexity_agreement(matrix)
        if found.group == "all" and found.perplexity == found.downstream == "trained"
    ]
    known = matrix.trained.values[["corpus:wiki", "mnli"]].loc[list(trained.models)]
    assert trained.pearson.loc["corpus:wiki", "mnli"] == pytest.approx(
        -stats.pearsonr(known["corpus:wiki"], known["mnli"]).statistic
    )
    change = perplexity_change(matrix).loc["corpus:wiki"]
    direct, after = (matrix.scores(name).values["corpus:wiki"] for name in ("direct", "trained"))
    assert change["tau"] == pytest.approx(stats.kendalltau(direct, after).statistic) and change["direct"] == pytest.approx(
        direct.mean()
    )
