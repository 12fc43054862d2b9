"""Loading checks the checkpoint. A damaged one is refused with its name, and an undamaged one scores as when it was saved."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece as spm
import torch
from micro import write_micro
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_module, tiny_tokenizer, write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5Config

from lm_harmony.cli.main import main
from lm_harmony.engine.forward import padded_logprobs
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.errors import ModelError
from lm_harmony.models import checkpoint_checks
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


def change_tensors(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """Change the tensors in the safetensors file of a folder. Return the folder."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **values: Any) -> Path:
    """Change values in config.json of a folder. Return the folder."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return folder


def refusal(folder: Path, **options: Any) -> str:
    """Load ``folder`` and return the one-line error message."""
    with pytest.raises(ModelError) as found:
        load_model(str(folder), device="cpu", **options)
    message = str(found.value)
    assert "\n" not in message
    return message


# Undamaged checkpoints.


def tied(folder: Path) -> list[float]:
    """Write a model with tied embeddings, which saves one tensor for input and output layer. Return its scores."""
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
    """Write the weights as pytorch_model.bin, as older models do."""
    write_tiny_model(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return scores(tiny_model())


def half_precision(folder: Path) -> list[float]:
    """Write the weights in bfloat16, as most checkpoints hold them. Return the scores of these weights in float32."""
    tiny_module().to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    model = tiny_model()
    for weight in model.module.parameters():
        weight.data = weight.data.to(torch.bfloat16).float()
    return scores(model)


def two_formats(folder: Path) -> list[float]:
    """Write other weights beside the model, as consolidated.safetensors of those who trained it. They are not read."""
    write_tiny_model(folder)
    save_file({"tok_embeddings.weight": torch.zeros(3)}, folder / "consolidated.safetensors")
    return scores(tiny_model())


@pytest.mark.parametrize("write", [tied, sharded, half_precision, two_formats])
def test_an_undamaged_checkpoint_scores_as_the_model_that_was_saved(write: Callable[[Path], list[float]], tmp_path: Path) -> None:
    assert difference_of(tmp_path, write(tmp_path)) < 1e-6


def difference_of(folder: Path, expected: list[float]) -> float:
    """Return the largest absolute difference between the scores of the loaded model and the expected scores."""
    found = scores(load_model(str(folder), device="cpu"))
    return max(abs(one - other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "gemma2", "opt", "bloom", "mamba"])
def test_every_architecture_scores_as_saved(architecture: str, tmp_path: Path) -> None:
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
def test_buffers_that_old_versions_saved_are_accepted(architecture: str, buffers: list[str], tmp_path: Path) -> None:
    write_tiny_model(tmp_path, architecture)
    change_tensors(tmp_path, lambda weights: weights | {name: torch.ones(4) for name in buffers})
    assert difference_of(tmp_path, scores(tiny_model(architecture))) < 1e-6


@pytest.mark.parametrize(
    ("options", "weights", "autocast"),
    [
        ({}, "float32", None),
        ({"dtype": "bfloat16"}, "bfloat16", None),
        ({"autocast": "bfloat16"}, "float32", "bfloat16"),
    ],
)
def test_dtype_and_autocast_set_the_precision(
    options: dict[str, str], weights: str, autocast: str | None, tmp_path: Path
) -> None:
    model = load_model(str(write_tiny_model(tmp_path)), device="cpu", **options)  # type: ignore[arg-type]
    assert model.precision == Precision(weights=weights, autocast=autocast)
    assert {str(weight.dtype) for weight in model.module.parameters()} == {f"torch.{weights}"}


def test_weights_are_read_directly_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers gets the device as device_map, so no weights are moved after loading."""
    device_maps = list[Any]()
    load = AutoModelForCausalLM.from_pretrained

    def record_device_map(*names: Any, **options: Any) -> Any:
        device_maps.append(options["device_map"])
        return load(*names, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", record_device_map)
    write_tiny_model(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    device = torch.device("meta")
    module = read_weights(str(tmp_path), tmp_path, config, dtype=torch.float32, device=device, options={})
    assert device_maps == [{"": device}] and {weight.device for weight in module.parameters()} == {device}


# Tensors that do not match the configuration.


def test_a_missing_output_layer_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    change_tensors(tmp_path, lambda weights: {name: weight for name, weight in weights.items() if name != OUTPUT})
    message = refusal(tmp_path)
    assert message.startswith(f"model {tmp_path}: the checkpoint lacks 1 tensor ({OUTPUT}), which config.json asks for.")
    assert "tie_word_embeddings: true" in message
    assert difference_of(change_config(tmp_path, tie_word_embeddings=True), tied(tmp_path / "tied")) < 1e-6  # the remedy works


def test_fewer_layers_than_in_the_configuration_are_refused(tmp_path: Path) -> None:
    message = refusal(change_config(write_tiny_model(tmp_path), num_hidden_layers=4))
    assert "lacks 18 tensors (model.layers.2.input_layernorm.weight; " in message and "; ...)" in message


def test_more_layers_than_in_the_configuration_are_refused(tmp_path: Path) -> None:
    message = refusal(change_config(write_tiny_model(tmp_path), num_hidden_layers=1))
    assert "holds 9 tensors (model.layers.1.input_layernorm.weight; " in message and "config.json does not describe" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_the_error_names_a_prefix_that_a_wrapper_added(prefix: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    change_tensors(tmp_path, lambda weights: {prefix + name: weight for name, weight in weights.items()})
    message = refusal(tmp_path)
    assert "lacks 21 tensors" in message and f"holds 21 tensors ({prefix}{OUTPUT}; " in message
    assert f"Every name begins with '{prefix}'." in message
    change_tensors(tmp_path, lambda weights: {name.removeprefix(prefix): weight for name, weight in weights.items()})
    assert difference_of(tmp_path, scores(tiny_model())) < 1e-6  # the remedy works


def test_renamed_tensors_and_no_tensors_are_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    message = refusal(change_tensors(tmp_path, lambda weights: {"my" + name: weight for name, weight in weights.items()}))
    assert "lacks 21 tensors" in message and "holds 21 tensors" in message and "Every name" not in message
    assert refusal(change_tensors(tmp_path, lambda weights: {})).startswith(f"model {tmp_path}: the checkpoint lacks 21 tensors")


def test_a_tensor_of_an_extra_head_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    message = refusal(change_tensors(tmp_path, lambda weights: weights | {"v_head.summary.weight": torch.ones(1, 32)}))
    assert "holds 1 tensor (v_head.summary.weight), which config.json does not describe" in message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"intermediate_size": 48}, "in 6 tensors (model.layers.0.mlp.down_proj.weight 32x64, by config.json 32x48; "),
        ({"vocab_size": 310}, f"in 2 tensors ({OUTPUT} 300x32, by config.json 310x32; "),
    ],
)
def test_other_tensor_shapes_than_in_the_configuration_are_refused(values: dict[str, int], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(change_config(write_tiny_model(tmp_path), **values))


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
def test_an_invalid_configuration_is_refused(values: dict[str, Any], expected: str, tmp_path: Path) -> None:
    message = refusal(change_config(write_tiny_model(tmp_path), **values))
    assert expected in message and str(tmp_path) in message


def test_a_configuration_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (write_tiny_model(tmp_path) / "config.json").write_text("{", encoding="utf-8")
    assert f"{tmp_path / 'config.json'} cannot be used" in refusal(tmp_path)


# Weights with NaN or infinity.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(value: float, dtype: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)

    def set_value(weights: Weights) -> Weights:
        weights[UP][3, 4] = value
        return weights

    message = refusal(change_tensors(tmp_path, set_value), dtype=dtype)
    assert message.startswith(f"model {tmp_path}: NaN or infinity in 1 tensor ({UP}).")


def test_saved_buffers_are_checked_and_computed_ones_are_not() -> None:
    """The buffer e_score_correction_bias of a router decides which experts are used. A mask may contain infinity."""
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


def test_large_finite_weights_are_accepted(tmp_path: Path) -> None:
    """Values near the float32 maximum are valid, although their sum is infinite (negative control)."""
    write_tiny_model(tmp_path)
    load_model(str(change_tensors(tmp_path, lambda weights: weights | {UP: torch.full_like(weights[UP], 3e38)})), device="cpu")


# Other kinds of models, and damaged or missing files.


def test_an_encoder_is_refused_unless_it_is_a_decoder(tmp_path: Path) -> None:
    """With is_decoder false, BERT attends to later tokens. With is_decoder true, its attention is causal (negative control)."""
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
            message = refusal(tmp_path)
            assert message.startswith(f"model {tmp_path}: is_decoder = false in config.json: a bert encoder")


def test_a_model_type_without_a_causal_model_is_refused(tmp_path: Path) -> None:
    T5Config().save_pretrained(write_tiny_model(tmp_path))
    assert "model_type = 't5' in config.json is no causal language model" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lambda content: content[: len(content) // 2], "is truncated or no safetensors file"),
        (lambda content: b"", "is empty"),
        (lambda content: b"<html>not found</html>", "is truncated or no safetensors file (22 bytes; "),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Run `git lfs pull` there."),
    ],
    ids=["half", "empty", "html", "lfs"],
)
@pytest.mark.parametrize("write", [write_tiny_model, sharded], ids=["one file", "sharded"])
def test_the_error_names_a_damaged_safetensors_file(
    write: Callable[[Path], object], content: Callable[[bytes], bytes], expected: str, tmp_path: Path
) -> None:
    write(tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    file.write_bytes(content(file.read_bytes()))
    message = refusal(tmp_path)
    assert f"{file} is " in message and expected in message


class Hostile:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def only_bin(folder: Path, hostile: bytes) -> str:
    pickled(folder)
    (folder / "pytorch_model.bin").write_bytes(hostile)
    return "it has pytorch_model.bin and no model.safetensors. Other weights are pickles"


def index_of_pickles(folder: Path, hostile: bytes) -> str:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    for file in folder.glob("*.safetensors"):
        file.with_suffix(".bin").write_bytes(hostile)
    index.write_text(index.read_text().replace(".safetensors", ".bin"), encoding="utf-8")
    return "model.safetensors.index.json names model-00001-of-"


def renamed(folder: Path, hostile: bytes) -> str:
    write_tiny_model(folder)
    (folder / "model.safetensors").write_bytes(hostile)
    return "is truncated or no safetensors file"


@pytest.mark.parametrize("write", [only_bin, index_of_pickles, renamed])
def test_a_pickle_is_never_loaded(write: Callable[[Path, bytes], str], tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "model"
    hostile = pickle.dumps(Hostile(mark))
    pickle.loads(hostile)
    assert mark.exists()  # negative control: loading it runs code
    mark.unlink()
    assert write(folder, hostile) in refusal(folder)
    assert not mark.exists()


def test_pickles_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "model"
    write_tiny_model(folder)
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "scheduler.pt"):
        (folder / name).write_bytes(pickle.dumps(Hostile(mark)))
    assert difference_of(folder, scores(tiny_model())) < 1e-6
    assert not mark.exists()


def test_the_error_names_missing_weight_files(tmp_path: Path) -> None:
    sharded(tmp_path)
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    second.unlink()
    assert second.name in refusal(tmp_path)
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    assert "model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("known", [True, False], ids=["known model type", "unknown model type"])
def test_code_of_a_model_runs_only_on_request(known: bool, tmp_path: Path) -> None:
    folder, ran = write_tiny_model(tmp_path / "model"), tmp_path / "ran"
    (folder / "code.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n\nPath({str(ran)!r}).touch()\n\n\n"
        f"class Config(LlamaConfig):\n    model_type = {'llama' if known else 'other'!r}\n\n\n"
        f"class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    change_config(
        folder,
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
        **({} if known else {"model_type": "other"}),
    )
    if known:
        assert type(load_model(str(folder), device="cpu").module).__module__.startswith("transformers.")
    else:
        assert refusal(folder).endswith("needs code from its own repository. If you trust it, add --trust_remote_code.")
    assert not ran.exists()
    module = load_model(str(folder), device="cpu", trust_remote_code=True).module  # negative control
    assert ran.exists() and type(module).__name__ == "Model"


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    assert "holds no config.json. Give the folder" in refusal(tmp_path)


@pytest.mark.parametrize("config", [True, False])
def test_a_folder_with_a_gguf_file_alone_is_refused_with_the_way_to_convert_it(config: bool, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    load_model(str(tmp_path), device="cpu")  # negative control: a GGUF file beside the weights
    (tmp_path / "model.safetensors").unlink()
    if not config:
        (tmp_path / "config.json").unlink()
    assert "gguf_file='model-Q4_K_M.gguf'" in refusal(tmp_path)


def write_sentencepiece(folder: Path) -> Path:
    """Write a model whose only tokenizer file is tokenizer.model. Return that file."""
    write_tiny_model(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    lines = iter([f"the quick brown fox jumps over the lazy dog {number}" for number in range(300)])
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(folder / "tokenizer"), vocab_size=60, model_type="bpe"
    )
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


def test_a_sentencepiece_model_encodes_as_sentencepiece_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tokenizer class, transformers would leave out the space before the first word."""
    file = write_sentencepiece(tmp_path)
    assert "tokenizer.model alone does not say how texts are encoded" in refusal(tmp_path)
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    [encoded] = load_model(str(tmp_path), device="cpu").text.encode(["the quick fox"])
    expected = spm.SentencePieceProcessor(model_file=str(file)).encode("the quick fox")
    assert encoded == expected or encoded == [1, *expected]  # with or without <s>
    file.write_bytes(b"torn")
    assert "its tokenizer cannot be read" in refusal(tmp_path)
    monkeypatch.setattr(checkpoint_checks, "find_spec", lambda name: None)  # as where sentencepiece is not installed
    assert "pip install 'lm-harmony[sentencepiece]'" in refusal(tmp_path)


def write_adapter(folder: Path) -> None:
    """Write a PEFT adapter of the tiny model, with config.json of the base model in its folder, as some trainers do."""
    get_peft_model(tiny_module(), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    tiny_module().config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def test_an_adapter_beside_a_whole_model_is_refused(tmp_path: Path) -> None:
    """Missing tensors of the model would be initialized at random, and the report of transformers lists adapter tensors only."""
    write_adapter(tmp_path / "alone")
    both = write_tiny_model(tmp_path / "both")
    load_model(str(both), device="cpu")  # negative control
    change_tensors(both, lambda weights: {key: weight for key, weight in weights.items() if key != UP})
    (both / "adapter_config.json").write_bytes((tmp_path / "alone" / "adapter_config.json").read_bytes())
    (both / "adapter_model.safetensors").write_bytes((tmp_path / "alone" / "adapter_model.safetensors").read_bytes())
    message = refusal(both)
    assert "adapter_config.json lies beside config.json or weights" in message and "Give an adapter alone" in message


def test_a_folder_accepts_only_the_revision_that_was_downloaded_into_it(tmp_path: Path) -> None:
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
def test_the_error_names_the_files_of_a_tokenizer_that_cannot_be_read(name: str, content: bytes, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_bytes(content)
    tokenizer_config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    message = refusal(tmp_path)
    assert message.startswith(f"model {tmp_path}: its tokenizer cannot be read from {tmp_path} ({name}, tokenizer_config.json): ")


def test_a_model_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    tiny_module().save_pretrained(tmp_path)
    assert "holds no tokenizer file" in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["layers", "renamed", "empty", "tokenizer", "none"])
def test_the_command_prints_one_line_for_a_damaged_model(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_model(tmp_path / "model")
    if damage == "layers":
        change_config(folder, num_hidden_layers=4)
    elif damage == "renamed":
        change_tensors(folder, lambda weights: {"module." + name: weight for name, weight in weights.items()})
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


def test_float16_weights_whose_logits_would_overflow_score_finitely(tmp_path: Path) -> None:
    """Weights in float16 are loaded in float32, in which the logits fit. Negative control: in float16 they do not."""
    folder = write_tiny_model(tmp_path / "model")

    def in_float16(weights: Weights) -> Weights:
        weights[OUTPUT] *= 6e4 / weights[OUTPUT].abs().max()
        return {name: weight.half() for name, weight in weights.items()}

    change_tensors(folder, in_float16)
    model = load_model(str(folder))
    assert {weight.dtype for weight in model.module.parameters()} == {torch.float32}
    assert all(map(math.isfinite, scores(model)))
    module = model.module.half()
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([SEQUENCES[0].ids])).logits
    assert not bool(torch.isfinite(logits).all())
