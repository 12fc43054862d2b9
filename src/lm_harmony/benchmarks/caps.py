"""How many rows of a benchmark are used, and by which rule its splits are made. Imports nothing heavy: records read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_harmony.errors import check_integer

SplitProtocol = Literal["clean", "published"]
""""clean" keeps every scored question out of training; "published" reproduces the published splits with their leaks."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """The most documents that each split keeps (published: 50,000 / 1,000 / 10,000)."""

    train: int = 50_000
    """Documents to learn from."""
    validation: int = 1_000
    """Documents that choose the epoch."""
    test: int = 10_000
    """Documents that are scored."""

    def __post_init__(self) -> None:
        for name, flag in (("train", "max_num_train"), ("validation", "max_num_valid"), ("test", "max_num_test")):
            check_integer(f"dataset_param.{flag}", getattr(self, name), 1)
