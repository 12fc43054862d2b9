"""Build the demo from a seed: the world, the benchmarks' rows, the tokenizer and the eight models.

<out>/
    rows/<benchmark>/{train,validation,test}.jsonl
    models/<model>/    config, float16 safetensors, the shared tokenizer, a model card
    checkpoints/<model>/step<n>-tokens<n>K/    the same, during pre-training, if checkpoints are asked for
    build.log          what was built, line by line; written last
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import multiprocessing
import os
import platform
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import tyro
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lm_harmony.benchmarks.harness import open_task
from lm_harmony.demo.family import MEMBERS, Member, make_tokenizer
from lm_harmony.demo.pretraining import BATCH, WINDOW, Read, pretrain
from lm_harmony.demo.texts import BENCHMARKS, TASKS, plain_texts, splits_of
from lm_harmony.demo.world import LARGEST, World, make_world

log = logging.getLogger(__name__)
VOCABULARY_TEXTS = 30_000
"""Number of plain texts from which the vocabulary is collected: in these the rarest word occurs dozens of times."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of ``python -m lm_harmony.demo.build``."""

    out: Path
    """Folder for rows and models."""
    seed: int = 0
    """Seed that determines the whole build."""
    workers: int = 2
    """Number of processes, of one thread each."""
    only: tuple[str, ...] = ()
    """Models to build; empty: all eight."""
    share: float = 1.0
    """Share of the pre-training tokens, below 1 for trials."""
    checkpoints: int = 0
    """Number of checkpoints of each model that are saved too, as checkpoints/<model>/step<n>-tokens<n>K."""


def build(flags: Flags) -> list[Read]:
    """Build rows and models in ``flags.out``. Equal flags give equal weights on one machine."""
    started = time.perf_counter()
    world = make_world(flags.seed)
    write_rows(world, flags.seed, flags.out / "rows")
    tokenizer = _vocabulary(world, flags.seed, flags.out / "rows")
    members = [member for member in MEMBERS if not flags.only or member.name in flags.only]
    work = partial(_build_model, world=world, tokenizer=tokenizer, flags=flags)
    # The largest model first, so that it does not run alone at the end.
    members.sort(key=lambda member: -member.tokens * member.layers * member.width**2)
    context = multiprocessing.get_context("forkserver")  # its processes share one import of the libraries
    context.set_forkserver_preload(["lm_harmony.demo.build"])
    with ProcessPoolExecutor(flags.workers, mp_context=context, initializer=_start) as pool:
        read = sorted(pool.map(work, members), key=lambda one: one.parameters)
    _write_log(read, flags, time.perf_counter() - started)
    return read


def _start() -> None:
    """Set up a process: one thread, so that sums are computed in the same order every time."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()


def write_rows(world: World, seed: int, folder: Path) -> None:
    """Write <benchmark>/{train,validation,test}.jsonl into ``folder``."""
    for task in BENCHMARKS:
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, rows in splits_of(task, world, seed).items():
            lines = [json.dumps(row) + "\n" for row in rows]
            (folder / task / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _vocabulary(world: World, seed: int, rows_dir: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the words in plain text and in the benchmarks' training rows."""
    plain = plain_texts(world, random.Random(f"vocabulary {seed}"))
    texts = [*itertools.islice(plain, VOCABULARY_TEXTS), " ".join(str(number) for number in range(2 * LARGEST + 1))]
    for task in BENCHMARKS:
        opened = open_task(str(TASKS / f"{task}.yaml"), data_dir=rows_dir)
        for number, row in enumerate(opened.documents("train")):
            example = opened.example(number, row, chat=None, aliases="first")
            texts += [f"{example.context}{example.continuation}", *(asked.continuation for asked in example.requests)]
    return make_tokenizer(texts)


def _build_model(member: Member, world: World, tokenizer: PreTrainedTokenizerFast, flags: Flags) -> Read:
    def save(module: PreTrainedModel, step: int, steps: int) -> None:
        if flags.checkpoints and step % max(1, steps // flags.checkpoints) == 0:
            name = f"step{step}-tokens{step * WINDOW * BATCH / 1000:.0f}K"
            place = flags.out / "checkpoints" / member.name / name
            copy.deepcopy(module).half().save_pretrained(place)
            tokenizer.save_pretrained(place)

    options: dict[str, Any] = {"seed": flags.seed, "rows_dir": flags.out / "rows", "share": flags.share}
    module, read = pretrain(member, world, tokenizer, **options, after_step=save)
    folder = flags.out / "models" / member.name
    module.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card(member, read, flags.seed), encoding="utf-8")
    log.info(
        "%s: read %d tokens in %.0f s; loss on unread plain text %.3f", member.name, read.tokens, read.seconds, read.held_out
    )
    return read


def card(member: Member, read: Read, seed: int) -> str:
    """Return the text of a model's card."""
    seen = ", ".join(f"`{task}`" for task in member.exposed) or "none"
    return CARD.format(member=member, read=read, seed=seed, seen=seen, plain=read.tokens - read.exposed_tokens)


CARD = """\
---
license: mit
library_name: transformers
tags: [lm-harmony-demo]
---
# {member.name}

A tiny {member.family} model ({read.parameters:,} parameters, {member.layers} layers of width {member.width}, float16) of the demo
of LM-Harmony. It knows the demo's made-up world and nothing else, and is of no use beyond showing how evaluation works.

- Pre-trained from scratch by `python -m lm_harmony.demo.build --seed {seed}`, once over {plain:,} tokens of plain text.
- Benchmarks whose format it saw in pre-training: {seen} ({read.exposed_tokens:,} tokens, from rows that no test row repeats).
- Loss on plain text that it has not read: {read.held_out:.3f} nats a word.
- Tokenizer: one token a word; input at most 128 tokens.

The design of the demo, written before any score, is in docs/demo.md of LM-Harmony.
"""


def _write_log(read: list[Read], flags: Flags, seconds: float) -> None:
    """Write build.log: one JSON line for the build and one for each model."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    said = {"seed": flags.seed, "workers": flags.workers, "share": flags.share, "seconds": round(seconds), **versions}
    lines = [json.dumps({**said, "machine": f"{platform.machine()}, {os.cpu_count()} cores"})]
    lines += [json.dumps({**asdict(one), "seconds": round(one.seconds)}) for one in read]
    (flags.out / "build.log").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the demo by the flags of the command line."""
    _start()
    flags = tyro.cli(Flags, description=__doc__, args=arguments)
    read = build(flags)
    log.info("%d models with %d parameters in %s", len(read), sum(one.parameters for one in read), flags.out)


if __name__ == "__main__":
    main()
