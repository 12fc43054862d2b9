"""Compare joint training of several runs with training them one after another: ``python -m bench.joint``.

On a CPU one run uses all cores, so the ratio is the overhead of joint training. On a GPU it is the gain.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import tyro

from bench.gpu.training import by_epochs
from bench.side_by_side import BenchFlags, Measured, compare, show, splits_of
from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.joint_training import JointRuns
from lm_harmony.engine.sequences import training_sequences
from lm_harmony.models.loading import load_model
from lm_harmony.recipe import PUBLISHED

TASKS = ("arc_easy", "sst2")
SEEDS = (0, 1)


def main(flags: BenchFlags) -> None:
    """Train two seeds of each task for one epoch, jointly and one after another."""
    logging.disable(logging.WARNING)
    model = load_model(str(flags.model))
    backend, recipe = choose_backend(model), replace(PUBLISHED, epochs=1)
    runs = []
    for task in flags.tasks or TASKS:
        _, splits = splits_of(task, flags.data, Caps(train=flags.rows or 24, validation=8, test=8))
        rows = training_sequences(model, splits.train, max_length=1024, completion_only=False)
        runs += [(rows, seed) for seed in SEEDS]

    def train(most: int) -> None:
        waiting, joint = list(enumerate(runs)), JointRuns[int, None]()
        while waiting or joint:
            while waiting and len(joint) < most:
                number, (rows, seed) = waiting.pop(0)
                joint.add(number, by_epochs(model, rows, recipe, seed, backend))
            joint.advance()

    sides = {f"{len(runs)} runs together": lambda: train(len(runs)), "one after another": lambda: train(1)}
    measured: list[Measured] = [compare(f"{len(runs)} runs of {len(runs[0][0])} rows", sides, runs=flags.runs)]
    show("joint training", measured)


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
