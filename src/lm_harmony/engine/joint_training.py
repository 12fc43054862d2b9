"""Joint training: several runs of one base model take their optimizer steps in common forward and backward passes.

The short texts of one optimizer batch of a small model do not keep a GPU busy, but those of several runs can. Each run has its
own adapter, optimizer, schedule, epochs and dropout masks, and ends with the weights that it gets alone, apart from rounding.
``JointRuns`` advances runs that yield their trainings (``training.ByEpochs``). ``train_jointly`` takes the common steps.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from lm_harmony.engine.joint_adapters import JointAdapters
from lm_harmony.engine.lora_linear import FusedLoraLinear
from lm_harmony.engine.memory import halve_batch, release_freed_memory
from lm_harmony.engine.train_state import Epoch
from lm_harmony.engine.training import ByEpochs, Training, micro_batches
from lm_harmony.errors import TrainingDiverged
from lm_harmony.models.device import is_out_of_memory

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class JointRuns(Generic[K, T]):
    """Runs in progress. Those that can share passes train jointly; the others train one after another.

    While a run waits, its adapter is swapped out. So each run finds the model as it would alone, whatever it does between epochs.
    """

    def __init__(self) -> None:
        """Start without runs."""
        self._runs: dict[K, ByEpochs[T]] = {}
        self._trainings: dict[K, Training] = {}
        self._received: dict[K, Epoch | Exception | None] = {}
        self._apart = False
        self._said = ""

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, key: object) -> bool:
        return key in self._runs

    def add(self, key: K, run: ByEpochs[T]) -> None:
        """Let a run enter; it begins when ``advance`` is called."""
        self._runs[key], self._received[key] = run, None

    def advance(self) -> tuple[K, T]:
        """Advance the runs until one of them ends, and return its key and its result.

        Raises:
            BaseException: what a run itself raises. The other runs can be advanced further.
        """
        while True:
            for key in list(self._received):
                ended = self._resume(key, self._received.pop(key))
                if ended is not None:
                    del self._runs[key]
                    self._apart &= bool(self._runs)
                    return key, ended.value
            self._received |= self._train()

    def _say(self, text: str) -> None:
        """Log ``text`` if it differs from the last one."""
        if text != self._said:
            log.info("%s.", text)
            self._said = text

    def close(self) -> None:
        """End all runs where they are, so that they release what they hold."""
        while self._runs:
            key, run = self._runs.popitem()
            training = self._trainings.pop(key, None)
            if training is not None:
                training.trainee.swap_in()
            run.close()

    def _resume(self, key: K, received: Epoch | Exception | None) -> StopIteration | None:
        """Continue a run with its finished epoch or its error until it yields again; return how it ended, or None."""
        run, training = self._runs[key], self._trainings.pop(key, None)
        if training is not None:
            training.trainee.swap_in()
        try:
            if isinstance(received, Exception):
                training = run.throw(received)
            else:
                training = next(run) if received is None else run.send(received)
        except StopIteration as end:
            return end
        except BaseException:
            del self._runs[key]
            raise
        training.trainee.swap_out()
        self._trainings[key] = training
        return None

    def _train(self) -> dict[K, Epoch | Exception]:
        """Train until an epoch of some run has ended or failed; return these epochs and errors."""
        first = next(iter(self._trainings.values()))
        joint = {key: training for key, training in self._trainings.items() if training is first or _fit(first, training)}
        obstacle = _obstacle(first)
        if len(self._trainings) > 1:
            self._say(f"runs train one after another: {obstacle}" if obstacle else f"{len(joint)} runs train jointly")
        if len(joint) > 1 and not obstacle and not self._apart:
            before = [training.micro_batch for training in joint.values()]
            try:
                ended = train_jointly(list(joint.values()))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("%d runs do not fit into memory together: they are trained one after another.", len(joint))
                self._apart = True
                for training, micro_batch in zip(joint.values(), before, strict=True):
                    training.micro_batch = micro_batch
            else:
                return {key: ended[place] for place, key in enumerate(joint) if place in ended}
        key = next(key for key, training in joint.items() if training is first)
        first.trainee.swap_in()
        try:
            return {key: first.train_epoch()}
        except Exception as error:  # noqa: BLE001 - the run handles it as its own
            return {key: error}
        finally:
            first.trainee.swap_out()


def _fit(one: Training, other: Training) -> bool:
    """Tell whether two trainings have the same base model and equally shaped adapters."""
    return one.trainee.model.module is other.trainee.model.module and one.state.recipe.lora == other.state.recipe.lora


def _obstacle(training: Training) -> str:
    """Return why a training cannot share passes with others, or "" if it can."""
    model, layers = training.trainee.model, training.trainee.layers
    config = model.module.config.get_text_config().to_dict()
    if not training.backend.packed:
        return "the model uses padded batches"
    if training.backend.compiled:
        return "compiled layers are not shared"
    if not layers or not all(isinstance(one.layer, FusedLoraLinear) for one in layers):
        return "the recipe trains other weights than those of plain LoRA adapters"
    if any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.module.modules()) or any(
        isinstance(value, float) and value > 0 and "drop" in name for name, value in config.items()
    ):
        return "the model has dropout of its own"
    return "" if model.autocast is None else "matrix products are computed in another type than that of the weights"


def train_jointly(trainings: Sequence[Training]) -> dict[int, Epoch | Exception]:
    """Take optimizer steps of all trainings in common passes until an epoch of at least one of them has ended or failed.

    Args:
        trainings: trainings that can share passes and whose adapters are swapped out. Their micro-batches are halved when memory
            runs out.

    Returns:
        Place of each training whose epoch has ended -> the epoch, or the error of a training that diverged.

    Raises:
        RuntimeError, MemoryError: one sequence of each training does not fit into memory at once.
    """
    states = [training.state for training in trainings]
    for state in states:
        if not state.in_epoch:
            state.begin_epoch()
    module, backend = trainings[0].trainee.model.module, trainings[0].backend
    adapters = JointAdapters([training.trainee for training in trainings])
    failed: dict[int, Exception] = {}
    with adapters.active():
        module.train()
        with backend.active(module):
            while not failed and all(state.steps_left for state in states):
                started = time.perf_counter()
                losses = _backward(adapters, trainings)
                for place, (state, loss) in enumerate(zip(states, losses, strict=True)):
                    try:
                        state.advance(loss)
                    except TrainingDiverged as error:
                        failed[place] = error
                for state in states:
                    state.seconds += (time.perf_counter() - started) / len(states)
        module.eval()
    release_freed_memory()
    ended = {place: state.end_epoch() for place, state in enumerate(states) if place not in failed and not state.steps_left}
    return {**ended, **failed}


def _backward(adapters: JointAdapters, trainings: Sequence[Training]) -> list[list[torch.Tensor]]:
    """Compute the gradients of one optimizer batch of each training; return the losses of each one's micro-batches."""
    module, backend = trainings[0].trainee.model.module, trainings[0].backend
    states = [training.state for training in trainings]
    while True:
        losses: list[list[torch.Tensor]] = [[] for _ in states]
        try:
            for places in _common_passes(trainings):
                parts = []
                for state, (start, stop) in zip(states, places, strict=True):
                    if stop > start:
                        state.set_dropout_pass(start, stop)
                    parts.append(state.batch[start:stop])
                found = backend.train_forward(module, adapters.begin_pass(parts))
                logprobs = found.logprobs_L.split([sum(len(sequence.labels) for sequence in part) for part in parts])
                shares = [-part.sum() / state.labels for state, part in zip(states, logprobs, strict=True)]
                torch.stack(shares).sum().backward()
                for own, share, part in zip(losses, shares, parts, strict=True):
                    own += [share.detach()] if part else []
            adapters.hand_out_gradients()
            return losses
        except (RuntimeError, MemoryError) as error:
            adapters.drop_gradients()
            largest = max(min(training.micro_batch, len(training.state.batch)) for training in trainings)
            smaller = halve_batch(largest, error)
            for training in trainings:
                training.micro_batch = min(training.micro_batch, smaller)


def _common_passes(trainings: Sequence[Training]) -> Iterator[list[tuple[int, int]]]:
    """Yield the passes: for each training a micro-batch or (0, 0); the sequences of a pass need the same RoPE frequencies."""
    tokens = trainings[0].backend.memory_budget.training_tokens // len(trainings)
    cuts = [
        list(micro_batches(training.state.batch, training.micro_batch, tokens, training.state.regimes)) for training in trainings
    ]
    for places in itertools.zip_longest(*cuts, fillvalue=(0, 0)):
        regimes = [
            training.state.regimes.of_sequence(training.state.batch[start]) if stop > start else None
            for training, (start, stop) in zip(trainings, places, strict=True)
        ]
        for wanted in dict.fromkeys(regime for regime in regimes if regime is not None):
            yield [place if regime == wanted else (0, 0) for place, regime in zip(places, regimes, strict=True)]
