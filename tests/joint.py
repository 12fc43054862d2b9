"""Run trainings as generators that joint training advances."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.backends import PACKED, Backend
from lm_harmony.engine.joint_training import JointRuns
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import Epoch, Resumption
from lm_harmony.engine.training import ByEpochs, Training, alone
from lm_harmony.errors import TrainingDiverged
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Recipe

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a joint training."""

    sequences: list[TokenSequence]
    recipe: Recipe
    seed: int = 0
    micro_batch: int = 8
    backend: Backend = PACKED
    after_epoch: Callable[[Trainee, Epoch], object] = lambda trainee, epoch: None
    resume: tuple[Path, Epoch] | None = None

    def by_epochs(self, model: LanguageModel) -> ByEpochs[tuple[list[Epoch], Weights | TrainingDiverged]]:
        """Train, and return the epochs with the final weights, or with the error if the training diverged."""
        epochs = []
        with trainable(model, self.recipe, seed=self.seed) as trainee:
            resume = None
            if self.resume:
                folder, last = self.resume
                trainee.load(folder)
                resume = Resumption(epoch=last.number, optimizer_state=last.optimizer_state)
            options = {"seed": self.seed, "micro_batch": self.micro_batch}
            training = Training(trainee, self.sequences, self.recipe, backend=self.backend, resume=resume, **options)
            try:
                while not training.finished:
                    epochs.append((yield training))
                    self.after_epoch(trainee, epochs[-1])
            except TrainingDiverged as error:
                return epochs, error
            return epochs, {name: weight.detach().clone() for name, weight in trainee.trained_parameters().items()}

    def alone(self, model: LanguageModel) -> tuple[list[Epoch], Weights]:
        """Train this run by itself, and return its epochs and its weights."""
        epochs, weights = alone(self.by_epochs)(model)
        assert not isinstance(weights, TrainingDiverged)
        return epochs, weights

    def within(self, **budget: int) -> Run:
        """Return this run with another memory budget of its backend."""
        return replace(self, backend=replace(PACKED, memory_budget=replace(PACKED.memory_budget, **budget)))


def train_jointly(
    model: LanguageModel, runs: Iterable[Run], most: int = 99
) -> dict[int, tuple[list[Epoch], Weights | TrainingDiverged]]:
    """Train at most ``most`` runs at once. When one has ended, the next one enters."""
    joint, waiting, found = JointRuns[int, tuple[list[Epoch], Weights | TrainingDiverged]](), list(enumerate(runs)), {}
    while waiting or joint:
        while waiting and len(joint) < most:
            place, run = waiting.pop(0)
            joint.add(place, run.by_epochs(model))
        place, result = joint.advance()
        found[place] = result
    return found


def distance(found: Weights | TrainingDiverged, expected: Weights) -> float:
    """Return the largest relative difference of the weights."""
    assert not isinstance(found, TrainingDiverged)
    assert found.keys() == expected.keys()
    return max(float((found[name] - weight).norm() / weight.norm()) for name, weight in expected.items())
