"""Scores of finished runs, one by one. Runs that are not current are left out, as are those that failed or cannot be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_harmony.analysis.load_records import find_runs, model_names
from lm_harmony.analysis.provenance import FileStates, changed_files
from lm_harmony.analysis.score_rows import PartScore, Preparation
from lm_harmony.errors import StoreError, UsageError, counted
from lm_harmony.report.shown_names import short_names
from lm_harmony.runs.choice import chosen_rate
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.shots import shots_of
from lm_harmony.runs.store import RunStore

TRAINED = "train-before-test"
"""What other tools call a trained model."""


@dataclass(frozen=True, kw_only=True)
class ScoreValue:
    """The value of one metric."""

    subtask: str | None
    """Task of a group that it belongs to; None: the value is that of the benchmark."""
    metric: str
    """Key of the metric, "metric,filter"."""
    value: float
    """Value of the metric on the test rows, in the metric's unit."""
    stderr: float | None
    """Its standard error; None: not known."""
    documents: int
    """Number of test documents."""
    apart: PartScore | None
    """The value on the test documents without a near duplicate in the training rows; None: on all, or not known."""

    @property
    def whole(self) -> PartScore:
        """The value on all test documents."""
        return PartScore(value=self.value, stderr=self.stderr, count=self.documents)


@dataclass(frozen=True, kw_only=True)
class FinishedScore:
    """One score of one run."""

    record: RunRecord
    """Record of the run."""
    store: RunStore
    """Files of the run."""
    preparation: Preparation
    """Whether the model was trained, or how many examples were before the questions."""
    metrics: Mapping[str, float]
    """Value of every metric on the test split, by "metric,filter"."""
    stderrs: Mapping[str, float | None]
    """Standard error of every metric, by the same keys; None: not known."""
    documents: int
    """Number of test documents."""
    model: str
    """Name of the model without a path of this machine."""

    def _apart(self, task: str | None, metric: str) -> PartScore | None:
        score = self.record.without_near_duplicates.get(self.preparation)
        part = score if score is None or task is None else score.subtasks.get(task)
        if part is None or metric not in part.metrics:
            return None
        return PartScore(value=part.metrics[metric], stderr=part.stderrs.get(metric), count=part.documents)

    @property
    def values(self) -> list[ScoreValue]:
        """The values of all metrics of the benchmark, and then of each task of a group."""
        score = self.record.scores[self.preparation]
        return [
            ScoreValue(
                subtask=task,
                metric=metric,
                value=value,
                stderr=part.stderrs.get(metric),
                documents=part.documents,
                apart=self._apart(task, metric),
            )
            for task, part in [(None, score), *score.subtasks.items()]
            for metric, value in part.metrics.items()
        ]

    @property
    def notes(self) -> str:
        """How the score was made, in one line."""
        record, recipe = self.record, self.record.spec.recipe
        tested = counted(self.documents, "test document")
        if self.preparation != "trained":
            return f"without training, {shots_of(self.preparation) or 'zero'}-shot, {tested}"
        adapter = "all weights" if recipe.lora is None else f"LoRA r {recipe.lora.r}"
        if recipe.quantize is not None:
            adapter += f" on {recipe.quantize} weights"
        other = record.spec.benchmark.train_on
        rows = counted(record.data.train, "training row") + (
            "" if other is None else f" of {Path(other).stem if other.endswith('.yaml') else other}"
        )
        chosen = f"epoch {record.chosen_epoch} of {len(record.epochs)}" + (
            " chosen on validation" if record.spec.choose_best else ""
        )
        rate = f"learning rate {chosen_rate(record):g}"
        if len(recipe.rates) > 1:
            rate += f" of {len(recipe.rates)} chosen on validation"
        return f"{TRAINED}, {adapter}, {rate}, {rows}, {chosen}, {tested}"


def finished_scores(results: Path) -> tuple[list[FinishedScore], list[str]]:
    """Return all scores of finished and current runs, and what is left out.

    Raises:
        UsageError: there is none.
    """
    states: FileStates = {}
    records: list[tuple[RunRecord, RunStore]] = []
    left_out = []
    for store in find_runs(results):
        try:
            record = store.outcome()
        except StoreError as error:
            left_out.append(str(error))
            continue
        if not isinstance(record, RunRecord):
            left_out.append(f"{store.folder}: the run has failed, so that it has no score")
        elif changed := changed_files(record.sources, states, read_all=True):
            left_out.append(f"{store.folder}: the run is not current: {changed}")
        else:
            records.append((record, store))
    if not records:
        reason = f" {left_out[0].rstrip('.')}." if left_out else ""
        raise UsageError(
            f"results: no finished and current run lies below {results}.{reason} Run a study, or name its results_dir."
        )
    name_of = model_names(record.spec.model for record, _ in records)
    names = short_names(tuple({name_of(record.spec.model): None for record, _ in records}))
    found: dict[object, FinishedScore] = {}
    for record, store in records:
        for preparation, score in record.scores.items():
            result = FinishedScore(
                record=record,
                store=store,
                preparation=preparation,
                metrics=score.metrics,
                stderrs=score.stderrs,
                documents=score.documents,
                model=names[name_of(record.spec.model)],
            )
            # Runs that differ only in their seed or recipe have one direct score.
            same = (result.model, record.model_revision, record.benchmark, *score.metrics.items(), score.documents)
            found.setdefault(store.folder if preparation == "trained" else (preparation, *same), result)
    return list(found.values()), left_out


def dataset_of(record: RunRecord) -> tuple[str, str | None] | None:
    """Return the data set on the hub that a run's rows are from, and its commit; None if they are from elsewhere or from several.

    Rows that `lm-harmony fetch` wrote have source.json beside them. They count if all are as it lists them.
    """
    if record.spec.benchmark.train_on is not None:
        return None
    rows = [source for source in record.sources or () if source.kind == "rows"]
    on_hub = {(source.name, source.commit) for source in rows if source.path is None}
    if on_hub:
        return on_hub.pop() if len(on_hub) == 1 else None
    folders = {Path(str(source.path)).parent for source in rows}
    if len(folders) != 1:
        return None
    try:
        known = json.loads((folders.pop() / "source.json").read_text(encoding="utf-8"))
        files: Mapping[str, Any] = known["files"]
        if all(files[Path(str(source.path)).name]["sha256"] == source.sha256 for source in rows):
            return str(known["dataset_path"]), str(known["revision"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None
