"""fine_tune(): a generator that passes over the training sequences and yields after each epoch.

It knows no validation, no store and no benchmark. The order of an epoch's rows is drawn from (seed, epoch) and dropout from
(seed, step), so whatever its caller does between two epochs, and wherever a run is taken up again, the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lm_harmony.engine.adapters import Trainee
from lm_harmony.engine.backends import PADDED, Backend
from lm_harmony.engine.memory import release_freed_memory
from lm_harmony.engine.padded_forward import halve_batch
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
        trainee: the model; its weights change in place.
        sequences: what is learned.
        recipe: how.
        seed: decides order and dropout.
        micro_batch: most sequences in one forward pass; halved when memory runs out. Gradients accumulate up to
            ``recipe.batch_size`` sequences, weighted by labels, so that it changes no number beyond rounding.
        backend: how a forward pass is laid out, and how many tokens it may hold.
        resume: go on after this epoch.

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
    """Compute the gradient of one optimizer batch, inside ``backend.active``.

    Returns:
        The share of each pass in the batch's loss, and the micro-batch that fitted in memory.
    """
    module, batch = state.trainee.model.module, state.batch
    while True:
        torch.manual_seed(state.step_seed)  # of the dropout that a model has of its own (GPT-2)
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
    """Cut a batch into passes (start, stop) of at most ``most`` sequences and about ``tokens`` tokens, one sequence at least.

    The sequences of a pass need the same RoPE frequencies.
    """
    start, held = 0, 0
    for place, sequence in enumerate(batch):
        size = len(sequence.ids) - 1
        full = place - start == most or held + size > tokens
        if place > start and (full or regimes.of_sequence(sequence) != regimes.of_sequence(batch[start])):
            yield start, place
            start, held = place, 0
        held += size
    yield start, len(batch)
