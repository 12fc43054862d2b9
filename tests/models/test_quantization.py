"""Quantized weights: part of the recipe's identity, refused in one line where they cannot be used, and trained where they can."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.errors import MissingExtra, UsageError
from lm_harmony.models.loading import load_model
from lm_harmony.models.quantization import refuse_quantization
from lm_harmony.recipe import PUBLISHED, Recipe
from lm_harmony.runs.fingerprint import run_id
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

INSTALLED = find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(
    not INSTALLED, reason="bitsandbytes is not installed: pip install 'lm-harmony[quantized]'"
)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model"))),
        benchmark=BenchmarkSpec(task=str(write_micro(tmp_path)), data_dir=tmp_path),
        recipe=Recipe(epochs=1, quantize="nf4"),
        execution=Execution(device="cpu"),
    )


def test_quantization_is_part_of_the_identity_and_absent_elsewhere(spec: RunSpec) -> None:
    kinds = [replace(spec.recipe, quantize=kind) for kind in (None, "nf4", "int8")]
    assert len({recipe.fingerprint() for recipe in kinds}) == 3
    assert len({run_id(replace(spec, recipe=recipe)) for recipe in kinds}) == 3
    assert "quantize" not in RunSpec(model=spec.model, benchmark=spec.benchmark).to_dict()["recipe"]  # type: ignore[operator]
    assert RunSpec.from_dict(spec.to_dict()) == spec
    assert PUBLISHED.quantize is None


def test_quantized_weights_cannot_be_trained_themselves() -> None:
    with pytest.raises(UsageError, match="quantize = nf4 needs an adapter"):
        Recipe(lora=None, quantize="nf4")
    with pytest.raises(UsageError, match="quantize must be one of nf4, int8, got 'nf5'"):
        Recipe(quantize="nf5")


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
def test_without_the_extra_a_run_is_refused_with_the_command(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"quantize = nf4 needs bitsandbytes, .* pip install 'lm-harmony\[quantized\]'"):
        train_before_test(spec, RunStore(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_model_trains_an_adapter_and_its_record_says_so(spec: RunSpec, tmp_path: Path, kind: str) -> None:
    refuse_quantization(kind)
    model = load_model(spec.model.name, device="cpu", quantize=kind)
    stored = {weight.dtype.itemsize for name, weight in model.module.named_parameters() if name.endswith("q_proj.weight")}
    assert stored == {1} and model.module.get_output_embeddings().weight.dtype.itemsize == 4
    record = train_before_test(replace(spec, recipe=replace(spec.recipe, quantize=kind)), RunStore(tmp_path / "run"))
    assert record.environment["precision"] == {"weights": kind, "autocast": "float32"}
    assert record.trained is not None and record.epochs[0].loss > 0
