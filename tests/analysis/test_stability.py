"""Stability of ranks under dropped benchmarks, dropped families and single seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from boards import matrix_of, random_table, write_run
from scipy import stats

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.stability import stability


def test_a_dropped_benchmark_and_family_by_hand() -> None:
    matrix = ScoreMatrix.published()
    found = {(shift.change, shift.name): shift for shift in stability(matrix).changes}
    assert len(found) == 24 + 6
    others = [task for task in matrix.benchmark_names if task != "gsm8k"]
    before, after = components(matrix), components(matrix.subset(benchmarks=others))
    shift = found["benchmark", "gsm8k"]
    assert shift.tau == pytest.approx(stats.kendalltau(before.pc1, after.pc1[before.pc1.index]).statistic)
    assert shift.largest == int((before.ranks - after.ranks).abs().max()) and shift.models == 61
    assert found["family", "Pythia"].models == 53


def test_seeds_are_compared_if_the_source_has_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for seed in (0, 1):
        for number, model in enumerate("abcd"):
            for task in ("arc_easy", "piqa", "sciq"):
                write_run(tmp_path, model=model, task=task, seed=seed, trained=0.4 + 0.1 * number + 0.05 * random.normal())
    matrix = ScoreMatrix.from_records(tmp_path)
    seeds = [ScoreMatrix.from_records(tmp_path, seed=seed) for seed in matrix.seeds]
    found = stability(matrix, seeds=seeds)
    assert [shift.name for shift in found.changes if shift.change == "seed"] == ["0", "1"]
    assert not any("seeds:" in note for note in found.notes)


def test_what_cannot_be_dropped_is_noted() -> None:
    found = stability(matrix_of(random_table(5, 2)))
    assert len(found.changes) == 0  # one remaining benchmark has no components, and no family is known
    assert sum(note.startswith("benchmark b") for note in found.notes) == 2 and any("seeds:" in note for note in found.notes)
