"""Scores of finished runs in the formats of other tools: a table, lm_eval's output folders, Every Eval Ever, and the hub.

Runs that are not current are left out, because a reader of these files cannot see that something has changed since.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from lm_harmony.analysis.load_tables import csv_text
from lm_harmony.analysis.score_rows import APART, PartScore
from lm_harmony.errors import StoreError, UsageError
from lm_harmony.report.finished_scores import TRAINED, FinishedScore, dataset_of, finished_scores
from lm_harmony.report.recomputed_scores import is_equal, recompute_score
from lm_harmony.runs.choice import chosen_rate
from lm_harmony.runs.files import write_atomically
from lm_harmony.runs.shots import samples_file, shots_of

ExportFormat = Literal["csv", "parquet", "lm_eval", "every-eval-ever", "hub"]
SCHEMA_VERSION = "0.3.0"
"""Version of the schema of Every Eval Ever (github.com/evaleval/every_eval_ever)."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote, and what it left out."""

    files: tuple[Path, ...]
    """Files that were written."""
    left_out: tuple[str, ...]
    """A sentence for each run, or for all runs of one reason, that are not in them."""


def export(results: Path, output: Path, to: ExportFormat, *, organization: str | None = None) -> Exported:
    """Write the scores of all finished runs below ``results`` into ``output``.

    Args:
        results: a folder of runs.
        output: folder for the files; those of an earlier export are overwritten.
        to: csv and parquet write one table with a row for each score. lm_eval writes results and samples files as
            ``lm_eval --output_path`` names them. every-eval-ever writes a record of its schema for each score. hub writes
            ``.eval_results/<benchmark>.yaml`` for each model, as the model's repository has it.
        organization: who publishes the scores; every-eval-ever requires it.

    Raises:
        UsageError: there is no finished and current run, or the organization is missing.
    """
    if to == "every-eval-ever" and not organization:
        raise UsageError("organization is missing: Every Eval Ever records who publishes a score. Add --organization NAME.")
    found, left_out = finished_scores(results)
    output.mkdir(parents=True, exist_ok=True)
    if to in ("csv", "parquet"):
        files = [_write_table(found, output / f"scores.{to}")]
    elif to == "lm_eval":
        files = [file for result in found for file in _copy_lm_eval(result, output, left_out)]
    elif to == "every-eval-ever":
        files = [_write_every_eval_ever(result, output, str(organization)) for result in found]
    else:
        files = _write_hub(found, output, left_out)
    return Exported(files=tuple(files), left_out=tuple(left_out))


def _write_table(found: Sequence[FinishedScore], file: Path) -> Path:
    """Write one row for each score and metric, and for each task of a group. The metric that chose the epoch is marked."""
    rows = [
        {
            "model": result.model,
            "revision": result.record.spec.model.revision,
            "commit": result.record.model_revision,
            "parameters": result.record.parameters,
            "benchmark": result.record.benchmark,
            "preparation": result.preparation,
            "metric": one.metric,
            "is_main_metric": one.metric == result.record.metric and one.subtask is None,
            "value": one.value,
            "stderr": one.stderr,
            "test_documents": one.documents,
            "value_without_near_duplicates": None if one.apart is None else one.apart.value,
            "stderr_without_near_duplicates": None if one.apart is None else one.apart.stderr,
            "test_documents_without_near_duplicates": None if one.apart is None else one.apart.count,
            "training_rows": result.record.data.train,
            "chosen_epoch": result.record.chosen_epoch if result.preparation == "trained" else None,
            "seed": result.record.spec.seed,
            "recipe": result.record.spec.recipe.fingerprint(),
            "notes": result.notes,
            "subtask": one.subtask,
        }
        for result in found
        for one in result.values
    ]
    integers = dict.fromkeys(("parameters", "chosen_epoch", "test_documents_without_near_duplicates"), "Int64")
    floats = dict.fromkeys(("stderr", "value_without_near_duplicates", "stderr_without_near_duplicates"), "float64")
    table = pd.DataFrame(rows).astype({**integers, **floats})
    if file.suffix == ".csv":
        write_atomically(file, table.map(csv_text).to_csv(index=False, lineterminator="\n"))
    else:
        table.to_parquet(file, index=False)
    return file


def _copy_lm_eval(result: FinishedScore, output: Path, left_out: list[str]) -> Iterator[Path]:
    """Copy the last results file with a score and its samples under the names that lm_eval gives them.

    Files of other scores, which were edited or are of another run, are left out: neither holds a checksum.
    """
    name = result.preparation
    folder = result.store.folder if name == "trained" else result.store.folder / name
    written = sorted(folder.glob("results_*.json"))
    known = [file for file in written if _has_scores(file, result)]
    if not known:
        what = "no results file has the scores of record.json" if written else "it holds no results file"
        left_out.append(f"{folder}: {what}. Score the run again to write one")
        return
    values = json.loads(known[-1].read_text(encoding="utf-8"))
    place = output / str(values["model_name_sanitized"])
    place.mkdir(parents=True, exist_ok=True)
    yield Path(shutil.copyfile(known[-1], place / known[-1].name))
    samples = result.store.folder / samples_file(name)
    if samples.is_file():
        try:
            recompute_score(result.record, result.store.folder, name)
        except StoreError as error:
            left_out.append(f"{samples}: it is not of this score: {str(error).rstrip('.')}")
            return
        stamp = known[-1].stem.removeprefix("results_")
        subtasks = dict.fromkeys(one.subtask for one in result.values if one.subtask is not None)
        if not subtasks:
            yield Path(shutil.copyfile(samples, place / f"samples_{result.record.benchmark}_{stamp}.jsonl"))
        for task in subtasks:  # as lm_eval, which has one file for each task
            file = place / f"samples_{task}_{stamp}.jsonl"
            lines = samples.read_text(encoding="utf-8").split("\n")
            write_atomically(file, "".join(f"{line}\n" for line in lines if line and json.loads(line).get("task") == task))
            yield file


def _has_scores(file: Path, result: FinishedScore) -> bool:
    """Return whether a results file of lm_eval holds all values of a score."""
    tested = result.record.tested_benchmark
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        tables = {**values.get("groups", {}), **values["results"]}
        return all(is_equal(tables[one.subtask or tested][one.metric], one.value) for one in result.values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _write_every_eval_ever(result: FinishedScore, output: Path, organization: str) -> Path:
    """Write a record in the folder that the data set of Every Eval Ever has for it: benchmark/developer/model/<id>.json."""
    values = every_eval_ever(result, organization)
    owner, _, name = result.model.rpartition("/")
    digest = hashlib.sha256(
        json.dumps([result.record.to_dict(), result.preparation], sort_keys=True, default=str).encode()
    ).hexdigest()
    file = output / result.record.benchmark / (owner or "unknown") / name / f"{digest[:32]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(values, indent=2, ensure_ascii=False))
    return file


def every_eval_ever(result: FinishedScore, organization: str) -> dict[str, Any]:
    """Return a score as a record of Every Eval Ever. A trained model is another model: its base model's name with a suffix."""
    record, trained, now = result.record, result.preparation == "trained", str(int(time.time()))
    versions, dataset, shots = record.environment.get("versions", {}), dataset_of(record), shots_of(result.preparation)
    identity = f"{result.model}@{TRAINED}" if trained else result.model
    details = {
        "base_model": result.model,
        "revision": record.spec.model.revision,
        "commit": record.model_revision or "unknown",
        "preparation": result.notes,
        "recipe": json.dumps(record.to_dict()["spec"]["recipe"], sort_keys=True) if trained else "none",  # type: ignore[index]
        **({"chosen_learning_rate": f"{chosen_rate(record):g}"} if trained and len(record.spec.recipe.rates) > 1 else {}),
        "deployment_type": "self_deployed",
        "model_availability": "open_weights" if record.model_revision else "unknown",
    }
    source = {"dataset_name": record.benchmark, "source_type": "other"}
    if dataset is not None:
        source = {"dataset_name": record.benchmark, "source_type": "hf_dataset", "hf_repo": dataset[0]}
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{record.benchmark}{f'-{shots}shot' if shots else ''}/{identity}/{now}",
        "retrieved_timestamp": now,
        "source_metadata": {
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "lm-harmony", "version": str(versions.get("lm-harmony", "unknown"))},
        "model_info": {"name": identity, "id": identity, "additional_details": details},
        "evaluation_results": [
            {
                "evaluation_name": (record.benchmark if one.subtask is None else f"{record.benchmark}: {one.subtask}") + suffix,
                "source_data": source,
                "metric_config": {
                    "evaluation_description": f"{one.metric}{suffix}: {result.notes}",
                    "metric_name": one.metric.split(",")[0],
                    "lower_is_better": not record.higher_is_better,
                },
                "score_details": {"score": part.value, "uncertainty": _uncertainty(part)},
            }
            for one in result.values
            if one.metric == record.metric  # the direction of the others is not recorded
            for suffix, part in (("", one.whole), (APART, one.apart))
            if part is not None
        ],
    }


def _uncertainty(score: PartScore) -> dict[str, Any]:
    error = {} if score.stderr is None else {"standard_error": {"value": score.stderr}}
    return {**error, "num_samples": score.count}


def _write_hub(found: Sequence[FinishedScore], output: Path, left_out: list[str]) -> list[Path]:
    """Write the results of each model and benchmark as the model's repository on the hub has them."""
    entries: dict[Path, list[EvalResultEntry]] = defaultdict(list)
    elsewhere: dict[bool, dict[Path, None]] = defaultdict(dict)
    for result in found:
        record, dataset = result.record, dataset_of(result.record)
        if dataset is None:
            elsewhere[record.spec.benchmark.train_on is None][result.store.folder] = None
            continue
        file = output / result.model / ".eval_results" / f"{record.benchmark}.yaml"
        value, (name, commit) = result.metrics.get(record.metric), dataset
        if value is not None:
            notes = f"{record.metric}, {result.notes}"
            entries[file].append(
                EvalResultEntry(dataset_id=name, task_id=record.benchmark, value=value, dataset_revision=commit, notes=notes)
            )
    for one_task, runs in elsewhere.items():
        reason = "rows are not of one data set of the hub" if one_task else "training rows are of another benchmark"
        remedy = "Carry them out with rows from the hub, or that `lm-harmony fetch` wrote" if one_task else "Use another --to"
        left_out.insert(0, f"runs left out because their {reason}: {len(runs)}, the first is {next(iter(runs))}. {remedy}")
    for file, lines in entries.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, yaml.safe_dump(eval_result_entries_to_yaml(lines), sort_keys=False, allow_unicode=True))
    return list(entries)
