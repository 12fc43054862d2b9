"""Removing an adapter restores the model. Initial weights depend only on the seed. PEFT and transformers load saved weights."""

from __future__ import annotations

import dataclasses
import math
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import ARCHITECTURES, VOCABULARY, tiny_model, tiny_module, tiny_tokenizer, write_tiny_model
from transformers import AutoModelForCausalLM

from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import ModelError, StoreError
from lm_harmony.models.loading import LanguageModel, build_language_model, load_model
from lm_harmony.recipe import Lora, Recipe

Weights = dict[str, torch.Tensor]
RECIPE = Recipe(epochs=1, learning_rate=1e-2)
FULL = dataclasses.replace(RECIPE, lora=None)
VARIANTS = {
    "default": Lora(),
    "all-linear": Lora(target_modules=("all-linear",)),
    "all biases": Lora(bias="all"),
    "lora biases": Lora(bias="lora_only"),
    "rslora": Lora(use_rslora=True),
    "dora": Lora(use_dora=True),
}
SEQUENCES = [TokenSequence(ids=tuple(range(start, start + 12)), first_label=1, row=start) for start in range(2, 18)]
IDS = torch.arange(2, 42)[None]
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES)
KINDS = pytest.mark.parametrize(
    ("architecture", "variant"),
    [
        *((architecture, "default") for architecture in ARCHITECTURES),
        *(("qwen2", variant) for variant in VARIANTS if variant != "default"),
        *(("gpt2", variant) for variant in ("all-linear", "all biases", "dora")),
    ],
)


def with_lora(lora: Lora) -> Recipe:
    return dataclasses.replace(RECIPE, lora=lora)


def train(trainee: Trainee, recipe: Recipe = RECIPE) -> Trainee:
    list(fine_tune(trainee, SEQUENCES, recipe, seed=0, micro_batch=8))
    return trainee


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=IDS, use_cache=False).logits
    return found


def everything(module: torch.nn.Module) -> Weights:
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def trained(trainee: Trainee) -> Weights:
    return {name: weight.detach().clone() for name, weight in trainee.trained_parameters().items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_bare(model: LanguageModel) -> None:
    """Assert that the module holds no PEFT layer, no PEFT configuration and is in evaluation mode."""
    assert not [module for module in model.module.modules() if isinstance(module, BaseTunerLayer)]
    assert not isinstance(model.module, PeftModel) and not hasattr(model.module, "peft_config")
    assert not model.module.training


@KINDS
def test_removing_an_adapter_restores_the_model(architecture: str, variant: str) -> None:
    """Training changes the logits. Afterwards all weights, including biases, are bit-identical to those before."""
    model, recipe = tiny_model(architecture), with_lora(VARIANTS[variant])
    before, logits_before = everything(model.module), logits(model.module)
    with trainable(model, recipe, seed=0) as trainee:
        train(trainee, recipe)
        assert not torch.equal(logits(model.module), logits_before)
        assert torch.equal(logits(model.module), logits(trainee.module))
    assert same(everything(model.module), before)
    assert torch.equal(logits(model.module), logits_before)
    assert_bare(model)


def test_an_adapter_is_removed_when_the_block_fails() -> None:
    """An interruption during training also restores the model."""
    model = tiny_model()
    before = everything(model.module)

    def train_and_interrupt() -> None:
        with trainable(model, RECIPE, seed=0) as trainee:
            train(trainee)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_interrupt()
    assert same(everything(model.module), before)
    assert_bare(model)


@EACH
def test_a_second_adapter_is_independent_of_the_first(architecture: str, recwarn: pytest.WarningsRecorder) -> None:
    """A model that is fine-tuned a second time gets the weights of a newly loaded one. PEFT does not warn of a second adapter."""
    model, new_model = tiny_model(architecture), tiny_model(architecture)
    with trainable(model, RECIPE, seed=5) as trainee:
        train(trainee)
    with trainable(model, RECIPE, seed=0) as again, trainable(new_model, RECIPE, seed=0) as fresh:
        assert same(trained(train(again)), trained(train(fresh)))
    assert not [warning for warning in recwarn if "second time" in str(warning.message)]


@EACH
def test_a_new_adapter_does_not_change_the_logits(architecture: str) -> None:
    """Before the first step the adapter adds exactly zero, so the logits equal those of the base model."""
    model = tiny_model(architecture)
    logits_before = logits(model.module)
    with trainable(model, RECIPE, seed=0) as trainee:
        assert torch.equal(logits(trainee.module), logits_before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_initial_adapter_depends_only_on_the_seed(variant: str) -> None:
    """The global random state does not matter and does not change. Another seed gives another adapter."""
    initial = []
    for drawn, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(drawn)
        state = torch.get_rng_state()
        with trainable(tiny_model("qwen2"), with_lora(VARIANTS[variant]), seed=seed) as trainee:
            assert torch.equal(torch.get_rng_state(), state)
            initial.append(trained(trainee))
    assert same(initial[0], initial[1])
    assert not same(initial[0], initial[2])


def test_only_the_adapter_is_trained() -> None:
    """With LoRA no base weight is trained. Without LoRA all weights are trained, also after an earlier LoRA training."""
    model = tiny_model()
    with trainable(model, RECIPE, seed=0) as trainee:
        assert all("lora_" in name for name in trainee.trained_parameters())
        layers = [module for module in trainee.module.modules() if isinstance(module, BaseTunerLayer)]
        assert {(layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) for layer in layers} == {
            (8, 4.0, 0.1)
        }
    with trainable(model, FULL, seed=0) as trainee:
        assert trainee.trained_parameters().keys() == dict(model.module.named_parameters()).keys()
    with trainable(model, RECIPE, seed=0) as trainee:
        assert all("lora_" in name for name in trainee.trained_parameters())


def test_the_default_target_modules_are_those_of_peft() -> None:
    """Without target_modules PEFT's default modules are adapted. all-linear adapts every linear layer except the output layer."""
    with trainable(tiny_model(), RECIPE, seed=0) as trainee:
        assert adapted(trainee) == {"q_proj", "v_proj"}
    with trainable(tiny_model(), with_lora(VARIANTS["all-linear"]), seed=0) as trainee:
        assert adapted(trainee) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted(trainee: Trainee) -> set[str]:
    return {name.split(".")[-1] for name, module in trainee.module.named_modules() if isinstance(module, BaseTunerLayer)}


@KINDS
def test_peft_loads_a_saved_adapter(architecture: str, variant: str, tmp_path: Path) -> None:
    """AutoPeftModelForCausalLM loads the base model from its folder and computes the logits of the trained model.

    They agree within rounding, because PEFT adds the same products in another order.
    """
    model = loaded(write_tiny_model(tmp_path / "base", architecture), architecture)
    recipe = with_lora(VARIANTS[variant])
    with trainable(model, recipe, seed=0) as trainee:
        train(trainee, recipe).save(tmp_path / "adapter")
        ours = logits(trainee.module)
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs.eval()), ours, rtol=1e-5, atol=1e-5)
    assert float((ours - logits(model.module)).abs().max()) > 1e-3
    assert_only_safetensors(tmp_path / "adapter")


def loaded(folder: Path, architecture: str) -> LanguageModel:
    """Load a tiny model's folder as a run does."""
    if architecture == "qwen2":
        # transformers reads every Qwen2 tokenizer as Qwen2Tokenizer, which adds a token beyond the tiny embedding.
        return build_language_model(str(folder), AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer())
    return load_model(str(folder), device="cpu")


def assert_only_safetensors(folder: Path) -> None:
    """Assert that weights are in safetensors files and that all other files are text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".safetensors"]
    for path in files:
        if path.suffix != ".safetensors":
            assert path.suffix in (".json", ".md", ".jinja")
            path.read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_adapter_is_loaded_bit_for_bit(variant: str, tmp_path: Path) -> None:
    """Loading replaces every trained weight, both of an older epoch and of a trainee with another seed."""
    recipe = with_lora(VARIANTS[variant])
    with trainable(tiny_model("qwen2"), recipe, seed=0) as trainee:
        trainee.save(tmp_path / "first")
        first = trained(trainee)
        train(trainee, recipe).save(tmp_path / "second")
        second, answers = trained(trainee), logits(trainee.module)
        trainee.load(tmp_path / "first")
        assert same(trained(trainee), first) and not same(first, second)
    with trainable(tiny_model("qwen2"), recipe, seed=9) as other:
        assert not same(trained(other), second)
        other.load(tmp_path / "second")
        assert same(trained(other), second)
        assert torch.equal(logits(other.module), answers)  # dropout is off before any training


@EACH
def test_all_weights_are_loaded_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    """Saved full weights load into another model and as a model folder of their own. Tied embeddings stay tied."""
    model, other = tiny_model(architecture), tiny_model(architecture, seed=9)
    tied = is_tied(model)
    with trainable(model, FULL, seed=0) as trainee:
        train(trainee, FULL).save(tmp_path)
    with trainable(other, FULL, seed=0) as trainee:
        assert not torch.equal(logits(other.module), logits(model.module))
        trainee.load(tmp_path)
    assert same(everything(other.module), everything(model.module))
    assert is_tied(other) == is_tied(model) == tied == (architecture in ("gpt2", "gemma2"))
    again = loaded(tmp_path, architecture)
    assert torch.equal(logits(again.module), logits(model.module))
    assert again.text.encode(["the dog"]) == model.text.encode(["the dog"])
    assert_only_safetensors(tmp_path)


def is_tied(model: LanguageModel) -> bool:
    head, embedding = model.module.get_output_embeddings(), model.module.get_input_embeddings()
    assert head is not None
    return bool(head.weight.data_ptr() == embedding.weight.data_ptr())


def test_tied_embeddings_are_trained_as_one(tmp_path: Path) -> None:
    """After saving and loading, a further step changes the output layer and the embedding together."""
    with trainable(tiny_model("gpt2"), FULL, seed=0) as trainee:
        train(trainee, FULL).save(tmp_path)
        trainee.load(tmp_path)
        before = trained(trainee)["transformer.wte.weight"]
        train(trainee, FULL)
        assert is_tied(trainee.model)
        assert not torch.equal(trained(trainee)["transformer.wte.weight"], before)


@pytest.mark.parametrize(
    ("saved", "architecture", "wanted", "other", "reason"),
    [
        (with_lora(Lora(r=4)), "llama", RECIPE, "llama", "has a size mismatch for"),
        (with_lora(Lora(target_modules=("q_proj",))), "llama", RECIPE, "llama", "lacks weights named"),
        (RECIPE, "llama", with_lora(Lora(target_modules=("q_proj",))), "llama", "has weights named"),
        (RECIPE, "gpt2", RECIPE, "llama", "has weights named"),
        (RECIPE, "llama", with_lora(VARIANTS["dora"]), "llama", "lacks weights named"),
        (RECIPE, "qwen2", with_lora(VARIANTS["all biases"]), "qwen2", "lacks weights named"),
        (FULL, "llama", RECIPE, "llama", "has weights named"),
        (RECIPE, "llama", FULL, "llama", "holds no complete model"),
        (FULL, "gpt2", FULL, "llama", "has weights named"),
        (FULL, "llama", FULL, "qwen2", "lacks weights named"),
        (FULL, "qwen2", FULL, "llama", "has weights named"),
    ],
)
def test_weights_of_another_model_are_refused(
    saved: Recipe, architecture: str, wanted: Recipe, other: str, reason: str, tmp_path: Path
) -> None:
    """Weights whose names or sizes differ from the trained ones raise an error with a reason and a remedy."""
    with trainable(tiny_model(architecture), saved, seed=0) as trainee:
        trainee.save(tmp_path)
    with (
        trainable(tiny_model(other), wanted, seed=0) as trainee,
        pytest.raises(StoreError, match=rf"does not fit the model: it {reason} .*Use the model"),
    ):
        trainee.load(tmp_path)


def test_all_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    """A model of the same architecture with another vocabulary size raises an error. No weight is changed."""
    with trainable(tiny_model(seed=1), FULL, seed=0) as trainee:
        trainee.model.module.resize_token_embeddings(VOCABULARY + 8)
        trainee.save(tmp_path)
    with trainable(tiny_model(), FULL, seed=0) as trainee:
        before = trained(trainee)
        with pytest.raises(StoreError, match=r"has a size mismatch for 'lm_head\.weight'"):
            trainee.load(tmp_path)
        assert same(trained(trainee), before)


def test_an_adapter_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    """An adapter with too few or too many layers raises an error."""
    short = tiny_model()
    short.module.model.layers = short.module.model.layers[:1]
    with trainable(short, RECIPE, seed=0) as small, trainable(tiny_model(), RECIPE, seed=0) as large:
        small.save(tmp_path / "small")
        large.save(tmp_path / "large")
        with pytest.raises(StoreError, match=r"it lacks weights named .*layers\.1"):
            large.load(tmp_path / "small")
        with pytest.raises(StoreError, match=r"it has weights named .*layers\.1"):
            small.load(tmp_path / "large")


@pytest.mark.parametrize("recipe", [RECIPE, FULL], ids=["lora", "full"])
def test_an_empty_folder_and_a_truncated_file_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    """Missing or truncated weights raise a StoreError with a remedy."""
    with trainable(tiny_model(), recipe, seed=0) as trainee:
        with pytest.raises(StoreError, match=r"no safetensors.*--overwrite"):
            trainee.load(tmp_path)
        trainee.save(tmp_path)
        [file] = tmp_path.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(StoreError, match=r"cannot be read.*--overwrite"):
            trainee.load(tmp_path)


@pytest.fixture
def connection_attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Disable the network and return a list of all attempts to use it. The list is needed because PEFT suppresses the error."""
    attempts: list[str] = []

    def refuse(*args: Any, **_: Any) -> NoReturn:
        attempts.append(str(args))
        raise OSError("the network is cut off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return attempts


@pytest.mark.parametrize("recipe", [RECIPE, with_lora(VARIANTS["all-linear"]), FULL], ids=["lora", "all-linear", "full"])
def test_saving_and_loading_do_not_use_the_network(recipe: Recipe, connection_attempts: list[str], tmp_path: Path) -> None:
    """A model from the hub is trained, saved and loaded without any attempt to reach the hub."""
    with trainable(from_hub(), recipe, seed=0) as trainee:
        train(trainee, recipe).save(tmp_path)
        trainee.load(tmp_path)
    assert connection_attempts == []


def from_hub() -> LanguageModel:
    """Return a model that looks as if it came from the hub."""
    model = tiny_model()
    model.module.name_or_path = model.module.config._name_or_path = "someone/some-model"
    return model


def test_pefts_save_pretrained_would_contact_the_hub(connection_attempts: list[str], tmp_path: Path) -> None:
    """Negative control: the fixture records the connection that PEFT's own save_pretrained attempts."""
    with trainable(from_hub(), RECIPE, seed=0) as trainee:
        assert isinstance(trainee.module, PeftModel)
        with pytest.warns(UserWarning, match="Could not find a config file in someone/some-model"):
            trainee.module.save_pretrained(str(tmp_path))
    assert connection_attempts


def test_unknown_modules_are_a_model_error_with_its_remedy() -> None:
    """The error lists the missing modules and the flag to set. The model is usable afterwards."""
    model = tiny_model()
    before = logits(model.module)
    with (
        pytest.raises(ModelError, match=r"tiny-llama.*c_attn.*--peft_config.target_modules to names of its .*, or to all-linear"),
        trainable(model, with_lora(Lora(target_modules=("c_attn",))), seed=0),
    ):
        pass
    assert torch.equal(logits(model.module), before)
    assert_bare(model)
    with trainable(model, RECIPE, seed=0) as trainee:
        assert adapted(trainee) == {"q_proj", "v_proj"}


def test_an_architecture_without_attention_projections_is_a_model_error_with_its_remedy() -> None:
    """Mamba has no attention, so target_modules must be set."""
    model = tiny_model("mamba")
    with (
        pytest.raises(ModelError, match=r"target_modules.*names of its modules, or to all-linear"),
        trainable(model, RECIPE, seed=0),
    ):
        pass
    assert_bare(model)
    with trainable(model, with_lora(Lora(target_modules=("in_proj", "x_proj"))), seed=0) as trainee:
        assert adapted(trainee) == {"in_proj", "x_proj"}


def test_the_comparisons_detect_small_changes() -> None:
    """Negative control: same() detects one changed bit, and the tiny models do not predict uniformly."""
    weights = everything(tiny_module())
    nudged = {name: weight.clone() for name, weight in weights.items()}
    nudged["lm_head.weight"].view(-1)[0] = torch.nextafter(nudged["lm_head.weight"].view(-1)[0], torch.tensor(math.inf))
    assert same(weights, everything(tiny_module())) and not same(weights, nudged)
    assert float(logits(tiny_module()).softmax(-1).amax(-1).mean()) > 2 / VOCABULARY
