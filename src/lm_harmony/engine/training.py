"""fine_tune(): a generator that passes over the training sequences and yields after each epoch.

It knows no validation, no store and no benchmark. The order of an epoch's rows is drawn from (seed, epoch) and dropout from
(seed, step), so whatever its caller does between two epochs, and wherever a run is taken up again, the numbers are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lm_harmony.engine.adapters import Trainee
from lm_harmony.engine.forward import Forward, label_logprobs, smaller_batch
from lm_harmony.engine.optimizers import learning_rates, load_optimizer_state, make_optimizer, optimizer_state
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.errors import TrainingDiverged
from lm_harmony.progress import track
from lm_harmony.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step."""

    number: int
    """Counted from 1 over all epochs."""
    loss: float
    """Mean negative log-likelihood of the step's labels, in nats."""
    learning_rate: float
    """Rate that the step used."""
    grad_norm: float
    """Norm of the gradient before clipping."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One finished pass; the model holds its weights until the generator is resumed."""

    number: int
    """Counted from 1."""
    loss: float
    """Mean negative log-likelihood of the epoch's labels, in nats."""
    tokens: int
    """Tokens fed, without padding."""
    seconds: float
    """Time it took."""
    steps: tuple[Step, ...] = field(repr=False)
    """Its optimizer steps."""
    optimizer_state: Mapping[str, torch.Tensor] = field(repr=False)
    """What a resumed run needs beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where an interrupted training goes on; the weights are in the model already."""

    epoch: int
    """The last finished epoch."""
    optimizer_state: Mapping[str, torch.Tensor]
    """``Epoch.optimizer_state`` of that epoch."""


def fine_tune(
    trainee: Trainee,
    sequences: Sequence[TokenSequence],
    recipe: Recipe,
    *,
    seed: int,
    micro_batch: int,
    forward: Forward = label_logprobs,
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
        forward: how a forward pass is laid out.
        resume: go on after this epoch.

    Raises:
        TrainingDiverged: the loss or the gradient of a step is not finite; names the step and its rows.
    """
    optimizer = make_optimizer(trainee, recipe)
    per_epoch = math.ceil(len(sequences) / recipe.batch_size)
    total = min(recipe.epochs * per_epoch, recipe.max_steps or recipe.epochs * per_epoch)
    rate_of = learning_rates(optimizer, recipe, total)
    if resume:
        load_optimizer_state(optimizer, resume.optimizer_state)
    for epoch in range((resume.epoch if resume else 0) + 1, math.ceil(total / per_epoch) + 1):
        started = time.perf_counter()
        batches = _batches(sequences, recipe, (seed, epoch), total)
        trainee.module.train()
        steps = []
        for step, batch in track(batches, f"epoch {epoch}/{recipe.epochs}", total=len(batches)):
            for group in optimizer.param_groups:
                group["lr"] = rate_of(step)
            loss, norm, micro_batch = _step(trainee, optimizer, batch, (seed, step + 1), recipe, micro_batch, forward)
            steps.append(Step(number=step + 1, loss=loss, learning_rate=rate_of(step), grad_norm=norm))
        trainee.module.eval()
        yield Epoch(
            number=epoch,
            loss=float(np.average([step.loss for step in steps], weights=[_labels(batch) for _, batch in batches])),
            tokens=sum(len(sequence.ids) - 1 for _, batch in batches for sequence in batch),
            seconds=time.perf_counter() - started,
            steps=tuple(steps),
            optimizer_state=optimizer_state(optimizer),
        )


def _batches(
    sequences: Sequence[TokenSequence], recipe: Recipe, seed_and_epoch: tuple[int, int], total: int
) -> list[tuple[int, list[TokenSequence]]]:
    """Return the epoch's steps (from 0 over all epochs, below ``total``), each with its optimizer batch."""
    order = np.random.default_rng(seed_and_epoch).permutation(len(sequences))
    starts = range(0, len(sequences), recipe.batch_size)
    first = (seed_and_epoch[1] - 1) * len(starts)
    return [
        (step, [sequences[index] for index in order[start : start + recipe.batch_size]])
        for step, start in enumerate(starts, start=first)
        if step < total
    ]


def _labels(batch: Sequence[TokenSequence]) -> int:
    return sum(len(sequence.labels) for sequence in batch)


def _step(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[TokenSequence],
    seed_and_step: tuple[int, int],
    recipe: Recipe,
    micro_batch: int,
    forward: Forward,
) -> tuple[float, float, int]:
    """Take one optimizer step; return (loss in nats, gradient norm, micro-batch that fitted in memory)."""
    labels = _labels(batch)
    while True:
        # Dropout is drawn from (seed, step): a repeated or resumed step draws the same.
        torch.manual_seed(int(np.random.SeedSequence(seed_and_step).generate_state(1)[0]))
        try:
            loss = 0.0
            for start in range(0, len(batch), micro_batch):
                logprobs = forward(trainee.model.module, batch[start : start + micro_batch]).logprobs_L
                part = -logprobs.sum() / labels
                part.backward()
                loss += part.item()
            break
        except RuntimeError as error:
            micro_batch = smaller_batch(min(micro_batch, len(batch)), error)
            optimizer.zero_grad()
    parameters = list(trainee.trained_parameters().values())
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm or math.inf))
    # A finite loss may have an infinite gradient, which would spoil the weights; after the last step no loss would tell.
    for what, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            rows = sorted({sequence.row for sequence in batch})
            raise TrainingDiverged(
                f"the {what} of step {seed_and_step[1]} is {value} on training rows {rows}. Look at these rows, or lower the "
                f"learning rate (--train_param.learning_rate, now {recipe.learning_rate})."
            )
    optimizer.step()
    optimizer.zero_grad()
    return loss, norm, micro_batch
