"""The 61 models of the published board: family, kind and size.

The metadata is in catalogue.csv, in the published order. Any other causal language model can be used, too.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Published metadata of one model."""

    model: str
    """Name on the Hugging Face hub."""
    family: str
    """Family of the model: Qwen, Gemma, Llama, Yi, Pythia or GPT-2."""
    kind: str
    """"base" (pretrained only) or "instruct" (tuned to follow instructions or to chat)."""
    nominal_params_b: float
    """Number of parameters in the model's name, in billions."""
    params_b: float | None
    """Number of parameters that its authors report, in billions; None: not reported."""
    pretraining_tokens_b: float | None
    """Number of pretraining tokens, in billions; None: not reported."""


def _read() -> dict[str, ModelInfo]:
    text = resources.files(__package__).joinpath("catalogue.csv").read_text(encoding="utf-8")
    return {row["model"]: _info(row) for row in csv.DictReader(text.splitlines())}


def _info(row: Mapping[str, str]) -> ModelInfo:
    return ModelInfo(
        model=row["model"],
        family=row["family"],
        kind=row["kind"],
        nominal_params_b=float(row["nominal_params_b"]),
        params_b=_optional(row["params_b"]),
        pretraining_tokens_b=_optional(row["pretraining_tokens_b"]),
    )


def _optional(cell: str) -> float | None:
    return float(cell) if cell else None


MODELS: Mapping[str, ModelInfo] = MappingProxyType(_read())
"""Hub name -> metadata, in the published order."""


def find(name: str) -> ModelInfo | None:
    """Return the catalogued model of that hub name, or None."""
    return MODELS.get(name)


def select(
    *, family: str | None = None, kind: str | None = None, min_params_b: float = 0, max_params_b: float = float("inf")
) -> list[str]:
    """Return the hub names of the catalogued models of a family (upper or lower case), a kind and a size in billions."""
    return [
        info.model
        for info in MODELS.values()
        if info.family.lower() == str(family or info.family).lower()
        and info.kind == (kind or info.kind)
        and min_params_b <= (info.params_b or info.nominal_params_b) <= max_params_b
    ]
