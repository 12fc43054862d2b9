"""Principal components against scikit-learn, and the reference board, which new models do not change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components, fit_reference
from lm_harmony.errors import UsageError


def test_components_equal_scikit_learns() -> None:
    table = random_table(20, 5)
    fitted = components(matrix_of(table))
    pca = PCA().fit(StandardScaler().fit_transform(table))
    assert np.allclose(fitted.explained, pca.explained_variance_ratio_)
    assert np.allclose(np.abs(fitted.loadings.to_numpy()), np.abs(pca.components_.T))
    expected = pca.transform(StandardScaler().fit_transform(table))[:, 0] * 100
    assert np.allclose(np.abs(fitted.pc1), np.abs(expected))


@pytest.mark.parametrize("seed", range(5))
def test_rounding_is_no_component(seed: int) -> None:
    table = random_table(3, 10, seed)
    table["b3"] = [0.781, 0.7811, 0.7812]  # standardised, these are rounded ten thousand times as much
    assert len(components(matrix_of(table)).explained) == 2
    many = random_table(12, 3, seed)
    many["b3"] = 0.78 + 1e-6 * many["b0"]
    assert len(components(matrix_of(many)).explained) == 3


@pytest.mark.parametrize("seed", range(5))
def test_opposite_orders_have_the_sign_of_the_first_name(seed: int) -> None:
    """Both loadings of PC1 are equally large, so that the sign of their sum is that of rounding."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"b": random.normal(size=5)}, index=list("vwxyz"))
    table["a"] = random.normal(size=5) - 3 * table["b"]
    for columns in (["a", "b"], ["b", "a"]):
        assert components(matrix_of(table[columns])).loadings[1].sort_index().to_list() == pytest.approx([0.5**0.5, -(0.5**0.5)])


@pytest.mark.parametrize("score", [0.1, 12345.678, 33333.33])
def test_equal_scores_are_refused_whatever_their_size(score: float) -> None:
    table = random_table(7, 4)
    table["b2"] = score
    with pytest.raises(UsageError, match="every model has the same trained score on b2"):
        components(matrix_of(table))


def test_components_without_variance_are_left_out() -> None:
    table = random_table(3, 5)  # the ranks of three centred rows are two
    fitted = components(matrix_of(table))
    assert [len(fitted.explained), *fitted.loadings.columns] == [2, 1, 2] == [2, *fitted.scores.columns]
    assert sum(fitted.explained) == pytest.approx(1)
    assert len(components(matrix_of(random_table(4, 5))).explained) == 3  # negative control: all that have variance are kept
    copied = table.assign(b1=table["b0"] * 2, b2=table["b0"] + 1, b3=-table["b0"], b4=table["b0"])
    assert len(components(matrix_of(copied)).explained) == 1


def test_better_models_have_higher_pc1_also_if_lower_scores_are_better() -> None:
    table = random_table(12, 4)
    ability = table.mean(axis=1)
    errors = table.assign(b0=-table["b0"], b1=-table["b1"], b2=-table["b2"])  # three of four are error rates
    fitted = components(matrix_of(errors, lower=["b0", "b1", "b2"]))
    assert fitted.pc1.corr(ability) > 0.9
    assert np.allclose(fitted.pc1, components(matrix_of(table)).pc1)
    flipped = components(matrix_of(errors))  # with the opposite sign convention, the correlation is negative
    assert flipped.pc1.corr(ability) < 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(8)), st.permutations(range(4)))
def test_the_order_of_models_and_benchmarks_changes_nothing(seed: int, rows: list[int], columns: list[int]) -> None:
    table = random_table(8, 4, seed)
    first, second = components(matrix_of(table)), components(matrix_of(table.iloc[rows, columns]))
    assert np.allclose(first.pc1, second.pc1[first.pc1.index])
    assert fit_reference(matrix_of(table)).explained == pytest.approx(fit_reference(matrix_of(table.iloc[rows])).explained)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 100), st.floats(-50, 50))
def test_the_unit_of_a_benchmark_changes_nothing(seed: int, scale: float, shift: float) -> None:
    table = random_table(8, 4, seed)
    changed = table.assign(b2=table["b2"] * scale + shift)
    assert np.allclose(components(matrix_of(table)).pc1, components(matrix_of(changed)).pc1)


def test_a_new_model_changes_no_other_model() -> None:
    published = ScoreMatrix.published()
    reference = fit_reference(published)
    new = published.oriented("trained").iloc[[3]] - 0.1
    both = pd.concat([published.oriented("trained"), new.rename(index=lambda _: "new")])
    projected = reference.project(both)
    assert np.allclose(projected[list(reference.models)], reference.pc1)
    assert projected["new"] < reference.pc1.iloc[3]
    assert int((reference.pc1 > reference.pc1.iloc[3]).sum()) == 3 < int((reference.pc1 > projected["new"]).sum())


def test_a_model_that_lacks_a_benchmark_has_no_projection() -> None:
    reference = fit_reference(matrix_of(random_table(6, 3)))
    scores = random_table(2, 3, seed=9)
    assert reference.project(scores).notna().all()
    assert reference.project(scores.drop(columns="b1")).isna().all()


def test_tied_models_share_the_better_rank() -> None:
    table = pd.DataFrame({"a": [3.0, 2, 2, 1], "b": [3.0, 2, 2, 1]}, index=list("wxyz"))
    assert list(components(matrix_of(table)).ranks) == [1, 2, 2, 4]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (random_table(1, 3), "two models and two benchmarks"),
        (random_table(3, 1), "two models and two benchmarks"),
        (random_table(3, 3).assign(b1=0.5), "same trained score on b1"),
        (random_table(3, 3) * np.nan, "two models and two benchmarks"),
    ],
)
def test_too_few_models_or_benchmarks_are_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        components(matrix_of(table))


def test_dropped_models_are_named() -> None:
    table = random_table(6, 4)
    table.loc["m2", ["b1", "b2"]] = np.nan
    fitted = components(matrix_of(table))
    assert "m2" not in fitted.pc1.index and fitted.basis.dropped_models == ("m2",)
