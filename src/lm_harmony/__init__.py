"""LM-Harmony: fine-tune every model on the benchmark's training split, choose the epoch on validation, and only then test."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "HarmonyError": "lm_harmony.errors",
    "Recipe": "lm_harmony.recipe",
    "PUBLISHED": "lm_harmony.recipe",
    "ModelSpec": "lm_harmony.runs.spec",
    "BenchmarkSpec": "lm_harmony.runs.spec",
    "RunSpec": "lm_harmony.runs.spec",
    "RunStore": "lm_harmony.runs.store",
    "train_before_test": "lm_harmony.runs.protocol",
    "Study": "lm_harmony.studies.study",
    "ScoreMatrix": "lm_harmony.analysis.matrix",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import lm_harmony`` costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
