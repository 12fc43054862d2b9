"""Compare greedy generation with HFLM.generate_until: ``python -m bench.generation``."""

from __future__ import annotations

import logging
import os

import tyro
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.side_by_side import BenchFlags, Measured, compare, requests_of, show, splits_of
from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.scoring import Scorer
from lm_harmony.models.loading import load_model

TASKS = ("gsm8k", "nq_open")
BATCHES = (8, 24)


def main(flags: BenchFlags) -> None:
    """Generate answers to 64 rows of each task with both. Check that the answers are equal, and print the ratios of the times."""
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    model = load_model(str(flags.model))
    scorer = Scorer(model=model, backend=choose_backend(model))
    measured: list[Measured] = []
    for task in flags.tasks or TASKS:
        _, splits = splits_of(task, flags.data, Caps(train=8, validation=8, test=flags.rows or 64))
        requests = requests_of(splits.test)
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
    show("generation", measured)


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
