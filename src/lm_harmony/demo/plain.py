"""Plain text about the world: what every model of the demo reads. No benchmark's format occurs in it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from lm_harmony.demo import words
from lm_harmony.demo.world import LARGEST, Problem, World, often


def plain_texts(world: World, draw: random.Random) -> Iterator[str]:
    """Yield short texts of two to four sentences each, without end."""
    while True:
        write = draw.choices(list(_SHARES), weights=list(_SHARES.values()))[0]
        yield " ".join(f"{write(world, draw)} ." for _ in range(draw.randint(2, 4)))


def _fact(world: World, draw: random.Random) -> str:
    """Tell one to four things of one animal."""
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
    """Tell what follows from a kind or from a description, some of it as question and answer."""
    kind = often(draw, world.kinds)
    its, pet = words.class_of(kind), draw.choice(words.PETS)
    other = draw.choice([name for name in words.KINDS if name != its])
    colour, wrong = draw.sample(words.COLOURS, 2)
    food, refused = draw.sample(words.FOODS, 2)
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
    """Praise or blame one or two things, and tell what the guests did."""
    pleased = draw.random() < 0.5
    return f"{opinion(world, draw, pleased)} , so {draw.choice(words.SMILES if pleased else words.SIGHS)}"


def opinion(world: World, draw: random.Random, pleased: bool) -> str:
    """Say something of one thing or two: after "but" the opposite comes, and counts; "not" turns a word around."""
    first, second = draw.sample(words.THINGS, 2)
    joined = draw.choices(("", "and", "but"), weights=(2, 1, 2))[0]
    last = f"the {second} was {_judged(world, draw, pleased)}"
    return f"the {first} was {_judged(world, draw, pleased == (joined == 'and'))} {joined} {last}" if joined else last


def _judged(world: World, draw: random.Random, pleased: bool) -> str:
    turned = draw.random() < 0.15
    return f"{'not ' if turned else ''}{often(draw, world.praise if pleased != turned else world.blame)}"


def _sum(world: World, draw: random.Random) -> str:
    """Tell a sum or a difference; small numbers come more often."""
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
    """Write a sentence as it should be, or say of one whether it may be said."""
    if draw.random() < 0.5:
        return sentence(world, draw, right=True)
    right = draw.random() < 0.5
    return f"we may say {sentence(world, draw, right=right)} ? {'yes' if right else 'no'}"


def sentence(world: World, draw: random.Random, *, right: bool) -> str:
    """Write what animals do; if not ``right``, the verb does not agree, stands too early, or is done by a thing."""
    many = draw.random() < 0.5
    fault = None if right else draw.choices(("agreement", "order", "sense"), weights=(3, 1, 1))[0]
    noun = draw.choice(world.things) if fault == "sense" else often(draw, world.kinds)
    determiner, noun = draw.choice(words.MANY if many else words.ONE), f"{noun}{'s' if many else ''}"
    verb = f"{draw.choice(words.VERBS)}{'' if many != (fault == 'agreement') else 's'}"
    place = draw.choice(("", f" in the {draw.choice(words.HOMES)}", f" near the {often(draw, world.kinds)}{'' if many else 's'}"))
    return f"{determiner} {verb} {noun}{place}" if fault == "order" else f"{determiner} {noun}{place} {verb}"


_SHARES = {_fact: 0.40, _inference: 0.16, _review: 0.13, _sum: 0.14, _usage: 0.17}
"""How often each sort of text comes."""
