"""Reads score rows from the output folders of lm_eval: ``results_<time>.json`` and ``samples_<task>_<time>.jsonl``.

lm_eval scores a model as it is, so that its scores are direct scores, with the number of examples that the file
says (n-shot). Of several results of one model on one task, the newest file counts.
Files inside the folder of one of our runs are left out: ``load_records`` reads those runs.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_harmony.analysis.metadata import default_metric
from lm_harmony.analysis.score_rows import ScoreRow
from lm_harmony.benchmarks.catalogue import benchmark_name
from lm_harmony.benchmarks.types import MetricKey
from lm_harmony.errors import UsageError
from lm_harmony.runs.shots import direct_name

PREFIX, SAMPLES = "results_", "samples_"


def lm_eval_files(folder: Path) -> list[Path]:
    """Return every results file of lm_eval below ``folder``, oldest first, without those of our own runs."""
    found: list[Path] = []
    for below, folders, files in os.walk(folder):  # unlike rglob(), it goes on if a study removes a folder meanwhile
        if "config.yaml" in files:  # a run of ours
            folders.clear()
        else:
            found += [Path(below, name) for name in fnmatch.filter(files, f"{PREFIX}*.json")]
    return sorted(found, key=lambda path: (path.name, str(path)))


def lm_eval_rows(folder: Path, metrics: Mapping[str, str]) -> list[ScoreRow]:
    """Return the direct score of every model on every task of lm_eval's results below ``folder``.

    The metric of a task is the one in ``metrics`` (task -> "metric,filter"), or the catalogued one. For another task it is
    acc_norm, if it was computed, or else the first metric of the file. Groups of tasks, which have no questions of their own, are
    left out.

    Raises:
        UsageError: a file is not in lm_eval's layout.
    """
    rows: dict[tuple[str, str, str], ScoreRow] = {}
    for path in lm_eval_files(folder):
        for row in _file_rows(path, metrics):
            rows[row.key] = row
    return list(rows.values())


def _file_rows(path: Path, metrics: Mapping[str, str]) -> Iterator[ScoreRow]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError("it holds no JSON object")
        model, results = _model(values), dict(values["results"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks the key {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{path}: it is not a results file of lm_eval ({reason}). Remove it, or name another folder.") from error
    for task, scores in results.items():
        sized = (values.get("n-samples") or {}).get(task)
        key = _metric(scores, metrics.get(task) or default_metric(task))
        if sized is None or key is None:
            continue
        samples = path.with_name(f"{SAMPLES}{task}_{path.stem.removeprefix(PREFIX)}.jsonl")
        metric = MetricKey.parse(key)
        yield ScoreRow(
            model=model,
            benchmark=benchmark_name(task),
            preparation=direct_name(int((values.get("n-shot") or {}).get(task) or 0)),
            value=float(scores[key]),
            stderr=_number(scores.get(metric.stderr)),
            count=int(sized["effective"]),
            metric=key,
            higher_is_better=((values.get("higher_is_better") or {}).get(task) or {}).get(metric.metric),
            samples=(samples,) if samples.is_file() else (),
        )


def _model(values: Mapping[str, Any]) -> str:
    """Return the name of the model: what was loaded, or the name that lm_eval wrote."""
    arguments = (values.get("config") or {}).get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    return str(arguments.get("peft") or arguments.get("pretrained") or values["model_name"])


def _metric(scores: Mapping[str, Any], wanted: str | None) -> str | None:
    """Return the key of the score to read, "metric,filter"; None: there is none, or not the wanted one."""
    known = [key for key, value in scores.items() if "," in key and "_stderr," not in key and _number(value) is not None]
    if wanted is not None:
        return wanted if wanted in known else None
    return "acc_norm,none" if "acc_norm,none" in known else next(iter(known), None)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
