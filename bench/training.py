"""A LoRA step against a right-padded loop with transformers' own loss: ``python -m bench.training``."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import tyro

from bench.side_by_side import BenchFlags, Measured, compare, show, splits_of
from lm_harmony.benchmarks.caps import Caps
from lm_harmony.engine.adapters import trainee
from lm_harmony.engine.paths import choose_paths
from lm_harmony.engine.sequences import TokenSequence, training_sequences
from lm_harmony.models.loading import load_model
from lm_harmony.recipe import PUBLISHED

TASKS = ("arc_easy", "mnli", "sst2")
BATCH = 8


def main(flags: BenchFlags) -> None:
    """Time optimizer steps of eight rows on both sides, on the same rows."""
    logging.disable(logging.WARNING)
    model = load_model(str(flags.model))
    model.text.tokenizer.pad_token = model.text.tokenizer.pad_token or model.text.end_text
    paths = choose_paths(model)
    measured: list[Measured] = []
    with trainee(model, PUBLISHED, seed=0) as learner:
        parameters = list(learner.trained_parameters().values())
        optimizer = torch.optim.AdamW(parameters, lr=2e-5)
        learner.module.train()

        def step(loss: Callable[[list[TokenSequence]], torch.Tensor], rows: list[TokenSequence]) -> None:
            for start in range(0, len(rows), BATCH):
                loss(rows[start : start + BATCH]).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()

        def ours(rows: list[TokenSequence]) -> None:
            with paths.computing(model.module):
                step(lambda batch: -paths.learn(model.module, batch).logprobs_L.mean(), rows)

        def padded(batch: list[TokenSequence]) -> torch.Tensor:
            encoded = model.text.tokenizer.pad(
                {"input_ids": [list(sequence.ids) for sequence in batch]}, padding_side="right", return_tensors="pt"
            ).to(model.device)
            labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
            return learner.module(**encoded, labels=labels, use_cache=False).loss

        for task in flags.tasks or TASKS:
            _, splits = splits_of(task, flags.data, Caps(train=flags.rows or 48, validation=8, test=8))
            rows = training_sequences(model, splits.train, max_length=1024, completion_only=False)
            sides = {
                "LM-Harmony": lambda: ours(rows),  # noqa: B023
                "right-padded, transformers' loss": lambda: step(padded, rows),  # noqa: B023
            }
            measured.append(compare(f"{task}, {len(rows)} rows in steps of {BATCH}", sides, runs=flags.runs))
    show("training", measured)


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
