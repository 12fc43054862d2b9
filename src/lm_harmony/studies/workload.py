"""Counts the work of a run: its rows are rendered and encoded as in the run, and its model is built without weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lm_harmony.benchmarks.auxiliary import open_tasks, run_splits
from lm_harmony.benchmarks.harness import Benchmark, HarnessTask
from lm_harmony.benchmarks.harness.few_shot import direct_rows
from lm_harmony.benchmarks.prompt import Prompt
from lm_harmony.benchmarks.splits import Splits
from lm_harmony.benchmarks.types import ChatTemplate, Example, Request
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.layout import Layout, concatenated_layout, context_layouts, end_by_tokens, prefix_tree_layout
from lm_harmony.engine.length_groups import LengthGroup
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.engine.model_size import ModelSize, model_size
from lm_harmony.engine.packed_attention import PackedAttention
from lm_harmony.engine.rope import RopeRegimes, regimes_of
from lm_harmony.engine.sequences import TokenSequence, scoring_sequences, training_sequences
from lm_harmony.engine.train_state import epoch_order
from lm_harmony.engine.training import micro_batches
from lm_harmony.models.loading import LanguageModel, load_without_weights
from lm_harmony.recipe import Recipe
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.studies.flops import DecodingWork, ScoringWork, TrainingWork


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of one run."""

    spec: RunSpec
    """Specification of the run."""
    size: ModelSize
    """Size of the run's model."""
    training: TrainingWork
    """Work of training, over all epochs."""
    training_rows: int
    """Number of training rows, without those whose answer is too long."""
    longest: int = 1
    """Input tokens of the longest training sequence."""
    epochs: int
    """Number of epochs that are started. Each one ends with a validation."""
    validation: ScoringWork
    """Work of one validation."""
    test: ScoringWork
    """Work of one test."""
    direct: Mapping[int, ScoringWork]
    """Number of examples before each question -> work of that direct score."""
    test_rows: int
    """Number of test documents."""
    text_bytes: int
    """Bytes of the test documents' texts, which the samples contain."""

    @property
    def training_tokens(self) -> int:
        """Input tokens of training, over all epochs."""
        return self.training.tokens

    @property
    def scoring_tokens(self) -> int:
        """Tokens of scoring: a validation after each epoch, and one test."""
        return self.epochs * self.validation.tokens + self.test.tokens


def workload(spec: RunSpec, budget: MemoryBudget) -> Workload:
    """Count the work of ``spec``.

    Args:
        spec: the run.
        budget: tokens and rows that fit into one pass on the machine that the plan is for.

    Raises:
        UsageError: there is no such benchmark.
        BenchmarkError: its rows cannot be read, or do not fit the task.
        ModelError: the model's configuration or tokenizer cannot be read.
    """
    model = _hollow(spec.model)
    splits = _splits(spec.benchmark, spec.model, spec.seed, spec.prompt)
    test = _scoring_work(model, splits.test, spec.recipe, budget)
    (task, *_), chat = _tasks(spec.benchmark, _with_text(spec.prompt, spec.model)), _chat(spec.model, spec.prompt)
    direct = direct_rows(task, splits.test, spec.shots, seed=spec.seed, chat=chat)
    sequences = training_sequences(
        model, splits.train, max_length=spec.recipe.max_length, completion_only=spec.recipe.completion_only
    )
    fed, epochs = _training_work(sequences, spec, budget, regimes_of(model.module))
    return Workload(
        spec=spec,
        size=size_of(spec.model, spec.recipe),
        training=fed,
        training_rows=len({sequence.row for sequence in sequences}),
        longest=max((len(one.ids) - 1 for one in sequences), default=1),
        epochs=epochs,
        validation=_scoring_work(model, splits.validation, spec.recipe, budget),
        test=test,
        direct={
            shots: _scoring_work(model, rows.examples, spec.recipe, budget) if shots else test for shots, rows in direct.items()
        },
        test_rows=len(splits.test),
        text_bytes=sum(len(request.context) + len(request.continuation) for one in splits.test for request in one.requests),
    )


def _training_work(
    sequences: Sequence[TokenSequence], spec: RunSpec, budget: MemoryBudget, regimes: RopeRegimes
) -> tuple[TrainingWork, int]:
    """Count the steps of a run's trainings, and return their work and the number of epochs that they start."""
    recipe, batch_size = spec.recipe, spec.recipe.batch_size
    per_epoch = math.ceil(len(sequences) / batch_size)
    steps = min(recipe.epochs * per_epoch, recipe.max_steps or recipe.epochs * per_epoch)
    epochs = math.ceil(steps / per_epoch)
    tokens = labels = passed = calls = pairs = 0
    for step in range(steps):
        if step % per_epoch == 0:
            order = epoch_order(len(sequences), seed=spec.seed, epoch=step // per_epoch + 1)
        start = step % per_epoch * batch_size
        batch = [sequences[place] for place in regimes.order(sequences, order[start : start + batch_size])]
        labels += sum(len(one.ids) - one.first_label for one in batch)
        for first, stop in micro_batches(batch, spec.execution.micro_batch, budget.training_tokens, regimes):
            layout = concatenated_layout(batch[first:stop])
            groups = PackedAttention(layout).groups
            passed += 1
            tokens += layout.tokens
            calls += len(groups)
            pairs += sum(group.pairs(0) for group in groups)
    counts = {"tokens": tokens, "labels": labels, "steps": steps, "passes": passed, "calls": calls, "pairs": pairs}
    trained = len(recipe.rates)  # every learning rate is trained on the same batches
    return TrainingWork(**{name: trained * count for name, count in counts.items()}), trained * epochs


def _scoring_work(model: LanguageModel, examples: Sequence[Example], recipe: Recipe, budget: MemoryBudget) -> ScoringWork:
    """Return the work of scoring ``examples``, with requests encoded and arranged as ``Scorer`` does it."""
    requests = [request for example in examples for request in example.requests]
    sequences, _ = scoring_sequences(model, [request for request in requests if request.kind != "generate_until"])
    contexts, written = _decoding_work(model, [one for one in requests if one.kind == "generate_until"], recipe, budget)
    regimes = regimes_of(model.module)
    by_beginning = sorted(range(len(sequences)), key=lambda place: sequences[place].ids)
    ordered = [sequences[place] for place in regimes.order(sequences, by_beginning)]
    end_of_batch = regimes.within(end_by_tokens)
    computed = predicted = passed = calls = masks = multiplied = start = 0
    while start < len(ordered):
        end = end_of_batch(ordered, start, budget.scoring_tokens)
        layout = prefix_tree_layout(ordered[start:end])
        groups = _groups(layout)
        computed += layout.tokens
        predicted += len(set(layout.sources_L.tolist()))
        passed += 1
        calls += len(groups)
        masks += sum(bool(prefix) or not group.chains for group, prefix in groups)
        multiplied += sum(group.pairs(prefix) for group, prefix in groups)
        start = end
    return ScoringWork(
        tokens=sum(len(sequence.ids) - 1 for sequence in sequences) + contexts,
        computed=computed,
        predicted=predicted,
        passes=passed,
        calls=calls,
        masks=masks,
        pairs=multiplied,
        decoding=written,
    )


def _groups(layout: Layout) -> list[tuple[LengthGroup, int]]:
    """Return the groups of a row in attention, each with the number of tokens of the shared prefix that it attends to."""
    return [(group, layout.prefix if index else 0) for index, group in enumerate(PackedAttention(layout).groups)]


def _decoding_work(
    model: LanguageModel, requests: Sequence[Request], recipe: Recipe, budget: MemoryBudget
) -> tuple[int, DecodingWork]:
    """Return the tokens of the contexts, and the work of generating if every answer has the largest allowed length."""
    encoded = model.text.encode([request.context for request in requests]) if requests else []
    by_settings: dict[GenerationSettings, list[Sequence[int]]] = {}
    for request, ids in zip(requests, encoded, strict=True):
        decoding = GenerationSettings.read(request.generation, default_limit=recipe.max_new_tokens)
        cut = ids[decoding.max_new_tokens - model.max_length :] or [model.text.prefix_id]
        by_settings.setdefault(decoding, []).append(cut)
    contexts = tokens = passed = steps = pairs = cached = 0
    for decoding, members in by_settings.items():
        members.sort(key=len, reverse=True)
        limit = decoding.max_new_tokens
        rows = max(1, min(budget.generation_rows, budget.cache_tokens // (len(members[0]) + limit)))
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            # In step t each row multiplies the keys of its context and of the t tokens generated before.
            read = len(batch) * ((limit - 1) * len(batch[0]) + limit * (limit - 1) // 2)
            layouts = [layout for _, layout in context_layouts(batch, budget.scoring_tokens)]
            contexts += sum(layout.tokens for layout in layouts)
            tokens += len(batch) * limit
            passed += len(layouts)
            steps += limit - 1
            cached += read
            pairs += read + sum(group.pairs(prefix) for layout in layouts for group, prefix in _groups(layout))
    asked = sum(map(len, encoded))
    return asked, DecodingWork(contexts=contexts, tokens=tokens, passes=passed, steps=steps, pairs=pairs, cached=cached)


@lru_cache(maxsize=4)
def _hollow(spec: ModelSpec) -> LanguageModel:
    """Build a model's modules on the meta device: shapes without weights."""
    return load_without_weights(spec.name, revision=spec.revision, trust_remote_code=spec.trust_remote_code)


@lru_cache(maxsize=256)
def size_of(spec: ModelSpec, recipe: Recipe) -> ModelSize:
    """Count the weights of a model without loading them.

    Raises:
        ModelError: its configuration or tokenizer cannot be read, or it cannot get the adapter.
    """
    return model_size(_hollow(spec), recipe)


@lru_cache(maxsize=4)
def _tasks(benchmark: BenchmarkSpec, prompt: Prompt) -> tuple[Benchmark, *tuple[HarnessTask, ...]]:
    return open_tasks(benchmark.tasks, benchmark.include_path, benchmark.data_dir, prompt=prompt)


@lru_cache(maxsize=8)
def _splits(benchmark: BenchmarkSpec, model: ModelSpec, seed: int, prompt: Prompt) -> Splits:
    (task, *others), chat = _tasks(benchmark, _with_text(prompt, model)), _chat(model, prompt)
    rules: dict[str, Any] = {"protocol": benchmark.split_protocol, "near_duplicates": benchmark.near_duplicates}
    return run_splits(task, others, caps=benchmark.caps, seed=seed, chat=chat, **rules)


def _with_text(prompt: Prompt, model: ModelSpec) -> Prompt:
    return prompt.with_text(_hollow(model).text.think_end_text)


def _chat(model: ModelSpec, prompt: Prompt) -> ChatTemplate | None:
    text, variables = _hollow(model).text, prompt.template_variables
    return text.chat_renderer(model.chat_template_date, variables) if model.apply_chat_template else None
