"""One base serves many runs, and only while it is what was loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro import write_micro
from tiny import CHAT_TEMPLATE, tiny_module, write_tiny_model

from lm_harmony.errors import BenchmarkError, ModelError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.caches import ModelCache, RunCaches, checksum
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

RECIPE = Recipe(epochs=2, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model"))),
        benchmark=BenchmarkSpec(task=str(write_micro(tmp_path)), data_dir=tmp_path),
        recipe=RECIPE,
        direct=True,
        execution=Execution(device="cpu"),
    )


def test_runs_on_a_warm_base_are_the_runs_on_a_fresh_one(spec: RunSpec, tmp_path: Path) -> None:
    caches = RunCaches()
    asked = [
        spec,
        replace(spec, seed=1),
        replace(spec, recipe=replace(RECIPE, lora=Lora(bias="all", use_dora=True))),
        replace(spec, seed=2, recipe=replace(RECIPE, completion_only=True)),
    ]
    for number, one in enumerate(asked):
        expected = train_before_test(one, RunStore(tmp_path / f"fresh{number}"))
        assert train_before_test(one, RunStore(tmp_path / f"warm{number}"), caches=caches) == expected
    assert caches.model.loads == 1


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_record_tells_the_number_formats(dtype: str, spec: RunSpec, tmp_path: Path) -> None:
    record = train_before_test(replace(spec, recipe=replace(RECIPE, dtype=dtype)), RunStore(tmp_path / "run"))
    weights = "bfloat16" if dtype == "bfloat16" else "float32"
    assert record.environment["precision"] == {"weights": weights, "autocast": None}
    assert RunStore(tmp_path / "run").record().environment["precision"] == record.environment["precision"]


def test_a_base_that_was_trained_is_loaded_again(spec: RunSpec, tmp_path: Path) -> None:
    caches, whole = RunCaches(), replace(spec, recipe=replace(RECIPE, lora=None, learning_rate=1e-3))
    expected = train_before_test(spec, RunStore(tmp_path / "fresh"))
    train_before_test(whole, RunStore(tmp_path / "whole"), caches=caches)
    assert train_before_test(spec, RunStore(tmp_path / "after"), caches=caches) == expected
    assert caches.model.loads == 2


def test_a_base_that_someone_touched_is_loaded_again(spec: RunSpec) -> None:
    warm = ModelCache()
    first = warm.get(spec)
    with torch.no_grad():
        next(first.model.module.parameters()).view(-1)[7] += 1e-7
    second = warm.get(spec)
    assert second is not first
    assert second.checksum == first.checksum
    assert warm.get(spec) is second


def test_another_model_takes_the_place(spec: RunSpec, tmp_path: Path) -> None:
    warm = ModelCache()
    first = warm.get(spec)
    other = replace(spec, model=ModelSpec(name=str(write_tiny_model(tmp_path / "other", seed=1))))
    assert warm.get(other).checksum != first.checksum
    assert warm.get(replace(other, seed=5)) is warm.get(other)
    assert warm.get(replace(other, execution=replace(spec.execution, engine="plain"))).backend.packed is False
    assert warm.loads == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checksum_sees_one_bit_and_two_weights_that_change_places(dtype: torch.dtype) -> None:
    module = tiny_module().to(dtype)
    expected = checksum(module)
    assert checksum(tiny_module().to(dtype)) == expected
    weight = module.model.layers[0].mlp.up_proj.weight.data
    before = weight.clone()
    weight.view(torch.int16)[3, 4] ^= 1
    assert checksum(module) != expected
    weight.copy_(before)
    assert checksum(module) == expected
    weight[0, 0], weight[0, 1] = before[0, 1].clone(), before[0, 0].clone()
    assert checksum(module) != expected


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")


def test_rows_are_refused_before_weights_are_read(spec: RunSpec, tmp_path: Path) -> None:
    """A row that does not fit is told in seconds, however large the model is, and even if its weights are damaged."""
    spoil_weights(Path(spec.model.name))
    path = tmp_path / "micro" / "test.jsonl"
    content = path.read_text()
    for old, new, said in (
        ('"label": 1', '"label": -1', "the test split has no public labels"),
        ('"number": 32', '"number": null', r"test row 0 \(.*test\.jsonl line 1\): column 'number' is null"),
    ):
        path.write_text(content.replace(old, new, 1))
        caches = RunCaches()
        with pytest.raises(BenchmarkError, match=said):
            set_up_run(spec, caches)
        assert caches.model.loads == 0
    path.write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):  # the negative control: the weights are damaged
        set_up_run(spec)


def test_a_model_or_device_that_is_not_there_is_told_before_rows_are_read(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "micro" / "test.jsonl").write_text('{"number": null, "label": 1}\n')
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        set_up_run(replace(spec, model=ModelSpec(name=str(tmp_path / "empty"))))
    with pytest.raises(ModelError, match="device 'cuda:99' cannot be used"):
        set_up_run(replace(spec, execution=Execution(device="cuda:99")))
    with pytest.raises(BenchmarkError, match="column 'number' is null"):  # the negative control: the row does not fit
        set_up_run(spec)


@pytest.mark.parametrize(("template", "said"), [("{{ nothing.here }}", "its chat template fails"), (None, "no chat template")])
def test_chat_templates_are_refused_before_weights_are_read(template: str | None, said: str, spec: RunSpec) -> None:
    folder = Path(spec.model.name)
    spoil_weights(folder)
    chat, caches = replace(spec, model=replace(spec.model, apply_chat_template=True)), RunCaches()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=said):
        set_up_run(chat, caches)
    assert caches.model.loads == 0
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    with pytest.raises(ModelError, match=r"model\.safetensors"):  # the negative control: the weights are damaged
        set_up_run(chat, caches)


def test_the_tokenizer_of_a_kept_model_serves_while_its_files_are_the_same(spec: RunSpec) -> None:
    template = Path(spec.model.name) / "chat_template.jinja"
    template.write_text(CHAT_TEMPLATE)
    chat, caches = replace(spec, model=replace(spec.model, apply_chat_template=True)), RunCaches()
    run = set_up_run(chat, caches)
    assert run.splits.test[0].context == run.model.text.render_chat([{"role": "user", "content": "number 32 is"}])
    assert caches.model.chat_encoder(chat) is run.model.text
    template.write_text("Chat: " + CHAT_TEMPLATE)
    assert caches.model.chat_encoder(chat) is not run.model.text
    assert set_up_run(chat, caches).splits.test[0].context == "Chat: " + run.splits.test[0].context
    assert caches.model.loads == 2
