"""Compare scores with lm_eval's HFLM, and training losses with a right-padded loop: ``python -m bench.exactness``.

For each task it prints the largest difference of a log-likelihood, how many generated answers are equal, and the largest
difference of a step's loss. LoRA has no dropout here, because each side would draw its own masks.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace

import torch
import tyro
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table
from transformers import get_scheduler

from bench.side_by_side import BenchFlags, requests_of, splits_of
from lm_harmony.benchmarks.types import Caps, Request
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import Backend, choose_backend
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, training_sequences
from lm_harmony.engine.train_state import epoch_order
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import BenchmarkError
from lm_harmony.models.loading import LanguageModel, load_model
from lm_harmony.recipe import PUBLISHED, Recipe
from lm_harmony.runs.environment import describe_cpu

QUESTIONS, TRAINING_ROWS = 12, 24
"""Scored questions of each task, and training rows (three steps of eight) where ``--rows`` does not say it."""


def main(flags: BenchFlags) -> None:
    """Compare both on every task of the data folder that has training rows."""
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    model = load_model(str(flags.model))
    model.text.tokenizer.pad_token = model.text.tokenizer.pad_token or model.text.end_text
    backend = choose_backend(model)
    harness = HFLM(pretrained=model.module, tokenizer=model.text.tokenizer, batch_size=1, device="cpu")
    assert PUBLISHED.lora is not None
    recipe = replace(PUBLISHED, epochs=1, lora=replace(PUBLISHED.lora, lora_dropout=0))
    table = Table("task", "requests", "log-likelihood (nats)", "equal answers", "steps", "loss (nats)", title=flags.model.name)
    found = []
    for task in flags.tasks or sorted(folder.parent.name for folder in flags.data.glob("*/train.jsonl")):
        try:
            _, splits = splits_of(task, flags.data, Caps(train=flags.rows or TRAINING_ROWS, validation=8, test=QUESTIONS))
        except BenchmarkError as error:
            print(f"{task} is left out: {error}", flush=True)
            continue
        requests = requests_of(splits.test)
        scores, answers = compare_replies(Scorer(model=model, backend=backend), harness, requests)
        rows = training_sequences(model, splits.train, max_length=recipe.max_length, completion_only=False)
        ours, padded = packed_losses(model, rows, recipe, backend), padded_losses(model, rows, recipe)
        loss = max(abs(one - other) for one, other in zip(ours, padded, strict=True))
        found.append({"task": task, "requests": len(requests), "nats": scores, "answers": answers, "loss": loss})
        shown = ("" if value is None else f"{value:.1e}" if isinstance(value, float) else value for value in (scores, answers))
        table.add_row(task, str(len(requests)), *shown, str(len(ours)), f"{loss:.1e}")
        print(json.dumps(found[-1]), flush=True)
    Console(width=120).print(table)
    print(json.dumps({"bench": "exactness", "model": flags.model.name, "machine": describe_cpu(), "rows": found}))


def compare_replies(scorer: Scorer, harness: HFLM, requests: Sequence[Request]) -> tuple[float | None, str | None]:
    """Return the largest difference of a log-likelihood in nats, or the number of equal answers where answers are generated."""
    if requests[0].generation:
        written = [
            Instance("generate_until", {}, (request.context, dict(request.generation)), place)
            for place, request in enumerate(requests)
        ]
        pairs = zip(scorer.reply(requests), harness.generate_until(written, disable_tqdm=True), strict=True)
        return None, f"{sum(one == other for one, other in pairs)} of {len(requests)}"
    asked = [
        Instance("loglikelihood", {}, (request.context, request.continuation), place) for place, request in enumerate(requests)
    ]
    pairs = zip(scorer.reply(requests), harness.loglikelihood(asked, disable_tqdm=True), strict=True)
    return max(abs(one[0] - other[0]) for one, other in pairs), None


def packed_losses(model: LanguageModel, rows: Sequence[TokenSequence], recipe: Recipe, backend: Backend) -> list[float]:
    """Return the loss of each step of ``fine_tune``."""
    with trainable(model, recipe, seed=0) as trainee:
        (epoch,) = fine_tune(trainee, rows, recipe, seed=0, micro_batch=recipe.batch_size, backend=backend)
    return [step.loss for step in epoch.steps]


def padded_losses(model: LanguageModel, rows: Sequence[TokenSequence], recipe: Recipe) -> list[float]:
    """Return the loss of each step of a loop of transformers and PyTorch, with the batches of ``fine_tune``."""
    total = math.ceil(len(rows) / recipe.batch_size)
    order = epoch_order(len(rows), seed=0, epoch=1).tolist()
    losses = []
    with trainable(model, recipe, seed=0) as trainee:
        parameters = list(trainee.trained_parameters().values())
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
        schedule = get_scheduler(recipe.lr_schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total)
        trainee.module.train()
        for start in range(0, len(rows), recipe.batch_size):
            batch = [list(rows[place].ids) for place in order[start : start + recipe.batch_size]]
            encoded = model.text.tokenizer.pad({"input_ids": batch}, padding_side="right", return_tensors="pt")
            labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
            loss = trainee.module(**encoded.to(model.device), labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm or math.inf)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        trainee.module.eval()
    return losses


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
