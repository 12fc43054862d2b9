"""The tokenizer that all models of the demo share: one token a word."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, UNKNOWN = "<|end|>", "<|unknown|>"
MAX_LENGTH = 128
"""Longest input in tokens."""


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make the tokenizer whose vocabulary is the words of ``texts``, each with the space before it."""
    splitter = pre_tokenizers.Split(Regex(r" ?[^ \n]+|\n| "), behavior="isolated")
    normalizer = normalizers.Prepend(" ")
    found = {piece for text in dict.fromkeys(texts) for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    vocabulary = {word: place for place, word in enumerate((END, UNKNOWN, *sorted(found)))}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    bare.normalizer, bare.pre_tokenizer, bare.decoder = normalizer, splitter, decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token=END, pad_token=END, unk_token=UNKNOWN, model_max_length=MAX_LENGTH
    )
