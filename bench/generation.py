"""Compare greedy generation with HFLM.generate_until and with transformers' generate_batch: ``python -m bench.generation``."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
import tyro
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.side_by_side import BenchFlags, Measured, compare, requests_of, show, splits_of
from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.continuous_batching import decode_greedily
from lm_harmony.engine.memory import CPU_GENERATION_ROWS
from lm_harmony.engine.scoring import Scorer
from lm_harmony.models.loading import LanguageModel, load_model

TASKS = ("gsm8k", "nq_open")
BATCHES = (8, 24)
TOKENS = 24
"""Longest answer in the comparison with ``generate_batch``, which has no stop strings."""


def main(flags: BenchFlags) -> None:
    """Generate answers to 64 rows of each task, check that all sides give equal answers, and print the ratios of their times."""
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    model = load_model(str(flags.model))
    scorer = Scorer(model=model, backend=choose_backend(model))
    measured: list[Measured] = []
    batched: list[Measured] = []
    for task in flags.tasks or TASKS:
        _, splits = splits_of(task, flags.data, Caps(train=8, validation=8, test=flags.rows or 64))
        requests = requests_of(splits.test)
        contexts = sorted(model.text.encode([request.context for request in requests]), key=len, reverse=True)
        batched.append(compare_with_generate_batch(f"{task}, {len(requests)} rows", model, contexts, flags.runs))
        for size in BATCHES:
            harness = HFLM(pretrained=model.module, tokenizer=model.text.tokenizer, batch_size=size, device="cpu")
            instances = [
                Instance("generate_until", {}, (request.context, dict(request.generation)), place)
                for place, request in enumerate(requests)
            ]
            sides = {
                "LM-Harmony": lambda: scorer.reply(requests),  # noqa: B023
                "lm_eval HFLM": lambda: harness.generate_until(instances, disable_tqdm=True),  # noqa: B023
            }
            same = scorer.reply(requests[:8]) == harness.generate_until(instances[:8], disable_tqdm=True)
            assert same, "LM-Harmony and HFLM generate different answers"
            measured.append(compare(f"{task}, {len(requests)} rows, HFLM at batch {size}", sides, runs=flags.runs))
    show(f"generation of at most {TOKENS} tokens without stop strings", batched)
    show("generation", measured)


def compare_with_generate_batch(what: str, model: LanguageModel, contexts: Sequence[Sequence[int]], runs: int) -> Measured:
    """Generate up to ``TOKENS`` tokens after each context, until the end token, and compare with transformers' paged cache."""
    rows, end = CPU_GENERATION_ROWS, model.text.end_id
    config = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end)

    def ours() -> list[list[int]]:
        options = {"batch_size": rows, "max_new_tokens": TOKENS}
        with torch.no_grad():
            found = decode_greedily(model, contexts, is_finished=lambda written: written[-1] == end, **options)
            return [list(row.written) for row in sorted(found, key=lambda row: row.place)]

    def theirs() -> list[list[int]]:
        # A cache of 2,048 tokens, made for these rows. By default it takes most of the memory, which is slower on a CPU.
        sizes = {"num_blocks": 64, "page_size": 32, "max_batch_tokens": 512}
        batching = ContinuousBatchingConfig(use_cuda_graph=False, max_requests_per_batch=rows, **sizes)
        inputs = [list(context) for context in contexts]
        found = model.module.generate_batch(inputs, generation_config=config, continuous_batching_config=batching)
        return [output.generated_tokens for output in found.values()]

    assert ours() == theirs(), "LM-Harmony and generate_batch generate different tokens"
    return compare(what, {"LM-Harmony": ours, "generate_batch": theirs}, runs=runs)


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
