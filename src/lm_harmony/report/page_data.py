"""A score matrix and what analysis says of it -> the plain values that the page carries. No arithmetic but rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from lm_harmony import __version__
from lm_harmony.analysis.agreement import agreement, group_of
from lm_harmony.analysis.cells import PREPARATIONS, Preparation
from lm_harmony.analysis.components import ReferenceBoard, components, fit_reference
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.errors import UsageError

DIGITS = 10
"""Significant digits of a value in the page: more than a score of 10,000 examples has, fewer than binary noise needs."""


def page_data(matrix: ScoreMatrix, reference: ReferenceBoard | None = None) -> dict[str, Any]:
    ranked = matrix.downstream()
    return {
        "version": __version__,
        "source": matrix.source,
        "reference": {"text": str(reference or fit_reference(ranked)), },
        "sizes": [label for label in ["0 to 1 B", "1 to 3 B", "3 to 8 B", "8 B and more", "unknown"]],
        "words": {"interval": "I", "groups": "G"},
        "benchmarks": [
            {"task": f.task, "title": f.title, "category": f.category, "metric": f.metric, "higher": f.higher_is_better,
             "counts": not f.is_perplexity, "scale": 1 if f.is_perplexity else 100, "digits": 3 if f.is_perplexity else 1}
            for f in matrix.benchmarks
        ],
        "models": [
            {"name": f.name, "family": f.family, "kind": f.kind, "params": f.params_b, "size": group_of(f, "size"), "reference": True}
            for f in matrix.models
        ],
        "views": {p: _view(matrix, p) if matrix.has(p) else None for p in PREPARATIONS},
    }


def _view(matrix: ScoreMatrix, preparation: Preparation) -> dict[str, Any]:
    s = matrix.scores(preparation)
    c = components(matrix.downstream(), preparation)
    return {"scores": table(s.values), "stderrs": table(s.stderrs), "counts": table(s.counts), "tau": table(agreement(matrix, preparation).tau),
            "components": {"pc1": series(c.pc1.reindex(matrix.model_names)), "low": None, "high": None, "explained": list(c.explained), "models": len(c.basis.models), "groups": None, "rank_low": None, "rank_high": None}}


def table(frame: pd.DataFrame) -> list[list[float | None]]:
    return [[plain(value) for value in row] for row in frame.to_numpy(dtype=float)]


def series(values: Any) -> list[float | None]:
    return [plain(v) for v in values.to_numpy(dtype=float)]


def plain(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
