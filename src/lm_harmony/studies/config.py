"""study.yaml -> the specification of every run that it asks for. The whole file is checked before the first run.

models: [EleutherAI/pythia-70m-deduped, ./my/model, {family: Pythia, max_params_b: 1}, {name: my/chat, revision: v2}]
benchmarks: [perplexity, leaderboard9, {task: mnli, max_num_train: 5000, recipe: {epochs: 2}}]
corpora: [texts/wiki.jsonl]       # the texts of the suite `perplexity`
seeds: [0, 1]
recipe: {learning_rate: 1e-4}     # what differs from the published recipe; also under one model or one benchmark
direct: true                      # score the untouched models too
direct_fewshot: [0, 5]            # without and with 5 examples before each question
results_dir: results              # a folder, or a URL: s3://bucket/folder
data_dir: data                    # <task>/{train,validation,test}.jsonl; without it, rows come from the hub
models_dir: models                # <owner>/<name>/ as `lm-harmony fetch` writes them; other models come from the hub

Paths are relative to the study file. ``study_file`` lists every key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks import catalogue as suites
from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX, corpus_path, trained_name
from lm_harmony.benchmarks.foreign_code import check_task_code
from lm_harmony.benchmarks.recurrence import check_near_duplicates
from lm_harmony.benchmarks.task_groups import check_benchmark, find_group, task_title
from lm_harmony.benchmarks.task_index import asked_as, find_task_file
from lm_harmony.benchmarks.types import Caps
from lm_harmony.errors import UsageError
from lm_harmony.recipe import PUBLISHED, Lora, Recipe
from lm_harmony.runs.preflight import check_metric, check_train_on
from lm_harmony.runs.remote import RemoteSync, is_url
from lm_harmony.runs.spec import BenchmarkSpec, Execution, RunSpec
from lm_harmony.studies.model_entries import models_of
from lm_harmony.studies.study_file import BenchmarkEntry, StudyFile
from lm_harmony.studies.value_rules import CAPS
from lm_harmony.studies.yaml_places import Places, read_yaml


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The content of a study file, checked and expanded."""

    runs: tuple[RunSpec, ...] = field(repr=False)
    """Every run, model by model and then benchmark by benchmark, so that a loaded model is used for all its runs."""
    results_dir: Path
    """Folder of the records, or the working copy of records behind a URL."""
    results_url: str | None = None
    """URL of the records, or None for records in a folder."""
    data_dir: Path | None = None
    """Folder of the benchmarks' rows, or None if they come from the hub."""
    models_dir: Path | None = None
    """Folder of downloaded models, or None if there is none."""
    joint: int = 1
    """Largest number of runs of a model that one worker trains jointly."""


def read_study(path: Path) -> StudySpec:
    """Read and check a study file.

    Raises:
        UsageError: the file cannot be read or is not YAML; a key, name or value in it is wrong; a key or a run is given twice.
        ModelError: a folder of ``models_dir`` holds another revision than the study asks for.
    """
    values, places = read_yaml(path)
    return _expand(values, path.parent, places)


def study_spec(values: Any, base: Path, *, where: str = "study") -> StudySpec:
    """Check the content of a study file.

    Args:
        values: the content, as YAML gives it.
        base: folder that relative paths start from.
        where: name of the study in messages.

    Raises:
        UsageError: as ``read_study``.
        ModelError: as ``read_study``.
    """
    return _expand(values, base, Places(where))


def _expand(values: Any, base: Path, places: Places) -> StudySpec:
    study, base = places.validate(StudyFile, values), base.resolve()  # workers may have other working directories
    with places.at("near_duplicates"):
        check_near_duplicates("near_duplicates", study.near_duplicates, study.split_protocol)
    models = [
        model
        for number, entry in enumerate(study.models)
        for model in models_of(entry, study, base, places.below("models", number))
    ]
    entries = [
        _benchmarks(entry, study, base, places.below("benchmarks", number)) for number, entry in enumerate(study.benchmarks)
    ]
    _refuse_equal_names([[benchmark for benchmark, *_ in entry] for entry in entries], places)
    benchmarks = [benchmark for entry in entries for benchmark in entry]
    with places.at("execution"):
        execution = Execution(**{"use_git": False, **study.execution})
    if execution.device_map is not None and study.joint > 1:
        raise places.error(("joint",), f"joint = {study.joint} does not support device_map = auto. Remove one of them.")
    _check_contradictions(study, places)
    common = _override(asdict(PUBLISHED), study.recipe)
    with places.at("recipe"):
        runs = tuple(
            RunSpec(
                model=model,
                benchmark=benchmark,
                recipe=Recipe.from_dict(_override(_override(common, model_recipe), benchmark_recipe)),
                prompt=replace(prompt, **answers),
                seed=seed,
                direct=study.direct,
                direct_fewshot=tuple(study.direct_fewshot),
                execution=execution,
                **metric,
            )
            for (model, prompt, model_recipe), (benchmark, metric, answers, benchmark_recipe), seed in product(
                models, benchmarks, study.seeds
            )
        )
    _refuse_duplicates(runs, places)
    if not execution.allow_task_code:
        for task, include_path in ((task, benchmark.include_path) for benchmark, *_ in benchmarks for task, _ in benchmark.tasks):
            check_task_code(task, include_path=include_path, allowed=False)
    results = study.results_dir.rstrip("/")
    return StudySpec(
        runs=runs,
        results_dir=RemoteSync(results).folder if is_url(results) else base / results,
        results_url=results if is_url(results) else None,
        data_dir=_path(base, study.data_dir),
        models_dir=_path(base, study.models_dir),
        joint=study.joint,
    )


def _check_contradictions(study: StudyFile, places: Places) -> None:
    _check_choice(study, places)
    if not study.direct and "direct_fewshot" in study.model_fields_set:
        raise places.error(
            ("direct_fewshot",),
            f"direct_fewshot = {study.direct_fewshot} contradicts direct = false: no direct score is made. Remove one of them.",
        )


def _check_choice(study: StudyFile, places: Places) -> None:
    """Refuse a list of learning rates without `choose`, and `choose` without such a list."""
    recipes: dict[tuple[str | int, ...], Mapping[str, Any]] = {(): study.recipe}
    recipes |= {("models", number): one.recipe for number, one in enumerate(study.models)}
    recipes |= {("benchmarks", number): one.recipe for number, one in enumerate(study.benchmarks)}
    lists = [place for place, recipe in recipes.items() if isinstance(recipe.get("learning_rate"), list)]
    if lists and study.choose is None:
        key, rates = (*lists[0], "recipe", "learning_rate"), recipes[lists[0]]["learning_rate"]
        raise places.error(key, f"learning_rate = {rates} needs a rule to choose by. Add choose: validation, or give one rate.")
    if study.choose is not None and not lists:
        raise places.error(
            ("choose",),
            f"choose = {study.choose} has nothing to choose from. Give a list, such as recipe: {{learning_rate: [5e-6, 2e-5]}}, "
            f"or remove it.",
        )


def _override(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``recipe`` with the given values. A lora mapping changes only the keys that it names; null trains all weights."""
    lora = overrides.get("lora")
    changed = {"lora": {**(recipe["lora"] or asdict(Lora())), **lora}} if isinstance(lora, Mapping) else {}
    return {**recipe, **overrides, **changed}


def _benchmarks(
    entry: BenchmarkEntry, study: StudyFile, base: Path, places: Places
) -> list[tuple[BenchmarkSpec, dict[str, Any], dict[str, Any], Mapping[str, Any]]]:
    """Return the benchmarks of one entry, a task or a suite, each with its metric, its fields of a prompt, and its recipe."""
    given = {ours: getattr(entry if key in entry.model_fields_set else study, key) for key, ours in CAPS.items()}
    several = given["train"] if isinstance(given["train"], list) else [given["train"]]
    caps = [Caps(**{**given, "train": rows}) for rows in several]
    data_dir, include_path = _path(base, study.data_dir), _path(base, study.include_path)
    with places.at("task"), asked_as("task"):
        tasks = [_task(task, base, include_path, check_benchmark) for task in suites.expand(entry.task, study.corpora)]
    with places.at("train_on"), asked_as("train_on"):
        train_on = None if entry.train_on is None else _task(entry.train_on, base, include_path, find_task_file)
    metric, answers = (
        {key: value for key in keys if (value := getattr(entry, key)) is not None}
        for keys in (("metric", "greater_is_better"), ("gen_prefix", "max_gen_toks"))
    )
    shared: dict[str, Any] = {"include_path": include_path, "data_dir": data_dir, "split_protocol": study.split_protocol}
    with places.at("task" if train_on is None else "train_on"), asked_as("task"):
        found = [
            BenchmarkSpec(task=task, **shared, caps=one, near_duplicates=study.near_duplicates, train_on=train_on)
            for task, one in product(tasks, caps)
        ]
        checked = [
            (benchmark, check_train_on(benchmark)[0])
            for benchmark in found
            if train_on is not None or entry.metric is not None or find_group(benchmark.task, include_path) is not None
        ]
    with places.at("metric"):
        for benchmark, files in checked:
            check_metric(benchmark, files, entry.metric, "metric")
    return [(benchmark, metric, answers, entry.recipe) for benchmark in found]


def _task(task: str, base: Path, include_path: Path | None, check: Callable[[str, Path | None], object]) -> str:
    """Return a task with its path made absolute, if it has one; ``check`` refuses a task that does not exist."""
    corpus = corpus_path(task)
    if corpus is not None:
        if not (base / corpus).exists():
            raise UsageError(f"{base / corpus} does not exist. Give a file or a folder; a path starts beside the study file.")
        return f"{CORPUS_PREFIX}{base / corpus}"
    name = str(base / task) if task.endswith((".yaml", ".yml")) else task
    if name not in suites.TRAINING_SETS:
        check(name, include_path)
    return name


def _path(base: Path, path: str | None) -> Path | None:
    return None if path is None else base / path


def _refuse_equal_names(entries: Iterable[Iterable[BenchmarkSpec]], places: Places) -> None:
    """Refuse two different benchmarks whose records would have one name, so that no board could tell them apart."""
    first: dict[str, tuple[int, BenchmarkSpec]] = {}
    for number, one in ((number, one) for number, entry in enumerate(entries) for one in entry):
        name = trained_name(task_title(one.task), one.train_on)
        place, other = first.setdefault(name, (number, one))
        if (other.task, other.train_on) != (one.task, one.train_on):
            raise places.error(
                ("benchmarks", number),
                f"{_shown(one)} has the name {name} on a board, and so has benchmarks[{place}], {_shown(other)}. Remove one, or "
                f"rename what its file defines.",
            )


def _shown(benchmark: BenchmarkSpec) -> str:
    return benchmark.task if benchmark.train_on is None else f"{benchmark.task} with train_on: {benchmark.train_on}"


def _refuse_duplicates(runs: Iterable[RunSpec], places: Places) -> None:
    seen: set[tuple[str, str, int]] = set()
    for run in runs:
        key = (repr(run.model), repr(run.benchmark), run.seed)
        if key in seen:
            raise places.error(
                (), f"duplicate run: {run.model.name} on {run.benchmark.task} with seed {run.seed} is listed twice. Remove one."
            )
        seen.add(key)
