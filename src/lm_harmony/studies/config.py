"""study.yaml -> every run that it asks for. The file is checked whole before the first run; unknown keys are refused.

models: [EleutherAI/pythia-70m-deduped, ./my/model, {family: Pythia, max_params_b: 1}, {name: my/chat, revision: v2}]
benchmarks: [arc_easy, leaderboard9, {task: mnli, max_num_train: 5000, recipe: {epochs: 2}}]
corpora: [texts/wiki.jsonl]       # what the suite `perplexity` stands for
seeds: [0, 1]
recipe: {learning_rate: 1.0e-4}   # what differs from the published recipe; also under one model or one benchmark
direct: true                      # score the untouched models too
results_dir: results              # a folder, beside this file unless absolute; or a URL: s3://bucket/folder
data_dir: data                    # <task>/{train,validation,test}.jsonl; without it: the hub
models_dir: models                # <owner>/<name>/ as `lm-harmony fetch` leaves them; what is not there comes from the hub
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, get_args

from lm_harmony.benchmarks import catalogue as suites
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Caps, SplitProtocol
from lm_harmony.errors import UsageError, check_flag, check_integer, check_number, did_you_mean
from lm_harmony.models import catalogue
from lm_harmony.models.model_folder import refuse_other_revision
from lm_harmony.recipe import PUBLISHED, Recipe
from lm_harmony.runs.remote import RemoteSync, is_url
from lm_harmony.runs.spec import LARGEST_SEED, BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.studies.checked import at, list_of, mapping_of, read_yaml, recipe_of

_CAPS = {"max_num_train": "train", "max_num_valid": "validation", "max_num_test": "test"}
_GROUP = ("family", "kind", "min_params_b", "max_params_b")
_MODEL = ("name", "revision", "trust_remote_code", "apply_chat_template", "chat_template_date", "recipe")
_BENCHMARK = ("task", "metric", "greater_is_better", "recipe", *_CAPS)
_EXECUTION = ("device", "engine", "micro_batch", "eval_batch_size", "gradient_checkpointing", "use_git")
_STUDY = (
    *("models", "benchmarks", "corpora", "seeds", "recipe", "direct", "apply_chat_template", "results_dir", "data_dir"),
    *("chat_template_date", "models_dir", "include_path", "split_protocol", "execution", *_CAPS),
)


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """What a study asks for, checked."""

    runs: tuple[RunSpec, ...] = field(repr=False)
    """Every run, model by model, then benchmark by benchmark, so that what is loaded is used up."""
    results_dir: Path
    """Where records go, or their working copy."""
    results_url: str | None = None
    """Where records go if not to a folder."""
    data_dir: Path | None = None
    """Where rows come from; None: the hub."""
    models_dir: Path | None = None
    """Where models are looked for before the hub is asked."""


def read_study(path: Path) -> StudySpec:
    """Read and check a study file.

    Raises:
        UsageError: the file is not there or no YAML mapping; an unknown key, name or value; a key or a run twice.
    """
    return study_spec(read_yaml(path), path.parent, where=str(path))


def study_spec(values: Any, base: Path, *, where: str = "study") -> StudySpec:
    """Check the content of a study file.

    Args:
        values: what the YAML holds.
        base: folder that relative paths start from.
        where: name of the file, for messages.

    Raises:
        UsageError: as ``read_study``.
    """
    study, base = mapping_of(values, _STUDY, where), base.resolve()  # workers may stand in other folders
    seeds, direct = _seeds_and_direct(study, where)
    common = recipe_of(study.get("recipe", {}), asdict(PUBLISHED), f"{where}: recipe")
    given = mapping_of(study.get("execution", {}), _EXECUTION, f"{where}: execution")
    with at(f"{where}: execution"):
        execution = Execution(**{"use_git": False, **given})
    models = [model for entry in list_of(study["models"], f"{where}: models") for model in _models(entry, study, base, where)]
    benchmarks = [
        benchmark
        for entry in list_of(study["benchmarks"], f"{where}: benchmarks")
        for benchmark in _benchmarks(entry, study, base, where)
    ]
    runs = []
    for (model, model_recipe), (benchmark, choice, benchmark_recipe), seed in product(models, benchmarks, seeds):
        place = f"{where}: recipe of {model.name} on {benchmark.task}"
        recipe = recipe_of(benchmark_recipe, recipe_of(model_recipe, common, place), place)
        runs.append(
            RunSpec(
                model=model,
                benchmark=benchmark,
                recipe=Recipe.from_dict(recipe),
                seed=seed,
                direct=direct,
                execution=execution,
                **choice,
            )
        )
    _refuse_twice(runs, where)
    results = str(study.get("results_dir", "results")).rstrip("/")
    return StudySpec(
        runs=tuple(runs),
        results_dir=RemoteSync(results).folder if is_url(results) else base / results,
        results_url=results if is_url(results) else None,
        data_dir=_folder(base, study.get("data_dir")),
        models_dir=_folder(base, study.get("models_dir")),
    )


def _seeds_and_direct(study: Mapping[str, Any], where: str) -> tuple[list[int], bool]:
    """Return both, once what the study says at its top has been checked."""
    for key in ("models", "benchmarks"):
        if not study.get(key):
            raise UsageError(f"{where}: {key} must name at least one, got {study.get(key)!r}. List names under {key}.")
    seeds = study.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds:
        raise UsageError(f"{where}: seeds must be a list of whole numbers from 0, got {seeds!r}. Write seeds: [0].")
    for seed in seeds:
        check_integer(f"{where}: seeds: a seed", seed, 0, LARGEST_SEED)
    direct = study.get("direct", False)
    check_flag(f"{where}: direct", direct)
    protocol = study.get("split_protocol", "clean")
    if protocol not in get_args(SplitProtocol):
        raise UsageError(f"{where}: split_protocol must be clean or published, got {protocol!r}. Use clean.")
    return seeds, direct


def _models(entry: Any, study: Mapping[str, Any], base: Path, where: str) -> list[tuple[ModelSpec, Mapping[str, Any]]]:
    """Return the models of one entry: a name, a folder, a mapping with a name, or a group of the catalogue."""
    given: Mapping[str, Any] = (
        {"name": entry} if isinstance(entry, str) else mapping_of(entry, (*_MODEL, *_GROUP), f"{where}: models")
    )
    chat = given.get("apply_chat_template", study.get("apply_chat_template", False))
    rest = {key: given[key] for key in ("revision", "trust_remote_code") if key in given}
    day = given.get("chat_template_date", study.get("chat_template_date"))
    if day is not None:
        rest["chat_template_date"] = str(day)  # YAML reads an unquoted date as one
    if "name" not in given:
        names = _group({key: given[key] for key in _GROUP if key in given}, where)
    elif any(key in given for key in _GROUP):
        raise UsageError(f"{where}: models: {given!r} gives a name and a group. Make two entries of it.")
    else:
        names = [str(given["name"])]
    fetched = _folder(base, study.get("models_dir"))
    names = [_folder_or_name(name, given.get("revision", "main"), base, fetched) for name in names]
    with at(f"{where}: models"):
        return [(ModelSpec(name=name, apply_chat_template=chat, **rest), given.get("recipe", {})) for name in names]


def _group(rule: Mapping[str, Any], where: str) -> list[str]:
    for key in ("min_params_b", "max_params_b"):
        if key in rule:
            check_number(f"{where}: models: {key}", rule[key])
    chosen = catalogue.select(**rule)
    if not rule or not chosen:
        families = sorted({info.family for info in catalogue.MODELS.values()})
        hint = did_you_mean(str(rule.get("family", "")), families)
        raise UsageError(
            f"{where}: models: no catalogued model fits {dict(rule)!r}.{hint} Families: {', '.join(families)}; "
            f"kinds: base, instruct."
        )
    return chosen


def _folder_or_name(name: str, revision: str, base: Path, models_dir: Path | None) -> str:
    """Return the user's own folder of that name, else the fetched one, else the name, for the hub."""
    if (base / name).is_dir():
        return str(base / name)
    if models_dir is None or not (models_dir / name).is_dir():
        return name
    refuse_other_revision(models_dir / name, name, revision)
    return str(models_dir / name)


def _benchmarks(
    entry: Any, study: Mapping[str, Any], base: Path, where: str
) -> list[tuple[BenchmarkSpec, dict[str, Any], Mapping[str, Any]]]:
    """Return the benchmarks of one entry (a task, a suite, or a mapping with a task), each with its metric and its recipe."""
    given = mapping_of({"task": entry} if isinstance(entry, str) else entry, _BENCHMARK, f"{where}: benchmarks")
    if "task" not in given:
        raise UsageError(f"{where}: benchmarks: {given!r} lacks the key task. Write task: and a task's or a suite's name.")
    with at(f"{where}: benchmarks: {given['task']}"):
        caps = Caps(**{ours: given.get(theirs, study.get(theirs, getattr(Caps(), ours))) for theirs, ours in _CAPS.items()})
    corpora = [str(_path(base, corpus)) for corpus in list_of(study.get("corpora", []), f"{where}: corpora")]
    tasks = suites.expand(str(given["task"]), corpora)
    data_dir, include = _folder(base, study.get("data_dir")), _folder(base, study.get("include_path"))
    specs = []
    for name in tasks:
        task = str(_path(base, name)) if name.endswith((".yaml", ".yml")) else name
        if suites.corpus_path(task) is None:
            find_task_file(task, include)  # refuses what does not exist
        protocol = study.get("split_protocol", "clean")
        specs.append(BenchmarkSpec(task=task, include_path=include, data_dir=data_dir, caps=caps, split_protocol=protocol))
    choice = {key: given[key] for key in ("metric", "greater_is_better") if given.get(key) is not None}
    if not isinstance(choice.get("metric", ""), str):
        raise UsageError(f"{where}: benchmarks: {given['task']}: metric must be text, got {given['metric']!r}. Write acc,none.")
    if "greater_is_better" in choice:
        check_flag(f"{where}: benchmarks: {given['task']}: greater_is_better", choice["greater_is_better"])
    return [(spec, choice, given.get("recipe", {})) for spec in specs]


def _folder(base: Path, path: Any) -> Path | None:
    return None if path is None else _path(base, path)


def _path(base: Path, path: Any) -> Path:
    return base / str(path)


def _refuse_twice(runs: Iterable[RunSpec], where: str) -> None:
    seen: set[tuple[str, str, int]] = set()
    for run in runs:
        key = (repr(run.model), repr(run.benchmark), run.seed)
        if key in seen:
            raise UsageError(f"{where}: {run.model.name} on {run.benchmark.task} seed {run.seed}, is asked twice. Name it once.")
        seen.add(key)
