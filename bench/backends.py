"""Compare ``--engine auto`` with ``--engine plain`` on several models: ``python -m bench.backends``.

It times optimizer steps of ``fine_tune`` and log-likelihood scoring on every shipped demo model and, if its folder exists, on a
real model. Both engines alternate in one process. A ratio below 0.95 means that the choice of ``auto`` is more than 5% slower.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import tyro

from bench.side_by_side import BenchFlags, Measured, compare, requests_of, show, splits_of
from lm_harmony.benchmarks.types import Caps, Request
from lm_harmony.demo.study import MODELS, RECIPE, SHIPPED
from lm_harmony.demo.texts import TASKS
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import Backend, choose_backend
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, training_sequences
from lm_harmony.engine.training import fine_tune
from lm_harmony.models.loading import LanguageModel, load_model
from lm_harmony.recipe import PUBLISHED, Recipe

ENGINES = ("auto", "plain")
DEMO_TASKS = ("micro_reviews", "micro_endings")
REAL_TASKS = ("arc_easy", "mnli")


def main(flags: BenchFlags) -> None:
    """Time both engines on every model and print which backend ``auto`` chose."""
    logging.disable(logging.WARNING)
    measured: list[Measured] = []
    demo = Recipe.from_dict({**RECIPE, "epochs": 1})
    for name in MODELS:
        measured += _model(str(SHIPPED / "models" / name), SHIPPED / "rows", DEMO_TASKS, demo, flags, rows=(64, 100))
    if flags.model.is_dir():
        recipe = replace(PUBLISHED, epochs=1)
        measured += _model(str(flags.model), flags.data, flags.tasks or REAL_TASKS, recipe, flags, rows=(16, 24))
    show("backends", measured)


def _model(
    folder: str, data: Path, tasks: Sequence[str], recipe: Recipe, flags: BenchFlags, *, rows: tuple[int, int]
) -> list[Measured]:
    """Compare the engines on one model: train on ``rows[0]`` rows of each task and score ``rows[1]`` rows."""
    model = load_model(folder)
    chosen = {engine: choose_backend(model, engine) for engine in ENGINES}
    print(f"{Path(folder).name}: {chosen['auto'].describe()}", flush=True)
    measured: list[Measured] = []
    for task in tasks:
        path = TASKS / f"{task}.yaml"
        train_rows, test_rows = (flags.rows or default for default in rows)
        _, splits = splits_of(str(path) if path.is_file() else task, data, Caps(train=train_rows, validation=8, test=test_rows))
        sequences = training_sequences(model, splits.train, max_length=recipe.max_length, completion_only=False)
        requests = requests_of(splits.test)
        train = {engine: partial(_train, model, backend, sequences, recipe) for engine, backend in chosen.items()}
        score = {engine: partial(_score, model, backend, requests) for engine, backend in chosen.items()}
        name = Path(folder).name
        measured += [
            compare(f"{name}, {task}: {len(sequences)} rows trained", train, runs=flags.runs),
            compare(f"{name}, {task}: {len(splits.test)} questions scored", score, runs=flags.runs),
        ]
        for line in itertools.islice(reversed(measured), 2):
            print(f"  {line.what}: {line.ratio:.2f}x ({line.spread[0]:.2f} - {line.spread[1]:.2f})", flush=True)
    return measured


def _train(model: LanguageModel, backend: Backend, rows: Sequence[TokenSequence], recipe: Recipe) -> None:
    with trainable(model, recipe, seed=0) as trainee:
        for _ in fine_tune(trainee, rows, recipe, seed=0, micro_batch=recipe.batch_size, backend=backend):
            pass


def _score(model: LanguageModel, backend: Backend, requests: Sequence[Request]) -> None:
    Scorer(model=model, backend=backend, batch_size=32).reply(requests)


if __name__ == "__main__":
    main(tyro.cli(BenchFlags))
