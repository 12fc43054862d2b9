"""Standard errors by bootstrap: equal to those of lm_eval's own aggregations on the same draws."""

from __future__ import annotations

import random

import pytest
from lm_eval.api.metrics import matthews_corrcoef, mean, mean_stderr

from lm_harmony.benchmarks.harness.bootstrap import matthews_from_counts, standard_error


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


def test_the_standard_error_of_a_mean_is_the_closed_form_and_undefined_for_one_document() -> None:
    assert standard_error(mean, [0.0, 1.0, 1.0]) == mean_stderr([0.0, 1.0, 1.0])
    assert standard_error(mean, [1.0]) is None
