"""A run that does not fit into memory is refused before its weights are loaded, or made to fit by gradient checkpointing."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.engine.memory_estimate import estimate_memory, with_checkpointing
from lm_harmony.engine.model_size import model_size
from lm_harmony.errors import ModelError, UsageError
from lm_harmony.models.device import Precision
from lm_harmony.models.loading import LanguageModel, load_without_weights
from lm_harmony.recipe import Recipe
from lm_harmony.runs import memory_check
from lm_harmony.runs.memory_check import fit_into_memory, memory_settings
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

LONGEST = 4_000


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model"))),
        benchmark=BenchmarkSpec(task=str(write_micro(tmp_path)), data_dir=tmp_path),
        recipe=Recipe(epochs=1),
        execution=Execution(device="cpu"),
    )


@pytest.fixture
def model(spec: RunSpec) -> LanguageModel:
    return load_without_weights(spec.model.name)


def bytes_beside_the_process(spec: RunSpec, model: LanguageModel, *, checkpointing: bool) -> int:
    settings = memory_settings(spec, Precision(weights="float32"), "cpu")
    settings = with_checkpointing(settings) if checkpointing else settings
    estimate = estimate_memory(model_size(model, spec.recipe), settings, tokens=LONGEST)
    return estimate.total - estimate.process


def test_gradient_checkpointing_is_switched_on_only_where_a_run_fits_with_it_alone(
    spec: RunSpec, model: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    plain, least = (bytes_beside_the_process(spec, model, checkpointing=checkpointing) for checkpointing in (False, True))
    assert least < plain
    with caplog.at_level(logging.INFO, logger="lm_harmony"):
        assert fit_into_memory(spec, model, longest=LONGEST, free=plain).execution == spec.execution
        assert not caplog.records
        assert fit_into_memory(spec, model, longest=LONGEST, free=plain - 1).execution.gradient_checkpointing
    assert "gradient checkpointing is switched on" in caplog.text
    assert fit_into_memory(spec, model, longest=LONGEST, free=None) == spec  # the free memory of some devices is not known


def test_the_message_lists_what_would_fit(spec: RunSpec, model: LanguageModel) -> None:
    checked = replace(spec, execution=replace(spec.execution, memory="check"))
    free = bytes_beside_the_process(spec, model, checkpointing=True)
    with pytest.raises(ModelError) as found:
        fit_into_memory(checked, model, longest=LONGEST, free=free)
    message = str(found.value)
    assert "\n" not in message and "training on one sequence of 4000 tokens" in message and "activations" in message
    assert "--train_param.gradient_checkpointing (" in message and "--train_param.max_seq_length" in message
    with pytest.raises(ModelError) as nothing:
        fit_into_memory(spec, model, longest=LONGEST, free=1)
    assert "while loading it" in str(nothing.value)
    assert str(nothing.value).endswith("Ways out: a machine with more free memory.")
    unchecked = replace(spec, execution=replace(spec.execution, memory="off"))
    assert fit_into_memory(unchecked, model, longest=LONGEST, free=1) == unchecked  # the negative control


def test_the_record_says_what_was_switched_on(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train_before_test(spec, RunStore(tmp_path / "plain"))
    assert "ways_out" not in plain.environment
    longest = max(len(row.ids) for row in set_up_run(spec).sequences) - 1
    settings = memory_settings(spec, Precision(weights="float32"), "cpu")
    size = model_size(load_without_weights(spec.model.name), spec.recipe)
    estimates = [estimate_memory(size, one, tokens=longest) for one in (settings, with_checkpointing(settings))]
    asked, least = (estimate.total - estimate.process for estimate in estimates)
    assert least < asked
    monkeypatch.setattr(memory_check, "allocatable_bytes", lambda _: least)
    record = train_before_test(spec, RunStore(tmp_path / "run"))
    assert record.environment["ways_out"] == ("gradient checkpointing",)
    assert record.trained is not None and plain.trained is not None
    assert record.trained.metrics == pytest.approx(plain.trained.metrics, abs=1e-6)


def test_unknown_values_are_refused() -> None:
    with pytest.raises(UsageError, match="memory must be one of auto, check, off, got 'yes'"):
        Execution(memory="yes")
