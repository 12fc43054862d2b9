"""Linear layers through oneDNN are torch's own within rounding, both ways; the probe decides which of them go there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import tiny_module
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_harmony.engine import onednn_linear
from lm_harmony.engine.dropout import DropoutState
from lm_harmony.engine.onednn_linear import OneDnnLinear, probe_onednn, use_onednn

SHAPE = frozenset({(7, 12)})
BOTH = OneDnnLinear(forward=SHAPE, backward=SHAPE)


def gradients(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the result of a layer and the gradients of its input and weights."""
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
def test_a_linear_layer_is_torchs(products: OneDnnLinear, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(12, 7, bias=bias), torch.randn(shape)
    with use_onednn(layer, products):
        found = gradients(layer, x)
        assert "_Product" in type(layer(x).grad_fn).__name__, "it did not go through oneDNN"
    assert "_Product" not in type(layer(x).grad_fn).__name__
    for mine, theirs in zip(found, gradients(layer, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_gpt2s_layer_is_torchs() -> None:
    torch.manual_seed(0)
    layer, x = Conv1D(7, 12), torch.randn(2, 5, 12)
    with use_onednn(layer, BOTH):
        found = gradients(layer, x)
        assert "_Product" in type(layer(x).grad_fn).__name__
    for mine, theirs in zip(found, gradients(layer, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the tests above."""
    right = onednn_linear._onednn
    monkeypatch.setattr(onednn_linear, "_onednn", lambda *given: right(*given) * 1.001)
    layer, x = torch.nn.Linear(12, 7), torch.randn(3, 12)
    with use_onednn(layer, BOTH):
        found = layer(x)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_and_other_shapes_are_left_alone(dtype: torch.dtype) -> None:
    for layer in (torch.nn.Linear(12, 7, dtype=dtype), torch.nn.Linear(7, 12)):
        with use_onednn(layer, BOTH):
            assert "forward" not in vars(layer)


def test_nothing_is_kept_for_frozen_weights() -> None:
    """The input of a frozen layer is not held until the backward pass."""
    layer = torch.nn.Linear(12, 7, bias=False).requires_grad_(False)
    with use_onednn(layer, BOTH):
        result = layer(torch.randn(3, 12, requires_grad=True))
    saved, _ = result.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert saved is None


class Clock:
    """A clock that only the products move on."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def charged(self, product: Callable[..., torch.Tensor], seconds: float) -> Callable[..., torch.Tensor]:
        def charging(*given: torch.Tensor) -> torch.Tensor:
            self.seconds += seconds
            return product(*given)

        return charging


@pytest.mark.parametrize(("onednn_takes", "taken"), [(1.0, True), (1.7, True), (1.8, False), (3.0, False)])
def test_the_probe_takes_a_product_that_is_faster_by_the_required_gain(
    onednn_takes: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own product takes two seconds of a clock that the test keeps: 2 / 1.7 is above GAIN, 2 / 1.8 below."""
    clock = Clock()
    monkeypatch.setattr(onednn_linear, "time", clock)
    monkeypatch.setattr(onednn_linear, "_onednn", clock.charged(onednn_linear._onednn, onednn_takes))
    monkeypatch.setattr(onednn_linear, "linear", clock.charged(onednn_linear.linear, 2.0))
    found = probe_onednn(wide_module(), seconds=1e6)
    assert found.forward == (frozenset({(64, 64), (128, 64), (64, 128), (300, 64)}) if taken else frozenset())
    assert not found.backward  # which took no time either way


def test_the_probe_keeps_to_its_time_and_leaves_small_layers_alone() -> None:
    assert not probe_onednn(wide_module(), seconds=0.0)
    assert not probe_onednn(tiny_module())  # 32 wide
    assert not probe_onednn(wide_module().to(torch.bfloat16))


@pytest.mark.parametrize("width", [8, 9])
def test_dropout_is_the_same_wherever_a_batch_is_cut(width: int) -> None:
    x = torch.ones(1, 9, width)
    whole = DropoutState(seed_and_step=(3, 4), lengths=(4, 3, 2), count=3).kept(5, x, 0.25)
    parts = [
        DropoutState(seed_and_step=(3, 4), lengths=(4, 3, 2), first=first, count=1).kept(5, x[:, :length], 0.25)
        for first, length in enumerate((4, 3, 2))
    ]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    for other in (
        DropoutState(seed_and_step=(3, 5), lengths=(9,), count=1),
        DropoutState(seed_and_step=(4, 4), lengths=(9,), count=1),
    ):
        assert not torch.equal(whole, other.kept(5, x, 0.25))
    assert not torch.equal(whole, DropoutState(seed_and_step=(3, 4), lengths=(9,), count=1).kept(6, x, 0.25))


def test_dropout_keeps_the_share_it_says() -> None:
    kept = DropoutState(seed_and_step=(0, 1), lengths=(1000,), count=1).kept(0, torch.ones(1, 1000, 256), 0.05)
    assert kept.float().mean().item() == pytest.approx(0.95, abs=0.003)  # 7 standard errors of 256,000 draws
    assert kept.float().mean(dim=(0, 1)).std() < 0.02  # and in every column
