"""The demo's eight models and their tokenizer: shapes, pre-training tokens, exposure. docs/demo.md gives the reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

END, UNKNOWN = "<|end|>", "<|unknown|>"
MAX_LENGTH = 128
"""Longest input of every model in tokens."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """The design of one model."""

    name: str
    """Name of its folder and its title."""
    family: Literal["llama", "neox"]
    """Architecture: Llama or GPT-NeoX."""
    layers: int
    """Number of transformer blocks."""
    width: int
    """Size of the hidden states."""
    heads: int
    """Number of attention heads."""
    tokens: int
    """Tokens of plain text in its pre-training."""
    exposed: tuple[str, ...] = ()
    """Benchmarks whose format occurs in its pre-training."""

    def config(self, vocabulary: int) -> PreTrainedConfig:
        """Return the transformers configuration for a vocabulary of ``vocabulary`` words."""
        shape: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": MAX_LENGTH,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
        if self.family == "llama":
            return LlamaConfig(**shape, intermediate_size=2 * self.width)
        turned = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
        return GPTNeoXConfig(**shape, intermediate_size=4 * self.width, rope_parameters=turned)


MEMBERS: tuple[Member, ...] = (
    Member(
        name="llama-1",
        family="llama",
        layers=2,
        width=64,
        heads=4,
        tokens=500_000,
        exposed=("micro_reviews", "micro_cloze", "micro_grammar"),
    ),
    Member(name="neox-1", family="neox", layers=2, width=72, heads=3, tokens=500_000),
    Member(name="llama-2", family="llama", layers=3, width=80, heads=5, tokens=800_000),
    Member(
        name="neox-2",
        family="neox",
        layers=3,
        width=96,
        heads=4,
        tokens=800_000,
        exposed=("micro_entails", "micro_endings", "micro_sums"),
    ),
    Member(
        name="llama-3",
        family="llama",
        layers=4,
        width=112,
        heads=7,
        tokens=1_200_000,
        exposed=("micro_reviews", "micro_entails", "micro_endings"),
    ),
    Member(name="neox-3", family="neox", layers=4, width=128, heads=4, tokens=1_200_000),
    Member(name="llama-4", family="llama", layers=4, width=160, heads=10, tokens=1_600_000),
    Member(
        name="neox-4",
        family="neox",
        layers=4,
        width=168,
        heads=7,
        tokens=1_600_000,
        exposed=("micro_cloze", "micro_grammar", "micro_sums"),
    ),
)
"""The models from small to large."""


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer whose vocabulary is the words of ``texts``, each with the space before it: one token a word."""
    splitter = pre_tokenizers.Split(Regex(r" ?[^ \n]+|\n| "), behavior="isolated")
    normalizer = normalizers.Prepend(" ")
    found = {piece for text in dict.fromkeys(texts) for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    vocabulary = {word: place for place, word in enumerate((END, UNKNOWN, *sorted(found)))}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    bare.normalizer, bare.pre_tokenizer, bare.decoder = normalizer, splitter, decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token=END, pad_token=END, unk_token=UNKNOWN, model_max_length=MAX_LENGTH
    )
