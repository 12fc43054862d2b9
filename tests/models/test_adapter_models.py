"""A folder with a PEFT adapter is a model: its base model with the adapter merged into it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import forked_python
from hub import LoopbackHub
from huggingface_hub import HfApi
from micro import write_micro
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny import tiny_tokenizer, write_tiny_model
from transformers import AutoModelForCausalLM

from lm_harmony.errors import ModelError
from lm_harmony.models.loading import load_model
from lm_harmony.recipe import Recipe
from lm_harmony.runs.protocol import score_again, train_before_test
from lm_harmony.runs.sources import SourceCheck
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.workload import size_of

DIRECT = "samples_direct.jsonl"
IDS = torch.arange(5, 25).view(2, 10)


def write_adapter(folder: Path, base: Path, *, named: str | None = None, **options: Any) -> Path:
    """Write an adapter whose weights are large enough to change every score. Return its folder."""
    torch.manual_seed(1)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=64, **options)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    adapted.save_pretrained(str(folder))
    change(folder, base_model_name_or_path=named or str(base))
    return folder


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"bias": "lora_only"}])
def test_an_adapter_computes_as_under_peft(options: dict[str, Any], tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", base, **options)
    model = load_model(str(folder), device="cpu")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    assert torch.allclose(logits(model.module), logits(peft), atol=1e-5)
    assert not torch.allclose(logits(model.module), logits(load_model(str(base), device="cpu").module), atol=1e-2)
    assert not any("lora" in name for name, _ in model.module.named_parameters())


def test_the_tokenizer_of_the_adapter_comes_before_that_of_its_base(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", base)
    assert load_model(str(folder), device="cpu").text.tokenizer.bos_token is None
    tiny_tokenizer(bos=True).save_pretrained(folder)
    assert load_model(str(folder), device="cpu").text.tokenizer.bos_token == "<|bos|>"


def test_the_base_is_found_beside_the_adapter(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    load_model(str(write_adapter(tmp_path / "adapter", base, named="../base")), device="cpu")


def test_an_adapter_is_trained_and_scored_as_a_model_of_its_own(tmp_path: Path) -> None:
    """Its sources are the files of adapter and base. The trained adapter names the first adapter as its base."""
    base = write_tiny_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", base)
    task = write_micro(tmp_path / "task")
    benchmark, recipe = BenchmarkSpec(task=str(task), data_dir=task.parent), Recipe(epochs=1)
    spec = RunSpec(model=ModelSpec(name=str(folder)), benchmark=benchmark, recipe=recipe, direct=True)
    store = RunStore(tmp_path / "run")
    record = train_before_test(spec, store)
    plain = replace(spec, model=ModelSpec(name=str(base)))
    train_before_test(plain, RunStore(tmp_path / "plain"))
    assert (store.folder / DIRECT).read_bytes() != (tmp_path / "plain" / DIRECT).read_bytes()
    names = {source.name for source in record.sources or () if source.kind == "model"}
    assert {"adapter_model.safetensors", "adapter_config.json", "base model/model.safetensors", "base model/config.json"} <= names
    trained = json.loads((store.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert trained["base_model_name_or_path"] == str(folder)
    assert score_again(store).trained == record.trained
    assert size_of(spec.model, recipe) == size_of(plain.model, recipe)
    assert SourceCheck().difference(record.sources, spec) is None
    for file in (base / "model.safetensors", folder / "adapter_model.safetensors"):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        difference = SourceCheck().difference(record.sources, spec)
        assert difference is not None and file.name in difference and "changed since" in difference
        file.write_bytes(content)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as found:
        load_model(str(folder), device="cpu", **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_adapters_that_cannot_be_merged_are_refused_in_one_line(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    folder = write_adapter(tmp_path / "adapter", base)
    assert "one revision only" in refusal(folder, revision="step1")
    change(folder, base_model_name_or_path=None)
    assert "names no base_model_name_or_path" in refusal(folder)
    change(folder, base_model_name_or_path=str(tmp_path / "nowhere"))
    assert "nowhere" in refusal(folder)
    change(folder, base_model_name_or_path=str(write_adapter(tmp_path / "second", base)))
    assert "is an adapter itself" in refusal(folder)
    change(folder, base_model_name_or_path=str(write_tiny_model(tmp_path / "other", "gpt_neox")))
    assert "cannot be merged into its base model" in refusal(folder)
    change(folder, base_model_name_or_path=str(base), r=4)
    assert "does not fit its base model: it has a size mismatch" in refusal(folder)
    change(folder, r=8, target_modules=["q_proj", "v_proj", "k_proj"])
    assert "does not fit its base model: it lacks weights named" in refusal(folder)
    change(folder, target_modules=["q_proj", "v_proj"])
    load_model(str(folder), device="cpu")  # negative control
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    assert "adapter_model.safetensors is truncated" in refusal(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "Pickled adapters (.bin) are not read" in refusal(folder)


def test_prompt_tuning_is_refused(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(tmp_path / "adapter"))
    change(tmp_path / "adapter", base_model_name_or_path=str(base))
    assert "PROMPT_TUNING cannot be merged" in refusal(tmp_path / "adapter")


LOAD = """
import sys
from lm_harmony.errors import ModelError
from lm_harmony.models.loading import load_model

for name in sys.argv[1:]:
    try:
        model = load_model(name, device="cpu")
        print(model.name, model.revision, model.base and (model.base.name, model.base.commit))
        print([float(weight.sum()) for name, weight in model.module.named_parameters() if "q_proj" in name])
    except ModelError as error:
        print(error)
"""


def load(environment: dict[str, str], *names: str) -> list[str]:
    command = [forked_python(environment), "-c", LOAD, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_adapter_on_the_hub_is_merged_like_one_in_a_folder(tmp_path: Path) -> None:
    """Both commits are known, and both are read from the cache without network. Weights of a whole model beside it refuse it."""
    base = write_tiny_model(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base, named="a/base")
    write_adapter(tmp_path / "local", base)
    write_adapter(tmp_path / "both", base, named="a/base")
    (tmp_path / "both" / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    write_adapter(tmp_path / "second", base, named="a/adapter")
    names = ("base", "adapter", "both", "second")
    with LoopbackHub(models={f"a/{name}": tmp_path / name for name in names}) as hub:
        online = hub.environment(tmp_path / "cache")
        folders = [str(tmp_path / "local"), str(base)]
        merged, weights, both, second, _, same, _, unmerged = load(online, "a/adapter", "a/both", "a/second", *folders)
        read = [request for request in hub.requests if request.startswith("GET") and "safetensors" in request]
        commits = {name: HfApi(endpoint=hub.endpoint).model_info(f"a/{name}").sha for name in names}
    assert merged.startswith(f"a/adapter {commits['adapter']} ('a/base', '{commits['base']}')")
    assert weights == same != unmerged
    assert "both: adapter_config.json lies beside config.json or weights of a whole model" in both
    assert "model a/adapter: adapter_config.json lies beside" in second
    assert not any("a/both" in request for request in read)
    offline = {**online, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert load(offline, "a/adapter") == [merged, weights]
