"""LoRA layers equal PEFT's within PEFT's own rounding error, take fewer operations, and leave other layers to PEFT."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from operators import Operators
from peft.tuners.lora.layer import Linear as LoraLinear
from tiny import tiny_model
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

from lm_harmony.engine import lora_linear, onednn_linear
from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.dropout import DropoutState, SeededDropout
from lm_harmony.engine.forward import packed_logprobs
from lm_harmony.engine.lora_linear import FusedLoraLinear
from lm_harmony.engine.onednn_linear import OneDnnLinear, use_onednn
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.recipe import Lora, Recipe

Results = dict[str, torch.Tensor]
TOKENS, INPUTS, OUTPUTS = 50, 96, 64
SEQUENCES = [
    TokenSequence(ids=tuple(range(5, 5 + length)), first_label=1, row=length) for length in (9, 14, 6, 30, 21, 17, 26, 12)
]
LORA = Lora(target_modules=("all-linear",), lora_dropout=0.3)
STEPS = 20
"""One step is too few to compare the rounding errors of two computations: the ratio of the errors is between 0.6 and 1.3 then."""


@cache
def layer_of(architecture: str) -> LoraLinear:
    """Return the first LoRA layer of a tiny model."""
    with trainable(tiny_model(architecture), Recipe(lora=LORA), seed=0) as trainee:
        return next(part for part in trainee.module.modules() if type(part) is FusedLoraLinear)


def adapted_layer(dtype: torch.dtype, *, bias: bool, conv1d: bool = False, device: str = "cpu", seed: int = 0) -> LoraLinear:
    """Return a LoRA layer of the engine with random weights, in training with dropout."""
    layer = copy.deepcopy(layer_of("gpt2" if conv1d else "llama"))
    torch.manual_seed(seed)
    base = Conv1D(OUTPUTS, INPUTS) if conv1d else torch.nn.Linear(INPUTS, OUTPUTS, bias=bias)
    layer.base_layer = base.requires_grad_(False).to(dtype)
    layer.lora_A["default"].weight = torch.nn.Parameter(torch.randn(8, INPUTS) / 10)
    layer.lora_B["default"].weight = torch.nn.Parameter(torch.randn(OUTPUTS, 8) / 10)
    dropout = layer.lora_dropout["default"]
    assert isinstance(dropout, SeededDropout) and isinstance(layer, FusedLoraLinear)
    state = DropoutState(device)
    layer.lora_dropout["default"] = state.add_layer(dropout.p, INPUTS)
    state.set_step(3, 7, [TOKENS])
    return layer.train().to(device)


def inputs(dtype: torch.dtype, *, device: str = "cpu", seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random inputs and gradients of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(1, TOKENS, size, generator=generator).to(dtype) for size in (INPUTS, OUTPUTS))
    return x.to(device).requires_grad_(), grad.to(device)


def computed(layer: LoraLinear, x: torch.Tensor, grad: torch.Tensor) -> Results:
    """Return the outputs of a layer and all gradients."""
    result = layer(x)
    result.backward(grad)
    found = {
        "result": result.detach(),
        "x": x.grad,
        "A": layer.lora_A["default"].weight.grad,
        "B": layer.lora_B["default"].weight.grad,
    }
    assert all(tensor is not None for tensor in found.values())
    return found  # type: ignore[return-value]


def by_peft(layer: LoraLinear) -> LoraLinear:
    """Return a copy of a layer that computes with PEFT, with the dropout of the engine."""
    layer = copy.deepcopy(layer)
    layer.__class__ = LoraLinear
    return layer


def errors(found: Results, exact: Results) -> dict[str, float]:
    assert found.keys() == exact.keys()
    return {name: float((found[name].double() - value).norm() / value.norm()) for name, value in exact.items()}


def too_large(layers: Sequence[LoraLinear], dtype: torch.dtype) -> dict[str, float]:
    """Return the mean errors of layers that exceed PEFT's by more than a tenth. Both are compared with float64."""
    total = {"found": Counter[str](), "peft": Counter[str]()}
    for seed, layer in enumerate(layers):
        x, grad = inputs(dtype, seed=seed)
        exact = computed(by_peft(layer).double(), x.detach().double().requires_grad_(), grad.double())
        peft, found = computed(by_peft(layer), *inputs(dtype, seed=seed)), computed(layer, x, grad)
        assert {name: tensor.dtype for name, tensor in found.items()} == {name: tensor.dtype for name, tensor in peft.items()}
        total["found"].update(errors(found, exact))
        total["peft"].update(errors(peft, exact))
    return {name: error / len(layers) for name, error in total["found"].items() if error > 1.1 * total["peft"][name]}


@pytest.mark.parametrize("training", [True, False], ids=["dropout", "no dropout"])
@pytest.mark.parametrize(("bias", "conv1d"), [(False, False), (True, False), (True, True)], ids=["plain", "bias", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_is_as_exact_as_pefts(dtype: torch.dtype, bias: bool, conv1d: bool, training: bool) -> None:
    layers = [adapted_layer(dtype, bias=bias, conv1d=conv1d, seed=seed).train(training) for seed in range(10)]
    assert too_large(layers, dtype) == {}


def test_a_layer_takes_no_tokens() -> None:
    layer = adapted_layer(torch.float32, bias=False).eval()
    x = torch.zeros(1, 0, INPUTS, requires_grad=True)
    result = layer(x)
    result.sum().backward()
    assert result.shape == (1, 0, OUTPUTS) and x.grad is not None and x.grad.shape == x.shape


def test_a_lost_mask_and_a_lost_scale_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    layers = [adapted_layer(torch.float32, bias=False, seed=seed) for seed in range(10)]
    original = lora_linear._scaled_product
    for name, wrong in {
        "dropped": lambda x, kept, dtype: x,
        "_scaled_product": lambda left, right, scale, *, like: original(left, right, 0.9 * scale, like=like),
    }.items():
        with monkeypatch.context() as patched:
            patched.setattr(lora_linear, name, wrong)
            assert {"result", "A", "B"} <= set(too_large(copy.deepcopy(layers), torch.float32))


def operators(layer: LoraLinear, dtype: torch.dtype) -> Counter[str]:
    x, grad = inputs(dtype, device="meta")
    layer(x)  # hashes the words of the tokens, once for all layers of a pass
    with Operators() as counted:
        layer(x).backward(grad)
    seen: Counter[str] = counted.seen
    return seen


@pytest.mark.parametrize(("dtype", "most", "of_peft"), [(torch.float32, 13, 18), (torch.bfloat16, 15, 23)])
def test_a_layer_takes_few_operators(dtype: torch.dtype, most: int, of_peft: int) -> None:
    """Forward and backward pass with dropout, including the mask, on a device that raises where the host reads a value."""
    layer = adapted_layer(dtype, bias=True, device="meta")
    found = operators(layer, dtype)
    assert found.total() <= most, found
    assert operators(by_peft(layer), dtype).total() >= of_peft  # negative control


def test_one_compiled_graph_serves_all_layers_steps_and_numbers_of_tokens() -> None:
    """No part of a layer or of its dropout breaks the graph or makes PyTorch compile again."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    layers, state = [adapted_layer(torch.bfloat16, bias=True, device="meta") for _ in range(3)], DropoutState("meta")
    for layer in layers:
        layer.lora_dropout["default"] = state.add_layer(0.1, INPUTS)
    compiled = torch.compile(lambda layer, x: layer(x), backend=keep, dynamic=True, fullgraph=True)
    for step, tokens in enumerate((50, 30, 41)):
        state.set_step(0, step, [tokens])
        state.set_pass(0, 1)
        for layer in layers:
            x = torch.randn(1, tokens, INPUTS, dtype=torch.bfloat16, device="meta", requires_grad=True)
            compiled(layer, x).sum().backward()
            assert layer.lora_A["default"].weight.grad is not None
    assert len(graphs) == 1


def gradients(
    architecture: str, lora: Lora, *, own: bool, steps: int = STEPS, dtype: torch.dtype = torch.float32
) -> tuple[list[Results], int]:
    """Return loss and gradients of steps of a model with equal base weights, and how many layers do not compute with PEFT."""
    model = tiny_model(architecture)
    for part in model.module.modules():
        if isinstance(part, torch.nn.Dropout):  # GPT-2 and OPT have dropout of their own
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    with trainable(model, Recipe(lora=lora), seed=0) as trainee:
        layers = [layer for layer in trainee.module.modules() if isinstance(layer, FusedLoraLinear)]
        if not own:
            for layer in layers:
                layer.__class__ = LoraLinear
        trainee.module.to(dtype)
        return [step(trainee, number) for number in range(steps)], len(layers)


def step(trainee: Trainee, number: int) -> Results:
    """Return loss and gradients of a step with random matrices B. If they were zero, the gradients of A would be zero."""
    trainee.module.train().zero_grad()
    trainee.dropout.set_step(0, number, [len(sequence.ids) - 1 for sequence in SEQUENCES])
    for name, weight in trainee.trained_parameters().items():
        if "lora_B" in name:
            random = torch.empty(weight.shape).normal_(std=0.1, generator=torch.Generator().manual_seed(100 * number + len(name)))
            weight.data.copy_(random)
    loss = packed_logprobs(trainee.model.module, SEQUENCES).logprobs_L.double().sum()
    loss.backward()
    found = {name: weight.grad for name, weight in trainee.trained_parameters().items() if weight.grad is not None}
    return found | {"loss": loss.detach()}


def mean_errors(found: Sequence[Results], exact: Sequence[Results]) -> dict[str, float]:
    total = Counter[str]()
    for one, other in zip(found, exact, strict=True):
        total.update(errors(one, other))
    return {name: error / len(exact) for name, error in total.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "gpt2", "gemma3_text", "phi3", "opt"])
def test_a_model_is_as_exact_as_with_peft(architecture: str) -> None:
    (found, layers), (peft, _) = (gradients(architecture, LORA, own=own) for own in (True, False))
    exact, _ = gradients(architecture, LORA, own=False, dtype=torch.float64)
    assert layers >= 8 and any("lora_A" in name for name in found[0])
    ours, theirs = (mean_errors(steps, exact) for steps in (found, peft))
    assert max(theirs.values()) < 1e-5
    assert max(ours.values()) < 1.25 * max(theirs.values())
    assert sum(ours.values()) < 1.1 * sum(theirs.values())


@pytest.mark.parametrize(
    "lora",
    [replace(LORA, use_dora=True), replace(LORA, bias="all"), replace(LORA, bias="lora_only")],
    ids=["dora", "all", "lora_only"],
)
@pytest.mark.parametrize("architecture", ["opt", "gpt2"])
def test_other_adapters_are_left_to_peft(architecture: str, lora: Lora) -> None:
    """Both architectures have biases."""
    ([found], _), ([expected], _) = (gradients(architecture, lora, own=own, steps=1) for own in (True, False))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def disabled(layer: LoraLinear) -> None:
    layer.enable_adapters(False)


def merged(layer: LoraLinear) -> None:
    layer.merge()


@pytest.mark.parametrize("change", [disabled, merged])
def test_adapters_that_are_disabled_or_merged_are_left_to_peft(change: Callable[[LoraLinear], None]) -> None:
    layer = adapted_layer(torch.float32, bias=True)
    change(layer)
    x, _ = inputs(torch.float32)
    assert torch.equal(layer(x), by_peft(layer)(x))
    assert layer(x).grad_fn is None or "_Adapted" not in layer(x).grad_fn.name()


def test_autocast_is_left_to_peft() -> None:
    layer = adapted_layer(torch.float32, bias=True)
    x, _ = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 and torch.equal(layer(x), by_peft(layer)(x))
    assert layer(x).dtype == torch.float32


def test_the_base_layer_still_uses_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in the forward and once in the backward pass, with equal results."""
    layer, calls = adapted_layer(torch.float32, bias=True), list[tuple[int, ...]]()
    expected = computed(copy.deepcopy(layer), *inputs(torch.float32))
    original = onednn_linear._onednn

    def counted(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return original(x, *weights)

    monkeypatch.setattr(onednn_linear, "_onednn", counted)
    shape = frozenset({(OUTPUTS, INPUTS)})
    with use_onednn(layer, OneDnnLinear(forward=shape, backward=shape)):
        found = computed(layer, *inputs(torch.float32))
    assert calls == [(TOKENS, INPUTS), (TOKENS, OUTPUTS)]
    assert all(error < 1e-6 for error in errors(found, expected).values())


def test_fewer_bytes_are_kept_for_the_backward_pass() -> None:
    """PEFT keeps the inputs after dropout. Here a mask of one byte is kept, and the inputs, which other adapters share."""
    kept = []
    for own in (True, False):
        layer = adapted_layer(torch.bfloat16, bias=False)
        layer = layer if own else by_peft(layer)
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(inputs(torch.bfloat16)[0])
        kept.append(sum(saved.values()))
    assert kept[0] < 0.9 * kept[1]
