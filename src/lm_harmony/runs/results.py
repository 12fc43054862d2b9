"""A run in the words of lm_eval: its results schema with one key more, and its per-document samples."""

from __future__ import annotations

import time
from typing import Any

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.score import Score
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.store import RunStore


def write_outcomes(store: RunStore, task: HarnessTask, record: RunRecord) -> None:
    """Write samples_test.jsonl of the chosen epoch, and results_<time>.json."""
    if record.trained is not None:
        store.write_samples("test", record.trained.samples)
    score = record.trained or record.direct
    if score is not None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
        store.write_results(lm_eval_results(task, record, score, date=now), time=stamp)


def lm_eval_results(task: HarnessTask, record: RunRecord, score: Score, *, date: float) -> dict[str, Any]:
    """Return what ``lm_eval.simple_evaluate`` returns for ``score``, plus the key ``train_before_test``.

    Args:
        task: the benchmark.
        record: the run.
        score: the test score that takes lm_eval's place.
        date: seconds since 1970.
    """
    name, described, spec = task.name, task.described(), record.spec
    metrics: dict[str, float | str] = {}
    for key, value in score.metrics.items():
        metric, filtered = key.split(",", 1)
        stderr = score.stderrs.get(key)
        metrics[key] = value
        metrics[f"{metric}_stderr,{filtered}"] = "N/A" if stderr is None else stderr
    return {
        "results": {name: {"name": name, "alias": name, "sample_len": score.documents, **metrics}},
        "group_subtasks": {},
        "configs": {name: described["config"]},
        "versions": {name: described["version"]},
        "n-shot": {name: 0},
        "higher_is_better": {name: {key.split(",")[0]: higher for key, higher in task.metrics.items()}},
        "n-samples": {name: {"original": record.data.test, "effective": score.documents}},
        "config": {
            "model": "lm-harmony",
            "model_args": {"pretrained": spec.model.name, "revision": spec.model.revision},
            "model_revision": spec.model.revision,
            "model_sha": record.model_revision or "",
            "model_dtype": spec.recipe.dtype,
            "batch_size": spec.execution.eval_batch_size,
            "device": record.environment.get("device"),
            "limit": None,
            "random_seed": spec.seed,
        },
        "git_hash": record.environment.get("git_revision"),
        "date": date,
        "transformers_version": record.environment["versions"]["transformers"],
        "lm_eval_version": record.environment["versions"]["lm_eval"],
        "model_source": "hf",
        "model_name": spec.model.name,
        "model_name_sanitized": spec.model.name.replace("/", "__"),
        "chat_template": spec.model.apply_chat_template,
        "train_before_test": record.to_dict(),
    }
