"""What a model reached on some documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model reached on some documents."""

    metrics: Mapping[str, float]
    """Aggregated value of each metric, keyed as lm_eval does: "metric,filter"; a metric without a finite value is left out."""
    stderrs: Mapping[str, float | None]
    """Standard error of each metric under the same key; None: not defined or not asked."""
    documents: int
    """Number of documents scored."""
    samples: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, compare=False)
    """Per-document outcomes in lm_eval's sample schema; empty unless asked."""

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain values, without samples; ``Score(**values)`` rebuilds it."""
        return {"metrics": dict(self.metrics), "stderrs": dict(self.stderrs), "documents": self.documents}
