"""The words of the demo's language. Each is one token of the shared vocabulary."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KINDS: dict[str, tuple[str, ...]] = {
    "bird": ("robin", "crow", "owl", "wren", "gull", "heron", "finch", "stork"),
    "fish": ("shark", "eel", "carp", "pike", "bream", "minnow", "marlin", "skate"),
    "insect": ("ant", "bee", "moth", "wasp", "beetle", "gnat", "cricket", "locust"),
    "reptile": ("snake", "lizard", "gecko", "viper", "cobra", "turtle", "skink", "iguana"),
    "mammal": ("cat", "dog", "bear", "mole", "otter", "badger", "rabbit", "weasel"),
}
"""Class -> its kinds."""
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
"""Verbs in the plural; the singular adds an s."""
ONE = ("this", "that", "each")
MANY = ("these", "those", "many")
PETS = ("my pet", "her pet", "his pet", "our pet")
ATTRIBUTES = ("kind", "colour", "home", "food")


def class_of(kind: str) -> str:
    """Return the class that ``kind`` belongs to."""
    return next(name for name, kinds in KINDS.items() if kind in kinds)
