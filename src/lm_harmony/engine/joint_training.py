"""fine_tune_together(): several runs on one frozen base advance in one forward and backward pass.

Small models leave a GPU idle between the short texts of one optimizer batch; several runs fill it. Each run has its own adapter,
optimizer, schedule, epochs and random draws, and ends where it would have ended alone. The runs' sequences lie in one packed row,
run after run; the frozen layers compute the row as a whole, the adapted ones send each part through its own adapter.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lm_harmony.engine.adapters import Trainee, trainee
from lm_harmony.engine.backends import Backend
from lm_harmony.engine.multi_adapter_forward import SharedBase
from lm_harmony.engine.padded_forward import smaller_batch
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import Epoch, Resumption, TrainState
from lm_harmony.engine.training import fine_tune, passes
from lm_harmony.errors import TrainingDiverged
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Recipe

RUNS_ON_GPU = 8
"""Runs that advance at once on an accelerator; on a processor, which one run keeps busy, each has its turn."""


@dataclass(frozen=True, kw_only=True)
class JointRun:
    """What one run learns."""

    sequences: Sequence[TokenSequence] = field(repr=False)
    """The training rows, encoded."""
    recipe: Recipe
    """How it learns them."""
    seed: int
    """Governs its adapter, order and dropout."""
    resume: Callable[[Trainee], Resumption] | None = None
    """Puts back the weights of the last finished epoch, and tells where it stood."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One run has ended an epoch, or cannot go on."""

    run: int
    """Place of its lesson."""
    trainee: Trainee
    """The model with this run's adapter switched on, until the generator is resumed."""
    epoch: Epoch | None
    """The epoch; None: the training diverged."""
    diverged: TrainingDiverged | None = None
    """Why it cannot go on; the other runs do."""


def fine_tune_jointly(
    model: LanguageModel, lessons: Sequence[JointRun], *, paths: Backend, micro_batch: int, at_once: int | None = None
) -> Iterator[Progress]:
    """Train one adapter for each lesson and yield whenever one of them has ended an epoch.

    Args:
        model: the base; its weights are not changed.
        lessons: what is learned; when a run has ended the next one enters.
        paths: how a forward pass is laid out. Runs advance at once on the packed path only.
        micro_batch: most sequences of a run in one pass; halved when memory runs out.
        at_once: most runs in a pass; None: eight on an accelerator, one on a processor.

    Raises:
        ModelError: an adapter cannot be attached.
    """
    at_once = at_once or (1 if model.device.type == "cpu" else RUNS_ON_GPU)
    together = [place for place, lesson in enumerate(lessons) if at_once > 1 and paths.fast and _can_share(model, lesson.recipe)]
    for place, lesson in enumerate(lessons):
        if place not in together:
            yield from _alone(model, place, lesson, paths, micro_batch)
    with SharedBase(model) as base:
        yield from _advance(base, {place: lessons[place] for place in together}, paths, micro_batch, at_once)


def _can_share(model: LanguageModel, recipe: Recipe) -> bool:
    """Tell whether a pass can hold this run beside others: it trains plain LoRA only, and the model drops nothing of its own."""
    lora = recipe.lora
    own = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.module.modules()) or any(
        isinstance(value, float) and value > 0 and ("drop" in name)
        for name, value in model.module.config.get_text_config().to_dict().items()
    )
    return lora is not None and lora.bias == "none" and not lora.use_dora and not own


def _alone(model: LanguageModel, place: int, lesson: JointRun, paths: Backend, micro_batch: int) -> Iterator[Progress]:
    with trainee(model, lesson.recipe, seed=lesson.seed) as learner:
        resume = lesson.resume(learner) if lesson.resume else None
        options = {"seed": lesson.seed, "micro_batch": micro_batch, "paths": paths, "resume": resume}
        try:
            for epoch in fine_tune(learner, lesson.sequences, lesson.recipe, **options):  # type: ignore[arg-type]
                yield Progress(run=place, trainee=learner, epoch=epoch)
        except TrainingDiverged as error:
            yield Progress(run=place, trainee=learner, epoch=None, diverged=error)


def _advance(
    base: SharedBase, lessons: dict[int, JointRun], paths: Backend, micro_batch: int, at_once: int
) -> Iterator[Progress]:
    """Let runs enter, step and leave until all have ended."""
    waiting, courses = deque(lessons.items()), dict[int, TrainState]()
    while waiting or courses:
        while waiting and len(courses) < at_once:
            place, lesson = waiting.popleft()
            courses[place] = _enter(base, f"run{place}", lesson)
        losses, micro_batch = _backward(base, list(courses.values()), paths, micro_batch)
        for (place, course), loss in zip(list(courses.items()), losses, strict=True):
            learner, diverged = course.trainee, None
            try:
                course.advance(loss)
            except TrainingDiverged as error:
                diverged = error
            if diverged or not course.steps_left:
                base.show(learner)
                yield Progress(run=place, trainee=learner, epoch=None if diverged else course.end_epoch(), diverged=diverged)
            if diverged or course.finished:
                base.leave(courses.pop(place).trainee)
            elif not course.steps_left:
                course.begin_epoch()


def _enter(base: SharedBase, name: str, lesson: JointRun) -> TrainState:
    assert lesson.recipe.lora is not None
    learner = base.enter(name, lesson.recipe.lora, seed=lesson.seed)
    resume = lesson.resume(learner) if lesson.resume else None
    course = TrainState(learner, lesson.sequences, lesson.recipe, seed=lesson.seed, resume=resume)
    course.begin_epoch()
    return course


def _backward(
    base: SharedBase, courses: Sequence[TrainState], paths: Backend, micro_batch: int
) -> tuple[list[list[torch.Tensor]], int]:
    """Compute the gradients of one optimizer batch of each run; return (each run's losses, micro-batch that fitted in memory)."""
    module = base.model.module.train()
    while True:
        losses: list[list[torch.Tensor]] = [[] for _ in courses]
        tokens = paths.room.training_tokens // len(courses)
        cuts = [list(passes(course.batch, micro_batch, tokens, course.regimes)) for course in courses]
        try:
            for places in _joined(courses, cuts):
                parts = []
                for course, (start, stop) in zip(courses, places, strict=True):
                    course.draw_for(start, stop)
                    parts.append(course.batch[start:stop])
                fed = [sum(len(sequence.ids) - 1 for sequence in part) for part in parts]
                adapters = (course.trainee.adapter for course in courses)
                with paths.computing(module), base.routed(dict(zip(adapters, fed, strict=True))):
                    with base.model.mixed_precision():
                        found = paths.learn(module, [sequence for part in parts for sequence in part])
                    logprobs = found.logprobs_L.split([sum(len(sequence.labels) for sequence in part) for part in parts])
                    shares = [-part.sum() / course.labels for course, part in zip(courses, logprobs, strict=True)]
                    torch.stack(shares).sum().backward()
                for own, share in zip(losses, shares, strict=True):
                    own.append(share.detach())
            return losses, micro_batch
        except (RuntimeError, MemoryError) as error:
            micro_batch = smaller_batch(min(micro_batch, max(len(course.batch) for course in courses)), error)
            for course in courses:
                course.optimizer.zero_grad()


def _joined(courses: Sequence[TrainState], cuts: Sequence[Sequence[tuple[int, int]]]) -> Iterator[list[tuple[int, int]]]:
    """Yield joint passes, a cut of each run or (0, 0); the sequences of a pass need the same RoPE frequencies."""
    for places in itertools.zip_longest(*cuts, fillvalue=(0, 0)):
        regimes = [
            course.regimes.of_sequence(course.batch[start]) if stop > start else None
            for course, (start, stop) in zip(courses, places, strict=True)
        ]
        for wanted in dict.fromkeys(regime for regime in regimes if regime is not None):
            yield [place if regime == wanted else (0, 0) for place, regime in zip(places, regimes, strict=True)]
