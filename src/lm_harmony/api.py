"""The two functions for Python programs: ``evaluate`` a model on a benchmark, and ``fine_tune`` a loaded model on texts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_harmony.benchmarks.types import Caps, Example, Shots
from lm_harmony.engine import training
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.sequences import training_sequences
from lm_harmony.engine.train_state import Epoch
from lm_harmony.errors import NotCurrent
from lm_harmony.in_memory import InMemoryModel, Rows, language_model, restored, write_rows
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import PUBLISHED, Recipe
from lm_harmony.runs.caches import DirectScoreCache, ModelCache, RunCaches
from lm_harmony.runs.protocol import add_direct_score, train_before_test
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.studies.run_location import RunLocation


def evaluate(
    model: str | Path | ModelSpec | LanguageModel | tuple[PreTrainedModel, PreTrainedTokenizerBase],
    benchmark: str | Path | BenchmarkSpec | tuple[Rows, Mapping[str, object]],
    recipe: Recipe = PUBLISHED,
    *,
    seed: int = 0,
    metric: str | None = None,
    caps: Caps | None = None,
    direct: bool | tuple[Shots, ...] = True,
    results_dir: str | Path | None = None,
    device: str = "auto",
) -> RunRecord:
    """Fine-tune a model on a benchmark's training split, choose the epoch on validation, and score it on the test split.

    A loaded model comes back unchanged: weights, gradients, hooks, configuration and training mode.

    Args:
        model: a hub name, a folder, a ModelSpec, what ``load_model`` returned, or a loaded model with its tokenizer.
        benchmark: the name of an lm_eval task, its YAML file, "corpus:PATH", a BenchmarkSpec, or rows ("train", "validation"
            and "test" of a ``datasets.DatasetDict`` or of a mapping) with the configuration of their lm_eval task.
        recipe: how the model is fine-tuned; default: the published recipe. Of several learning rates, validation chooses one.
        seed: determines the validation split, the order of training rows, dropout and the initial adapter.
        metric: metric that chooses the epoch ("acc_norm,none"); None: the benchmark's own.
        caps: largest number of rows of each split; None: those of the BenchmarkSpec, or the published ones.
        direct: score the model before training too; (0, 5): without and with five examples before each question (few-shot).
        results_dir: folder that keeps the run, in the layout of a study: a finished run is returned from there, an unfinished
            one is continued. None: a temporary folder.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto"; a loaded model stays where it is.

    Raises:
        HarmonyError: the input cannot be used, the loss is not finite, or another process carries out the run in ``results_dir``.
    """
    with ExitStack() as stack:
        results = Path(results_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="lm-harmony-")))
        if isinstance(model, str | Path | ModelSpec):
            named, cache = model if isinstance(model, ModelSpec) else ModelSpec(name=str(model)), ModelCache()
        else:
            stack.enter_context(restored(model, weights=recipe.lora is None))
            in_memory = InMemoryModel(language_model(model), dtype=recipe.dtype, device=device)
            named, cache, device = in_memory.spec, in_memory, str(in_memory.device)
        spec = RunSpec(
            model=named,
            benchmark=_benchmark_spec(benchmark, caps, results),
            recipe=recipe,
            seed=seed,
            metric=metric,
            **_direct_scores(direct),
            execution=Execution(device=device),
        )
        return _carry_out(RunLocation(spec=spec, results_dir=results), cache)


def _direct_scores(direct: bool | tuple[Shots, ...]) -> dict[str, Any]:
    return {"direct": direct} if isinstance(direct, bool) else {"direct": True, "direct_fewshot": direct}


def fine_tune(
    model: LanguageModel | tuple[PreTrainedModel, PreTrainedTokenizerBase],
    texts: Sequence[tuple[str, str]],
    recipe: Recipe = PUBLISHED,
    *,
    seed: int = 0,
    output_dir: str | Path | None = None,
) -> Iterator[Epoch]:
    """Fine-tune a loaded model on texts, as every run does, and yield after each epoch.

    Until the next epoch is asked for, the model computes with the weights of the one that was yielded. At the end the LoRA
    adapter is taken out again; without LoRA (``Recipe(lora=None)``) the model keeps the trained weights.

    Args:
        model: what ``load_model`` returned, or a loaded transformers model with its tokenizer.
        texts: (context, continuation) pairs; an end-of-text token is added to each.
        recipe: how the model is fine-tuned, with one learning rate; default: the published recipe.
        seed: determines the order of the texts, dropout and the initial adapter.
        output_dir: folder for the weights after each epoch, in `output_dir/epoch-<n>`: PEFT's format, or a model folder
            without LoRA. None: weights are not written.

    Yields:
        The epoch: its number from 1, mean training loss in nats a token, tokens, seconds.

    Raises:
        ModelError: no adapter can be attached to the model.
        UsageError: the recipe has several learning rates.
        BenchmarkError: a continuation has no token, or every one is longer than ``recipe.max_length``.
        TrainingDiverged: the loss is not finite.
    """
    with restored(model, weights=False):
        given = language_model(model)
        examples = [
            Example(row=row, document={}, context=context, continuation=continuation, requests=())
            for row, (context, continuation) in enumerate(texts)
        ]
        sequences = training_sequences(given, examples, max_length=recipe.max_length, completion_only=recipe.completion_only)
        with trainable(given, recipe, seed=seed) as trainee:
            for epoch in training.fine_tune(
                trainee, sequences, recipe, seed=seed, micro_batch=recipe.batch_size, backend=choose_backend(given)
            ):
                if output_dir is not None:
                    trainee.save(Path(output_dir) / f"epoch-{epoch.number}")
                yield epoch


def _carry_out(location: RunLocation, model: ModelCache) -> RunRecord:
    """Return the record of a run that is finished and current; else carry it out, or what it lacks."""
    caches = RunCaches(model=model, direct_scores=DirectScoreCache(location.results_dir / "direct"))
    if location.state().finished:
        return location.store.record()
    with location.leases.hold_patiently(location.name, lost=lambda: None, waiting=lambda holder: None) as lease:
        spec, store, state = location.spec, replace(location.store, lease=lease), location.state()
        if state.finished:  # another process has finished it meanwhile
            return store.record()
        try:
            if store.is_finished() and state.readable and state.reason is None:
                return add_direct_score(store, spec, caches)
            return train_before_test(spec, store, resume=True, caches=caches)
        except NotCurrent:
            return train_before_test(spec, store, overwrite=True, caches=caches)


def _benchmark_spec(
    benchmark: str | Path | BenchmarkSpec | tuple[Rows, Mapping[str, object]], caps: Caps | None, results: Path
) -> BenchmarkSpec:
    if isinstance(benchmark, tuple):
        benchmark = write_rows(*benchmark, results / "inputs")
    elif not isinstance(benchmark, BenchmarkSpec):
        benchmark = BenchmarkSpec(task=str(benchmark))
    return replace(benchmark, caps=caps or benchmark.caps)
