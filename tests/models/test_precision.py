"""Precision of weights and autocast for every dtype, device and recipe. No test needs a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model

from lm_harmony.models import loading
from lm_harmony.models.device import Precision, choose_precision, configure_device, resolve_precision

FLOAT32, BFLOAT16 = Precision(weights="float32"), Precision(weights="bfloat16")
MIXED = Precision(weights="float32", autocast="bfloat16")


@pytest.mark.parametrize(
    ("device_type", "has_bfloat16", "adapter", "expected"),
    [
        ("cuda", True, True, BFLOAT16),
        ("cuda", True, False, MIXED),
        ("cuda", False, True, FLOAT32),  # T4, V100
        ("cuda", False, False, FLOAT32),
        ("cpu", True, True, FLOAT32),
        ("cpu", False, False, FLOAT32),
        ("mps", True, True, FLOAT32),
    ],
)
def test_dtype_auto_depends_on_device_bfloat16_support_and_adapter(
    device_type: str, has_bfloat16: bool, adapter: bool, expected: Precision
) -> None:
    assert choose_precision("auto", device_type=device_type, has_bfloat16=has_bfloat16, adapter=adapter) == expected


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("named", [FLOAT32, BFLOAT16], ids=lambda precision: precision.weights)
def test_an_explicit_dtype_is_used_on_every_device(named: Precision, device_type: str, adapter: bool) -> None:
    assert choose_precision(named.weights, device_type=device_type, has_bfloat16=True, adapter=adapter) == named


def test_width_is_the_number_of_bytes_of_a_weight() -> None:
    assert (FLOAT32.width, MIXED.width, BFLOAT16.width) == (4, 4, 2)


def test_resolving_the_precision_on_a_cpu_needs_no_cuda() -> None:
    assert resolve_precision("auto", torch.device("cpu"), adapter=True) == FLOAT32


@pytest.mark.parametrize("emulates_only", [True, False])
def test_emulated_bfloat16_does_not_count_as_supported(emulates_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A V100 emulates bfloat16 slowly. PyTorch reports this as support unless including_emulation is False."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulates_only
    )
    precision = resolve_precision("auto", torch.device("cuda"), adapter=True)
    assert precision == (FLOAT32 if emulates_only else BFLOAT16)


def test_loading_a_model_configures_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[torch.device] = []
    monkeypatch.setattr(loading, "configure_device", configured.append)
    write_tiny_model(tmp_path)
    loading.load_model(str(tmp_path), device="cpu")
    assert configured == [torch.device("cpu")]


def test_cudnn_attention_is_disabled_for_cuda_only() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        configure_device(torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        configure_device(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
