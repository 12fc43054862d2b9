"""Names of the checkpoints of a training run: which run, after which step, after how many tokens. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from lm_harmony.models.catalogue import find

PYTHIA_TOKENS = 2_097_152
"""Tokens of an optimizer step of Pythia: 1,024 sequences of 2,048 tokens (Biderman et al. 2023, arXiv 2304.01373)."""
_STEP = re.compile(r"(?:steps?|checkpoint|ckpt|iter(?:ation)?)[-_]?(\d+)", re.IGNORECASE)
_TOKENS = re.compile(r"tokens?[-_]?(\d+(?:\.\d+)?)([KMBT])", re.IGNORECASE)
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a training run, as its name says it."""

    run: str
    """Name of the training run: the model on the hub, or the folder of the checkpoints."""
    step: int | None
    """Optimizer steps before it; None: not in its name, as for the branch main."""
    tokens: float | None = None
    """Training tokens before it; None: not known."""

    def tokens_at(self, tokens_per_step: float | None) -> float | None:
        """Return the training tokens before it, by its own tokens or by those of a step; None: not known."""
        known = self.step is not None and tokens_per_step is not None
        return self.tokens if self.tokens is not None or not known else self.step * tokens_per_step  # type: ignore[operator]

    @property
    def order(self) -> tuple[float, float]:
        """Sort key within a run; a checkpoint without a step is the last one."""
        return self.step if self.step is not None else float("inf"), self.tokens or 0.0


def revision_name(name: str, revision: str) -> str:
    """Return the name of one of several revisions of a model, on boards and in folders: "owner/model@step1000"."""
    return f"{name}@{revision}"


def checkpoint_of(name: str) -> Checkpoint | None:
    """Return the checkpoint of that name, or None if the name is not that of a checkpoint.

    Args:
        name: "owner/model@revision", or the absolute path of a folder named as a step, such as "/runs/mine/checkpoint-500".
    """
    path = PurePath(name)
    if "@" in path.name:
        run, _, revision = name.rpartition("@")
    elif path.is_absolute() and _STEP.search(path.name):
        run, revision = str(path.parent), path.name
    else:
        return None
    step, tokens, info = _STEP.search(revision), _TOKENS.search(revision), find(run)
    number = int(step[1]) if step else None
    read = float(tokens[1]) * _UNITS[tokens[2].lower()] if tokens else None
    if read is None and info is not None:
        whole = None if info.pretraining_tokens_b is None else info.pretraining_tokens_b * 1e9
        per_step = PYTHIA_TOKENS if info.family == "Pythia" else None
        read = whole if number is None else number * per_step if per_step else None
    return Checkpoint(run=run, step=number, tokens=read)
