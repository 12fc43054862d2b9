"""How much a run computes: its rows rendered and encoded as the run will do it, its model built without weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lm_harmony.benchmarks.examples import Example
from lm_harmony.benchmarks.harness import HarnessTask, open_task
from lm_harmony.benchmarks.splits import Splits, make_splits
from lm_harmony.engine.adapters import trainee
from lm_harmony.engine.course import order_of_rows
from lm_harmony.engine.room import CPU_SCORING_TOKENS
from lm_harmony.engine.sequences import TokenSequence, cut_to_length, rolling_windows, training_sequences
from lm_harmony.engine.trees import shared_row, tokens_from
from lm_harmony.models.loading import LanguageModel, assemble
from lm_harmony.recipe import CHAT_TEMPLATE_DATE, Recipe
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model's size, counted from its configuration."""

    parameters: int
    """All weights; one that serves as input and output layer counts once."""
    computing: int
    """Weights that multiply every token: all but the input embedding and the output layer."""
    output: int
    """Weights of the output layer, which multiply only what is predicted."""
    trained: int
    """Weights that the recipe trains."""
    layers: int
    """Blocks, each of which costs a GPU its kernel launches."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What scoring some examples takes."""

    tokens: int
    """Tokens of contexts and continuations, each request counted by itself: what a record calls scoring tokens."""
    computed: int
    """Tokens that are computed when shared beginnings are computed once."""
    predicted: int
    """Tokens that are predicted."""
    written: int
    """Most tokens that are written: answers may end sooner."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one run computes."""

    spec: RunSpec
    """The run."""
    size: Size
    """Its model."""
    training_tokens: int
    """Tokens fed in training, over all epochs."""
    trained_labels: int
    """Of which so many are predicted."""
    steps: int
    """Optimizer steps."""
    epochs: int
    """Epochs begun, each followed by a validation."""
    validation: Asked
    """One validation."""
    test: Asked
    """One test."""
    test_rows: int
    """Documents tested."""
    text_bytes: int
    """Bytes of the test's texts, which its samples repeat."""

    @property
    def scoring_tokens(self) -> int:
        """Tokens asked in scoring: a validation after each epoch, and one test."""
        return self.epochs * self.validation.tokens + self.test.tokens

    @property
    def training_flops(self) -> float:
        """Multiplications and additions of training: 2 forward and 2 backward a frozen weight, 2 more one that is trained.

        Source: 6 x parameters x tokens (Kaplan et al. 2020, arXiv 2001.08361), less the gradients that nobody needs.
        """
        size, labels = self.size, self.trained_labels
        each = 6 * size.computing if self.spec.recipe.lora is None else 4 * size.computing + 6 * size.trained
        return float(each * self.training_tokens + 4 * size.output * labels)

    @property
    def scoring_flops(self) -> float:
        """Multiplications and additions of validations and the test."""
        return self.epochs * asked_flops(self.size, self.validation) + asked_flops(self.size, self.test)


def asked_flops(size: Size, asked: Asked) -> float:
    """Return the multiplications and additions of scoring once what is asked: 2 a weight and token."""
    return float(2 * size.computing * (asked.computed + asked.written) + 2 * size.output * asked.predicted)


def workload(spec: RunSpec) -> Workload:
    """Count what ``spec`` computes.

    Raises:
        UsageError: an unknown benchmark.
        BenchmarkError: its rows are not at hand, or do not fit.
        OSError: the model's configuration or tokenizer is not at hand.
    """
    model = _hollow(spec.model)
    splits = _splits(spec.benchmark, spec.model, spec.seed)
    sequences = training_sequences(
        model, splits.train, max_length=spec.recipe.max_length, completion_only=spec.recipe.completion_only
    )
    per_epoch = math.ceil(len(sequences) / spec.recipe.batch_size)
    steps = min(spec.recipe.epochs * per_epoch, spec.recipe.max_steps or spec.recipe.epochs * per_epoch)
    epochs = math.ceil(steps / per_epoch)
    fed: list[TokenSequence] = []
    for epoch in range(1, epochs + 1):
        taken = (steps - (epoch - 1) * per_epoch) * spec.recipe.batch_size  # of the last epoch perhaps not all
        fed += [sequences[place] for place in order_of_rows(len(sequences), seed=spec.seed, epoch=epoch)[:taken]]
    return Workload(
        spec=spec,
        size=size_of(spec.model, spec.recipe),
        training_tokens=sum(len(sequence.ids) - 1 for sequence in fed),
        trained_labels=sum(len(sequence.labels) for sequence in fed),
        steps=steps,
        epochs=epochs,
        validation=_asked(model, splits.validation, spec.recipe),
        test=_asked(model, splits.test, spec.recipe),
        test_rows=len(splits.test),
        text_bytes=sum(len(request.context) + len(request.continuation) for one in splits.test for request in one.requests),
    )


def _asked(model: LanguageModel, examples: Sequence[Example], recipe: Recipe) -> Asked:
    """Encode requests as ``Respondent`` does, and lay them out as it does."""
    sequences: list[TokenSequence] = []
    contexts, written = 0, 0
    requests = [request for example in examples for request in example.requests]
    chosen = [request for request in requests if request.kind == "loglikelihood"]
    pairs = model.text.encode_pairs([(one.context, one.continuation) for one in chosen])
    named = zip(pairs, chosen, strict=True)
    sequences += [cut_to_length(pair, model.max_length, document=one.document) for pair, one in named]
    for request in requests:
        if request.kind == "loglikelihood_rolling":
            ids = model.text.encode([request.continuation])[0]
            sequences += rolling_windows(ids, model.text.prefix_id, model.max_length)
        elif request.kind == "generate_until":
            contexts += len(model.text.encode([request.context])[0])
            written += int(request.generation.get("max_gen_toks") or recipe.max_new_tokens)
    ordered = sorted(sequences, key=lambda sequence: sequence.ids)
    computed, predicted, start = 0, 0, 0
    while start < len(ordered):
        end = tokens_from(ordered, start, CPU_SCORING_TOKENS)
        row = shared_row(ordered[start:end])
        computed += row.tokens
        predicted += len({label.source for labels in row.labels for label in labels})
        start = end
    return Asked(
        tokens=sum(len(sequence.ids) - 1 for sequence in sequences) + contexts,
        computed=computed + contexts,
        predicted=predicted + written,
        written=written,
    )


@lru_cache(maxsize=4)
def _hollow(spec: ModelSpec) -> LanguageModel:
    """Build a model's modules on the meta device: every shape, no weight."""
    options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    config = AutoConfig.from_pretrained(spec.name, **options)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    return assemble(spec.name, module, AutoTokenizer.from_pretrained(spec.name, **options))


@lru_cache(maxsize=256)
def size_of(spec: ModelSpec, recipe: Recipe) -> Size:
    """Count a model's weights, without any.

    Raises:
        OSError: its configuration or tokenizer is not at hand.
    """
    model = _hollow(spec)
    module, config = model.module, model.module.config.get_text_config()
    output = sum(weight.numel() for weight in module.get_output_embeddings().parameters())
    embedding = sum(weight.numel() for weight in module.get_input_embeddings().parameters())
    whole = module.num_parameters()
    tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
    with trainee(model, recipe, seed=0) as learner:
        trained = sum(weight.numel() for weight in learner.trained_parameters().values())
    return Size(
        parameters=whole,
        computing=whole - embedding - (0 if tied else output),
        output=output,
        trained=trained,
        layers=int(getattr(config, "num_hidden_layers", 1)),
    )


@lru_cache(maxsize=4)
def _task(benchmark: BenchmarkSpec) -> HarnessTask:
    return open_task(benchmark.task, include_path=benchmark.include_path, data_dir=benchmark.data_dir)


@lru_cache(maxsize=8)
def _splits(benchmark: BenchmarkSpec, model: ModelSpec, seed: int) -> Splits:
    text, day = _hollow(model).text, model.chat_template_date or CHAT_TEMPLATE_DATE
    chat = partial(text.render_chat, date=day) if model.apply_chat_template else None
    return make_splits(_task(benchmark), caps=benchmark.caps, seed=seed, protocol=benchmark.split_protocol, chat=chat)
