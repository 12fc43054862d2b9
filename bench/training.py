"""Compare LoRA steps with a right-padded training loop that uses transformers' loss: ``python -m bench.training``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import tyro

from bench.side_by_side import BenchFlags, Measured, compare, peak_bytes, show, splits_of
from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.sequences import TokenSequence, training_sequences
from lm_harmony.engine.train_state import epoch_order
from lm_harmony.engine.training import fine_tune
from lm_harmony.models.loading import load_model
from lm_harmony.recipe import PUBLISHED

TASKS = ("arc_easy", "mnli", "sst2")
BATCH = 8


def main(flags: BenchFlags) -> None:
    """Time optimizer steps of eight rows in both training loops, on the same rows."""
    logging.disable(logging.WARNING)
    model = load_model(str(flags.model))
    model.text.tokenizer.pad_token = model.text.tokenizer.pad_token or model.text.end_text
    backend = choose_backend(model)
    measured: list[Measured] = []
    recipe = replace(PUBLISHED, epochs=1, batch_size=BATCH)
    with trainable(model, recipe, seed=0) as trainee:
        parameters = list(trainee.trained_parameters().values())
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate)

        def ours(rows: Sequence[TokenSequence]) -> None:
            for _ in fine_tune(trainee, rows, recipe, seed=0, micro_batch=BATCH, backend=backend):
                pass

        def padded(rows: Sequence[TokenSequence]) -> None:
            order = epoch_order(len(rows), seed=0, epoch=1).tolist()  # the batches of ``fine_tune``
            trainee.dropout.set_step(0, 0, ())  # a pass is a batch of its own
            trainee.module.train()
            for start in range(0, len(rows), BATCH):
                batch = [list(rows[place].ids) for place in order[start : start + BATCH]]
                encoded = model.text.tokenizer.pad({"input_ids": batch}, padding_side="right", return_tensors="pt")
                labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
                trainee.module(**encoded.to(model.device), labels=labels, use_cache=False).loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()

        for task in flags.tasks or TASKS:
            _, splits = splits_of(task, flags.data, Caps(train=flags.rows or 48, validation=8, test=8))
            rows = training_sequences(model, splits.train, max_length=1024, completion_only=False)
            sides = {"LM-Harmony": partial(ours, rows), "right-padded, transformers' loss": partial(padded, rows)}
            step = {name: peak_bytes(partial(side.func, rows[:BATCH])) for name, side in sides.items()}
            print(
                f"{task}, largest rise of memory in a step (MB): "
                + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in step.items())
            )
            measured.append(compare(f"{task}, {len(rows)} rows in steps of {BATCH}", sides, runs=flags.runs))
    show("training", measured)


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
