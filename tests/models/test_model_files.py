"""Source files of a model are the files that transformers reads. Notes, predictions and second copies of weights are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_harmony.models.model_folder import files_read, model_files

READ = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "chat_template.jinja"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "tokenizer.model.v3"),
    *("model.safetensors", "adapter_config.json", "modeling_own.py", "code/layers.py", "additional_chat_templates/tools.jinja"),
}
UNREAD = {
    *("notes.txt", "predictions.json", "requirements.txt", "results.bin", "training_args.bin", "optimizer.bin", "README.md"),
    *("trainer_state.json", "all_results.json", "source.json", "consolidated.safetensors", "consolidated.00.pth", ".own.json"),
    *("onnx/model.json", "original/tokenizer.model", "__pycache__/modeling_own.cpython-311.py", "LICENSE.txt"),
}
SAFE = {"model.safetensors"}
SHARDED = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
PICKLED = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"}


def test_only_files_that_loading_reads_are_listed(tmp_path: Path) -> None:
    for name in READ | UNREAD:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert set(model_files(tmp_path)) == READ
    assert list(model_files(tmp_path)) == files_read(READ | UNREAD) == sorted(READ)


@pytest.mark.parametrize(
    ("present", "read"),
    [
        (PICKLED, PICKLED),
        ({"pytorch_model.bin"}, {"pytorch_model.bin"}),
        (PICKLED | SAFE, SAFE),
        (PICKLED | SHARDED, SHARDED),
        ({"adapter_model.bin", *SAFE}, {"adapter_model.bin", *SAFE}),
        ({"adapter_model.bin", "adapter_model.safetensors"}, {"adapter_model.safetensors"}),
        ({"pytorch_model.bin", "other.safetensors"}, {"pytorch_model.bin", "other.safetensors"}),
    ],
)
def test_pickled_weights_are_listed_only_without_safetensors(present: set[str], read: set[str]) -> None:
    assert set(files_read(present)) == read
