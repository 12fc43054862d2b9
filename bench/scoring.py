"""Compare log-likelihood scoring with lm_eval's HFLM at its best batch size: ``python -m bench.scoring``."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import tyro
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.side_by_side import BenchFlags, Measured, compare, requests_of, show, splits_of
from lm_harmony.benchmarks.types import Caps, Request
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.scoring import Scorer
from lm_harmony.models.loading import load_model

TASKS = ("arc_easy", "headqa_en", "commonsense_qa", "mnli", "boolq", "cola", "arc_easy 5-shot")
FEWSHOT_ROWS = 100


def requests_for(task: str, data: Path, rows: int | None) -> tuple[str, list[Request]]:
    """Return a label and the requests of a task; "<task> 5-shot" puts the first five training examples before each question."""
    name, *shots = task.split()
    harness, splits = splits_of(name, data, Caps(train=8, validation=8, test=rows or (FEWSHOT_ROWS if shots else 500)))
    prefix = ""
    for row in range(int(shots[0].split("-")[0]) if shots else 0):
        example = harness.example(row, harness.documents("train")[row], chat=None, aliases="first")
        prefix += f"{example.context}{example.continuation}\n\n"
    requests = [replace(request, context=prefix + request.context) for request in requests_of(splits.test)]
    return f"{task}, {len(splits.test)} questions", requests


def main(flags: BenchFlags) -> None:
    """Score the test rows of each task with both. Check that the log-likelihoods agree, and print the ratio of the times."""
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    model = load_model(str(flags.model))
    scorer = Scorer(model=model, backend=choose_backend(model))
    harness = HFLM(pretrained=model.module, tokenizer=model.text.tokenizer, batch_size=8, device="cpu")
    measured: list[Measured] = []
    for task in flags.tasks or TASKS:
        label, requests = requests_for(task, flags.data, flags.rows)
        instances = [
            Instance("loglikelihood", {}, (request.context, request.continuation), place)
            for place, request in enumerate(requests)
        ]
        ours, theirs = scorer.reply(requests[:40]), harness.loglikelihood(instances[:40], disable_tqdm=True)
        assert max(abs(one[0] - other[0]) for one, other in zip(ours, theirs, strict=True)) < 1e-3
        sides = {
            "LM-Harmony": lambda: scorer.reply(requests),  # noqa: B023
            "lm_eval HFLM, batch 8": lambda: harness.loglikelihood(instances, disable_tqdm=True),  # noqa: B023
        }
        measured.append(compare(label, sides, runs=flags.runs))
    show("scoring", measured)


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
