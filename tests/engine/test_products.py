"""Linear layers through oneDNN are torch's own within rounding, both ways; what they do not serve passes untouched."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from lm_harmony.engine import products
from lm_harmony.engine.dropout import Draws
from lm_harmony.engine.products import fast_products


def gradients(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the result of a layer and the gradients of its input and weights."""
    x = x.clone().requires_grad_()
    result = layer(x)
    weights = list(layer.parameters())
    return [result, *torch.autograd.grad(result.square().sum(), [x, *weights])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 12), (3, 12), (2, 5, 12)])
def test_a_linear_layer_is_torchs(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(12, 7, bias=bias), torch.randn(shape)
    with fast_products():
        found = gradients(layer, x)
        assert "_Product" in type(layer(x).grad_fn).__name__, "it did not go through oneDNN"
    for mine, theirs in zip(found, gradients(layer, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_gpt2s_layer_is_torchs() -> None:
    torch.manual_seed(0)
    layer, x = Conv1D(7, 12), torch.randn(2, 5, 12)
    with fast_products():
        found = gradients(layer, x)
        assert layer(x).grad_fn.next_functions[0][0].name().startswith("_Product")
    for mine, theirs in zip(found, gradients(layer, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the tests above."""
    right = products._product
    monkeypatch.setattr(products, "_product", lambda *given: right(*given) * 1.001)
    layer, x = torch.nn.Linear(12, 7), torch.randn(3, 12)
    with fast_products():
        found = layer(x)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_vectors_pass_untouched(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 12, requires_grad=True)
    for x, w in ((torch.randn(3, 12, dtype=dtype), weight.to(dtype)), (torch.randn(12), weight), (torch.randn(0, 12), weight)):
        with fast_products():
            found = linear(x, w)
        assert torch.equal(found, linear(x, w))
        assert "_Product" not in type(found.grad_fn).__name__


def test_nothing_is_kept_for_frozen_weights() -> None:
    """The input of a frozen layer is not held until the backward pass."""
    layer = torch.nn.Linear(12, 7, bias=False).requires_grad_(False)
    with fast_products():
        result = layer(torch.randn(3, 12, requires_grad=True))
    saved, _ = result.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert saved is None


@pytest.mark.parametrize("width", [8, 9])
def test_dropout_is_the_same_wherever_a_batch_is_cut(width: int) -> None:
    x = torch.ones(1, 9, width)
    whole = Draws(seed_and_step=(3, 4), lengths=(4, 3, 2), count=3).kept(5, x, 0.25)
    parts = [
        Draws(seed_and_step=(3, 4), lengths=(4, 3, 2), first=first, count=1).kept(5, x[:, :length], 0.25)
        for first, length in enumerate((4, 3, 2))
    ]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    for other in (Draws(seed_and_step=(3, 5), lengths=(9,), count=1), Draws(seed_and_step=(4, 4), lengths=(9,), count=1)):
        assert not torch.equal(whole, other.kept(5, x, 0.25))
    assert not torch.equal(whole, Draws(seed_and_step=(3, 4), lengths=(9,), count=1).kept(6, x, 0.25))


def test_dropout_keeps_the_share_it_says() -> None:
    kept = Draws(seed_and_step=(0, 1), lengths=(1000,), count=1).kept(0, torch.ones(1, 1000, 256), 0.05)
    assert kept.float().mean().item() == pytest.approx(0.95, abs=0.003)  # 7 standard errors of 256,000 draws
    assert kept.float().mean(dim=(0, 1)).std() < 0.02  # and in every column
