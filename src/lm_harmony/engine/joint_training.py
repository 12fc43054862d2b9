"""EXPERIMENTAL: joint training of several LoRA adapters on one frozen base, in common forward and backward passes.

No command uses it. ``fine_tune_jointly`` is public for experiments and may change or be removed.

The short texts of one optimizer batch of a small model do not keep a GPU busy, but those of several runs can. Each run has its
own adapter, optimizer, schedule, epochs and dropout, and ends with the weights that it would have alone. The sequences of all
runs are in one packed row, run after run. The frozen layers compute the row at once, and each adapted layer applies to every part
of the row the adapter of that run.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.backends import Backend
from lm_harmony.engine.memory import halve_batch
from lm_harmony.engine.multi_adapter_forward import SharedBase
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import Epoch, Resumption, TrainState
from lm_harmony.engine.training import fine_tune, micro_batches
from lm_harmony.errors import TrainingDiverged
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Recipe

MAX_JOINT_RUNS = 8
"""Largest number of runs in a pass on a GPU. On a CPU, which one run keeps busy, the runs are trained one after another."""


@dataclass(frozen=True, kw_only=True)
class JointRun:
    """One run of a joint training."""

    sequences: Sequence[TokenSequence] = field(repr=False)
    """Encoded training rows of the run."""
    recipe: Recipe
    """Recipe of the run, including its adapter."""
    seed: int
    """Seed of the adapter, of the order of rows and of dropout."""
    resume: Callable[[Trainee], Resumption] | None = None
    """Loads the weights of the last finished epoch and returns the point from which the run continues."""


@dataclass(frozen=True, kw_only=True)
class JointProgress:
    """What one run reports at the end of an epoch, or when it has diverged."""

    run: int
    """Index of the run."""
    trainee: Trainee
    """Model with the adapter of this run active, until the generator is resumed."""
    epoch: Epoch | None
    """The finished epoch, or None if the training of this run diverged."""
    diverged: TrainingDiverged | None = None
    """Why the run was stopped; the other runs continue."""


def fine_tune_jointly(
    model: LanguageModel, runs: Sequence[JointRun], *, backend: Backend, micro_batch: int, max_concurrent: int | None = None
) -> Iterator[JointProgress]:
    """Train one adapter for each run and yield whenever a run has finished an epoch.

    Args:
        model: base model; its weights are not changed.
        runs: the runs; when one has ended, the next one starts.
        backend: forward pass; only packed backends train several runs in one pass.
        micro_batch: largest number of sequences of a run in one pass; halved when memory runs out.
        max_concurrent: largest number of runs in a pass; None for eight on a GPU and one on a CPU.

    Raises:
        ModelError: an adapter cannot be attached.
    """
    max_concurrent = max_concurrent or (1 if model.device.type == "cpu" else MAX_JOINT_RUNS)
    shared = [place for place, run in enumerate(runs) if max_concurrent > 1 and backend.packed and _can_share(model, run.recipe)]
    for place, run in enumerate(runs):
        if place not in shared:
            yield from _train_alone(model, place, run, backend, micro_batch)
    with SharedBase(model) as base:
        yield from _advance(base, {place: runs[place] for place in shared}, backend, micro_batch, max_concurrent)


def _can_share(model: LanguageModel, recipe: Recipe) -> bool:
    """Tell whether a run can share passes with others: it trains only plain LoRA weights, and the model itself has no dropout."""
    lora = recipe.lora
    own = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.module.modules()) or any(
        isinstance(value, float) and value > 0 and ("drop" in name)
        for name, value in model.module.config.get_text_config().to_dict().items()
    )
    return lora is not None and lora.bias == "none" and not lora.use_dora and not own


def _train_alone(model: LanguageModel, place: int, run: JointRun, backend: Backend, micro_batch: int) -> Iterator[JointProgress]:
    """Train one run by itself and yield after each epoch."""
    with trainable(model, run.recipe, seed=run.seed) as trainee:
        resume = run.resume(trainee) if run.resume else None
        options = {"seed": run.seed, "micro_batch": micro_batch, "backend": backend, "resume": resume}
        try:
            for epoch in fine_tune(trainee, run.sequences, run.recipe, **options):  # type: ignore[arg-type]
                yield JointProgress(run=place, trainee=trainee, epoch=epoch)
        except TrainingDiverged as error:
            yield JointProgress(run=place, trainee=trainee, epoch=None, diverged=error)


def _advance(
    base: SharedBase, runs: dict[int, JointRun], backend: Backend, micro_batch: int, max_concurrent: int
) -> Iterator[JointProgress]:
    """Start runs, take their optimizer steps together, and remove those that have ended, until all have ended."""
    waiting, states = deque(runs.items()), dict[int, TrainState]()
    while waiting or states:
        while waiting and len(states) < max_concurrent:
            place, run = waiting.popleft()
            states[place] = _start(base, f"run{place}", run)
        losses, micro_batch = _backward(base, list(states.values()), backend, micro_batch)
        for (place, state), loss in zip(list(states.items()), losses, strict=True):
            trainee, diverged = state.trainee, None
            try:
                state.advance(loss)
            except TrainingDiverged as error:
                diverged = error
            if diverged or not state.steps_left:
                base.activate(trainee)
                yield JointProgress(run=place, trainee=trainee, epoch=None if diverged else state.end_epoch(), diverged=diverged)
            if diverged or state.finished:
                base.remove_adapter(states.pop(place).trainee)
            elif not state.steps_left:
                state.begin_epoch()


def _start(base: SharedBase, name: str, run: JointRun) -> TrainState:
    """Attach the adapter of a run and start its first epoch."""
    assert run.recipe.lora is not None
    trainee = base.add_adapter(name, run.recipe.lora, seed=run.seed)
    resume = run.resume(trainee) if run.resume else None
    state = TrainState(trainee, run.sequences, run.recipe, seed=run.seed, resume=resume)
    state.begin_epoch()
    return state


def _backward(
    base: SharedBase, states: Sequence[TrainState], backend: Backend, micro_batch: int
) -> tuple[list[list[torch.Tensor]], int]:
    """Compute the gradients of one optimizer batch of each run; return the runs' losses and the micro-batch that fitted."""
    module = base.model.module.train()
    while True:
        losses: list[list[torch.Tensor]] = [[] for _ in states]
        tokens = backend.memory_budget.training_tokens // len(states)
        cuts = [list(micro_batches(state.batch, micro_batch, tokens, state.regimes)) for state in states]
        try:
            for places in _common_passes(states, cuts):
                parts = []
                for state, (start, stop) in zip(states, places, strict=True):
                    state.set_dropout_pass(start, stop)
                    parts.append(state.batch[start:stop])
                fed = [sum(len(sequence.ids) - 1 for sequence in part) for part in parts]
                adapters = (state.trainee.adapter for state in states)
                with backend.active(module), base.adapters_by_part(dict(zip(adapters, fed, strict=True))):
                    with base.model.mixed_precision():
                        found = backend.train_forward(module, [sequence for part in parts for sequence in part])
                    logprobs = found.logprobs_L.split([sum(len(sequence.labels) for sequence in part) for part in parts])
                    shares = [-part.sum() / state.labels for state, part in zip(states, logprobs, strict=True)]
                    torch.stack(shares).sum().backward()
                for own, share in zip(losses, shares, strict=True):
                    own.append(share.detach())
            return losses, micro_batch
        except (RuntimeError, MemoryError) as error:
            micro_batch = halve_batch(min(micro_batch, max(len(state.batch) for state in states)), error)
            for state in states:
                state.optimizer.zero_grad()


def _common_passes(states: Sequence[TrainState], cuts: Sequence[Sequence[tuple[int, int]]]) -> Iterator[list[tuple[int, int]]]:
    """Yield the passes: for each run a micro-batch or (0, 0); the sequences of a pass need the same RoPE frequencies."""
    for places in itertools.zip_longest(*cuts, fillvalue=(0, 0)):
        regimes = [
            state.regimes.of_sequence(state.batch[start]) if stop > start else None
            for state, (start, stop) in zip(states, places, strict=True)
        ]
        for wanted in dict.fromkeys(regime for regime in regimes if regime is not None):
            yield [place if regime == wanted else (0, 0) for place, regime in zip(places, regimes, strict=True)]
