"""Rows of the six micro-benchmarks, drawn from one half of the world."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_harmony.demo import words
from lm_harmony.demo.plain import opinion, sentence
from lm_harmony.demo.world import Animal, Half, World

Row = dict[str, Any]
TASKS = Path(__file__).with_name("tasks")
"""Folder of the benchmarks' task files."""
SIZES = {"train": 300, "validation": 100, "test": 250}
"""Rows of each split."""


def splits_of(task: str, world: World, seed: int) -> dict[str, list[Row]]:
    """Draw the rows of a benchmark's three splits; no row recurs.

    Training rows ask about the taught half of the world, validation and test rows about the other.
    """
    train = rows_of(task, world, "taught", random.Random(f"{task} train {seed}"))
    asked = rows_of(task, world, "asked", random.Random(f"{task} asked {seed}"))
    sources = {"train": train, "validation": asked, "test": asked}
    return {split: [next(source) for _ in range(SIZES[split])] for split, source in sources.items()}


def rows_of(task: str, world: World, half: Half, draw: random.Random) -> Iterator[Row]:
    """Yield rows of a benchmark from one half of the world, each only once, until that half is used up."""
    seen: set[str] = set()
    misses, part = 0, world.half(half)
    while misses < 10_000:
        row = BENCHMARKS[task](part, draw)
        key = repr(row)
        misses = misses + 1 if key in seen else 0
        if key not in seen:
            seen.add(key)
            yield row


def _reviews(world: World, draw: random.Random) -> Row:
    label = draw.randint(0, 1)
    return {"review": opinion(world, draw, label == 1), "label": label}


def _entails(world: World, draw: random.Random) -> Row:
    kind, pet = draw.choice(world.kinds), draw.choice(words.PETS)
    colour, food = draw.choice(words.COLOURS), draw.choice(words.FOODS)
    about, right, known = draw.choices(
        (
            ("is a", words.class_of(kind), tuple(words.KINDS)),
            ("is", colour, words.COLOURS),
            ("eats", food, words.FOODS),
        ),
        weights=(2, 1, 1),
    )[0]
    wrong = draw.choice([word for word in known if word != right])
    claims = [f"{pet} {about} {right}", f"{pet} {about} {wrong}"]
    label = draw.randint(0, 1)
    claims = claims[::-1] if label else claims
    return {"premise": f"{pet} is a {colour} {kind} that eats {food}", "claims": claims, "label": label}


def _endings(world: World, draw: random.Random) -> Row:
    animal = draw.choice(world.animals)
    profiles = [animal]
    while len(profiles) < 4:
        changed = _changed(animal, draw)
        if changed not in profiles:
            profiles.append(changed)
    draw.shuffle(profiles)
    endings = [f"a {one.colour} {one.kind} of the {one.home} that eats {one.food}" for one in profiles]
    return {"name": animal.name, "endings": endings, "label": profiles.index(animal)}


def _changed(animal: Animal, draw: random.Random) -> Animal:
    """Return ``animal`` with one of its attributes changed."""
    kinds = [kind for kinds in words.KINDS.values() for kind in kinds]
    choices = {"kind": kinds, "colour": words.COLOURS, "home": words.HOMES, "food": words.FOODS}
    name = draw.choice(words.ATTRIBUTES)
    return replace(animal, **{name: draw.choice([value for value in choices[name] if value != getattr(animal, name)])})


def _cloze(world: World, draw: random.Random) -> Row:
    animal = draw.choice(world.animals)
    asked, *told = draw.sample(words.ATTRIBUTES, draw.randint(2, 3))
    said = {"kind": "is a", "colour": "has the colour", "home": "lives in the", "food": "eats"}
    known = " and ".join(f"{said[name]} {getattr(animal, name)}" for name in told)
    begun = f"{animal.name} {known} and {said[asked]}"
    return {"begun": begun, "gap": getattr(animal, asked)}


def _sums(world: World, draw: random.Random) -> Row:
    problem = draw.choice(world.problems)
    return {"problem": f"{problem.left} {problem.sign} {problem.right}", "result": str(problem.result)}


def _grammar(world: World, draw: random.Random) -> Row:
    label = draw.randint(0, 1)
    return {"sentence": sentence(world, draw, right=label == 1), "label": label}


BENCHMARKS: Mapping[str, Callable[[World, random.Random], Row]] = {
    "micro_reviews": _reviews,
    "micro_entails": _entails,
    "micro_endings": _endings,
    "micro_cloze": _cloze,
    "micro_sums": _sums,
    "micro_grammar": _grammar,
}
"""Benchmark -> what draws one of its rows."""
