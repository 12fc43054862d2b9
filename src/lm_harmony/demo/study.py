"""The demo as an ordinary study: eight models x six benchmarks, directly and after training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lm_harmony.demo.texts import BENCHMARKS, TASKS
from lm_harmony.errors import UsageError
from lm_harmony.studies.config import study_spec
from lm_harmony.studies.study import Study

SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the rows and models that `python -m lm_harmony.demo.build --seed 0` wrote."""
MODELS = ("llama-1", "neox-1", "llama-2", "neox-2", "llama-3", "neox-3", "llama-4", "neox-4")
"""Names of the models, from small to large."""
FAST_MODELS = ("llama-1", "llama-3", "neox-4")
FAST_BENCHMARKS = ("micro_reviews", "micro_endings", "micro_sums")
RECIPE = {"learning_rate": 3e-3, "epochs": 5, "batch_size": 8, "max_length": 128, "lora": {"target_modules": ["all-linear"]}}
"""Changes to the published recipe for models a thousand times smaller, chosen on validation rows of another build."""


def demo_study(results_dir: Path, *, build: Path = SHIPPED, fast: bool = False, shots: Sequence[int] = (0,)) -> Study:
    """Return the study of a build's models on its benchmarks.

    Args:
        results_dir: folder for the records.
        build: folder with models and rows.
        fast: three models and three benchmarks (docs/demo.md).
        shots: numbers of examples before each question, each a direct score of its own.

    Raises:
        UsageError: the build does not exist or is not finished.
    """
    if not (build / "build.log").is_file():
        raise UsageError(
            f"build_dir = {build}: no finished build of the demo (build.log is missing). "
            f"Make one: python -m lm_harmony.demo.build --seed 0 --out {build}"
        )
    models, tasks = (FAST_MODELS, FAST_BENCHMARKS) if fast else (MODELS, tuple(BENCHMARKS))
    asked = {
        "models": [str(build.resolve() / "models" / name) for name in reversed(models)],  # long runs first
        "benchmarks": [str(TASKS / f"{task}.yaml") for task in tasks],
        "data_dir": str(build.resolve() / "rows"),
        "results_dir": str(results_dir.resolve()),
        "direct": True,
        "direct_fewshot": list(shots),
        "recipe": RECIPE,
        "execution": {"device": "cpu", "eval_batch_size": 32},
    }
    return Study(study_spec(asked, Path.cwd(), where="the demo's study"))


def demo_workers() -> int:
    """Return the number of worker processes: two if there are two cores, else one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, cores)
