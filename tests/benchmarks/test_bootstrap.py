"""Standard errors by bootstrap: equal to those of lm_eval's own aggregations on the same draws."""

from __future__ import annotations

import random
from functools import partial

import pytest
from lm_eval.api.metrics import f1_score, matthews_corrcoef, mean, mean_stderr

from lm_harmony.benchmarks.harness.bootstrap import f1_from_counts, matthews_from_counts, standard_error


def pairs(count: int, labels: int, seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return [(draw.randrange(labels), draw.randrange(labels)) for _ in range(count)]


@pytest.mark.parametrize(("count", "labels"), [(40, 2), (97, 3), (3, 2)])
def test_mcc_from_counts_equals_scikit_learns(count: int, labels: int) -> None:
    """Values are equal to the last digit. With 3 documents, some draws contain only one label."""
    drawn = [pairs(count, labels, seed) for seed in range(40)]
    expected = [matthews_corrcoef(items) for items in drawn]
    assert [matthews_from_counts(items) for items in drawn] == expected
    assert [matthews_from_counts(items[1:]) for items in drawn] != expected


def test_the_standard_error_of_mcc_equals_lm_evals_on_the_same_draws() -> None:
    items = pairs(20, 2, seed=1)
    assert standard_error(matthews_corrcoef, items) == standard_error(lambda drawn: float(matthews_corrcoef(drawn)), items)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")  # of draws with neither label nor prediction 1
def test_f1_from_counts_equals_scikit_learns() -> None:
    """Values are equal to the last digit. With 2 documents, some draws contain only one label, or no 1 at all."""
    drawn = [pairs(count, 2, seed) for count in (40, 97, 2) for seed in range(40)]
    expected = [f1_score(items) for items in drawn]
    assert [f1_from_counts(items) for items in drawn] == expected and 0.0 in expected
    assert [f1_from_counts(items[1:]) for items in drawn] != expected
    items = pairs(20, 2, seed=1)
    assert standard_error(f1_score, items) == standard_error(lambda drawn: float(f1_score(drawn)), items)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(0, 1), (2, 1)], "Target is multiclass"),
        ([("yes", "no"), ("no", "no")], "pos_label=1 is not a valid label"),
        ([(0.5, 1), (0, 1)], "mix of continuous and binary"),
    ],
)
def test_labels_that_scikit_learn_refuses_for_f1_are_refused_as_there(items: list[tuple[object, object]], message: str) -> None:
    for refuse in (f1_score, f1_from_counts, partial(standard_error, f1_score)):
        with pytest.raises(ValueError, match=message):
            refuse(items * 20)


def test_the_standard_error_of_a_mean_is_the_closed_form_and_undefined_for_one_document() -> None:
    assert standard_error(mean, [0.0, 1.0, 1.0]) == mean_stderr([0.0, 1.0, 1.0])
    assert standard_error(mean, [1.0]) is None
