"""What a run needs before its first training step: the rendered rows, the loaded model, and checks of the two together."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.auxiliary import open_tasks, run_splits
from lm_harmony.benchmarks.harness import Benchmark, HarnessTask
from lm_harmony.benchmarks.harness.few_shot import direct_rows
from lm_harmony.benchmarks.harness.provenance import dataset_commit, score_placeholder_replies, scoring_rules
from lm_harmony.benchmarks.recurrence import recurring
from lm_harmony.benchmarks.splits import Splits
from lm_harmony.benchmarks.task_code import IMPORTED_MODULES, files_opened_by, unload_modules
from lm_harmony.benchmarks.types import ChatTemplate
from lm_harmony.engine.lora_targets import are_derived, lora_targets
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, training_sequences
from lm_harmony.errors import ModelError, counted
from lm_harmony.models.loading import LanguageModel
from lm_harmony.models.quantization import refuse_quantization
from lm_harmony.models.text import TextEncoder
from lm_harmony.recipe import Lora
from lm_harmony.runs.caches import LoadedModel, ModelCache, RunCaches
from lm_harmony.runs.fingerprint import request_fingerprints
from lm_harmony.runs.memory_check import fit_into_memory, free_for
from lm_harmony.runs.memory_errors import memory_errors
from lm_harmony.runs.metric_choice import choosing_metric
from lm_harmony.runs.run_setup import RunSetup
from lm_harmony.runs.sources import Source, sources_opened_by_code, task_sources, with_commits
from lm_harmony.runs.spec import RunSpec

log = logging.getLogger(__name__)


def set_up_run(spec: RunSpec, caches: RunCaches | None = None) -> RunSetup:
    """Load the benchmark, render its rows, and load the model or take it from the cache.

    Raises:
        UsageError: the task or the metric is unknown, or no one says whether a higher metric is better.
        BenchmarkError: the benchmark has no training split, or its rows cannot be loaded or do not fit into the model.
        ModelError: the model cannot be loaded, lacks a chat template, cannot get the adapter, or does not fit into memory.
        MissingExtra: the recipe quantizes the weights, and bitsandbytes is not installed.
    """
    benchmark, recipe, models = spec.benchmark, spec.recipe, (caches or RunCaches()).model
    found = task_sources(benchmark)  # hashed before they are read, so that a change in between shows
    code = [Path(one.path) for one in found if one.path and (one.kind == "task" or one.path.endswith(".py"))]
    unload_modules([*code, *IMPORTED_MODULES])
    prompt = spec.prompt.with_text(lambda token: models.structure(spec).text.think_end_text(token))
    with files_opened_by(code) as opened:
        places, allowed = (benchmark.include_path, benchmark.data_dir), spec.execution.allow_task_code
        task, *others = open_tasks(benchmark.tasks, *places, allow_code=allowed, prompt=prompt)
    metric, higher = choosing_metric(spec, task)
    if recipe.quantize is not None:
        refuse_quantization(recipe.quantize)
    text = models.chat_encoder(spec)
    chat = None if text is None else text.chat_renderer(spec.model.chat_template_date, prompt.template_variables)
    with files_opened_by(code) as opened_later:  # errors in the rows show before the weights are loaded, which takes minutes
        splits = _splits(spec, task, others, chat)
        score_placeholder_replies(task, (*splits.validation, *splits.test))
        direct = direct_rows(task, splits.test, spec.shots, seed=spec.seed, chat=chat)
    structure = models.structure(spec)
    structure.text.check_single_prefix(splits.train[0].context + (splits.train[0].continuation or ""))
    targets = _derived_targets(structure, recipe.lora)
    sequences = training_sequences(structure, splits.train, max_length=recipe.max_length, completion_only=recipe.completion_only)
    fitted = _fitted(spec, structure, sequences, models)
    loaded = _load(fitted, models, text)
    found = _with_commits(found, (task, *others))
    run = RunSetup(
        spec=spec,
        task=task,
        scorer=_scorer(spec, loaded),
        splits=splits,
        direct=direct,
        sequences=sequences,
        metric=metric,
        higher_is_better=higher,
        sources=(*found, *sources_opened_by_code(found, opened | opened_later), *loaded.sources),
        fingerprints=request_fingerprints(
            spec, splits, sequences, direct=direct, counting=scoring_rules(task), longest=loaded.model.max_length, targets=targets
        ),
        derived_targets=targets,
        ways_out=() if fitted.execution == spec.execution else ("gradient checkpointing",),
    )
    return _logged(run)


def _splits(spec: RunSpec, task: Benchmark, others: Sequence[HarnessTask], chat: ChatTemplate | None) -> Splits:
    benchmark = spec.benchmark
    rules: dict[str, Any] = {"protocol": benchmark.split_protocol, "near_duplicates": benchmark.near_duplicates}
    return run_splits(task, others, caps=benchmark.caps, seed=spec.seed, chat=chat, **rules)


def _with_commits(found: tuple[Source, ...], benchmarks: Iterable[Benchmark]) -> tuple[Source, ...]:
    """Return the sources with the commits of the data sets on the hub that the tasks were loaded from."""
    commits: dict[tuple[str, str | None], dict[str | None, None]] = defaultdict(dict)
    for task in (task for benchmark in benchmarks for task in benchmark.subtasks):
        config = task.lm_eval_task.config
        revision = (config.dataset_kwargs or {}).get("revision") or "main"
        commits[str(config.dataset_path), revision][dataset_commit(task)] = None
    return with_commits(found, "rows", commits)


def _fitted(spec: RunSpec, structure: LanguageModel, sequences: Sequence[TokenSequence], models: ModelCache) -> RunSpec:
    """Return ``spec`` with the options that its memory needs; ``structure`` is the model without weights."""
    longest = max(len(sequence.ids) for sequence in sequences) - 1
    return fit_into_memory(spec, structure, longest=longest, free=free_for(spec, models.held_bytes))


def _load(fitted: RunSpec, models: ModelCache, text: TextEncoder | None) -> LoadedModel:
    """Return the loaded model; ``text`` is the encoder whose chat template rendered the rows.

    Raises:
        ModelError: the model cannot be loaded, or its chat template has changed since.
    """
    with memory_errors(fitted, "loading"):
        loaded = models.get(fitted)
    if text is not None and text.tokenizer.chat_template != loaded.model.text.tokenizer.chat_template:
        raise ModelError(
            f"model {fitted.model.name}: its chat template changed while the rows were rendered. Repeat the command."
        )
    return loaded


def _derived_targets(model: LanguageModel, lora: Lora | None) -> tuple[str, ...]:
    """Return the derived names of the modules to adapt, and log them; refuse a model that cannot be adapted before any work."""
    targets = () if lora is None else lora_targets(model, lora)
    if lora is None or not are_derived(model.module, lora):
        return ()
    kind, names = model.module.config.model_type, " ".join(targets)
    log.info("model %s: PEFT has no default for %s; the adapter changes %s.", model.name, kind, names)
    return targets


def _scorer(spec: RunSpec, loaded: LoadedModel) -> Scorer:
    """Return the scorer of a loaded model with the batch size, answer length and seed of ``spec``."""
    return Scorer(
        model=loaded.model,
        batch_size=spec.execution.eval_batch_size,
        max_new_tokens=spec.recipe.max_new_tokens,
        seed=spec.seed,
        backend=loaded.backend,
        think_end=spec.prompt.think_end_token,
    )


def _logged(run: RunSetup) -> RunSetup:
    """Log the sizes of the splits, and rows and tokens that were left out. Return the run."""
    name, text = run.task.name, run.model.text
    if run.answer_too_long:
        dropped = counted(run.answer_too_long, "training row")
        log.warning("%s: %s dropped, whose answer is longer than a training text.", name, dropped)
    if text.appended:
        log.info(
            "model %s: its tokenizer appends %s to every text; texts are encoded without.", text.name, " ".join(text.appended)
        )
    log.info("%s: %s", name, run.splits.sizes())
    recurs = recurring(run.near_duplicates, len(run.splits.test))
    if recurs is not None:
        log.info("%s: %s.", name, recurs)
    return run
