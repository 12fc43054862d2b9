"""Texts about the world: the plain text that every model reads, and the rows of the six micro-benchmarks.

No benchmark's format occurs in the plain text. Rows are drawn from one half of the world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_harmony.demo.world import (
    ATTRIBUTES,
    COLOURS,
    FOODS,
    HOMES,
    KINDS,
    LARGEST,
    MANY,
    ONE,
    PETS,
    SIGHS,
    SMILES,
    THINGS,
    VERBS,
    Animal,
    Half,
    Problem,
    World,
    class_of,
    often,
)


def plain_texts(world: World, draw: random.Random) -> Iterator[str]:
    """Yield short texts of two to four sentences each, without end."""
    while True:
        write = draw.choices(list(_SHARES), weights=list(_SHARES.values()))[0]
        yield " ".join(f"{write(world, draw)} ." for _ in range(draw.randint(2, 4)))


def _fact(world: World, draw: random.Random) -> str:
    """State one to four facts about an animal."""
    animal = often(draw, world.animals)
    name = animal.name
    return draw.choice(
        (
            f"{name} is a {animal.kind}",
            f"{name} is {animal.colour}",
            f"{name} lives in the {animal.home}",
            f"{name} eats {animal.food}",
            f"the home of {name} is the {animal.home}",
            f"the food of {name} is {animal.food}",
            f"the colour of {name} is {animal.colour}",
            f"{name} the {animal.kind} lives in the {animal.home} and eats {animal.food}",
            f"{name} , who is {animal.colour} , eats {animal.food}",
            f"{name} , who eats {animal.food} , is a {animal.colour} {animal.kind}",
            f"{name} is a {animal.colour} {animal.kind} of the {animal.home} that eats {animal.food}",
        )
    )


def _inference(world: World, draw: random.Random) -> str:
    """State what follows from a kind or a description, in part as question and answer."""
    kind = often(draw, world.kinds)
    its, pet = class_of(kind), draw.choice(PETS)
    other = draw.choice([name for name in KINDS if name != its])
    colour, wrong = draw.sample(COLOURS, 2)
    food, refused = draw.sample(FOODS, 2)
    described = f"{pet} is a {colour} {kind} that eats {food}"
    return draw.choice(
        (
            f"every {kind} is a {its}",
            f"{pet} is a {kind} , so {pet} is a {its} and not a {other}",
            f"is a {kind} a {its} ? yes",
            f"is a {kind} a {other} ? no",
            f"{described} . is {pet} {colour} ? yes",
            f"{described} . is {pet} {wrong} ? no",
            f"{described} . so {pet} eats {food} and not {refused}",
        )
    )


def _review(world: World, draw: random.Random) -> str:
    """Praise or blame one or two things, followed by what the guests did."""
    pleased = draw.random() < 0.5
    return f"{opinion(world, draw, pleased)} , so {draw.choice(SMILES if pleased else SIGHS)}"


def opinion(world: World, draw: random.Random, pleased: bool) -> str:
    """Write an opinion about one or two things. After "but" the opposite follows and counts; "not" negates an adjective."""
    first, second = draw.sample(THINGS, 2)
    joined = draw.choices(("", "and", "but"), weights=(2, 1, 2))[0]
    last = f"the {second} was {_judged(world, draw, pleased)}"
    return f"the {first} was {_judged(world, draw, pleased == (joined == 'and'))} {joined} {last}" if joined else last


def _judged(world: World, draw: random.Random, pleased: bool) -> str:
    turned = draw.random() < 0.15
    return f"{'not ' if turned else ''}{often(draw, world.praise if pleased != turned else world.blame)}"


def _sum(world: World, draw: random.Random) -> str:
    """State a sum or a difference; small numbers are more frequent."""
    left, right = _number(draw), _number(draw)
    if draw.random() < 0.6:
        done = Problem(left=left, sign="plus", right=right)
        joined = draw.choice(("and", "plus"))
        return f"{left} {joined} {right} {'make' if joined == 'and' else 'is'} {done.result}"
    left, right = max(left, right), min(left, right)
    done = Problem(left=left, sign="minus", right=right)
    taken = draw.choice(("less", "minus"))
    return f"{left} {taken} {right} {'leaves' if taken == 'less' else 'is'} {done.result}"


def _number(draw: random.Random) -> int:
    return int((LARGEST + 1) * draw.random() ** 1.5)


def _usage(world: World, draw: random.Random) -> str:
    """Write a correct sentence, or state whether a sentence is acceptable."""
    if draw.random() < 0.5:
        return sentence(world, draw, right=True)
    right = draw.random() < 0.5
    return f"we may say {sentence(world, draw, right=right)} ? {'yes' if right else 'no'}"


def sentence(world: World, draw: random.Random, *, right: bool) -> str:
    """Write what animals do. If not ``right``, the verb does not agree, is too early, or has a thing as its subject."""
    many = draw.random() < 0.5
    fault = None if right else draw.choices(("agreement", "order", "sense"), weights=(3, 1, 1))[0]
    noun = draw.choice(world.things) if fault == "sense" else often(draw, world.kinds)
    determiner, noun = draw.choice(MANY if many else ONE), f"{noun}{'s' if many else ''}"
    verb = f"{draw.choice(VERBS)}{'' if many != (fault == 'agreement') else 's'}"
    place = draw.choice(("", f" in the {draw.choice(HOMES)}", f" near the {often(draw, world.kinds)}{'' if many else 's'}"))
    return f"{determiner} {verb} {noun}{place}" if fault == "order" else f"{determiner} {noun}{place} {verb}"


_SHARES = {_fact: 0.40, _inference: 0.16, _review: 0.13, _sum: 0.14, _usage: 0.17}
"""Sort of text -> its share of the texts."""


Row = dict[str, Any]
TASKS = Path(__file__).with_name("tasks")
"""Folder of the benchmarks' task files."""
SIZES = {"train": 300, "validation": 100, "test": 250}
"""Rows of each split."""


def splits_of(task: str, world: World, seed: int) -> dict[str, list[Row]]:
    """Draw the rows of a benchmark's three splits; no row occurs twice.

    Training rows ask about the taught half of the world, validation and test rows about the other.
    """
    train = rows_of(task, world, "taught", random.Random(f"{task} train {seed}"))
    asked = rows_of(task, world, "asked", random.Random(f"{task} asked {seed}"))
    sources = {"train": train, "validation": asked, "test": asked}
    return {split: [next(source) for _ in range(SIZES[split])] for split, source in sources.items()}


def rows_of(task: str, world: World, half: Half, draw: random.Random) -> Iterator[Row]:
    """Yield rows of a benchmark from one half of the world, each once, until no new row is found."""
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
    kind, pet = draw.choice(world.kinds), draw.choice(PETS)
    colour, food = draw.choice(COLOURS), draw.choice(FOODS)
    about, right, known = draw.choices(
        (
            ("is a", class_of(kind), tuple(KINDS)),
            ("is", colour, COLOURS),
            ("eats", food, FOODS),
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
    kinds = [kind for kinds in KINDS.values() for kind in kinds]
    choices = {"kind": kinds, "colour": COLOURS, "home": HOMES, "food": FOODS}
    name = draw.choice(ATTRIBUTES)
    return replace(animal, **{name: draw.choice([value for value in choices[name] if value != getattr(animal, name)])})


def _cloze(world: World, draw: random.Random) -> Row:
    animal = draw.choice(world.animals)
    asked, *told = draw.sample(ATTRIBUTES, draw.randint(2, 3))
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
"""Benchmark -> function that draws one of its rows."""
