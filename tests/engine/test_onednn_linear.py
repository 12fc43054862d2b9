"""Linear layers computed by oneDNN equal those of PyTorch within rounding, forward and backward. A probe selects them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from tiny import tiny_module
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_harmony.engine import onednn_linear
from lm_harmony.engine.onednn_linear import OneDnnLinear, probe_onednn, use_onednn

SHAPE = frozenset({(7, 12)})
BOTH = OneDnnLinear(forward=SHAPE, backward=SHAPE)


def gradients(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output of a layer and the gradients of its input and weights."""
    x = x.clone().requires_grad_()
    result = layer(x)
    weights = list(layer.parameters())
    return [result, *torch.autograd.grad(result.square().sum(), [x, *weights])]


def wide_module() -> PreTrainedModel:
    """Make a two-layer model whose linear layers are wide enough for the probe."""
    config = CONFIG_MAPPING["llama"](
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("products", [BOTH, OneDnnLinear(forward=SHAPE), OneDnnLinear(backward=SHAPE)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 12), (3, 12), (2, 5, 12)])
def test_a_linear_layer_equals_pytorchs(products: OneDnnLinear, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(12, 7, bias=bias), torch.randn(shape)
    with use_onednn(layer, products):
        found = gradients(layer, x)
        assert "_Product" in type(layer(x).grad_fn).__name__, "it did not go through oneDNN"
    assert "_Product" not in type(layer(x).grad_fn).__name__
    for ours, theirs in zip(found, gradients(layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gpt2s_conv1d_equals_pytorchs() -> None:
    torch.manual_seed(0)
    layer, x = Conv1D(7, 12), torch.randn(2, 5, 12)
    with use_onednn(layer, BOTH):
        found = gradients(layer, x)
        assert "_Product" in type(layer(x).grad_fn).__name__
    for ours, theirs in zip(found, gradients(layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_wrong_product_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the tests above."""
    right = onednn_linear._onednn
    monkeypatch.setattr(onednn_linear, "_onednn", lambda *given: right(*given) * 1.001)
    layer, x = torch.nn.Linear(12, 7), torch.randn(3, 12)
    with use_onednn(layer, BOTH):
        found = layer(x)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_shapes_do_not_use_onednn(dtype: torch.dtype) -> None:
    for layer in (torch.nn.Linear(12, 7, dtype=dtype), torch.nn.Linear(7, 12)):
        with use_onednn(layer, BOTH):
            assert "forward" not in vars(layer)


def test_the_input_of_a_frozen_layer_is_not_saved() -> None:
    """A frozen layer does not need its input in the backward pass."""
    layer = torch.nn.Linear(12, 7, bias=False).requires_grad_(False)
    with use_onednn(layer, BOTH):
        result = layer(torch.randn(3, 12, requires_grad=True))
    saved, _ = result.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert saved is None


class Clock:
    """A clock that advances only when a product is computed."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    thread_time = perf_counter

    def charged(self, product: Callable[..., torch.Tensor], seconds: float) -> Callable[..., torch.Tensor]:
        def charging(*given: torch.Tensor) -> torch.Tensor:
            self.seconds += seconds
            return product(*given)

        return charging


@pytest.mark.parametrize(("onednn_seconds", "selected"), [(1.0, True), (1.7, True), (1.8, False), (3.0, False)])
def test_the_probe_selects_a_product_that_is_faster_by_the_required_gain(
    onednn_seconds: float, selected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's product takes two seconds on a simulated clock. 2 / 1.7 is above GAIN, 2 / 1.8 is below."""
    clock = Clock()
    monkeypatch.setattr(onednn_linear, "time", clock)
    monkeypatch.setattr(onednn_linear, "_onednn", clock.charged(onednn_linear._onednn, onednn_seconds))
    monkeypatch.setattr(onednn_linear, "linear", clock.charged(onednn_linear.linear, 2.0))
    found = probe_onednn(wide_module(), seconds=1e6)
    assert found.forward == (frozenset({(64, 64), (128, 64), (64, 128), (300, 64)}) if selected else frozenset())
    assert not found.backward  # both take no time on the simulated clock


@pytest.mark.parametrize(("threads", "counted"), [(1, False), (2, True)])
def test_with_one_thread_the_probe_does_not_count_the_time_of_other_processes(threads: int, counted: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        started = onednn_linear.work_clock()
        time.sleep(0.2)
        assert (onednn_linear.work_clock() - started > 0.1) == counted
    finally:
        torch.set_num_threads(before)


def test_the_probe_keeps_its_time_limit_and_skips_small_layers() -> None:
    assert not probe_onednn(wide_module(), seconds=0.0)
    assert not probe_onednn(tiny_module())  # 32 wide
    assert not probe_onednn(wide_module().to(torch.bfloat16))
