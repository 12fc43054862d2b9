"""Make the demo's world: reviews in a small language, a benchmark about them, and a tiny model that has read such reviews.

The model is pre-trained on reviews and never on verdicts, so it has something to be asked about and does not know the question's
form: what train-before-test is for. Everything follows from one seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_END = "<|end|>"
_THINGS = ("soup", "film", "hotel", "song", "book", "chair", "lamp", "boat")
_WORDS = {
    1: ("lovely", "warm", "bright", "kind", "fresh", "clever"),
    0: ("dull", "cold", "broken", "rude", "stale", "clumsy"),
}
_ENDINGS = {1: ("i call it good", "we smiled", "i came back"), 0: ("i call it bad", "we sighed", "i complained")}


@dataclass(frozen=True, kw_only=True)
class MicroWorld:
    """Where the demo's model and rows are."""

    model: Path
    """Folder of a tiny Llama with its tokenizer."""
    data_dir: Path
    """Folder with micro_reviews/{train,validation,test}.jsonl."""


def make_micro_world(folder: Path, *, seed: int = 0, pretraining_steps: int = 300) -> MicroWorld:
    """Write a pre-trained tiny model and the rows of the benchmark micro_reviews below ``folder``."""
    draw = random.Random(seed)
    read = [_review(draw, draw.randint(0, 1)) for _ in range(4_000)]
    world = MicroWorld(model=folder / "tiny-llama", data_dir=folder)
    rows = world.data_dir / "micro_reviews"
    rows.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 240), ("validation", 80), ("test", 200)):
        labels = [draw.randint(0, 1) for _ in range(count)]
        lines = [json.dumps({"review": _review(draw, label), "label": label}) for label in labels]
        (rows / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = _tokenizer(read)
    module = _pretrain(read, tokenizer, seed=seed, steps=pretraining_steps)
    module.save_pretrained(world.model)
    tokenizer.save_pretrained(world.model)
    return world


def _review(draw: random.Random, label: int) -> str:
    """Write two sentences in praise (1) or blame (0) and what the guest did then."""
    said = [f"the {draw.choice(_THINGS)} was {draw.choice(_WORDS[label])}" for _ in range(2)]
    return f"{' and '.join(said)} so {draw.choice(_ENDINGS[label])}"


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=[_END], initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END, pad_token=_END, model_max_length=256)


def _pretrain(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, seed: int, steps: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
        for step in range(steps):
            batch = [texts[(step * 32 + place) % len(texts)] + _END for place in range(32)]
            encoded = tokenizer(batch, padding=True, return_tensors="pt")
            labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
            module(**encoded, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return module
