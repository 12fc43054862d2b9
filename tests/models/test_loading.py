"""What is loaded is the whole model: a checkpoint damaged in any one way is refused by name, an undamaged one scores as saved."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import LoopbackHub
from micro import write_micro
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_module, tiny_tokenizer, write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5Config

from lm_harmony.cli.main import main
from lm_harmony.engine.forward import padded_logprobs
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.errors import ModelError
from lm_harmony.models.checkpoint import read_weights
from lm_harmony.models.checkpoint_checks import refuse_non_finite
from lm_harmony.models.device import Precision
from lm_harmony.models.loading import LanguageModel, load_model
from lm_harmony.models.model_folder import write_source

Weights = dict[str, torch.Tensor]
SEQUENCES = [TokenSequence(ids=tuple(range(5, 5 + size)), first_label=1) for size in (9, 14, 6)]
OUTPUT = "lm_head.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def scores(model: LanguageModel) -> list[float]:
    with torch.no_grad():
        return [float(value) for value in padded_logprobs(model.module, SEQUENCES).logprobs_L]


def rewritten(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """Change the tensors of a folder's one safetensors file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def configured(folder: Path, **values: Any) -> Path:
    """Change values of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return folder


def refusal(folder: Path, **options: Any) -> str:
    """Load ``folder`` and return the one line that refuses it."""
    with pytest.raises(ModelError) as found:
        load_model(str(folder), device="cpu", **options)
    told = str(found.value)
    assert "\n" not in told
    return told


# The undamaged ones.


def tied(folder: Path) -> list[float]:
    """Write a tied model, whose file holds one tensor for input and output layer; return its scores."""
    module = tiny_module()
    module.config.tie_word_embeddings = True
    module.tie_weights()
    module.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert OUTPUT not in load_file(folder / "model.safetensors")
    model = tiny_model()
    model.module.get_output_embeddings().weight.data.copy_(model.module.get_input_embeddings().weight)
    return scores(model)


def sharded(folder: Path) -> list[float]:
    tiny_module().save_pretrained(folder, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return scores(tiny_model())


def pickled(folder: Path) -> list[float]:
    """Write pytorch_model.bin, as older models have it."""
    write_tiny_model(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return scores(tiny_model())


@pytest.mark.parametrize("write", [tied, sharded, pickled])
def test_a_whole_checkpoint_scores_as_the_model_that_was_saved(write: Callable[[Path], list[float]], tmp_path: Path) -> None:
    assert difference_of(tmp_path, write(tmp_path)) < 1e-6


def difference_of(folder: Path, expected: list[float]) -> float:
    """Return the largest difference of the loaded model's scores from those expected."""
    found = scores(load_model(str(folder), device="cpu"))
    return max(abs(one - other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "gemma2", "opt", "bloom", "mamba"])
def test_every_architecture_loads_whole(architecture: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, architecture)
    assert difference_of(tmp_path, scores(tiny_model(architecture))) < 1e-6


@pytest.mark.parametrize(
    ("architecture", "buffers"),
    [
        ("gpt_neox", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.masked_bias"]),
        ("gpt2", ["transformer.h.0.attn.bias", "h.1.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]),
    ],
)
def test_tables_that_old_versions_saved_are_no_fault(architecture: str, buffers: list[str], tmp_path: Path) -> None:
    write_tiny_model(tmp_path, architecture)
    rewritten(tmp_path, lambda weights: weights | {name: torch.ones(4) for name in buffers})
    assert difference_of(tmp_path, scores(tiny_model(architecture))) < 1e-6


@pytest.mark.parametrize(
    ("options", "weights", "autocast"),
    [
        ({}, "float32", None),
        ({"dtype": "bfloat16"}, "bfloat16", None),
        ({"autocast": "bfloat16"}, "float32", "bfloat16"),
    ],
)
def test_number_formats(options: dict[str, str], weights: str, autocast: str | None, tmp_path: Path) -> None:
    model = load_model(str(write_tiny_model(tmp_path)), device="cpu", **options)  # type: ignore[arg-type]
    assert model.precision == Precision(weights=weights, autocast=autocast)
    assert {str(weight.dtype) for weight in model.module.parameters()} == {f"torch.{weights}"}


def test_weights_go_straight_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers is told the device, so that it reads the weights to it; nothing is moved there afterwards."""
    asked = list[Any]()
    load = AutoModelForCausalLM.from_pretrained

    def noting(*names: Any, **options: Any) -> Any:
        asked.append(options["device_map"])
        return load(*names, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noting)
    write_tiny_model(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    device = torch.device("meta")
    module = read_weights(str(tmp_path), tmp_path, config, dtype=torch.float32, device=device, options={})
    assert asked == [{"": device}] and {weight.device for weight in module.parameters()} == {device}


# Tensors that are not those of the configuration.


def test_a_missing_output_layer(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    rewritten(tmp_path, lambda weights: {name: weight for name, weight in weights.items() if name != OUTPUT})
    told = refusal(tmp_path)
    assert told.startswith(f"model {tmp_path}: the checkpoint lacks 1 tensor ({OUTPUT}), which config.json asks for.")
    assert "tie_word_embeddings: true" in told
    assert difference_of(configured(tmp_path, tie_word_embeddings=True), tied(tmp_path / "tied")) < 1e-6  # the remedy helps


def test_fewer_layers_than_the_configuration_says(tmp_path: Path) -> None:
    told = refusal(configured(write_tiny_model(tmp_path), num_hidden_layers=4))
    assert "lacks 18 tensors (model.layers.2.input_layernorm.weight; " in told and "; ...)" in told


def test_more_layers_than_the_configuration_says(tmp_path: Path) -> None:
    told = refusal(configured(write_tiny_model(tmp_path), num_hidden_layers=1))
    assert "holds 9 tensors (model.layers.1.input_layernorm.weight; " in told and "config.json does not describe" in told


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_a_prefix_that_a_wrapper_left_is_named(prefix: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    rewritten(tmp_path, lambda weights: {prefix + name: weight for name, weight in weights.items()})
    told = refusal(tmp_path)
    assert "lacks 21 tensors" in told and f"holds 21 tensors ({prefix}{OUTPUT}; " in told
    assert f"Every name begins with '{prefix}'." in told
    rewritten(tmp_path, lambda weights: {name.removeprefix(prefix): weight for name, weight in weights.items()})
    assert difference_of(tmp_path, scores(tiny_model())) < 1e-6  # the remedy helps


def test_renamed_tensors(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    told = refusal(rewritten(tmp_path, lambda weights: {"my" + name: weight for name, weight in weights.items()}))
    assert "lacks 21 tensors" in told and "holds 21 tensors" in told and "Every name" not in told
    assert refusal(rewritten(tmp_path, lambda weights: {})).startswith(f"model {tmp_path}: the checkpoint lacks 21 tensors")


def test_an_extra_head(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    told = refusal(rewritten(tmp_path, lambda weights: weights | {"v_head.summary.weight": torch.ones(1, 32)}))
    assert "holds 1 tensor (v_head.summary.weight), which config.json does not describe" in told


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"intermediate_size": 48}, "in 6 tensors (model.layers.0.mlp.down_proj.weight 32x64, by config.json 32x48; "),
        ({"vocab_size": 310}, f"in 2 tensors ({OUTPUT} 300x32, by config.json 310x32; "),
    ],
)
def test_sizes_that_do_not_fit(values: dict[str, int], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(configured(write_tiny_model(tmp_path), **values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hidden_size": 33}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "a"}, "expected int"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"num_hidden_layers": -1}, "holds 18 tensors"),
        ({"model_type": "llamma"}, "llamma"),
    ],
)
def test_a_configuration_that_describes_no_model(values: dict[str, Any], expected: str, tmp_path: Path) -> None:
    told = refusal(configured(write_tiny_model(tmp_path), **values))
    assert expected in told and str(tmp_path) in told


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    (write_tiny_model(tmp_path) / "config.json").write_text("{", encoding="utf-8")
    assert f"{tmp_path / 'config.json'} cannot be used" in refusal(tmp_path)


# Weights that are no numbers.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(value: float, dtype: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)

    def spoiled(weights: Weights) -> Weights:
        weights[UP][3, 4] = value
        return weights

    told = refusal(rewritten(tmp_path, spoiled), dtype=dtype)
    assert told.startswith(f"model {tmp_path}: NaN or infinity in 1 tensor ({UP}).")


def test_saved_buffers_are_checked_and_computed_ones_are_not() -> None:
    """A router's e_score_correction_bias is no parameter, and decides which experts answer; a mask may hold infinity."""
    module = tiny_module()
    router, attention = module.model.layers[0].mlp, module.model.layers[0].self_attn
    router.register_buffer("e_score_correction_bias", torch.zeros(4))
    router.register_buffer("computed", torch.full((4,), -math.inf), persistent=False)
    attention.register_buffer("causal_mask", torch.full((4, 4), -math.inf).triu(1))
    router.register_buffer("count", torch.tensor(0))
    refuse_non_finite("tiny", module)  # negative control
    router.e_score_correction_bias[2] = math.nan
    with pytest.raises(ModelError, match=r"NaN or infinity in 1 tensor \(model\.layers\.0\.mlp\.e_score_correction_bias\)"):
        refuse_non_finite("tiny", module)


def test_large_weights_are_finite(tmp_path: Path) -> None:
    """Values near the end of float32, whose sum is infinite, are weights like others (negative control)."""
    write_tiny_model(tmp_path)
    load_model(str(rewritten(tmp_path, lambda weights: weights | {UP: torch.full_like(weights[UP], 3e38)})), device="cpu")


# Models that are none, files that are none.


def test_encoders(tmp_path: Path) -> None:
    """BERT under is_decoder false reads ahead; under is_decoder true it is a causal language model (negative control)."""
    for is_decoder in (False, True):
        config = BertConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            is_decoder=is_decoder,
        )
        BertLMHeadModel(config).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        if is_decoder:
            assert len(scores(load_model(str(tmp_path), device="cpu"))) == 26
        else:
            told = refusal(tmp_path)
            assert told.startswith(f"model {tmp_path}: is_decoder = false in config.json: a bert encoder")


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    T5Config().save_pretrained(write_tiny_model(tmp_path))
    assert "model_type = 't5' in config.json is no causal language model" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda whole: whole[: len(whole) // 2], "is truncated or no safetensors file"),
        (lambda whole: b"", "is empty"),
        (lambda whole: b"<html>not found</html>", "is truncated or no safetensors file (22 bytes; "),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Run `git lfs pull` there."),
    ],
    ids=["half", "empty", "html", "lfs"],
)
@pytest.mark.parametrize("write", [write_tiny_model, sharded], ids=["one file", "sharded"])
def test_a_damaged_file_is_named(
    write: Callable[[Path], object], content: Callable[[bytes], bytes], expected: str, tmp_path: Path
) -> None:
    write(tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    file.write_bytes(content(file.read_bytes()))
    told = refusal(tmp_path)
    assert f"{file} is " in told and expected in told


def test_a_damaged_pickle(tmp_path: Path) -> None:
    pickled(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    for content in (file.read_bytes()[:9_000], b""):
        file.write_bytes(content)
        assert refusal(tmp_path).startswith(f"model {tmp_path}: its weights cannot be read: ")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    sharded(tmp_path)
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    second.unlink()
    assert second.name in refusal(tmp_path)
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    assert "model.safetensors" in refusal(tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "holds no config.json. Give the folder" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "It is a PEFT adapter: merge it into its base" in refusal(tmp_path)


def write_adapter(folder: Path) -> None:
    """Write a PEFT adapter of the tiny model, with the configuration of its base beside it as some trainers do."""
    get_peft_model(tiny_module(), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    tiny_module().config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    """The base's tensors would be random: transformers' report would tell of the adapter's alone."""
    write_adapter(tmp_path / "alone")
    told = refusal(tmp_path / "alone")
    assert "adapter_config.json lies beside config.json: a PEFT adapter" in told and "merge_and_unload" in told
    both = write_tiny_model(tmp_path / "both")
    load_model(str(both), device="cpu")  # negative control
    rewritten(both, lambda weights: {key: weight for key, weight in weights.items() if key != UP})
    (both / "adapter_config.json").write_bytes((tmp_path / "alone" / "adapter_config.json").read_bytes())
    (both / "adapter_model.safetensors").write_bytes((tmp_path / "alone" / "adapter_model.safetensors").read_bytes())
    assert "adapter_config.json lies beside config.json" in refusal(both)


LOAD_BOTH = """
from lm_harmony.errors import ModelError
from lm_harmony.models.loading import load_model

load_model("a/whole", device="cpu")
try:
    load_model("a/adapter", device="cpu")
except ModelError as error:
    print(error)
"""


def test_an_adapter_on_the_hub_is_refused_before_any_weights_are_read(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**values, "base_model_name_or_path": "a/whole"}), encoding="utf-8")
    served = {"a/adapter": tmp_path / "adapter", "a/whole": write_tiny_model(tmp_path / "whole")}
    with LoopbackHub(models=served) as hub:
        environment = hub.environment(tmp_path / "cache")
        words = [sys.executable, "-c", LOAD_BOTH]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        asked = [request for request in hub.requests if request.startswith("GET") and "safetensors" in request]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model a/adapter: adapter_config.json lies beside config.json: a PEFT adapter")
    assert asked and all("a/whole" in request for request in asked)  # negative control: a whole model is read


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    """Except the one that was fetched into it."""
    write_tiny_model(tmp_path)
    assert refusal(tmp_path, revision="step1000").startswith("revision = 'step1000': the folder ")
    write_source(tmp_path, name="a/b", asked="step1000", revision="0" * 40)
    for revision in ("step1000", "0" * 40, "main"):
        load_model(str(tmp_path), device="cpu", revision=revision)
    assert "--revision" in refusal(tmp_path, revision="step2000")


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b"{"), ("tokenizer.json", b"{}"), ("tokenizer.model", b"\x00garbage"), ("tokenizer.model", b"")],
)
def test_a_tokenizer_that_cannot_be_read(name: str, content: bytes, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_bytes(content)
    configured_as = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(configured_as), encoding="utf-8")
    told = refusal(tmp_path)
    assert told.startswith(f"model {tmp_path}: its tokenizer cannot be read from {tmp_path} ({name}, tokenizer_config.json): ")


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    tiny_module().save_pretrained(tmp_path)
    assert "holds no tokenizer file" in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["layers", "renamed", "empty", "tokenizer", "none"])
def test_the_command_ends_with_one_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_model(tmp_path / "model")
    if damage == "layers":
        configured(folder, num_hidden_layers=4)
    elif damage == "renamed":
        rewritten(folder, lambda weights: {"module." + name: weight for name, weight in weights.items()})
    elif damage != "none":
        (folder / {"empty": "model.safetensors", "tokenizer": "tokenizer.json"}[damage]).write_bytes(b"")
    words = ["--base_model", str(folder), "--task_name", str(write_micro(tmp_path)), "--data_dir", str(tmp_path)]
    words += ["--device", "cpu", "--results_dir", str(tmp_path / "results"), "--train_param.num_train_epochs", "1"]
    status = main(["run", *words])
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and "LOAD REPORT" not in shown
    assert status == (0 if damage == "none" else 1)
    assert len([line for line in shown.splitlines() if str(folder) in line]) == (0 if damage == "none" else 1)
    assert bool(list((tmp_path / "results").rglob("record.json"))) is (damage == "none")
