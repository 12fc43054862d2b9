"""Agreement against scipy, against values computed by hand, and its invariances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from lm_harmony.analysis.agreement import (
    agreement,
    agreement_by,
    agreement_change,
    group_of,
    kendall,
    rank_agreement,
    upper_triangle,
)
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import ModelMetadata
from lm_harmony.errors import UsageError

few_values = st.one_of(st.integers(0, 4).map(float), st.just(float("nan")))
tables = arrays.arrays(float, st.tuples(st.integers(2, 12), st.just(3)), elements=few_values)


@settings(max_examples=150, deadline=None)
@given(tables)
def test_tau_equals_scipys_with_ties_and_gaps(values: np.ndarray) -> None:
    table = pd.DataFrame(values, columns=list("abc"))
    tau = rank_agreement(table, table).tau
    for left in "abc":
        for right in "abc":
            both = table[[left, right]].dropna() if left != right else pd.DataFrame({left: table[left].dropna()})
            expected = stats.kendalltau(both[left], both[right]).statistic if len(both) > 1 else np.nan
            assert tau.loc[left, right] == pytest.approx(expected, nan_ok=True)


def test_pearson_equals_scipys_on_shared_models() -> None:
    table = random_table(9, 3)
    table.iloc[0, 0] = table.iloc[3, 1] = np.nan
    found = agreement(matrix_of(table))
    both = table[["b0", "b1"]].dropna()
    assert found.pearson.loc["b0", "b1"] == pytest.approx(stats.pearsonr(both["b0"], both["b1"]).statistic)
    assert found.common.loc["b0", "b1"] == 7 and found.common.loc["b2", "b2"] == 9


def test_decision_accuracy_by_hand() -> None:
    table = pd.DataFrame({"a": [1.0, 2, 3, 3], "b": [1.0, 3, 2, 4]}, index=list("wxyz"))
    # Pairs without a tie in both: wx, wy, wz and xz agree, xy disagrees. yz is tied in a.
    assert agreement(matrix_of(table)).decision.loc["a", "b"] == pytest.approx(4 / 5)


def test_means_are_over_pairs_of_different_benchmarks() -> None:
    found = agreement(matrix_of(random_table(8, 4)))
    pairs = [found.tau.iloc[i, j] for i in range(4) for j in range(i)]
    assert found.mean_tau == pytest.approx(np.mean(pairs))


def test_category_means_by_hand() -> None:
    published = ScoreMatrix.published()
    table = published.subset(benchmarks=["arc_easy", "boolq", "gsm8k"])
    found = agreement(table)
    tau = found.tau
    means = found.by_category()
    assert means.loc["Question Answering", "within"] == pytest.approx(tau.loc["arc_easy", "boolq"])
    assert means.loc["Question Answering", "across"] == pytest.approx(
        (tau.loc["arc_easy", "gsm8k"] + tau.loc["boolq", "gsm8k"]) / 2
    )
    assert np.isnan(means.loc["Math", "within"])
    own = [(tau.loc[a, b] + tau.loc[a, "gsm8k"]) / 2 for a, b in (("arc_easy", "boolq"), ("boolq", "arc_easy"))]
    assert means.loc["Question Answering", "mean"] == pytest.approx(np.mean(own))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(7)), st.permutations(range(4)))
def test_the_order_of_models_and_benchmarks_changes_nothing(seed: int, rows: list[int], columns: list[int]) -> None:
    table = random_table(7, 4, seed).round(1)
    first, second = agreement(matrix_of(table)), agreement(matrix_of(table.iloc[rows, columns]))
    pd.testing.assert_frame_equal(first.tau, second.tau.loc[first.benchmarks, first.benchmarks])
    assert first.mean_pearson == pytest.approx(second.mean_pearson)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000))
def test_a_monotone_change_of_one_benchmark_does_not_change_tau(seed: int) -> None:
    table = random_table(8, 3, seed)
    changed = table.assign(b1=np.exp(3 * table["b1"]) - 7)
    pd.testing.assert_frame_equal(agreement(matrix_of(table)).tau, agreement(matrix_of(changed)).tau)


def test_a_wrong_sign_convention_is_detected() -> None:
    table = random_table(8, 3)
    errors = table.assign(b1=-table["b1"])  # b1 as an error rate
    right, wrong = matrix_of(errors, lower=["b1"]), matrix_of(errors)
    pd.testing.assert_frame_equal(agreement(right).tau, agreement(matrix_of(table)).tau)
    assert agreement(wrong).tau.loc["b0", "b1"] == pytest.approx(-agreement(right).tau.loc["b0", "b1"])


def test_the_share_of_pairs_that_improve() -> None:
    trained = pd.DataFrame({"a": [1.0, 2, 3], "b": [1.0, 2, 3], "c": [3.0, 2, 1]}, index=list("xyz"))
    direct = pd.DataFrame({"a": [1.0, 2, 3], "b": [2.0, 1, 3], "c": [3.0, 2, 1]}, index=list("xyz"))
    # ab: 1/3 -> 1; ac: -1 -> -1; bc: -1/3 -> -1.
    change = agreement_change(matrix_of(trained, direct))
    assert change.pairs == 3 and change.improved == pytest.approx(1 / 3)


def test_groups_of_models() -> None:
    published = ScoreMatrix.published()
    table = agreement_by(published, "family")
    pythia = published.subset(models=[model.name for model in published.models if model.family == "Pythia"])
    assert table.loc["Pythia", "trained"] == pytest.approx(agreement(pythia).mean_tau)
    assert np.isnan(table.loc["Pythia", "direct"]) and table["models"].sum() == 61
    assert list(agreement_by(published, "size").index) == ["0 to 1 B", "1 to 3 B", "3 to 8 B", "8 B and more"]
    assert (
        group_of(ModelMetadata(name="x", params_b=8), "size") == "8 B and more"
        and group_of(ModelMetadata(name="x"), "size") == "unknown"
    )


def test_kendall_equals_scipys() -> None:
    table = random_table(10, 2).round(1)
    assert kendall(table["b0"], table["b1"]) == pytest.approx(stats.kendalltau(table["b0"], table["b1"]).statistic)


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(UsageError, match=r"has no direct scores.*--no-eval_before_train"):
        agreement(matrix_of(random_table(3, 3)), "direct")
    with pytest.raises(UsageError, match="fewer than two benchmarks or two models"):
        agreement(matrix_of(random_table(3, 1)))


@pytest.mark.filterwarnings("error")
def test_a_mean_without_values_is_nan_without_a_warning() -> None:
    """NumPy's own mean warns, in the middle of what a command prints."""
    found = agreement(matrix_of(random_table(5, 3)))
    unknown = found.tau * np.nan
    assert np.isnan(replace(found, tau=unknown).mean_tau)
    assert found.mean_tau == pytest.approx(np.nanmean(upper_triangle(found.tau)))
    with pytest.raises(RuntimeWarning):  # negative control
        np.nanmean(upper_triangle(unknown))
