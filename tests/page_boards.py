"""Small boards for the page's tests: real and invented models, direct and trained scores, gaps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.report.page_data import page_data

MODELS = (
    "Qwen/Qwen2.5-14B",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-1.5B",
    "google/gemma-2-9b",
    "google/gemma-2-2b-it",
    "meta-llama/Llama-3.2-3B",
    "EleutherAI/pythia-410m-deduped",
    "EleutherAI/pythia-70m-deduped",
    "openai-community/gpt2",
    "local/mine",
)
"""Nine catalogued models, from best to worst, and one that is not catalogued."""
TASKS = ("mnli", "gsm8k", "cola", "arc_easy", "corpus:wiki")
"""Four benchmarks and a text corpus, where lower is better."""
GAP = ("openai-community/gpt2", "gsm8k")
"""Model and benchmark whose trained score is missing."""
CAUSE = "gave up after 3 attempts"
"""Cause of the gap, as the page shows it."""


def small_board(
    models: Sequence[str] = MODELS,
    tasks: Sequence[str] = TASKS,
    *,
    direct: bool = True,
    few_shot: Sequence[int] = (),
    stderr: float = 0.01,
) -> ScoreMatrix:
    """Return a board with noisy scores. Earlier models are better, and the differences are larger after training.

    ``few_shot``: numbers of examples of further direct scores, which text corpora do not have.
    """
    random = np.random.default_rng(0)
    rows = []
    for place, model in enumerate(models):
        for task in tasks:
            skill = 1 - place / len(models)
            trained, before = 0.3 + 0.6 * skill + 0.05 * random.normal(), 0.2 + 0.3 * skill + 0.1 * random.normal()
            if task.startswith("corpus:"):
                trained, before = 1.4 - trained / 2, 1.6 - before / 2
            if (model, task) == GAP:
                rows.append(ScoreRow(model=model, benchmark=task, preparation="trained", value=None, cause=CAUSE))
            else:
                rows.append(_score_row(model, task, "trained", trained, stderr))
            if direct:
                rows.append(_score_row(model, task, "direct", before, stderr))
            for shots in few_shot if not task.startswith("corpus:") else ():
                rows.append(_score_row(model, task, f"direct_{shots}shot", (before + trained) / 2, stderr))
    return ScoreMatrix.from_rows(ScoreRows(source="a small board", rows=tuple(rows)))


@cache
def published_data() -> dict[str, Any]:
    """Return the values of the published board's page, which take 0.4 s to compute. Nobody changes them."""
    return page_data(None, published=True)


def _score_row(model: str, task: str, preparation: str, value: float, stderr: float) -> ScoreRow:
    corpus = task.startswith("corpus:")
    return ScoreRow(
        model=model,
        benchmark=task,
        preparation=preparation,
        value=float(value) if corpus else round(float(np.clip(value, 0, 1)), 4),
        stderr=None if corpus else stderr,
        count=None if corpus else 1_000,
    )
