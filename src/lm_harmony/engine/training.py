"""Training: ``fine_tune`` is a generator that trains on sequences and yields after each epoch.

It knows nothing of validation, run folders or benchmarks. The order of an epoch's rows depends on (seed, epoch) and dropout on
(seed, step), so the result does not depend on what the caller does between epochs, nor on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lm_harmony.engine.adapters import Trainee
from lm_harmony.engine.backends import PADDED, Backend
from lm_harmony.engine.memory import halve_batch, release_freed_memory
from lm_harmony.engine.rope import RopeRegimes
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import Epoch, Resumption, TrainState
from lm_harmony.progress import track
from lm_harmony.recipe import Recipe


def fine_tune(
    trainee: Trainee,
    sequences: Sequence[TokenSequence],
    recipe: Recipe,
    *,
    seed: int,
    micro_batch: int,
    backend: Backend = PADDED,
    resume: Resumption | None = None,
) -> Iterator[Epoch]:
    """Train and yield after each epoch.

    Args:
        trainee: model to fine-tune; its weights change in place.
        sequences: encoded training rows.
        recipe: optimizer, schedule, batch size and number of epochs.
        seed: seed of the order of rows and of dropout.
        micro_batch: largest number of sequences in one forward pass; halved when memory runs out. Gradients are accumulated over
            ``recipe.batch_size`` sequences and weighted by labels, so it changes no number beyond rounding.
        backend: forward pass, and the largest number of tokens in it.
        resume: the last finished epoch of an interrupted training.

    Raises:
        TrainingDiverged: the loss or the gradient of a step is not finite; names the step and its rows.
    """
    state = TrainState(trainee, sequences, recipe, seed=seed, resume=resume)
    while not state.finished:
        state.begin_epoch()
        trainee.module.train()
        with backend.active(trainee.model.module):
            for _ in track(range(state.steps_left), f"epoch {state.epoch}/{recipe.epochs}", total=state.steps_left):
                losses, micro_batch = _backward(state, micro_batch, backend)
                state.advance(losses)
        trainee.module.eval()
        release_freed_memory()
        yield state.end_epoch()


def _backward(state: TrainState, micro_batch: int, backend: Backend) -> tuple[list[torch.Tensor], int]:
    """Compute the gradient of one optimizer batch; must be called inside ``backend.active``.

    Returns:
        The losses of its micro-batches, which add up to the loss of the batch, and the micro-batch size that fitted into memory.
    """
    module, batch = state.trainee.model.module, state.batch
    while True:
        torch.manual_seed(state.step_seed)  # seed of dropout that the model itself has (GPT-2)
        try:
            losses = []
            for start, stop in micro_batches(batch, micro_batch, backend.memory_budget.training_tokens, state.regimes):
                state.set_dropout_pass(start, stop)
                with state.trainee.model.mixed_precision():
                    loss = -backend.train_forward(module, batch[start:stop]).logprobs_L.sum() / state.labels
                loss.backward()
                losses.append(loss.detach())
            return losses, micro_batch
        except (RuntimeError, MemoryError) as error:
            micro_batch = halve_batch(min(micro_batch, len(batch)), error)
            state.optimizer.zero_grad()


def micro_batches(batch: Sequence[TokenSequence], most: int, tokens: int, regimes: RopeRegimes) -> Iterator[tuple[int, int]]:
    """Split a batch into micro-batches, each computed in one forward pass.

    Args:
        batch: sequences of an optimizer batch.
        most: largest number of sequences of a micro-batch.
        tokens: largest number of input tokens of a micro-batch; a longer sequence is a micro-batch of its own.
        regimes: RoPE of the model; the sequences of a micro-batch need the same frequencies.

    Yields:
        (start, stop) of each micro-batch.
    """
    start, total = 0, 0
    for index, sequence in enumerate(batch):
        size = len(sequence.ids) - 1
        full = index - start == most or total + size > tokens
        if index > start and (full or regimes.of_sequence(sequence) != regimes.of_sequence(batch[start])):
            yield start, index
            start, total = index, 0
        total += size
    yield start, len(batch)
