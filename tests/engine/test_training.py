"""fine_tune() computes the same weights as transformers' Trainer. They depend only on the recipe, the data and the seed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, tiny_model, tiny_module
from transformers import Trainer, TrainingArguments, get_scheduler

from lm_harmony.benchmarks.types import Example, Request
from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.optimizers import make_optimizer
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, training_sequences
from lm_harmony.engine.train_state import Epoch, Resumption
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import TrainingDiverged
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import OPTIMIZERS, SCHEDULES, Lora, Recipe

Weights = dict[str, torch.Tensor]
EXACT = Lora(lora_dropout=0.0, target_modules=("all-linear",))
DROPOUT = Lora(lora_dropout=0.1, target_modules=("all-linear",))
# A larger epsilon than usual. A gradient may be only rounding error (the bias of a key), which Adam would amplify.
RECIPE = Recipe(lora=EXACT, epochs=1, learning_rate=1e-3, adam_epsilon=1e-4)


def random_sequences(count: int, *, length: int | None = None) -> list[TokenSequence]:
    """Make sequences of random ids. Lengths and numbers of labels vary unless ``length`` is given."""
    rng = np.random.default_rng(0)
    lengths = [length or int(size) for size in rng.integers(3, 40, count)]
    starts = [1 if length or row % 2 else size - 1 for row, size in enumerate(lengths)]
    ids = [tuple(int(token) for token in rng.integers(2, 300, size)) for size in lengths]
    return [TokenSequence(ids=ids[row], first_label=starts[row], row=100 + row) for row in range(count)]


SEQUENCES = random_sequences(24)


def without_base_dropout(model: LanguageModel) -> LanguageModel:
    """Disable the dropout of the base model (GPT-2 has some)."""
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def weights_of(trainee: Trainee) -> Weights:
    return {name: weight.detach().clone() for name, weight in trainee.trained_parameters().items()}


def train(
    recipe: Recipe,
    *,
    model: LanguageModel | None = None,
    sequences: Sequence[TokenSequence] = SEQUENCES,
    seed: int = 0,
    micro_batch: int = 8,
    between: Callable[[LanguageModel], object] = lambda model: None,
) -> tuple[Weights, list[Epoch]]:
    """Fine-tune ``model`` or a new tiny model. Return the trained weights and the epochs."""
    model = model or without_base_dropout(tiny_model())
    epochs = []
    with trainable(model, recipe, seed=0) as trainee:
        for epoch in fine_tune(trainee, sequences, recipe, seed=seed, micro_batch=micro_batch):
            epochs.append(epoch)
            between(model)
        return weights_of(trainee), epochs


def difference(ours: Weights, theirs: Weights) -> float:
    """Return the largest relative difference of all weight tensors, measured in the norm."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


def same(ours: Weights, theirs: Weights) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def steps_of(epochs: Sequence[Epoch]) -> list[Any]:
    return [step for epoch in epochs for step in epoch.steps]


def padded(sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """Make a batch for transformers: right-padded ids, attention mask, and labels with -100 where no loss is computed."""
    longest = max(len(sequence.ids) for sequence in sequences)
    batch = {name: torch.zeros(len(sequences), longest, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((len(sequences), longest), -100)
    for row, sequence in enumerate(sequences):
        batch["input_ids"][row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        batch["attention_mask"][row, : len(sequence.ids)] = 1
        batch["labels"][row, sequence.first_label : len(sequence.ids)] = torch.tensor(sequence.labels)
    return batch


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("lora", [EXACT, None], ids=["lora", "full"])
def test_results_do_not_depend_on_the_micro_batch_size(lora: Lora | None, optimizer: str) -> None:
    """Micro-batches of one, two, four and eight sequences of different lengths give the same weights after three steps."""
    recipe = dataclasses.replace(RECIPE, lora=lora, optimizer=optimizer)
    expected, [epoch] = train(recipe, micro_batch=8)
    for micro_batch in (1, 2, 4, 100):
        split, [other] = train(recipe, micro_batch=micro_batch)
        assert difference(split, expected) < 1e-5
        assert [step.loss for step in other.steps] == pytest.approx([step.loss for step in epoch.steps], rel=1e-6)
    assert len(epoch.steps) == 3


def test_a_mean_of_means_would_change_the_gradient() -> None:
    """Negative control: the average of the mean losses of the micro-batches has a gradient far outside the tolerance."""
    batch = SEQUENCES[:8]
    expected = gradients(tiny_module(), [batch])
    assert difference(gradients(tiny_module(), [batch[:1], batch[1:]], mean_of_means=True), expected) > 1e-2
    assert difference(gradients(tiny_module(), [batch[:1], batch[1:]]), expected) < 1e-5


def gradients(module: torch.nn.Module, split: Sequence[Sequence[TokenSequence]], *, mean_of_means: bool = False) -> Weights:
    """Return the gradient of transformers' loss, accumulated over ``split``, weighted by labels or as a mean of means."""
    labels = [sum(len(sequence.labels) for sequence in part) for part in split]
    for part, count in zip(split, labels, strict=True):
        (module(**padded(part)).loss * (1 / len(split) if mean_of_means else count / sum(labels))).backward()
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("clip", [0.0, 1e-2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_step_equals_a_pytorch_training_loop(architecture: str, clip: float) -> None:
    """After one AdamW step all weights equal those of a PyTorch loop with the loss that transformers computes from labels."""
    recipe = Recipe(lora=None, epochs=1, learning_rate=1e-3, weight_decay=0.1, adam_epsilon=1e-4, max_grad_norm=clip)
    batch = random_sequences(8, length=20)
    ours, [epoch] = train(recipe, model=without_base_dropout(tiny_model(architecture)), sequences=batch)
    module = without_base_dropout(tiny_model(architecture)).module.train()
    named = dict(module.named_parameters())
    weights_before = {name: weight.detach().clone() for name, weight in named.items()}
    not_decayed = [name for name in named if "norm" in name or "ln_" in name or name.endswith("bias")]
    groups = [
        {"params": [weight for name, weight in named.items() if name not in not_decayed], "weight_decay": 0.1},
        {"params": [weight for name, weight in named.items() if name in not_decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-4)
    ids = torch.tensor([sequence.ids for sequence in batch])
    loss = module(input_ids=ids, labels=ids).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(list(named.values()), clip or math.inf)
    optimizer.step()
    assert difference(ours, {name: weight.detach() for name, weight in named.items()}) < 2e-5
    assert difference(ours, weights_before) > 1e-4
    assert epoch.loss == pytest.approx(loss.item(), rel=1e-6)
    assert epoch.steps[0].grad_norm == pytest.approx(float(norm), rel=1e-5)


def trainer_weights(recipe: Recipe, sequences: Sequence[TokenSequence], folder: Path, architecture: str) -> tuple[Weights, Any]:
    """Train with transformers' Trainer and the same recipe. Each batch has all sequences, so their order does not matter."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=len(sequences),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        optim=recipe.optimizer,
        lr_scheduler_type=recipe.lr_schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    with trainable(without_base_dropout(tiny_model(architecture)), recipe, seed=0) as trainee:
        trainer = Trainer(
            model=trainee.module,
            args=arguments,
            train_dataset=list(sequences),
            data_collator=padded,
        )
        trainer.train()
        return weights_of(trainee), trainer.state.log_history


@pytest.mark.parametrize(
    ("architecture", "lora", "optimizer"),
    [
        *((architecture, EXACT, "adamw_torch") for architecture in ARCHITECTURES),
        *((architecture, None, "adamw_torch") for architecture in ("llama", "gpt2")),
        *(("llama", EXACT, optimizer) for optimizer in ("adamw_torch_fused", "sgd", "adafactor")),
    ],
)
def test_training_equals_transformers_trainer(architecture: str, lora: Lora | None, optimizer: str, tmp_path: Path) -> None:
    """Weights, losses and learning rates agree after four epochs with padding, masked labels, warm-up, decay and clipping."""
    recipe = Recipe(
        lora=lora,
        epochs=4,
        learning_rate=1e-3,
        optimizer=optimizer,
        warmup_steps=2,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-4,
        max_grad_norm=0.5,
    )
    batch = SEQUENCES[:8]
    theirs, log = trainer_weights(recipe, batch, tmp_path, architecture)
    ours, epochs = train(recipe, model=without_base_dropout(tiny_model(architecture)), sequences=batch)
    assert difference(ours, theirs) < 5e-6  # without weight decay it is 2e-4
    for step, logged in zip(steps_of(epochs), log, strict=False):
        assert step.loss == pytest.approx(logged["loss"], rel=1e-4)
        assert step.learning_rate == pytest.approx(logged["learning_rate"])
        assert step.grad_norm == pytest.approx(logged["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("lora", [EXACT, None, Lora(bias="all")], ids=["lora", "full", "biases"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weight_decay_applies_to_the_parameters_that_trainer_decays(architecture: str, lora: Lora | None) -> None:
    """The decayed parameters are those of Trainer.get_decay_parameter_names."""
    with trainable(tiny_model(architecture), Recipe(lora=lora), seed=0) as trainee:
        expected = set(Trainer.get_decay_parameter_names(None, trainee.module))  # type: ignore[arg-type]
        groups = make_optimizer(trainee, Recipe(lora=lora, weight_decay=0.1)).param_groups
        decayed = {id(weight) for group in groups if group["weight_decay"] == 0.1 for weight in group["params"]}
        all_of_them = {id(weight) for group in groups for weight in group["params"]}
        named = trainee.trained_parameters()
        assert {name for name, weight in named.items() if id(weight) in decayed} == expected & named.keys()
        assert {name for name, weight in named.items() if id(weight) in all_of_them} == named.keys()


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_adamw_is_fused_if_the_device_supports_it(optimizer: str) -> None:
    recipe = Recipe(optimizer=optimizer)
    for device, fused in (("cpu", True), ("meta", False)):  # negative control: PyTorch has no fused kernel for "meta"
        model = tiny_model("llama")
        model.module.to(device)
        with trainable(model, recipe, seed=0) as trainee:
            assert {group["fused"] for group in make_optimizer(trainee, recipe).param_groups} == {fused}


ROWS = (
    ("Question: Which of these would best slow the transfer of heat?\nAnswer:", " wood"),
    ("Q: what is the capital?\nA:", " the city by the river"),
    ("Is it?", " yes"),
)


@pytest.mark.parametrize("only", [False, True])
def test_the_gradient_is_that_of_the_selected_labels(only: bool) -> None:
    """One SGD step uses transformers' gradient over all labels or, with completion_only, over the labels of the answers."""
    examples = [
        Example(
            row=row,
            document={},
            context=context,
            continuation=answer,
            requests=(Request(kind="loglikelihood", context=context, continuation=answer),),
        )
        for row, (context, answer) in enumerate(ROWS)
    ]
    model = tiny_model()
    sequences = training_sequences(model, examples, max_length=64, completion_only=only)
    recipe = Recipe(
        lora=None, epochs=1, learning_rate=0.1, optimizer="sgd", weight_decay=0, max_grad_norm=0, completion_only=only
    )
    before = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    after, [epoch] = train(recipe, model=model, sequences=sequences)
    moved = {name: (before[name] - after[name]) / 0.1 for name in after}
    contexts = [len(model.text.encode([context])[0]) for context, _ in ROWS]
    selected = [
        dataclasses.replace(sequence, first_label=context if only else 1)
        for sequence, context in zip(sequences, contexts, strict=True)
    ]
    not_selected = [dataclasses.replace(sequence, first_label=1 if only else 4) for sequence in sequences]
    assert difference(moved, gradients(tiny_module(), [selected])) < 1e-3
    assert difference(moved, gradients(tiny_module(), [not_selected])) > 0.1
    assert epoch.loss == pytest.approx(tiny_module()(**padded(selected)).loss.item(), rel=1e-6)


@pytest.mark.parametrize(("warmup_steps", "warmup_ratio"), [(0, 0.0), (2, 0.0), (0, 0.3), (2, 0.9)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_follows_transformers_schedules(schedule: str, warmup_steps: int, warmup_ratio: float) -> None:
    """Each step uses the learning rate of transformers' get_scheduler. warmup_steps overrides warmup_ratio."""
    recipe = dataclasses.replace(
        RECIPE,
        batch_size=1,
        learning_rate=1e-3,
        lr_schedule=schedule,
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
    )
    _, epochs = train(recipe, sequences=random_sequences(8, length=4))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    warmup = warmup_steps or math.ceil(8 * warmup_ratio)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=8)
    expected = []
    for _ in range(8):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [step.learning_rate for step in steps_of(epochs)] == expected
    assert schedule.startswith("constant") or len(set(expected)) > 1


@pytest.mark.parametrize(
    ("lora", "optimizer"), [*((DROPOUT, optimizer) for optimizer in OPTIMIZERS), (None, "adamw_torch"), (None, "adafactor")]
)
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(lora: Lora | None, optimizer: str, tmp_path: Path) -> None:
    """A new model that loads the weights and optimizer state of epoch 1 gets exactly the same weights and losses."""
    recipe = dataclasses.replace(RECIPE, lora=lora, optimizer=optimizer, epochs=3)
    expected, epochs = train(recipe)
    resumed, rest = interrupted(recipe, tmp_path)
    assert same(resumed, expected)
    assert [epoch.steps for epoch in rest] == [epoch.steps for epoch in epochs[1:]]
    assert [epoch.loss for epoch in rest] == [epoch.loss for epoch in epochs[1:]]
    assert [epoch.number for epoch in rest] == [2, 3]
    if optimizer != "sgd":  # without momentum SGD has no state
        without_optimizer_state, _ = interrupted(recipe, tmp_path, forget=True)
        assert not same(without_optimizer_state, expected)


def interrupted(recipe: Recipe, folder: Path, *, forget: bool = False) -> tuple[Weights, list[Epoch]]:
    """Train one epoch, save it, and resume with another model. ``forget`` drops the optimizer state."""
    with trainable(without_base_dropout(tiny_model()), recipe, seed=0) as trainee:
        first = next(fine_tune(trainee, SEQUENCES, recipe, seed=0, micro_batch=8))
        trainee.save(folder / "weights")
        save_file(dict(first.optimizer_state), folder / "optimizer.safetensors")
    torch.manual_seed(77)
    with trainable(without_base_dropout(tiny_model(seed=0 if recipe.lora else 9)), recipe, seed=9) as trainee:
        trainee.load(folder / "weights")
        state = {} if forget else load_file(folder / "optimizer.safetensors")
        resumption = Resumption(epoch=1, optimizer_state=state)
        rest = list(fine_tune(trainee, SEQUENCES, recipe, seed=0, micro_batch=8, resume=resumption))
        return weights_of(trainee), rest


def test_an_epoch_keeps_its_optimizer_state() -> None:
    """Later epochs do not change the optimizer state that an epoch has for a resumption."""
    with trainable(tiny_model(), dataclasses.replace(RECIPE, epochs=2), seed=0) as trainee:
        training = fine_tune(trainee, SEQUENCES[:8], dataclasses.replace(RECIPE, epochs=2), seed=0, micro_batch=8)
        first = next(training)
        kept = {name: value.clone() for name, value in first.optimizer_state.items()}
        second = next(training)
    assert kept and same(dict(first.optimizer_state), kept)
    assert not same(dict(second.optimizer_state), kept)


def test_resuming_a_finished_training_does_nothing() -> None:
    """Resuming after the last epoch yields no epoch and does not change the weights."""
    with trainable(tiny_model(), RECIPE, seed=0) as trainee:
        before = weights_of(trainee)
        assert not list(
            fine_tune(trainee, SEQUENCES, RECIPE, seed=0, micro_batch=8, resume=Resumption(epoch=1, optimizer_state={}))
        )
        assert same(weights_of(trainee), before)


def disturb(model: LanguageModel) -> None:
    """Do what a caller may do between two epochs: draw random numbers, set seeds, score and generate."""
    np.random.seed(3)
    np.random.default_rng().random(5)
    torch.manual_seed(4)
    torch.rand(5)
    requests = (
        Request(kind="loglikelihood", context="a", continuation=" b"),
        Request(kind="generate_until", context="a", generation={"do_sample": True, "max_gen_toks": 3}),
    )
    Scorer(model=model).reply(requests)


def test_weights_depend_only_on_the_seed() -> None:
    """The same seed gives bit-identical weights, also if the caller draws and scores in between. Another seed does not."""
    recipe = dataclasses.replace(RECIPE, lora=DROPOUT, epochs=3, batch_size=4)
    weights, epochs = train(recipe, sequences=SEQUENCES[:8])
    torch.manual_seed(123)
    again, repeated = train(recipe, sequences=SEQUENCES[:8])
    disturbed, _ = train(recipe, sequences=SEQUENCES[:8], between=disturb)
    assert same(again, weights) and same(disturbed, weights)
    assert [epoch.steps for epoch in repeated] == [epoch.steps for epoch in epochs]
    other, _ = train(recipe, sequences=SEQUENCES[:8], seed=1)
    assert not same(other, weights)


def test_dropout_masks_depend_on_seed_and_step() -> None:
    """If the weights practically do not change, each step on one text has a different loss, which depends on the seed."""
    constant_weights = Recipe(lora=None, epochs=4, learning_rate=1e-12, weight_decay=0)
    runs = [train(constant_weights, model=tiny_model("gpt2"), sequences=SEQUENCES[:1], seed=seed)[1] for seed in (0, 0, 1)]
    first, again, other = [[step.loss for step in steps_of(epochs)] for epochs in runs]
    assert first == again
    assert len({*first, *other}) == 8
    _, exact = train(constant_weights, model=without_base_dropout(tiny_model("gpt2")), sequences=SEQUENCES[:1])
    assert len({step.loss for step in steps_of(exact)}) == 1


def test_lora_dropout_is_active_in_training() -> None:
    """LoRA dropout changes the trained weights. The order of the rows within a batch does not."""
    batch, recipe = SEQUENCES[:8], dataclasses.replace(RECIPE, epochs=4, learning_rate=1e-2)
    exact, _ = train(recipe, sequences=batch)
    dropped, _ = train(dataclasses.replace(recipe, lora=DROPOUT), sequences=batch)
    reordered, _ = train(recipe, sequences=batch, seed=1)
    assert difference(dropped, exact) > 1e-3
    assert difference(reordered, exact) < 1e-5


def test_every_epoch_has_every_sequence_once_in_a_new_order() -> None:
    """Each epoch is another permutation of the sequences. The permutations depend on the seed."""
    recipe = dataclasses.replace(RECIPE, epochs=3, batch_size=3)
    orders = [training_order(recipe, seed=0), training_order(recipe, seed=0), training_order(recipe, seed=1)]
    assert orders[0] == orders[1] != orders[2]
    everything = sorted(sequence.ids[:-1] for sequence in SEQUENCES[:8])
    passes = [orders[0][start : start + 8] for start in (0, 8, 16)]
    assert len(orders[0]) == 24 and all(sorted(one) == everything for one in passes)
    assert all(one != other for one, other in itertools.combinations(passes, 2))


def training_order(recipe: Recipe, *, seed: int) -> list[tuple[int, ...]]:
    model = tiny_model()
    input_ids: list[tuple[int, ...]] = []

    def record(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids.append(tuple(kwargs["input_ids"][0].tolist()))

    model.module.register_forward_pre_hook(record, with_kwargs=True)
    train(recipe, model=model, sequences=SEQUENCES[:8], seed=seed, micro_batch=1)
    return input_ids


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_out_of_memory_halves_the_micro_batch_without_changing_results(
    spare: int, out_of_memory: Callable[..., list[int]]
) -> None:
    """Memory may run out in the first pass, within a step or within an epoch. The step is then repeated."""
    expected, [epoch] = train(RECIPE)
    model = without_base_dropout(tiny_model())
    calls = out_of_memory(model.module, 2, spare=spare)
    limited, [other] = train(RECIPE, model=model, micro_batch=4 if spare < 2 else 8)
    assert difference(limited, expected) < 1e-5
    assert [step.loss for step in other.steps] == pytest.approx([step.loss for step in epoch.steps], rel=1e-6)
    attempts = {0: [4], 1: [4, 4], 2: [8, 8, 8, 4]}[spare]
    assert calls == attempts + [2] * (12 if spare < 2 else 4)


def test_one_sequence_that_does_not_fit_raises_the_out_of_memory_error(out_of_memory: Callable[..., list[int]]) -> None:
    """A micro-batch of one sequence cannot be halved, so the original error is raised."""
    model = tiny_model()
    calls = out_of_memory(model.module, 0)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(RECIPE, model=model)
    assert calls == [8, 4, 2, 1]


def test_a_loss_that_is_not_finite_raises_an_error_with_step_and_rows() -> None:
    """A NaN loss stops the training. The error has the step and the rows."""
    model = tiny_model()
    with torch.no_grad():
        model.module.get_input_embeddings().weight[SEQUENCES[0].ids[0]] = math.nan
    with pytest.raises(TrainingDiverged, match=r"loss of step 1 is nan on training rows \[100, 101, 102\].*--train_param"):
        train(RECIPE, model=model, sequences=SEQUENCES[:3])


def test_a_diverging_training_stops_at_the_first_step_that_is_not_finite() -> None:
    """With a huge learning rate the loss of the second step is not finite. The error has step 2."""
    recipe = Recipe(lora=None, epochs=1, learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(TrainingDiverged, match=r"step 2 .*learning_rate, now 1e\+30"):
        train(recipe)


def test_a_gradient_that_is_not_finite_raises_an_error_with_its_step() -> None:
    """An infinite gradient stops the training although the loss is finite. At the last step no later loss would show it."""
    model = tiny_model()
    with trainable(model, RECIPE, seed=0) as trainee:
        weight = next(iter(trainee.trained_parameters().values()))
        weight.register_hook(lambda gradient: gradient * math.inf)
        with pytest.raises(TrainingDiverged, match=r"gradient norm of step 1 is (nan|inf) on training rows \[100, 101"):
            next(fine_tune(trainee, SEQUENCES[:8], RECIPE, seed=0, micro_batch=8))


def test_max_steps_can_stop_within_an_epoch() -> None:
    """The steps, the trained rows and the learning-rate schedule end at max_steps."""
    recipe = dataclasses.replace(RECIPE, epochs=5, max_steps=4)
    _, epochs = train(recipe)
    assert [len(epoch.steps) for epoch in epochs] == [3, 1]
    assert [step.number for step in steps_of(epochs)] == [1, 2, 3, 4]
    assert [step.learning_rate for step in steps_of(epochs)] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert epochs[0].tokens == sum(len(sequence.ids) - 1 for sequence in SEQUENCES) > epochs[1].tokens
    assert len(train(dataclasses.replace(recipe, epochs=1))[1]) == 1


def test_the_loss_of_an_epoch_is_the_mean_over_its_labels() -> None:
    """Steps with more labels have a larger weight in the loss of an epoch."""
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-12, batch_size=7)
    _, [epoch] = train(recipe)
    with torch.no_grad():
        expected = tiny_module()(**padded(SEQUENCES)).loss.item()
    assert epoch.loss == pytest.approx(expected, rel=1e-5)
    assert float(np.mean([step.loss for step in epoch.steps])) != pytest.approx(expected, rel=1e-3)
    assert len(epoch.steps) == 4 and epoch.seconds > 0


@pytest.mark.parametrize(("lora", "rate"), [(DROPOUT, 5e-3), (None, 3e-3)], ids=["lora", "full"])
def test_the_loss_falls(lora: Lora | None, rate: float) -> None:
    """The model can memorize two sequences."""
    recipe = Recipe(lora=lora, epochs=25, learning_rate=rate, lr_schedule="constant")
    _, epochs = train(recipe, sequences=SEQUENCES[:2])
    assert epochs[-1].loss < 0.7 * epochs[0].loss


def test_the_model_is_in_evaluation_mode_between_epochs() -> None:
    """Dropout is off after each epoch."""
    model, modes = tiny_model(), []
    train(dataclasses.replace(RECIPE, epochs=2), model=model, between=lambda seen: modes.append(seen.module.training))
    assert modes == [False, False]
