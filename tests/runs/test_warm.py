"""The model cache: runs share a loaded model only if its weights, files and settings have not changed."""

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


def test_runs_on_a_cached_model_equal_runs_on_a_newly_loaded_model(spec: RunSpec, tmp_path: Path) -> None:
    caches = RunCaches()
    specs = [
        spec,
        replace(spec, seed=1),
        replace(spec, recipe=replace(RECIPE, lora=Lora(bias="all", use_dora=True))),
        replace(spec, seed=2, recipe=replace(RECIPE, completion_only=True)),
    ]
    for number, run_spec in enumerate(specs):
        expected = train_before_test(run_spec, RunStore(tmp_path / f"reference{number}"))
        assert train_before_test(run_spec, RunStore(tmp_path / f"cached{number}"), caches=caches) == expected
    assert caches.model.loads == 1


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_record_names_the_dtype_of_the_weights(dtype: str, spec: RunSpec, tmp_path: Path) -> None:
    record = train_before_test(replace(spec, recipe=replace(RECIPE, dtype=dtype)), RunStore(tmp_path / "run"))
    weights = "bfloat16" if dtype == "bfloat16" else "float32"
    assert record.environment["precision"] == {"weights": weights, "autocast": None}
    assert RunStore(tmp_path / "run").record().environment["precision"] == record.environment["precision"]


def test_a_cached_model_whose_weights_were_trained_is_loaded_again(spec: RunSpec, tmp_path: Path) -> None:
    caches, full = RunCaches(), replace(spec, recipe=replace(RECIPE, lora=None, learning_rate=1e-3))
    expected = train_before_test(spec, RunStore(tmp_path / "reference"))
    train_before_test(full, RunStore(tmp_path / "full"), caches=caches)
    assert train_before_test(spec, RunStore(tmp_path / "after"), caches=caches) == expected
    assert caches.model.loads == 2


def test_a_cached_model_with_one_changed_weight_is_loaded_again(spec: RunSpec) -> None:
    cache = ModelCache()
    first = cache.get(spec)
    with torch.no_grad():
        next(first.model.module.parameters()).view(-1)[7] += 1e-7
    second = cache.get(spec)
    assert second is not first
    assert second.checksum == first.checksum
    assert cache.get(spec) is second


def test_another_model_or_engine_replaces_the_cached_model(spec: RunSpec, tmp_path: Path) -> None:
    cache = ModelCache()
    first = cache.get(spec)
    other = replace(spec, model=ModelSpec(name=str(write_tiny_model(tmp_path / "other", seed=1))))
    assert cache.get(other).checksum != first.checksum
    assert cache.get(replace(other, seed=5)) is cache.get(other)
    assert cache.get(replace(other, execution=replace(spec.execution, engine="plain"))).backend.packed is False
    assert cache.loads == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checksum_changes_with_one_bit_and_with_two_swapped_weights(dtype: torch.dtype) -> None:
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


def damage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")


def test_rows_are_refused_before_weights_are_read(spec: RunSpec, tmp_path: Path) -> None:
    """An invalid row gives an error before the weights are read, even if the weights are damaged."""
    damage_weights(Path(spec.model.name))
    path = tmp_path / "micro" / "test.jsonl"
    content = path.read_text()
    for old, new, message in (
        ('"label": 1', '"label": -1', "the test split has no public labels"),
        ('"number": 32', '"number": null', r"test row 0 \(.*test\.jsonl line 1\): column 'number' is null"),
    ):
        path.write_text(content.replace(old, new, 1))
        caches = RunCaches()
        with pytest.raises(BenchmarkError, match=message):
            set_up_run(spec, caches)
        assert caches.model.loads == 0
    path.write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):  # negative control: the weights are damaged
        set_up_run(spec)


def test_a_missing_model_or_device_is_refused_before_rows_are_read(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "micro" / "test.jsonl").write_text('{"number": null, "label": 1}\n')
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        set_up_run(replace(spec, model=ModelSpec(name=str(tmp_path / "empty"))))
    with pytest.raises(ModelError, match="device 'cuda:99' cannot be used"):
        set_up_run(replace(spec, execution=Execution(device="cuda:99")))
    with pytest.raises(BenchmarkError, match="column 'number' is null"):  # negative control: the row is invalid
        set_up_run(spec)


@pytest.mark.parametrize(("template", "message"), [("{{ nothing.here }}", "its chat template fails"), (None, "no chat template")])
def test_chat_templates_are_refused_before_weights_are_read(template: str | None, message: str, spec: RunSpec) -> None:
    folder = Path(spec.model.name)
    damage_weights(folder)
    chat, caches = replace(spec, model=replace(spec.model, apply_chat_template=True)), RunCaches()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=message):
        set_up_run(chat, caches)
    assert caches.model.loads == 0
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    with pytest.raises(ModelError, match=r"model\.safetensors"):  # negative control: the weights are damaged
        set_up_run(chat, caches)


def test_the_tokenizer_of_the_cached_model_is_reused_only_if_its_files_are_unchanged(spec: RunSpec) -> None:
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
