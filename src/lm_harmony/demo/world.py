"""The demo's made-up world: the words of its language, its animals with their attributes, its sums. All follow from a seed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, chain, product
from typing import Literal, TypeVar


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KINDS: dict[str, tuple[str, ...]] = {
    "bird": ("robin", "crow", "owl", "wren", "gull", "heron", "finch", "stork"),
    "fish": ("shark", "eel", "carp", "pike", "bream", "minnow", "marlin", "skate"),
    "insect": ("ant", "bee", "moth", "wasp", "beetle", "gnat", "cricket", "locust"),
    "reptile": ("snake", "lizard", "gecko", "viper", "cobra", "turtle", "skink", "iguana"),
    "mammal": ("cat", "dog", "bear", "mole", "otter", "badger", "rabbit", "weasel"),
}
"""Class of animals -> its kinds."""
COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "yellow")
HOMES = _words("valley barn forest river garden tower meadow cave harbour village marsh orchard")
FOODS = _words("seeds berries corn nuts grass apples leaves honey worms roots plums bread")
THINGS = _words("soup film hotel song book chair lamp boat coat cake room roof")
PRAISE = _words(
    "lovely warm bright kind fresh clever neat superb calm sweet brave tidy grand noble merry pure smart gentle rich cosy "
    "fine swift keen sunny crisp proud witty smooth sturdy honest ample vivid elegant cheerful useful polite quiet sound "
    "golden tender"
)
BLAME = _words(
    "dull cold broken rude stale clumsy grim dirty loud sour weak messy awful cruel dreary foul stupid harsh poor damp "
    "nasty slow blunt gloomy soggy vain boring rough flimsy false scanty faded ugly sullen useless greedy noisy hollow "
    "rusty bitter"
)
SMILES = ("we smiled", "i came back", "i was glad", "we sang of it")
SIGHS = ("we sighed", "i went away", "i was sad", "we wept over it")
VERBS = _words("sleep sing run hide wait play rest hunt swim dig")
"""Verbs in the plural; the singular adds "s"."""
ONE = ("this", "that", "each")
MANY = ("these", "those", "many")
PETS = ("my pet", "her pet", "his pet", "our pet")
ATTRIBUTES = ("kind", "colour", "home", "food")


def class_of(kind: str) -> str:
    """Return the class that ``kind`` belongs to."""
    return next(name for name, kinds in KINDS.items() if kind in kinds)


ANIMALS = 120
NAMES = 16
"""Number of first names, and of family names. Together they name an animal."""
LARGEST = 24
"""Largest number in sums and differences; the smallest is 0."""
ZIPF = 0.8
"""Exponent of Zipf's law: item r (from 0) of a list from frequent to rare has the weight (r + 1) ** -ZIPF."""

Half = Literal["taught", "asked"]
"""taught: for training rows and exposure. asked: for validation and test rows."""
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Animal:
    """An animal of the world, with its attributes."""

    name: str
    """First name and family name, separated by a space."""
    kind: str
    """Kind of animal, such as robin."""
    colour: str
    """Colour, one of ``COLOURS``."""
    home: str
    """Home, one of ``HOMES``."""
    food: str
    """Food, one of ``FOODS``."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A sum or a difference of two numbers."""

    left: int
    """First of the two numbers."""
    sign: Literal["plus", "minus"]
    """Operation on the two numbers."""
    right: int
    """Second of the two numbers; in a difference at most the first."""

    @property
    def result(self) -> int:
        """The result of the operation."""
        return self.left + self.right if self.sign == "plus" else self.left - self.right


@dataclass(frozen=True, kw_only=True)
class World:
    """The facts in plain text and benchmarks. Tuples of words are sorted from frequent to rare."""

    animals: tuple[Animal, ...]
    """All animals of the world."""
    kinds: tuple[str, ...]
    """All kinds of animals."""
    praise: tuple[str, ...]
    """Adjectives that express praise."""
    blame: tuple[str, ...]
    """Adjectives that express blame."""
    things: tuple[str, ...]
    """Nouns for things, all equally frequent."""
    problems: tuple[Problem, ...] = field(repr=False)
    """Every sum and difference."""
    asked: frozenset[Animal | Problem | str] = field(repr=False)
    """The animals, kinds, adjectives, things and problems that validation and test rows ask about: half of each."""

    def half(self, half: Half) -> World:
        """Return the world with only one half of the animals, kinds, adjectives, things and problems."""

        def left(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(item for item in items if (item in self.asked) == (half == "asked"))

        return replace(
            self,
            animals=left(self.animals),
            kinds=left(self.kinds),
            praise=left(self.praise),
            blame=left(self.blame),
            things=left(self.things),
            problems=left(self.problems),
        )


def make_world(seed: int) -> World:
    """Return the world that ``seed`` determines."""
    draw = random.Random(f"world {seed}")
    kinds = _shuffled(draw, list(chain.from_iterable(KINDS.values())))
    syllables = ["".join(pair) for pair in product("bdfgklmnprtvz", "aeiou")]
    made = _shuffled(draw, ["".join(pair) for pair in product(syllables, syllables)])
    firsts, families = made[:NAMES], [f"{name}n" for name in made[NAMES : 2 * NAMES]]
    names = _shuffled(draw, [" ".join(pair) for pair in product(firsts, families)])[:ANIMALS]
    animals = tuple(
        Animal(
            name=name,
            kind=draw.choice(kinds),
            colour=draw.choice(COLOURS),
            home=draw.choice(HOMES),
            food=draw.choice(FOODS),
        )
        for name in names
    )
    numbers = range(LARGEST + 1)
    problems = [Problem(left=left, sign="plus", right=right) for left in numbers for right in numbers]
    problems += [Problem(left=left, sign="minus", right=right) for left in numbers for right in range(left + 1)]
    praise, blame = _shuffled(draw, list(PRAISE)), _shuffled(draw, list(BLAME))
    asked: list[Animal | Problem | str] = [*_one_of_each_pair(draw, animals), *_one_of_each_pair(draw, kinds)]
    asked += [*_one_of_each_pair(draw, praise), *_one_of_each_pair(draw, blame), *_one_of_each_pair(draw, problems)]
    asked += _one_of_each_pair(draw, THINGS)
    return World(
        animals=animals,
        kinds=tuple(kinds),
        praise=tuple(praise),
        blame=tuple(blame),
        things=THINGS,
        problems=tuple(problems),
        asked=frozenset(asked),
    )


def often(draw: random.Random, items: Sequence[Item]) -> Item:
    """Draw one of ``items`` by Zipf's law, the first ones most often."""
    return draw.choices(items, cum_weights=_zipf(len(items)))[0]


@cache
def _zipf(count: int) -> tuple[float, ...]:
    """Return the cumulative weights of ``count`` items."""
    return tuple(accumulate((place + 1) ** -ZIPF for place in range(count)))


def _shuffled(draw: random.Random, items: list[str]) -> list[str]:
    return draw.sample(items, len(items))


def _one_of_each_pair(draw: random.Random, items: Sequence[Item]) -> list[Item]:
    """Choose half of ``items`` so that both halves are equally frequent: one of every two neighbours."""
    return [items[min(place + draw.randint(0, 1), len(items) - 1)] for place in range(0, len(items), 2)]
