"""LM-Harmony: fine-tune every model on the benchmark's training split, choose the epoch on validation, and only then test."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "BenchmarkSpec",
    "Caps",
    "HarmonyError",
    "Lora",
    "ModelSpec",
    "Prompt",
    "Recipe",
    "RunRecord",
    "RunSpec",
    "RunStore",
    "ScoreMatrix",
    "Study",
    "evaluate",
    "fine_tune",
    "load_model",
    "train_before_test",
]

if TYPE_CHECKING:
    from lm_harmony.analysis.matrix import ScoreMatrix
    from lm_harmony.api import evaluate, fine_tune
    from lm_harmony.benchmarks.prompt import Prompt
    from lm_harmony.benchmarks.types import Caps
    from lm_harmony.errors import HarmonyError
    from lm_harmony.models.loading import load_model
    from lm_harmony.recipe import Lora, Recipe
    from lm_harmony.runs.protocol import train_before_test
    from lm_harmony.runs.record import RunRecord
    from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
    from lm_harmony.runs.store import RunStore
    from lm_harmony.studies.study import Study
else:
    _MODULES = {
        "analysis.matrix": ("ScoreMatrix",),
        "api": ("evaluate", "fine_tune"),
        "benchmarks.prompt": ("Prompt",),
        "benchmarks.types": ("Caps",),
        "errors": ("HarmonyError",),
        "models.loading": ("load_model",),
        "recipe": ("Lora", "Recipe"),
        "runs.protocol": ("train_before_test",),
        "runs.record": ("RunRecord",),
        "runs.spec": ("BenchmarkSpec", "ModelSpec", "RunSpec"),
        "runs.store": ("RunStore",),
        "studies.study": ("Study",),
    }

    def __getattr__(name):
        """Import a public name when it is first used, so that ``import lm_harmony`` does not wait for torch."""
        import importlib

        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(f"lm_harmony.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
