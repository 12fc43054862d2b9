"""Training: ``Training`` is one training in progress, and ``fine_tune`` a generator that yields after each of its epochs.

It knows nothing of validation, run folders or benchmarks. The order of an epoch's rows depends on (seed, epoch) and dropout on
(seed, step), so the result does not depend on what the caller does between epochs, nor on where a run was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from lm_harmony.engine.adapters import Trainee
from lm_harmony.engine.backends import PADDED, Backend
from lm_harmony.engine.memory import halve_batch, release_freed_memory
from lm_harmony.engine.rope import RopeRegimes
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import Epoch, Resumption, TrainState
from lm_harmony.progress import track
from lm_harmony.recipe import Recipe

P = ParamSpec("P")
T = TypeVar("T")


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
    training = Training(trainee, sequences, recipe, seed=seed, micro_batch=micro_batch, backend=backend, resume=resume)
    while not training.finished:
        yield training.train_epoch()


class Training:
    """A training in progress. ``train_epoch`` trains its next epoch alone, ``train_jointly`` several in common passes."""

    def __init__(
        self,
        trainee: Trainee,
        sequences: Sequence[TokenSequence],
        recipe: Recipe,
        *,
        seed: int,
        micro_batch: int,
        backend: Backend = PADDED,
        resume: Resumption | None = None,
    ) -> None:
        """Start before the first step, or after the epoch of ``resume``; the arguments are those of ``fine_tune``."""
        self.state = TrainState(trainee, sequences, recipe, seed=seed, resume=resume)
        self.trainee, self.micro_batch, self.backend = trainee, micro_batch, backend

    @property
    def finished(self) -> bool:
        """Whether the last step was taken already."""
        return self.state.finished

    def train_epoch(self) -> Epoch:
        """Take the steps that are left of the epoch in progress, or all steps of the next one, and return the finished epoch.

        Raises:
            TrainingDiverged: the loss or the gradient of a step is not finite; names the step and its rows.
        """
        state, module = self.state, self.trainee.module
        if not state.in_epoch:
            state.begin_epoch()
        started = time.perf_counter()
        module.train()
        with self.backend.active(self.trainee.model.module):
            description = f"epoch {state.epoch}/{state.recipe.epochs}"
            for _ in track(range(state.steps_left), description, total=state.steps_left):
                losses, self.micro_batch = _backward(state, self.micro_batch, self.backend)
                state.advance(losses)
        module.eval()
        release_freed_memory()
        state.seconds += time.perf_counter() - started
        return state.end_epoch()


ByEpochs = Generator[Training, Epoch, T]
"""A run that yields its training whenever an epoch is to be trained, and receives the finished epoch.

An error of the training is thrown into the generator. So whoever advances it decides whether the run trains alone (``alone``) or
in common passes with others (``joint_training.JointRuns``).
"""


def alone(run_by_epochs: Callable[P, ByEpochs[T]], name: str | None = None) -> Callable[P, T]:
    """Return the function that executes ``run_by_epochs`` to its end, trains each of its epochs alone and returns its result.

    Args:
        run_by_epochs: function that returns the generator of a run.
        name: name of the returned function; None: that of ``run_by_epochs``.
    """

    @wraps(run_by_epochs)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        generator = run_by_epochs(*arguments, **options)
        try:
            training = next(generator)
            while True:
                try:
                    epoch = training.train_epoch()
                except BaseException as error:  # noqa: BLE001 - the run handles it as its own, Ctrl-C included
                    training = generator.throw(error)
                else:
                    training = generator.send(epoch)
        except StopIteration as end:
            result: T = end.value
            return result

    run.__name__ = run.__qualname__ = name or run.__name__
    return run


def _backward(state: TrainState, micro_batch: int, backend: Backend) -> tuple[list[torch.Tensor], int]:
    """Compute the gradient of one optimizer batch; must be called inside ``backend.active``.

    Returns:
        The losses of its micro-batches, which add up to the loss of the batch, and the micro-batch size that fitted into memory.
    """
    module, batch = state.trainee.model.module, state.batch
    while True:
        _seed_generators(state.step_seed, state.trainee.model.device)
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


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed the dropout that a model itself has (GPT-2)."""
    if device.type == "cpu":  # torch.manual_seed would note down for other devices where it was called, which takes 1.5 ms
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


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
