"""A document as text: what training learns and what scoring asks, made by one function so that they cannot differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
"""lm_eval's request types: how likely a continuation is, how likely a whole text is, what the model writes."""

ChatTemplate = Callable[..., str]
"""Renders messages ({"role", "content"}) to text; takes the keyword ``add_generation_prompt``."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model, in lm_eval's terms."""

    kind: RequestKind
    """What is asked."""
    context: str
    """The conditioning text ("" for loglikelihood_rolling)."""
    continuation: str = ""
    """The text whose log-likelihood is asked ("" for generate_until)."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """lm_eval's generation arguments: until, max_gen_toks, do_sample, temperature ... (generate_until only)."""
    document: str = field(default="", compare=False)
    """Which document of which split asks, for messages: "test row 5"."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One document of a benchmark, rendered."""

    row: int
    """Row number of the document in the split that it came from, counted from 0."""
    document: Mapping[str, Any]
    """The row itself, as lm_eval's task functions take it."""
    place: str = field(default="", compare=False)
    """Which document of which split it is, for messages: "test row 5"."""
    context: str
    """The context that goes with the right answer; training text = context + continuation."""
    continuation: str | None
    """Target delimiter and right answer; None: the row has no usable answer and cannot be learned from."""
    requests: tuple[Request, ...]
    """What is asked of a model to score this document."""
    target: str = ""
    """lm_eval's target as text: what replies are counted against, e.g. all right answers where only the first is learned."""

    @property
    def identity(self) -> tuple[tuple[str, str], ...]:
        """What is asked, without the answer or the row's bookkeeping: equal for rows that recur."""
        return tuple((request.context, request.continuation) for request in self.requests)


Reply = tuple[float, bool] | float | str
"""(log-likelihood in nats, greedy?) to loglikelihood, nats to loglikelihood_rolling, text to generate_until."""
