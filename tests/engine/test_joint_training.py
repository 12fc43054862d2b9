"""Runs that are trained jointly end with the weights that each gets when it is trained separately."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from joint import Run, Weights, distance, train_jointly
from operators import Operators, deep_model, training_step
from tiny import VOCABULARY, tiny_model

from lm_harmony.engine import joint_adapters
from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.backends import PACKED, PADDED
from lm_harmony.engine.forward import padded_logprobs
from lm_harmony.engine.joint_adapters import Blocks, JointAdapters
from lm_harmony.engine.joint_training import JointRuns, _backward
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.train_state import Epoch
from lm_harmony.engine.training import Training
from lm_harmony.errors import TrainingDiverged
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora, Recipe


def rows(seed: int, count: int, longest: int = 40) -> list[TokenSequence]:
    draw = random.Random(seed)
    texts = [tuple(draw.choices(range(2, VOCABULARY), k=draw.randint(4, longest))) for _ in range(count)]
    return [TokenSequence(ids=text, first_label=draw.randint(1, 3), row=row) for row, text in enumerate(texts)]


BASE = Recipe(learning_rate=1e-3, epochs=10, lora=Lora(lora_dropout=0.2))


def runs_of_different_lengths() -> list[Run]:
    """Return five runs that differ in rows, their lengths, seed, learning rate, schedule, batch size, steps and epochs."""
    return [
        Run(sequences=rows(1, 40), recipe=BASE),
        Run(sequences=rows(1, 40), recipe=BASE, seed=1),
        Run(sequences=rows(2, 21), recipe=replace(BASE, learning_rate=3e-3, batch_size=5, max_steps=50)),
        Run(sequences=rows(3, 30, longest=9), recipe=replace(BASE, epochs=3), seed=2),
        Run(sequences=rows(4, 80), recipe=replace(BASE, lr_schedule="cosine", epochs=5)),
    ]


@cache
def trained_separately(architecture: str) -> tuple[LanguageModel, list[tuple[list[Epoch], Weights]]]:
    """Return a tiny model, and for each run what a separate training of it gives."""
    model = tiny_model(architecture)
    return model, [run.alone(model) for run in runs_of_different_lengths()]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize(("most", "tokens"), [(5, 10_000), (2, 10_000), (3, 90)])
def test_each_run_gets_the_weights_of_a_separate_training(architecture: str, most: int, tokens: int) -> None:
    """They agree within 1e-5 after at least 50 steps: all runs at once, two at a time, and with small passes."""
    model, expected = trained_separately(architecture)
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    found = train_jointly(model, [run.within(training_tokens=tokens) for run in runs_of_different_lengths()], most)
    assert [sum(len(epoch.steps) for epoch in found[place][0]) for place in range(5)] == [50, 50, 50, 12, 50]
    assert all(torch.equal(weight, before[name]) for name, weight in model.module.state_dict().items())
    for place, (epochs, weights) in enumerate(expected):
        assert distance(found[place][1], weights) < 1e-5, place
        assert [epoch.tokens for epoch in found[place][0]] == [epoch.tokens for epoch in epochs]
        assert [epoch.loss for epoch in found[place][0]] == pytest.approx([epoch.loss for epoch in epochs], abs=1e-5)
        assert all(epoch.seconds > 0 for epoch in found[place][0])


@pytest.mark.parametrize(
    "lora",
    [Lora(r=4, target_modules=("all-linear",), use_rslora=True), Lora(lora_dropout=0.0), Lora(target_modules=("down_proj",))],
    ids=["all layers", "no dropout", "one layer"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_adapters_and_bfloat16_weights_share_passes(lora: Lora, dtype: torch.dtype) -> None:
    model = deep_model(layers=2, dtype=dtype)
    runs = [Run(sequences=rows(seed, 16), recipe=replace(BASE, lora=lora, epochs=2), seed=seed) for seed in range(3)]
    found = train_jointly(model, runs)
    alone = [run.alone(model)[1] for run in runs]
    # In bfloat16, products of another shape round differently, and Adam's first steps turn weights whose gradient is nearly zero.
    # Of six other models, the adapters of a run differed by at most 0.14 (AVX-512 kernels), those of other runs by 1.4 and more.
    allowed = 1e-5 if dtype == torch.float32 else 0.2
    assert all(distance(found[place][1], weights) < allowed for place, weights in enumerate(alone))
    assert distance(found[0][1], alone[1]) > 1  # negative control


def passes_of(run: Run, count: int, **options: Any) -> list[int]:
    """Return the tokens of each pass of the model while ``count`` runs like this one are trained for an epoch."""
    model = deep_model(layers=1, dtype=torch.float32)
    seen = list[int]()
    model.module.model.register_forward_pre_hook(
        lambda module, inputs, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    one = replace(run, recipe=replace(run.recipe, epochs=1), **options)
    train_jointly(model, [replace(one, seed=seed) for seed in range(count)])
    return seen


def test_runs_share_their_passes_and_those_that_cannot_do_not() -> None:
    """Three runs of five steps take five passes. A padded backend, DoRA and a model with dropout of its own take fifteen."""
    run = Run(sequences=rows(1, 40), recipe=BASE)
    assert len(passes_of(run, 1)) == 5 == len(passes_of(run, 3))
    assert len(passes_of(run, 3, backend=PADDED)) == 15
    assert len(passes_of(replace(run, recipe=replace(BASE, lora=Lora(use_dora=True))), 3)) == 15
    gpt2, seen = tiny_model("gpt2"), list[int]()
    gpt2.module.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(1))
    train_jointly(gpt2, [replace(run, recipe=replace(BASE, epochs=1), seed=seed) for seed in range(2)])
    assert len(seen) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_of_four_runs_has_no_more_operators_in_a_layer_than_a_pass_of_one(dtype: torch.dtype) -> None:
    """With parts of equal length. Where lengths differ, at most six more in each adapted layer. Optimizers are not counted."""

    def operators(layers: int, sizes: list[list[int]]) -> int:
        model = deep_model(layers=layers, dtype=dtype)
        recipe = replace(BASE, lora=Lora())
        with ExitStack() as stack:
            trainings = []
            for seed, own in enumerate(sizes):
                batch = [TokenSequence(ids=tuple(range(5, 6 + size)), first_label=1, row=row) for row, size in enumerate(own)]
                trainee = stack.enter_context(trainable(model, recipe, seed=seed))
                trainings.append(Training(trainee, batch, recipe, seed=seed, micro_batch=8, backend=PACKED))
                trainings[-1].state.begin_epoch()
                trainee.swap_out()
                stack.callback(trainee.swap_in)
            adapters = JointAdapters([training.trainee for training in trainings])
            with adapters.active(), PACKED.active(model.module.train()), Operators() as watch:
                _backward(adapters, trainings)
        return watch.seen.total()

    def of_a_layer(sizes: list[list[int]]) -> int:
        return operators(3, sizes) - operators(2, sizes)

    equal, adapted = [20 + row * 5 for row in range(8)], 2
    alone = [training_step(deep_model(layers=layers, dtype=dtype), replace(BASE, lora=Lora()), equal) for layers in (2, 3)]
    assert of_a_layer([equal] * 4) <= alone[1].total() - alone[0].total()
    assert of_a_layer([equal, equal[:2], equal[:5], equal]) <= alone[1].total() - alone[0].total() + 6 * adapted


def test_swapped_adapters_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the blocks of two runs are swapped in every layer."""
    model = tiny_model()
    runs = [replace(run, recipe=replace(BASE, epochs=2, lora=Lora(lora_dropout=0.0))) for run in runs_of_different_lengths()[:2]]
    expected = runs[0].alone(model)[1]
    assert distance(train_jointly(model, runs)[0][1], expected) < 1e-5
    monkeypatch.setattr(Blocks, "of_runs", lambda blocks, stacked: stacked.flip(0))
    monkeypatch.setattr(joint_adapters, "WHOLE_PARTS", 9.0)
    assert distance(train_jointly(model, runs)[0][1], expected) > 1e-3


def test_each_run_finds_its_own_weights_between_epochs() -> None:
    model, probe = tiny_model(), rows(9, 6)
    found = dict[tuple[int, int], torch.Tensor]()

    def scored(run: Run, place: int) -> Run:
        def score(trainee: Trainee, epoch: Epoch) -> None:
            assert not model.module.training
            with torch.no_grad():
                found[place, epoch.number] = padded_logprobs(model.module, probe).logprobs_L

        return replace(run, after_epoch=score, recipe=replace(run.recipe, epochs=3))

    runs = [scored(run, place) for place, run in enumerate(runs_of_different_lengths()[:3])]
    with torch.no_grad():
        untouched = padded_logprobs(model.module, probe).logprobs_L
    train_jointly(model, runs)
    jointly = dict(found)
    for run in runs:
        run.alone(model)
    assert jointly.keys() == found.keys() and len(found) == 9
    for key, logprobs in found.items():
        assert torch.allclose(jointly[key], logprobs, atol=1e-5), key
        assert not torch.allclose(untouched, logprobs, atol=1e-3)


@pytest.mark.parametrize("sizes", ["equal", "different"])
def test_a_run_that_diverges_does_not_change_the_others(sizes: str) -> None:
    model, runs = tiny_model(), runs_of_different_lengths()[:3]
    if sizes == "equal":
        runs = [replace(run, sequences=runs[0].sequences, recipe=BASE) for run in runs]
    runs[1] = replace(runs[1], recipe=replace(runs[1].recipe, learning_rate=1e30))
    found = train_jointly(model, runs)
    assert isinstance(found[1][1], TrainingDiverged) and "training rows" in str(found[1][1])
    for place in (0, 2):
        assert distance(found[place][1], runs[place].alone(model)[1]) < 1e-5


def test_a_jointly_trained_run_is_saved_in_the_format_of_peft_and_can_be_resumed(tmp_path: Path) -> None:
    model = tiny_model()
    last: dict[int, Epoch] = {}

    def interrupted(run: Run, place: int) -> Run:
        def save(trainee: Trainee, epoch: Epoch) -> None:
            if epoch.number == 3:
                raise KeyboardInterrupt
            if epoch.number == 2:
                trainee.save(tmp_path / str(place))
                last[place] = epoch

        return replace(run, after_epoch=save)

    runs, joint = runs_of_different_lengths()[:3], JointRuns[int, Any]()
    for place, run in enumerate(runs):
        joint.add(place, interrupted(run, place).by_epochs(model))
    with pytest.raises(KeyboardInterrupt):
        joint.advance()
    joint.close()
    assert len(last) == 3
    assert not joint and not any("lora" in name for name, _ in model.module.named_modules())
    assert {path.name for path in (tmp_path / "0").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert (tmp_path / "0" / "adapter_model.safetensors").stat().st_size < 50_000  # not the stack of all runs
    fresh = tiny_model()
    resumed = [replace(run, resume=(tmp_path / str(place), last[place])) for place, run in enumerate(runs)]
    found = train_jointly(fresh, resumed, 2)
    for place, run in enumerate(runs):
        assert distance(found[place][1], run.alone(fresh)[1]) < 1e-5


@pytest.mark.parametrize("limit", [200, 45])
def test_out_of_memory_makes_passes_smaller_or_trains_the_runs_one_after_another(limit: int) -> None:
    model = tiny_model()
    runs = [replace(run, recipe=replace(run.recipe, epochs=2)) for run in runs_of_different_lengths()[:2]]
    expected = [run.alone(model)[1] for run in runs]
    seen = list[int]()

    def limited(_: torch.nn.Module, __: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["input_ids"].shape[1])
        if seen[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    hook = model.module.model.register_forward_pre_hook(limited, with_kwargs=True)
    found = train_jointly(model, [run.within(training_tokens=9_999) for run in runs])
    hook.remove()
    assert max(seen) > limit >= seen[-1]
    for place in (0, 1):
        assert distance(found[place][1], expected[place]) < 1e-5
