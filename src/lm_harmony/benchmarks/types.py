"""The data types of a benchmark: caps of the splits, a rendered example and its requests, replies, metric keys and scores.

This module imports no other library, so that records and boards can use it without PyTorch or lm_eval.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from lm_harmony.errors import check_integer
from lm_harmony.recipe import FILE_RULES

SplitProtocol = Literal["clean", "published"]
""""clean" keeps every scored question out of training; "published" reproduces the published splits with their leaks."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """The most documents that each split keeps (published: 50,000 / 1,000 / 10,000)."""

    __pydantic_config__ = FILE_RULES

    train: int = 50_000
    """Documents to learn from."""
    validation: int = 1_000
    """Documents that choose the epoch."""
    test: int = 10_000
    """Documents that are scored."""

    def __post_init__(self) -> None:
        for name, flag in (("train", "max_num_train"), ("validation", "max_num_valid"), ("test", "max_num_test")):
            check_integer(f"dataset_param.{flag}", getattr(self, name), 1)


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
    location: str = field(default="", compare=False)
    """Split and row of the document that the request belongs to, for messages: "test row 5"."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One document of a benchmark, rendered."""

    row: int
    """Row number of the document in the split that it came from, counted from 0."""
    document: Mapping[str, Any]
    """The row itself, as lm_eval's task functions take it."""
    location: str = field(default="", compare=False)
    """Split and row of the document, for messages: "test row 5"."""
    context: str
    """The context that goes with the right answer; training text = context + continuation."""
    continuation: str | None
    """Target delimiter and right answer; None: the row has no usable answer and cannot be learned from."""
    requests: tuple[Request, ...]
    """What is asked of a model to score this document."""
    target: str = ""
    """lm_eval's target as text: what replies are counted against, e.g. all right answers where only the first is learned."""

    @property
    def request_texts(self) -> tuple[tuple[str, str], ...]:
        """What is asked, without the answer or the row's bookkeeping: equal for rows that recur."""
        return tuple((request.context, request.continuation) for request in self.requests)


Reply = tuple[float, bool] | float | str
"""(log-likelihood in nats, greedy?) to loglikelihood, nats to loglikelihood_rolling, text to generate_until."""


class MetricKey(NamedTuple):
    """lm_eval's key of one metric: the metric and the filter that its replies went through, written "metric,filter"."""

    metric: str
    """Name of the metric, such as "acc_norm"."""
    filter: str = "none"
    """Name of the filter; "none" stands for replies as they are."""

    @classmethod
    def parse(cls, key: str) -> MetricKey:
        """Return the parts of "metric,filter"; a key without a comma has the filter "none"."""
        metric, _, filter_name = key.partition(",")
        return cls(metric, filter_name or "none")

    @property
    def stderr(self) -> str:
        """The key under which lm_eval writes the metric's standard error: "metric_stderr,filter"."""
        return f"{self.metric}_stderr,{self.filter}"

    def __str__(self) -> str:
        return f"{self.metric},{self.filter}"


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model reached on some documents."""

    __pydantic_config__ = FILE_RULES

    metrics: Mapping[str, float]
    """Aggregated value of each metric, keyed as lm_eval does: "metric,filter"; a metric without a finite value is left out."""
    stderrs: Mapping[str, float | None]
    """Standard error of each metric under the same key; None: not defined or not asked."""
    documents: int
    """Number of documents scored."""
    samples: Annotated[tuple[Mapping[str, Any], ...], Field(exclude=True)] = field(default=(), repr=False, compare=False)
    """Per-document outcomes in lm_eval's sample schema; empty unless asked."""


def fingerprint_of(*splits: Sequence[Example]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of every request, learned text and target of ``splits`` in their order."""
    digest = hashlib.sha256()
    for examples in splits:
        digest.update(f"split of {len(examples)}".encode())
        for example in examples:
            requests = [[one.kind, one.context, one.continuation, dict(one.generation)] for one in example.requests]
            texts = [example.context, example.continuation, example.target, *requests]
            digest.update(json.dumps(texts, default=str).encode())
    return digest.hexdigest()[:16]
