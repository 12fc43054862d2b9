"""One run's way through its epochs: which rows come next, at which rate, and what a step does with their gradient."""

from __future__ import annotations

import math
import time
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


READ_EVERY = 8
"""Steps after which losses and gradient norms are read from the device: each reading waits for the device to finish its work."""


@dataclass(frozen=True, kw_only=True)
class _Unread:
    """A step whose loss and gradient norm are on the device."""

    number: int
    """The step, counted from 1."""
    rows: tuple[int, ...]
    """Row numbers of its batch."""
    losses: tuple[torch.Tensor, ...]
    """The loss of each of its passes, which add up to the step's."""
    grad_norm: torch.Tensor
    """Norm of the gradient before clipping."""
    learning_rate: float
    """Rate that it used."""


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch takes its ``count`` sequences: drawn from (seed, epoch) alone."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class TrainState:
    """A training in progress; whoever drives it computes the gradient of ``batch`` and calls ``advance``."""

    def __init__(
        self,
        trainee: Trainee,
        sequences: Sequence[TokenSequence],
        recipe: Recipe,
        *,
        seed: int,
        resume: Resumption | None = None,
    ) -> None:
        """Stand before the first step, or after the epoch that ``resume`` names."""
        self.trainee, self.recipe = trainee, recipe
        self.optimizer = make_optimizer(trainee, recipe)
        self._parameters = list(trainee.trained_parameters().values())
        self._sequences, self._seed = sequences, seed
        self.regimes = regimes_of(trainee.model.module)
        self._per_epoch = math.ceil(len(sequences) / recipe.batch_size)
        whole = recipe.epochs * self._per_epoch
        self._total = min(whole, recipe.max_steps or whole)
        self._rate_of = learning_rates(self.optimizer, recipe, self._total)
        if resume:
            load_optimizer_state(self.optimizer, resume.optimizer_state)
        self._step = min(self._total, (resume.epoch if resume else 0) * self._per_epoch)

    def begin_epoch(self) -> None:
        """Turn to the first batch of the next epoch."""
        self.epoch = self._step // self._per_epoch + 1
        self._order = epoch_order(len(self._sequences), seed=self._seed, epoch=self.epoch)
        self._steps: list[Step] = []
        self._unread: list[_Unread] = []
        self._labels: list[int] = []
        self._tokens, self._started = 0, time.perf_counter()
        self._take_batch()

    def _take_batch(self) -> None:
        start = self._step % self._per_epoch * self.recipe.batch_size
        batch = [self._sequences[index] for index in self._order[start : start + self.recipe.batch_size]]
        # Sequences that may share a pass side by side: the order within a batch changes no number but dropout's draws.
        self.batch = [batch[place] for place in self.regimes.order(batch, range(len(batch)))]
        self.labels = sum(len(sequence.labels) for sequence in self.batch)
        # Dropout is drawn from (seed, step): a repeated or resumed step draws the same.
        self.trainee.dropout.seed_and_step = (self._seed, self._step + 1)
        self.trainee.dropout.lengths = tuple(len(sequence.ids) - 1 for sequence in self.batch)

    @property
    def finished(self) -> bool:
        """Whether the last step was taken."""
        return self._step >= self._total

    @property
    def steps_left(self) -> int:
        """Steps until the epoch ends."""
        return min(self._total, self.epoch * self._per_epoch) - self._step

    @property
    def step_seed(self) -> int:
        """Seed of whatever a step draws beside the adapter's dropout."""
        return int(np.random.SeedSequence((self._seed, self._step + 1)).generate_state(1)[0])

    def set_dropout_pass(self, start: int, stop: int) -> None:
        """Announce a pass over sequences ``start`` to ``stop`` of the batch to the adapter's dropout."""
        self.trainee.dropout.first, self.trainee.dropout.count = start, stop - start

    def advance(self, losses: Sequence[torch.Tensor]) -> None:
        """Take the optimizer step of ``batch``, whose gradient is computed, and turn to the next. Waits for no device.

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
        """Read the losses and norms that are on the device, in one copy, and look whether they are finite."""
        unread, self._unread = self._unread, []
        scalars = [scalar.detach().float() for step in unread for scalar in (*step.losses, step.grad_norm)]
        values = iter(torch.stack(scalars).tolist())
        for step in unread:
            loss = math.fsum(next(values) for _ in step.losses)
            norm = next(values)
            # A finite loss may have an infinite gradient, which spoils the weights; after the last step no loss would tell.
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise TrainingDiverged(
                        f"the {what} of step {step.number} is {value} on training rows {list(step.rows)}. Look at these rows, or "
                        f"lower the learning rate (--train_param.learning_rate, now {self.recipe.learning_rate})."
                    )
            self._steps.append(Step(number=step.number, loss=loss, learning_rate=step.learning_rate, grad_norm=norm))

    def end_epoch(self) -> Epoch:
        """Return the epoch whose last step was taken."""
        return Epoch(
            number=self.epoch,
            loss=float(np.average([step.loss for step in self._steps], weights=self._labels)),
            tokens=self._tokens,
            seconds=time.perf_counter() - self._started,
            steps=tuple(self._steps),
            optimizer_state=optimizer_state(self.optimizer),
        )
