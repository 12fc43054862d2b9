"""Make two-layer models of real architectures and a small byte-level BPE tokenizer in memory."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lm_harmony.models.loading import LanguageModel, build_language_model

TEXTS = (
    "Question: Which of these would best slow the transfer of heat?\nAnswer: wood",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Q: what is the capital of the country?\nA: the city by the river",
    "Is this sentence positive or negative? yes no True False Neither maybe",
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}<|sys|>{{ messages[0]['content'] }}\n{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 300
MAX_LENGTH = 128

_GROUPED: dict[str, object] = {"num_key_value_heads": 2}
_CONFIGS: dict[str, dict[str, object]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "gpt_neox": {},
    "gpt2": {},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "mistral": {**_GROUPED, "sliding_window": 16},
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma3_text": {
        **_GROUPED,
        "head_dim": 8,
        "sliding_window": 16,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": _GROUPED,
    "olmo2": {},
    "granite": {**_GROUPED, "logits_scaling": 4.0},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "cohere": {},
    "bloom": {},
    "falcon": {"alibi": True},
    "mamba": {},
}
ARCHITECTURES = ("llama", "qwen2", "gpt_neox", "gpt2", "gemma2", "mistral")
"""Architectures on which padded batches are compared with lm_eval."""
PACKABLE = (*ARCHITECTURES, "qwen3", "gemma", "gemma3_text", "phi3", "olmo2", "granite", "opt")
"""Architectures that support packed rows and prefix trees."""
UNPACKABLE = ("bloom", "falcon", "mamba")
"""Architectures without support for packed rows. They use ALiBi positions or a recurrent state."""


def tiny_tokenizer(*, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer. With ``bos`` it adds <|bos|> before every text, as Llama's does.

    Each call returns an object of its own, because lm_eval's HFLM and transformers change the padding side of a tokenizer.
    """
    return deepcopy(_trained_tokenizer(bos=bos, chat=chat))


@cache
def _trained_tokenizer(*, bos: bool, chat: bool) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|bos|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet))
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", bos_token="<|bos|>" if bos else None, model_max_length=MAX_LENGTH
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_module(architecture: str = "llama", *, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """Make a two-layer float32 model. ``seed`` determines its random weights, and ``fields`` override values of its config."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    config = CONFIG_MAPPING[architecture](**{**sizes, **_CONFIGS[architecture], **fields})
    # transformers uses eager attention for architectures without SDPA support (soft capping of gemma2).
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Default random weights give almost uniform predictions. Larger weights make the answers of the models differ.
        for weight in module.parameters():
            if weight.dim() > 1:
                weight.data.mul_(4)
    return module.eval()


def tiny_model(architecture: str = "llama", *, seed: int = 0, bos: bool = False, chat: bool = False) -> LanguageModel:
    """Make a LanguageModel from a tiny model and its tokenizer."""
    return build_language_model(f"tiny-{architecture}", tiny_module(architecture, seed=seed), tiny_tokenizer(bos=bos, chat=chat))


def write_tiny_model(folder: Path, architecture: str = "llama", *, seed: int = 0, bos: bool = False, chat: bool = False) -> Path:
    """Save a tiny model and its tokenizer with save_pretrained, and return the folder."""
    tiny_module(architecture, seed=seed).save_pretrained(folder)
    tiny_tokenizer(bos=bos, chat=chat).save_pretrained(folder)
    return folder
