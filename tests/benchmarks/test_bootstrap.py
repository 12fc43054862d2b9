"""Standard errors by bootstrap: the values that lm_eval's own aggregations give on the same draws."""

from __future__ import annotations

import random
import statistics

import pytest
from lm_eval.api.metrics import matthews_corrcoef, mean, mean_stderr

from lm_harmony.benchmarks.harness.bootstrap import BOOTSTRAP_DRAWS, standard_error


def pairs(count: int, labels: int, seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return [(draw.randrange(labels), draw.randrange(labels)) for _ in range(count)]


@pytest.mark.parametrize(("count", "labels"), [(20, 2), (97, 3), (3, 2)])
def test_the_error_of_mcc_is_that_of_scikit_learn_on_the_same_draws(count: int, labels: int) -> None:
    """To the last digit, with draws of one label alone among them (3 documents)."""
    items = pairs(count, labels, seed=count)
    draw = random.Random(0)
    expected = statistics.stdev(matthews_corrcoef(draw.choices(items, k=count)) for _ in range(BOOTSTRAP_DRAWS))
    assert standard_error(matthews_corrcoef, items) == expected
    assert standard_error(lambda drawn: matthews_corrcoef(drawn[1:]), items) != expected


def test_a_mean_has_its_closed_form_and_one_document_has_no_error() -> None:
    assert standard_error(mean, [0.0, 1.0, 1.0]) == mean_stderr([0.0, 1.0, 1.0])
    assert standard_error(mean, [1.0]) is None
