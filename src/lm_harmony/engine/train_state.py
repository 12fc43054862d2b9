"""State of a training: order of the rows, learning-rate schedule, optimizer steps, and what each epoch reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lm_harmony.engine.adapters import Trainee
from lm_harmony.engine.optimizers import learning_rates, load_optimizer_state, make_optimizer, optimizer_state
from lm_harmony.engine.rope import regimes_of
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.errors import TrainingDiverged
from lm_harmony.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step."""

    number: int
    """Number of the step, counted from 1 over all epochs."""
    loss: float
    """Mean negative log-likelihood of the step's labels, in nats."""
    learning_rate: float
    """Learning rate of the step."""
    grad_norm: float
    """Norm of the gradient before clipping."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One finished epoch; the model holds its weights until the generator is resumed."""

    number: int
    """Number of the epoch, counted from 1."""
    loss: float
    """Mean negative log-likelihood of the epoch's labels, in nats."""
    tokens: int
    """Number of input tokens, without padding."""
    seconds: float
    """Seconds that the epoch took. In joint training, each run has an equal share of the time of a common step."""
    steps: tuple[Step, ...] = field(repr=False)
    """Optimizer steps of the epoch."""
    optimizer_state: Mapping[str, torch.Tensor] = field(repr=False)
    """State that a resumed training needs in addition to the weights."""


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """The point from which an interrupted training continues; the weights are in the model already."""

    epoch: int
    """Number of the last finished epoch."""
    optimizer_state: Mapping[str, torch.Tensor]
    """``Epoch.optimizer_state`` of that epoch."""


READ_EVERY = 8
"""Number of steps after which losses and gradient norms are read from the device. Each reading waits for the device."""


@dataclass(frozen=True, kw_only=True)
class _Unread:
    """A step whose loss and gradient norm are still on the device."""

    number: int
    """Number of the step, counted from 1."""
    rows: tuple[int, ...]
    """Row numbers of its batch."""
    losses: tuple[torch.Tensor, ...]
    """Losses of its micro-batches, which add up to the loss of the step."""
    grad_norm: torch.Tensor
    """Norm of the gradient before clipping."""
    learning_rate: float
    """Learning rate of the step."""


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch uses its ``count`` sequences; it depends on (seed, epoch) only."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class TrainState:
    """A training in progress. The caller computes the gradient of ``batch`` and then calls ``advance``."""

    def __init__(
        self,
        trainee: Trainee,
        sequences: Sequence[TokenSequence],
        recipe: Recipe,
        *,
        seed: int,
        resume: Resumption | None = None,
    ) -> None:
        """Start before the first step, or after the epoch of ``resume``.

        Args:
            trainee: the model to fine-tune.
            sequences: encoded training rows.
            recipe: optimizer, schedule, batch size and number of epochs.
            seed: seed of the order of rows and of dropout.
            resume: the last finished epoch of an interrupted training.
        """
        self.trainee, self.recipe = trainee, recipe
        self.optimizer = make_optimizer(trainee, recipe)
        self._parameters = list(trainee.trained_parameters().values())
        self._sequences, self._seed = sequences, seed
        self.regimes = regimes_of(trainee.model.module)
        self._per_epoch = math.ceil(len(sequences) / recipe.batch_size)
        steps = recipe.epochs * self._per_epoch
        self.total = min(steps, recipe.max_steps or steps)
        self._rate_of = learning_rates(self.optimizer, recipe, self.total)
        if resume:
            load_optimizer_state(self.optimizer, resume.optimizer_state)
        self._step = min(self.total, (resume.epoch if resume else 0) * self._per_epoch)
        self.in_epoch = False
        self.seconds = 0.0

    def begin_epoch(self) -> None:
        """Start the next epoch and select its first batch. The caller adds the time of its steps to ``seconds``."""
        self.in_epoch, self.seconds = True, 0.0
        self.epoch = self._step // self._per_epoch + 1
        self._order = epoch_order(len(self._sequences), seed=self._seed, epoch=self.epoch)
        self._steps: list[Step] = []
        self._unread: list[_Unread] = []
        self._labels: list[int] = []
        self._tokens = 0
        self._take_batch()

    def _take_batch(self) -> None:
        """Select the next batch and set the dropout state for it."""
        start = self._step % self._per_epoch * self.recipe.batch_size
        batch = [self._sequences[index] for index in self._order[start : start + self.recipe.batch_size]]
        # Sequences that may share a pass are neighbours. The order within a batch changes nothing but the dropout masks.
        self.batch = [batch[place] for place in self.regimes.order(batch, range(len(batch)))]
        self.labels = sum(len(sequence.labels) for sequence in self.batch)
        # Dropout depends on (seed, step), so a repeated or resumed step has the same masks.
        self.trainee.dropout.set_step(self._seed, self._step + 1, [len(sequence.ids) - 1 for sequence in self.batch])

    @property
    def finished(self) -> bool:
        """Whether the last step was taken already."""
        return self._step >= self.total

    @property
    def steps_left(self) -> int:
        """Number of steps until the epoch ends."""
        return min(self.total, self.epoch * self._per_epoch) - self._step

    @property
    def step_seed(self) -> int:
        """Seed of PyTorch's global generator for this step (dropout that the model itself has)."""
        return int(np.random.SeedSequence((self._seed, self._step + 1)).generate_state(1)[0])

    def set_dropout_pass(self, start: int, stop: int) -> None:
        """Tell the adapter's dropout that the next pass computes the sequences ``start`` to ``stop`` of the batch."""
        self.trainee.dropout.set_pass(start, stop - start)

    def advance(self, losses: Sequence[torch.Tensor]) -> None:
        """Take the optimizer step of ``batch``, whose gradient is computed, and select the next batch.

        Except every ``READ_EVERY`` steps, the host does not wait for the device.

        Args:
            losses: scalars on the device that add up to the mean negative log-likelihood of the batch's labels, in nats.

        Raises:
            TrainingDiverged: the loss or the gradient of this step, or of one of the ``READ_EVERY`` before it, is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.max_grad_norm or math.inf)
        rate = self._rate_of(self._step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._step += 1
        rows = tuple(sorted({sequence.row for sequence in self.batch}))
        self._unread.append(_Unread(number=self._step, rows=rows, losses=tuple(losses), grad_norm=norm, learning_rate=rate))
        self._labels.append(self.labels)
        self._tokens += sum(self.trainee.dropout.lengths)
        if len(self._unread) == READ_EVERY or not self.steps_left:
            self._read()
        if self.steps_left:
            self._take_batch()

    def _read(self) -> None:
        """Copy the losses and norms of the last steps from the device and check that they are finite.

        Raises:
            TrainingDiverged: one of them is not finite.
        """
        unread, self._unread = self._unread, []
        scalars = [scalar.detach().float() for step in unread for scalar in (*step.losses, step.grad_norm)]
        values = iter(torch.stack(scalars).tolist())
        for step in unread:
            loss = math.fsum(next(values) for _ in step.losses)
            norm = next(values)
            # A finite loss may have an infinite gradient, which makes the weights NaN. After the last step no loss would show it.
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise TrainingDiverged(
                        f"the {what} of step {step.number} is {value} on training rows {list(step.rows)}. Look at these rows, or "
                        f"lower the learning rate (--train_param.learning_rate, now {self.recipe.peak_rate})."
                    )
            self._steps.append(Step(number=step.number, loss=loss, learning_rate=step.learning_rate, grad_norm=norm))

    def end_epoch(self) -> Epoch:
        """Return the report of the epoch whose last step was taken."""
        self.in_epoch = False
        return Epoch(
            number=self.epoch,
            loss=float(np.average([step.loss for step in self._steps], weights=self._labels)),
            tokens=self._tokens,
            seconds=self.seconds,
            steps=tuple(self._steps),
            optimizer_state=optimizer_state(self.optimizer),
        )
