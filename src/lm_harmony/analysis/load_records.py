"""Reads score rows from a folder of runs: seeds are averaged, and runs of different specifications are never mixed."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_harmony.analysis.load_lm_eval import lm_eval_files, lm_eval_rows
from lm_harmony.analysis.near_duplicate_scores import mean_over_seeds, score_without_near_duplicates
from lm_harmony.analysis.provenance import provenance_notes
from lm_harmony.analysis.score_rows import PREPARATIONS, Preparation, ScoreRow, ScoreRows
from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import StoreError, UsageError, counted
from lm_harmony.models.checkpoint_names import revision_name
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.shots import samples_file
from lm_harmony.runs.spec import ModelSpec
from lm_harmony.runs.store import RunStore

_MAY_DIFFER = (
    *("seed", "execution", "direct", "direct_fewshot", "test", "test_curve", "recipe_fingerprint", "greater_is_better"),
    "metric",
)
"""Fields of a specification in which the runs of one score may differ. Metrics are compared as recorded."""

MAX_NAMED = 10
"""Maximum number of unreadable records that are named in a note of their own."""

Run = tuple[RunRecord, RunStore]


def find_runs(results: Path) -> Iterator[RunStore]:
    """Yield every run below ``results`` that has finished or failed, by the names of folders; UsageError: there is no folder."""
    if not results.is_dir():
        raise UsageError(f"results: {results} is not a folder. Name the results_dir of a study.")
    for folder, folders, files in os.walk(results):
        # A folder with a record may hold other runs: another program's record.json beside them must not hide them.
        folders[:] = sorted(name for name in folders if name not in ("adapter", "checkpoints", "trackers"))
        if "record.json" in files or "failure.json" in files:
            yield RunStore(Path(folder))


def record_rows(results: Path, *, seed: int | None = None, max_num_train: int | None = None) -> ScoreRows:
    """Return the scores of every finished run below ``results``.

    Runs that failed become gaps with their cause. Records that cannot be read become gaps too, and notes name their files.
    Output folders of lm_eval below ``results`` are read as direct scores (``load_lm_eval``).

    The score of several seeds of one model on one benchmark is their mean. Its standard error is sqrt(mean(e^2) + s^2 / n). e are
    the standard errors of the single seeds. Averaging does not reduce them, because all seeds answer the same test questions. s
    is the standard deviation between the n seeds.

    Args:
        results: a folder of runs, such as the results_dir of a study.
        seed: read only the runs of this seed; None: all.
        max_num_train: read only the runs with this largest number of training rows; None: all.

    Raises:
        UsageError: the folder has no finished run, or runs of one model on one benchmark have different specifications (recipe,
            caps, chat template and so on). Several revisions of a model are several models (``model_names``).
    """
    ended_runs, causes, damaged = list[Run](), list[tuple[RunStore, str]](), list[str]()
    for store in find_runs(results):
        try:
            ended = store.outcome()
        except StoreError as error:
            damaged.append(str(error))
            causes.append((store, str(error)))
            continue
        if not isinstance(ended, RunRecord):
            causes.append((store, f"{ended.kind}: {ended.cause}" if ended else "not finished"))
        else:
            ended_runs.append((ended, store))
    name_of = model_names(record.spec.model for record, _ in ended_runs)
    runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for record, store in ended_runs:
        if seed in (None, record.spec.seed) and max_num_train in (None, record.spec.benchmark.caps.train):
            runs[name_of(record.spec.model), record.benchmark].append((record, store))
    foreign = lm_eval_files(results) if seed is None else []
    if not runs and not foreign:
        of_seed = "" if seed is None else f" of seed {seed}"
        unread = f" {len(damaged)} cannot be read: {damaged[0]}" if damaged else ""
        raise UsageError(f"results: no finished run{of_seed} lies below {results}.{unread} Run a study, or name its results_dir.")
    rows = [row for key in sorted(runs) for row in _score_rows(key[0], runs[key])]
    for (model, benchmark), cause in _missing(causes, runs, name_of).items():
        rows += [ScoreRow(model=model, benchmark=benchmark, preparation=p, value=None, cause=cause) for p in PREPARATIONS]
    rows, notes_of_lm_eval = _with_lm_eval(rows, results) if foreign else (rows, ())
    seeds = sorted({record.spec.seed for group in runs.values() for record, _ in group})
    provenance = provenance_notes(record for group in runs.values() for record, _ in group)
    notes = (*_unread(damaged), *_differences(runs), *provenance, *notes_of_lm_eval)
    parameters = {model: found[0].parameters for (model, _), group in runs.items() for found in group if found[0].parameters}
    return ScoreRows(source=str(results), rows=tuple(rows), seeds=tuple(seeds), notes=notes, parameters=parameters)


def model_names(models: Iterable[ModelSpec]) -> Callable[[ModelSpec], str]:
    """Return a function that names models: those with several revisions as "name@revision", which are checkpoints of one run."""
    revisions = Counter(name for name, _ in {(model.name, model.revision) for model in models})
    return lambda model: revision_name(model.name, model.revision) if revisions[model.name] > 1 else model.name


def _with_lm_eval(rows: Sequence[ScoreRow], results: Path) -> tuple[list[ScoreRow], tuple[str, ...]]:
    """Return the rows with the scores of lm_eval's output folders, where our own runs have none, and notes on them."""
    known = {row.key: row for row in rows}
    added = lm_eval_rows(results, {row.benchmark: row.metric for row in rows if row.metric})
    used = [row for row in added if row.key not in known or known[row.key].value is None]
    note = f"{counted(len(used), 'direct score is', 'direct scores are')} from output folders of lm_eval"
    if len(used) < len(added):
        note += f"; {len(added) - len(used)} were left out, because a run of ours has the same score"
    return list({**known, **{row.key: row for row in used}}.values()), (note,)


def _missing(
    causes: Sequence[tuple[RunStore, str]], runs: Mapping[tuple[str, str], Sequence[Run]], name_of: Callable[[ModelSpec], str]
) -> dict[tuple[str, str], str]:
    """Return the cause by (model, benchmark) of those without any finished run whose config.yaml can be read."""
    known = {record.spec.benchmark.name: record.benchmark for group in runs.values() for record, _ in group}
    missing = {}
    for store, cause in causes:
        requested = store.requested()
        if requested is not None:  # otherwise a note or `lm-harmony status` names the folder
            name = requested.benchmark.name
            key = (name_of(requested.model), known.get(name, name))
            if key not in runs:
                missing[key] = cause
    return missing


def _unread(damaged: Sequence[str]) -> Iterator[str]:
    yield from (f"left out: {cause}" for cause in damaged[:MAX_NAMED])
    if len(damaged) > MAX_NAMED:
        yield f"left out: {len(damaged) - MAX_NAMED} more records that cannot be read"


def _differences(runs: Mapping[tuple[str, str], Sequence[Run]]) -> Iterator[str]:
    """Yield a note for each benchmark whose models differ in recipe, number of test rows, split rule or prompt, as they may."""
    wording = {
        "recipe": "trained by {} recipes",
        "test": "tested on {} different numbers of questions",
        "split": "split by {} rules",
        "prompt": "asked with {} prompts",
    }
    for benchmark in sorted({benchmark for _, benchmark in runs}):
        records = [record for (_, other), group in runs.items() if other == benchmark for record, _ in group]
        kinds: dict[str, set[Any]] = {
            "recipe": {record.spec.recipe.fingerprint() for record in records},
            "test": {record.data.test for record in records},
            "split": {(one.split_protocol, one.near_duplicates) for one in (record.spec.benchmark for record in records)},
            # Arguments of a chat template and the end of the think part belong to the model.
            "prompt": {replace(record.spec.prompt, chat_template_args="{}", think_end_token=None) for record in records},
        }
        for key, found in kinds.items():
            if len(found) > 1:
                yield f"{benchmark}: its models were {wording[key].format(len(found))}"


def _score_rows(model: str, runs: Sequence[Run]) -> list[ScoreRow]:
    """Return a score row for each preparation of all runs of one model on one benchmark."""
    _refuse_mixture(runs)
    first = runs[0][0]
    rows = []
    for preparation in dict.fromkeys((*PREPARATIONS, *(name for record, _ in runs for name in record.scores))):
        kept = [(score, store) for record, store in runs if (score := _score(record, preparation)) is not None]
        count = min((score.documents for score, _ in kept), default=None)
        value, stderr = mean_over_seeds([_read(score, first.metric) for score, _ in kept], count)
        file = samples_file(preparation)
        rows.append(
            ScoreRow(
                model=model,
                benchmark=first.benchmark,
                preparation=preparation,
                value=value,
                stderr=stderr,
                count=count,
                metric=first.metric,
                higher_is_better=first.higher_is_better,
                samples=tuple(path for _, store in kept if (path := store.folder / file).is_file()),
                cause=None if kept else _why_none(runs, preparation),
                without_near_duplicates=score_without_near_duplicates(runs, preparation, first.metric),
            )
        )
    return rows


def _score(record: RunRecord, preparation: Preparation) -> Score | None:
    score = record.scores.get(preparation)
    return score if score is not None and math.isfinite(score.metrics.get(record.metric, math.nan)) else None


def _why_none(runs: Sequence[Run], preparation: Preparation) -> str:
    """Return why no run has the score: it was not requested, or the record has no finite value."""
    record, store = runs[0]
    score = record.scores.get(preparation)
    if score is None:
        return f"not requested in {store.folder}"
    return f"{store.folder / 'record.json'} has no finite {record.metric}: {score.metrics.get(record.metric)}"


def _read(score: Score, metric: str) -> tuple[float, float | None]:
    return score.metrics[metric], score.stderrs.get(metric)


def _refuse_mixture(runs: Sequence[Run]) -> None:
    (first, store), *others = runs
    settings = settings_of(first)
    for record, other in others:
        if record.spec.seed == first.spec.seed and settings_of(record) == settings:
            raise UsageError(
                f"results: {store.folder} and {other.folder} are the same run (seed {first.spec.seed}). Remove one of them."
            )
        theirs = settings_of(record)
        differing = [key for key in {**settings, **theirs} if settings.get(key) != theirs.get(key)]
        if differing:
            pairs = ", ".join(f"{key} {settings.get(key)!r} and {theirs.get(key)!r}" for key in differing)
            raise UsageError(
                f"results: {first.spec.model.name} on {first.benchmark} was run with different settings: {pairs} "
                f"(in {store.folder} and {other.folder}). Name a folder that has only one of them."
            )


def settings_of(record: RunRecord) -> dict[str, Any]:
    """Return the settings that the runs of one score must share, with nested names such as "recipe.epochs"."""
    shared = {key: value for key, value in record.spec.to_dict().items() if key not in _MAY_DIFFER}
    shared["metric"], shared["test_rows"] = record.metric, record.data.test
    flat: dict[str, Any] = {}
    for key, value in shared.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    flat.setdefault("benchmark.near_duplicates", "keep")
    # Equal rows and task files may lie in different folders. The data's fingerprint cannot be compared: it depends on the seed.
    for place in ("benchmark.data_dir", "benchmark.include_path"):
        flat.pop(place, None)
    return flat
