"""Pre-training of one model of the demo: one pass over its text."""
# Shapes: B windows, T tokens in each.

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from lm_harmony.benchmarks.harness import HarnessTask, open_task
from lm_harmony.demo.family import Member
from lm_harmony.demo.texts import TASKS, plain_texts, rows_of
from lm_harmony.demo.world import World

log = logging.getLogger(__name__)

WINDOW, BATCH = 64, 16
"""Tokens of a window, and windows of an optimizer step."""
EXPOSURE = 0.25
"""Additional tokens in benchmarks' formats, as a share of the plain tokens."""
LEARNING_RATE, WARM_UP = 3e-3, 0.05
AfterStep = Callable[[PreTrainedModel, int, int], None]
"""Function of (model, optimizer steps taken, all steps)."""
HELD_OUT = 20_000
"""Tokens of held-out plain text on which the loss is measured."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """Size, tokens and losses of a pre-trained model."""

    name: str
    """Name of the model."""
    parameters: int
    """Number of weights; the tied embedding counts once."""
    tokens: int
    """Tokens of its pre-training."""
    exposed_tokens: int
    """Tokens among them in a benchmark's format."""
    losses: tuple[float, ...]
    """Mean training loss of each tenth of the steps, in nats a token."""
    held_out: float
    """Loss on held-out plain text, in nats a token."""
    seconds: float
    """Seconds that pre-training took."""


def exposure_texts(task: str, world: World, draw: random.Random, opened: HarnessTask) -> Iterator[str]:
    """Yield rows of the taught half in a benchmark's format, as in fine-tuning; begin again after the last one."""
    texts = []
    for number, row in enumerate(rows_of(task, world, "taught", draw)):
        example = opened.example(number, row, chat=None, aliases="first")
        texts.append(f"{example.context}{example.continuation}")
        yield texts[-1]
    yield from itertools.cycle(texts)


def pretrain(
    member: Member,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    rows_dir: Path,
    share: float = 1.0,
    after_step: AfterStep = lambda module, step, steps: None,
) -> tuple[PreTrainedModel, Read]:
    """Pre-train one model from scratch. Equal arguments give bit-identical weights on one thread of one machine.

    Args:
        member: design of the model.
        world: the world of its texts.
        tokenizer: tokenizer of all models.
        seed: seed of the build.
        rows_dir: folder of the benchmarks' rows.
        share: share of the tokens, below 1 for trials.
        after_step: called after each optimizer step.
    """
    draw = random.Random(f"{member.name} {seed}")
    plain = _until(plain_texts(world, draw), tokenizer, round(share * member.tokens))
    each = round(share * member.tokens * EXPOSURE / max(1, len(member.exposed)))
    seen: list[list[int]] = []
    for task in member.exposed:
        opened = open_task(str(TASKS / f"{task}.yaml"), data_dir=rows_dir)
        seen += _until(exposure_texts(task, world, draw, opened), tokenizer, each)
    texts = plain + seen
    draw.shuffle(texts)
    stream = torch.tensor([token for text in texts for token in text])
    held_out = _until(plain_texts(world, random.Random(f"held out {seed}")), tokenizer, HELD_OUT)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(member.config(len(tokenizer)), dtype=torch.float32)
        started = time.perf_counter()
        losses = _read(module, stream, member.name, after_step)
    return module, Read(
        name=member.name,
        parameters=sum(weight.numel() for weight in module.parameters()),
        tokens=len(stream),
        exposed_tokens=sum(map(len, seen)),
        losses=losses,
        held_out=round(_loss_on(module, torch.tensor([token for text in held_out for token in text])), 4),
        seconds=time.perf_counter() - started,
    )


def _until(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, tokens: int) -> list[list[int]]:
    """Encode texts, each followed by the end token, until there are at least ``tokens`` tokens."""
    encoded: list[list[int]] = []
    count = 0
    while count < tokens:
        for ids in tokenizer(list(itertools.islice(texts, 256)))["input_ids"]:
            if count < tokens:
                encoded.append([*ids, tokenizer.eos_token_id])
                count += len(encoded[-1])
    return encoded


def _windows(stream: torch.Tensor) -> Sequence[torch.Tensor]:
    """Cut a stream of tokens into batches ``ids_BxT``; an incomplete last batch is dropped."""
    whole = len(stream) // (WINDOW * BATCH) * WINDOW * BATCH
    return list(stream[:whole].view(-1, BATCH, WINDOW))


def _read(module: PreTrainedModel, stream: torch.Tensor, name: str, after_step: AfterStep) -> tuple[float, ...]:
    """Take one optimizer step for each batch; return the mean loss of each tenth of the steps."""
    batches = _windows(stream)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARM_UP * len(batches)), len(batches))
    losses: list[float] = []
    for step, ids_BxT in enumerate(batches, start=1):
        loss = module(input_ids=ids_BxT, labels=ids_BxT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        after_step(module, step, len(batches))
        if step % max(1, len(batches) // 10) == 0:
            log.info("%s: step %d of %d, loss %.3f", name, step, len(batches), losses[-1])
    size = max(1, len(losses) // 10)
    return tuple(round(sum(part) / len(part), 4) for part in (losses[at : at + size] for at in range(0, size * 10, size)) if part)


@torch.no_grad()
def _loss_on(module: PreTrainedModel, stream: torch.Tensor) -> float:
    losses: list[float] = [module(input_ids=ids_BxT, labels=ids_BxT).loss.item() for ids_BxT in _windows(stream)]
    return sum(losses) / max(1, len(losses))
