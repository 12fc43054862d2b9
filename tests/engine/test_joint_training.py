"""Runs that are trained jointly end with the weights that each gets when it is trained separately."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, tiny_model

from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.backends import PACKED
from lm_harmony.engine.forward import padded_logprobs
from lm_harmony.engine.joint_training import JointProgress, JointRun, fine_tune_jointly
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.engine.multi_adapter_forward import MultiAdapterForward
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import Resumption
from lm_harmony.engine.training import fine_tune
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora, Recipe

Weights = dict[str, torch.Tensor]


def rows(seed: int, count: int) -> list[TokenSequence]:
    draw = random.Random(seed)
    texts = [tuple(draw.choices(range(2, VOCABULARY), k=draw.randint(4, 40))) for _ in range(count)]
    return [TokenSequence(ids=text, first_label=draw.randint(1, 3), row=row) for row, text in enumerate(texts)]


def joint_runs() -> list[JointRun]:
    """Return five runs that differ in rows, seed, learning rate, schedule, batch size, epochs, rank and target modules."""
    base = Recipe(learning_rate=1e-3, epochs=10, lora=Lora(lora_dropout=0.2))
    return [
        JointRun(sequences=rows(1, 40), recipe=base, seed=0),
        JointRun(sequences=rows(1, 40), recipe=base, seed=1),
        JointRun(sequences=rows(2, 21), recipe=replace(base, learning_rate=3e-3, batch_size=5, max_steps=50), seed=0),
        JointRun(sequences=rows(3, 30), recipe=replace(base, lora=Lora(r=4, target_modules=("all-linear",)), epochs=3), seed=2),
        JointRun(sequences=rows(4, 80), recipe=replace(base, lr_schedule="cosine", epochs=5, lora=Lora(use_rslora=True)), seed=0),
    ]


def weights_of(trainee: Trainee) -> Weights:
    return {name.replace(f".{trainee.adapter}.", "."): w.detach().clone() for name, w in trainee.trained_parameters().items()}


def train_separately(model: LanguageModel, joint_run: JointRun) -> Weights:
    with trainable(model, joint_run.recipe, seed=joint_run.seed) as trainee:
        for _ in fine_tune(trainee, joint_run.sequences, joint_run.recipe, seed=joint_run.seed, micro_batch=8, backend=PACKED):
            pass
        return weights_of(trainee)


def train_jointly(
    model: LanguageModel, runs: Sequence[JointRun], max_concurrent: int, budget: MemoryBudget = PACKED.memory_budget
) -> Iterator[JointProgress]:
    return fine_tune_jointly(
        model, runs, backend=replace(PACKED, memory_budget=budget), micro_batch=8, max_concurrent=max_concurrent
    )


def ends_of(training: Iterator[JointProgress]) -> dict[int, Weights]:
    return {progress.run: weights_of(progress.trainee) for progress in training}


def distance(found: Weights, expected: Weights) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - weight).norm() / weight.norm()) for name, weight in expected.items())


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize(("max_concurrent", "tokens"), [(5, 10_000), (2, 10_000), (3, 90)])
def test_each_run_gets_the_weights_of_a_separate_training(architecture: str, max_concurrent: int, tokens: int) -> None:
    """They agree within 1e-5 after at least 50 steps: all runs at once, two at a time, and with small passes."""
    model, runs = tiny_model(architecture), joint_runs()
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    ends, steps = dict[int, Weights](), dict[int, int]()
    for progress in train_jointly(model, runs, max_concurrent, MemoryBudget(training_tokens=tokens)):
        assert progress.epoch is not None
        steps[progress.run] = steps.get(progress.run, 0) + len(progress.epoch.steps)
        ends[progress.run] = weights_of(progress.trainee)
    assert steps == {0: 50, 1: 50, 2: 50, 3: 12, 4: 50}
    assert all(torch.equal(weight, before[name]) for name, weight in model.module.state_dict().items())
    for run, joint_run in enumerate(runs):
        assert distance(ends[run], train_separately(model, joint_run)) < 1e-5, run


def test_swapped_adapters_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the adapters of two runs are swapped in every layer."""
    original = MultiAdapterForward.__call__

    def swapped(self: MultiAdapterForward, x: torch.Tensor) -> torch.Tensor:
        first, second, *rest = self.sizes
        sizes = list(self.sizes.values())
        return original(replace(self, sizes=dict(zip((second, first, *rest), sizes, strict=True))), x)

    model, runs = tiny_model(), joint_runs()[:2]
    # Each adapter computes the other run's rows. Dropout is off, because its masks would not fit the other run's sizes.
    without_dropout = [replace(joint_run, recipe=replace(joint_run.recipe, lora=Lora(lora_dropout=0.0))) for joint_run in runs]
    expected = train_separately(model, without_dropout[0])
    assert distance(ends_of(train_jointly(model, without_dropout, 2))[0], expected) < 1e-5
    monkeypatch.setattr(MultiAdapterForward, "__call__", swapped)
    assert distance(ends_of(train_jointly(model, without_dropout, 2))[0], expected) > 1e-3


def test_between_two_steps_the_adapter_of_the_yielded_run_is_active() -> None:
    model, runs = tiny_model(), joint_runs()[:3]
    probe = rows(9, 6)
    found, expected = dict[tuple[int, int], torch.Tensor](), dict[tuple[int, int], torch.Tensor]()
    with torch.no_grad():
        untouched = padded_logprobs(model.module, probe).logprobs_L
    for progress in train_jointly(model, runs, 3):
        assert progress.epoch is not None
        assert not model.module.training
        with torch.no_grad():
            found[progress.run, progress.epoch.number] = padded_logprobs(model.module, probe).logprobs_L
    for run, joint_run in enumerate(runs):
        with trainable(model, joint_run.recipe, seed=joint_run.seed) as trainee:
            for epoch in fine_tune(
                trainee, joint_run.sequences, joint_run.recipe, seed=joint_run.seed, micro_batch=8, backend=PACKED
            ):
                with torch.no_grad():
                    expected[run, epoch.number] = padded_logprobs(model.module, probe).logprobs_L
    assert found.keys() == expected.keys()
    for key, logprobs in expected.items():
        assert torch.allclose(found[key], logprobs, atol=1e-5), key
        assert not torch.allclose(untouched, logprobs, atol=1e-3)


def test_a_run_that_diverges_does_not_change_the_others() -> None:
    model, runs = tiny_model(), joint_runs()[:3]
    runs[1] = replace(runs[1], recipe=replace(runs[1].recipe, learning_rate=1e30))
    ends, diverged = dict[int, Weights](), list[int]()
    for progress in train_jointly(model, runs, 3):
        if progress.epoch is None:
            diverged.append(progress.run)
            assert "not finite" in str(progress.diverged) or "nan" in str(progress.diverged) or "inf" in str(progress.diverged)
        else:
            ends[progress.run] = weights_of(progress.trainee)
    assert diverged == [1]
    for run in (0, 2):
        assert distance(ends[run], train_separately(model, runs[run])) < 1e-5


def test_a_jointly_trained_run_is_saved_as_one_adapter_and_can_be_resumed(tmp_path: Path) -> None:
    model, runs = tiny_model(), joint_runs()[:3]
    states = dict[int, Resumption]()
    for progress in train_jointly(model, runs, 3):
        assert progress.epoch is not None
        if progress.epoch.number == 2:
            progress.trainee.save(tmp_path / str(progress.run))
            states[progress.run] = Resumption(epoch=2, optimizer_state=progress.epoch.optimizer_state)
        if len(states) == 3:
            break
    assert {path.name for path in (tmp_path / "0").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}

    def resumption(run: int, trainee: Trainee) -> Resumption:
        trainee.load(tmp_path / str(run))
        return states[run]

    fresh = tiny_model()
    resumed = [replace(joint_run, resume=lambda trainee, run=run: resumption(run, trainee)) for run, joint_run in enumerate(runs)]
    ends = ends_of(train_jointly(fresh, resumed, 2))
    for run, joint_run in enumerate(runs):
        assert distance(ends[run], train_separately(fresh, joint_run)) < 1e-5


def test_runs_that_cannot_share_a_pass_are_trained_one_after_another() -> None:
    """Cases: the base model has dropout, the recipe trains biases, or max_concurrent is left to the default of a CPU."""
    runs = joint_runs()[:2]
    for model, given, max_concurrent in (
        (tiny_model("gpt2"), runs, 2),
        (tiny_model(), [replace(one, recipe=replace(one.recipe, lora=Lora(bias="all"))) for one in runs], 2),
        (tiny_model(), runs, None),
    ):
        order = [
            progress.run
            for progress in fine_tune_jointly(model, given, backend=PACKED, micro_batch=8, max_concurrent=max_concurrent)
        ]
        assert order == [0] * 10 + [1] * 10


def test_out_of_memory_halves_the_micro_batch_of_every_run() -> None:
    model, runs = tiny_model(), joint_runs()[:2]
    expected = [train_separately(model, joint_run) for joint_run in runs]
    seen = list[int]()

    def limited(_: torch.nn.Module, __: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["input_ids"].shape[1])
        if seen[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    hook = model.module.model.register_forward_pre_hook(limited, with_kwargs=True)
    ends = ends_of(train_jointly(model, runs, 2, MemoryBudget(training_tokens=9_999)))
    hook.remove()
    assert max(seen) > 200
    for run in (0, 1):
        assert distance(ends[run], expected[run]) < 1e-5
