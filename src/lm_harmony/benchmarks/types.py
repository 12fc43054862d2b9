"""The data types of a benchmark: caps of the splits, a rendered example and its requests, replies, metric keys and scores.

Records and boards use this module, so it imports neither PyTorch nor lm_eval.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from lm_harmony.errors import FILE_RULES, check_integer

Role = Literal["train", "validation", "test"]
"""Use of a split in a run; lm_eval names the data set's split of each role in the task's file."""
SPLIT_FIELDS: Mapping[Role, str] = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
"""Role -> the field of a task's file that names its split."""
SplitProtocol = Literal["clean", "published"]
"""How splits are made. "clean" removes scored questions from training; "published" keeps the overlaps of the paper."""
SplitUse = Literal["all", "training", "scoring"]
"""What a task is opened for: all splits; training and validation rows for another benchmark; the scored split only."""


def used_splits(splits: Mapping[Role, str], use: SplitUse) -> dict[Role, str]:
    """Return the part of ``splits`` (role -> split of the data set) that ``use`` reads.

    Training uses the validation split only if it differs from the training split. Scoring uses the test split, or the validation
    split of a task without one.
    """
    if use == "all":
        return dict(splits)
    if use == "scoring":
        return {role: splits[role] for role in (("test",) if "test" in splits else ("validation",)) if role in splits}
    names: tuple[Role, ...] = ("train", "validation") if splits.get("validation") != splits.get("train") else ("train",)
    return {role: splits[role] for role in names if role in splits}


TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.2
"""Shares of the training rows that become train and validation where a task has no validation rows, each rounded down."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Largest number of documents of each split (published: 50,000 / 1,000 / 10,000)."""

    __pydantic_config__ = FILE_RULES

    train: int = 50_000
    """Largest number of training documents."""
    validation: int = 1_000
    """Largest number of documents on which the epoch is chosen."""
    test: int = 10_000
    """Largest number of test documents."""

    def __post_init__(self) -> None:
        for name, flag in (("train", "max_num_train"), ("validation", "max_num_valid"), ("test", "max_num_test")):
            check_integer(f"dataset_param.{flag}", getattr(self, name), 1)

    def shared_by(self, tasks: int) -> Caps:
        """Return the caps of each of several tasks: an equal share of training and validation rows, and all test rows."""
        return replace(self, train=max(1, self.train // tasks), validation=max(1, self.validation // tasks))


Aliases = Literal["first", "joined"]
"""Which of several right answers is trained on: the first, or all of them joined by spaces (as in the published runs)."""
RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
"""lm_eval's request types: the log-likelihood of a continuation, of a whole text, and a generated answer."""

ChatTemplate = Callable[..., str]
"""Function that renders messages ({"role", "content"}) as text; it accepts the keyword ``add_generation_prompt``."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to a model, with lm_eval's arguments."""

    kind: RequestKind
    """Type of the request, and so of the reply."""
    context: str
    """The conditioning text ("" for loglikelihood_rolling)."""
    continuation: str = ""
    """The text whose log-likelihood is computed ("" for generate_until)."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """lm_eval's generation arguments, such as until, max_gen_toks, do_sample and temperature (generate_until only)."""
    location: str = field(default="", compare=False)
    """Split and row of the document that the request belongs to, for messages: "test row 5"."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One document of a benchmark, rendered as training text and as the requests that score it."""

    row: int
    """Number of the document in the split that it came from, from 0."""
    document: Mapping[str, Any]
    """The row itself, as lm_eval's task functions receive it."""
    location: str = field(default="", compare=False)
    """Split and row of the document, for messages: "test row 5"."""
    context: str
    """The context of the right answer. The training text is context + continuation."""
    continuation: str | None
    """Target delimiter and right answer; None: the row has no usable answer, so it is not trained on."""
    requests: tuple[Request, ...]
    """The requests whose replies score this document."""
    target: str = ""
    """lm_eval's target as text, with which replies are compared: all right answers, where only the first is trained on."""
    subtask: str = ""
    """Task that the document belongs to, if the benchmark is a group of tasks."""

    @property
    def request_texts(self) -> tuple[tuple[str, str], ...]:
        """(context, continuation) of every request. Two rows with the same question have equal texts, whatever their answers."""
        return tuple((request.context, request.continuation) for request in self.requests)


Reply = tuple[float, bool] | float | str
"""Reply to a request: (nats, whether greedy) for loglikelihood, nats for loglikelihood_rolling, text for generate_until."""


def requests_of(examples: Sequence[Example]) -> list[Request]:
    """Return the requests of all examples in their order."""
    return [request for example in examples for request in example.requests]


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
class SubtaskScore:
    """The metrics of one model on some documents of one task."""

    __pydantic_config__ = FILE_RULES

    metrics: Mapping[str, float]
    """Metric key ("metric,filter") -> aggregated value. A metric without a finite value is left out."""
    stderrs: Mapping[str, float | None]
    """Metric key -> standard error; None: not defined, or not computed."""
    documents: int
    """Number of documents scored."""

    def shown(self, metric: str) -> str:
        """Return the value of a metric with its standard error, such as "0.5080 ± 0.0317"; "" if it has no value."""
        value, stderr = self.metrics.get(metric), self.stderrs.get(metric)
        return "" if value is None else f"{value:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")


@dataclass(frozen=True, kw_only=True)
class Score(SubtaskScore):
    """The metrics of one model on the scored documents of a benchmark: of a task, or of a group of tasks."""

    samples: Annotated[tuple[Mapping[str, Any], ...], Field(exclude=True)] = field(default=(), repr=False, compare=False)
    """Per-document results in lm_eval's sample schema, of a group with the key "task"; empty where they were not kept."""
    subtasks: Mapping[str, SubtaskScore] = field(default_factory=dict)
    """Task of a group -> its score, in lm_eval's order; empty: the benchmark is a single task."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = write(self)
        return plain if plain.get("subtasks") else {key: value for key, value in plain.items() if key != "subtasks"}


Shots = int | Literal["task"]
"""Number of examples before each question of a direct score (few-shot); "task": the number in the task's file."""


@dataclass(frozen=True, kw_only=True)
class FewShotScore(Score):
    """The score of an untouched model with examples before each question."""

    requests: str
    """Fingerprint of the requests with their examples."""
    split: str | None
    """Split of the data set that the examples are from; None: the task's file holds them."""
    replaced: int
    """Number of rows for which an example with the same question, or without a usable answer, was replaced."""
    truncated: int
    """Number of rows that were longer than the model's longest input, so that the beginning of their examples was cut."""

    def sentence(self) -> str:
        """Return where the examples are from, and what was changed or cut, as one sentence without a full stop."""
        source = "the task's file" if self.split is None else f"the split {self.split}"
        replaced = f"; in {self.replaced:,} rows one with the same question or without an answer was replaced"
        truncated = f"; {self.truncated:,} of {self.documents:,} rows were too long and lost the beginning of their examples"
        return f"examples from {source}" + replaced * bool(self.replaced) + truncated * bool(self.truncated)


def fingerprint_of(*splits: Sequence[Example]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of every request, training text and target of ``splits`` in their order."""
    digest = hashlib.sha256()
    for examples in splits:
        digest.update(f"split of {len(examples)}".encode())
        for example in examples:
            requests = [[one.kind, one.context, one.continuation, dict(one.generation)] for one in example.requests]
            texts = [example.context, example.continuation, example.target, *requests]
            texts += [example.subtask] if example.subtask else []
            digest.update(json.dumps(texts, default=str).encode())
    return digest.hexdigest()[:16]
