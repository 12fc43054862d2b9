"""What a run needs before its first training step: the rendered rows, the loaded model, and checks of the two together."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lm_harmony.benchmarks.auxiliary import open_tasks, run_splits
from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.harness.provenance import dataset_commit, score_placeholder_replies, scoring_rules
from lm_harmony.benchmarks.splits import Splits
from lm_harmony.benchmarks.task_code import IMPORTED_MODULES, files_opened_by, unload_modules
from lm_harmony.benchmarks.types import Example, Reply, Score, requests_of
from lm_harmony.engine.lora_targets import are_derived, lora_targets
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, training_sequences
from lm_harmony.errors import ModelError, ScoreNotFinite
from lm_harmony.models.loading import LanguageModel
from lm_harmony.models.quantization import refuse_quantization
from lm_harmony.models.text import TextEncoder
from lm_harmony.recipe import CHAT_TEMPLATE_DATE, Lora
from lm_harmony.runs.caches import LoadedModel, ModelCache, RunCaches
from lm_harmony.runs.fingerprint import RequestFingerprints, direct_score_id, request_fingerprints
from lm_harmony.runs.memory_check import fit_into_memory, free_for
from lm_harmony.runs.memory_errors import memory_errors
from lm_harmony.runs.metric_choice import choosing_metric
from lm_harmony.runs.record import DataRecord
from lm_harmony.runs.sources import Source, sources_opened_by_code, task_sources, with_commit
from lm_harmony.runs.spec import RunSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """A run whose rows and model are loaded, ready for training and scoring."""

    spec: RunSpec
    """The request that the run was set up for."""
    task: HarnessTask = field(repr=False)
    """Benchmark task, which turns replies into metrics."""
    scorer: Scorer = field(repr=False)
    """Model with its backend, and a count of the tokens it has scored."""
    splits: Splits = field(repr=False)
    """Rendered rows for training, validation and test."""
    sequences: Sequence[TokenSequence] = field(repr=False)
    """Training rows as token ids, without those whose answer is too long."""
    metric: str
    """Metric that chooses the epoch, as "metric,filter"."""
    higher_is_better: bool
    """Whether a higher value of the metric is better."""
    sources: tuple[Source, ...] = field(repr=False)
    """Files and hub commits that the run reads."""
    fingerprints: RequestFingerprints
    """Fingerprints of the requests and of the training tokens."""
    derived_targets: tuple[str, ...]
    """Names of the adapted modules where neither the recipe nor PEFT names them; else empty."""
    ways_out: tuple[str, ...] = ()
    """What ``--memory auto`` switched on so that the run fits into memory."""

    @property
    def model(self) -> LanguageModel:
        """The model that is trained and scored."""
        return self.scorer.model

    @property
    def answer_too_long(self) -> int:
        """Number of training rows left out because their answer is longer than a training sequence may be."""
        return len(self.splits.train) - len({sequence.row for sequence in self.sequences})

    @property
    def direct_score_id(self) -> str:
        """Key of the direct score in the cache; runs with equal keys have equal direct scores."""
        return direct_score_id(self.spec, self.fingerprints, self.sources, dtype=repr(self.model.precision))

    def data_record(self) -> DataRecord:
        """Return the counts of rows that were used and left out."""
        splits = self.splits
        return DataRecord(
            fingerprint=splits.fingerprint(),
            train=len(splits.train) - self.answer_too_long,
            validation=len(splits.validation),
            test=len(splits.test),
            carved=splits.carved,
            dropped_from_train=splits.dropped_from_train,
            dropped_from_validation=splits.dropped_from_validation,
            without_answer=splits.without_answer,
            truncated=sum(sequence.truncated for sequence in self.sequences),
            answer_too_long=self.answer_too_long,
            appended_tokens=self.model.text.appended,
            train_on=splits.train_on,
        )

    def phases(self) -> list[tuple[str, float]]:
        """Return the (name, work) of each phase of the run, for its progress bar. The unit is a character that is scored."""
        splits, spec = self.splits, self.spec
        epoch = 2.0 * sum(len(row.context) + len(row.continuation or "") for row in splits.train)  # forward and backward
        validation, test = (sum(map(_characters, rows)) for rows in (splits.validation, splits.test))
        found = [("direct test", test)] if spec.direct else []
        for number in range(1, spec.recipe.epochs + 1):
            name = f"epoch {number}/{spec.recipe.epochs}"
            found += [(name, epoch), (f"validation of {name}", validation)]
        return found + [("test", test)] * (spec.recipe.epochs if spec.test_curve else int(spec.test))

    def score(self, examples: Sequence[Example], *, final: bool) -> Score:
        """Return the score of the model's current weights on ``examples``.

        Args:
            examples: rows of one split.
            final: add standard errors and per-document samples.

        Raises:
            ScoreNotFinite: a log-likelihood is not finite, or the metric that chooses the epoch has no finite value.
        """
        with memory_errors(self.spec, "scoring"):
            replies = self.scorer.reply(requests_of(examples))
        return self.grade(examples, iter(replies), final=final)

    def grade(self, examples: Sequence[Example], replies: Iterator[Reply], *, final: bool) -> Score:
        """Return the score of ``replies`` to the requests of ``examples``; ``final`` and errors are those of ``score``."""
        grouped = [list(itertools.islice(replies, len(example.requests))) for example in examples]
        score = self.task.score(examples, grouped, errors=final, samples=final)
        if self.metric not in score.metrics:
            raise ScoreNotFinite(
                f"train_param.metric_for_best_model = {self.metric} of {self.task.name} has no finite value on these "
                f"{len(examples)} documents. Choose one of {', '.join(score.metrics) or 'another benchmark'}."
            )
        return score


def _characters(example: Example) -> float:
    """Return the number of characters that the requests of a document have; a context that they share counts once."""
    return float(sum(map(len, {request.context for request in example.requests}))) + sum(
        len(request.continuation) for request in example.requests
    )


def set_up_run(spec: RunSpec, caches: RunCaches | None = None) -> RunSetup:
    """Load the benchmark, render its rows, and load the model or take it from the cache.

    Raises:
        UsageError: the task or the metric is unknown, or no one says whether a higher metric is better.
        BenchmarkError: the benchmark has no training split, or its rows cannot be loaded or do not fit into the model.
        ModelError: the model cannot be loaded, lacks a chat template, cannot get the adapter, or does not fit into memory.
        MissingExtra: the recipe quantizes the weights, and bitsandbytes is not installed.
    """
    benchmark, recipe = spec.benchmark, spec.recipe
    found = task_sources(benchmark)  # hashed before they are read, so that a change in between shows
    code = [Path(one.path) for one in found if one.path and (one.kind == "task" or one.path.endswith(".py"))]
    unload_modules([*code, *IMPORTED_MODULES])
    with files_opened_by(code) as opened:
        places, allowed = (benchmark.include_path, benchmark.data_dir), spec.execution.allow_task_code
        task, *others = open_tasks(benchmark.tasks, *places, allow_code=allowed)
    metric, higher = choosing_metric(spec, task)
    if recipe.quantize is not None:
        refuse_quantization(recipe.quantize)
    models = (caches or RunCaches()).model
    text = models.chat_encoder(spec)
    chat = None if text is None else partial(text.render_chat, date=spec.model.chat_template_date or CHAT_TEMPLATE_DATE)
    with files_opened_by(code) as opened_later:  # errors in the rows show before the weights are loaded, which takes minutes
        splits = run_splits(task, others, caps=benchmark.caps, seed=spec.seed, protocol=benchmark.split_protocol, chat=chat)
        score_placeholder_replies(task, splits.validation[0])
    structure = models.structure(spec)
    structure.text.check_single_prefix(splits.train[0].context + (splits.train[0].continuation or ""))
    targets = _derived_targets(structure, recipe.lora)
    sequences = training_sequences(structure, splits.train, max_length=recipe.max_length, completion_only=recipe.completion_only)
    fitted = _fitted(spec, structure, sequences, models)
    loaded = _load(fitted, models, text)
    for one in (task, *others):
        found = with_commit(found, "rows", dataset_commit(one), name=one.lm_eval_task.DATASET_PATH)
    run = RunSetup(
        spec=spec,
        task=task,
        scorer=_scorer(spec, loaded),
        splits=splits,
        sequences=sequences,
        metric=metric,
        higher_is_better=higher,
        sources=(*found, *sources_opened_by_code(found, opened | opened_later), *loaded.sources),
        fingerprints=request_fingerprints(
            spec, splits, sequences, counting=scoring_rules(task), longest=loaded.model.max_length, targets=targets
        ),
        derived_targets=targets,
        ways_out=() if fitted.execution == spec.execution else ("gradient checkpointing",),
    )
    _log_summary(run)
    return run


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
    )


def _log_summary(run: RunSetup) -> None:
    """Log the sizes of the splits, and rows and tokens that were left out."""
    name, text = run.task.name, run.model.text
    if run.answer_too_long:
        log.warning("%s: %d training rows dropped: their answer is longer than a training text.", name, run.answer_too_long)
    if text.appended:
        log.info(
            "model %s: its tokenizer appends %s to every text; texts are encoded without.", text.name, " ".join(text.appended)
        )
    log.info("%s: %s", name, run.splits.sizes())
