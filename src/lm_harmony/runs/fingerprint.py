"""Fingerprints: of a run's specification, which names its folder, and of its requests, which identify scores. No torch.

The content of files is not part of a run's id: a run whose model, task or rows have changed keeps its folder and is no longer
current (``runs.sources``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX, corpus_path
from lm_harmony.benchmarks.types import Example, fingerprint_of
from lm_harmony.models.model_folder import shown_name
from lm_harmony.recipe import fingerprint
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import RunSpec

if TYPE_CHECKING:  # types alone: a study coordinator reads this module and needs no torch
    from lm_harmony.benchmarks.harness.few_shot import DirectRows
    from lm_harmony.benchmarks.splits import Splits
    from lm_harmony.engine.sequences import TokenSequence


def run_id(spec: RunSpec, base: Path | None = None) -> str:
    """Return 16 hexadecimal digits that identify the specification of a run.

    Args:
        spec: specification of the run.
        base: folder that paths of models and task files are relative to, so that a study can be moved with its results; None:
            paths are absolute.
    """
    asked: dict[str, Any] = spec.to_dict()
    asked.pop("execution")  # changes scores by rounding only
    asked.pop("recipe_fingerprint")
    asked.pop("direct")  # direct scores are stored apart from the runs
    asked.pop("direct_fewshot", None)
    if not spec.model.apply_chat_template:
        asked["model"].pop("chat_template_date")  # unused
    asked["model"]["name"] = _place(spec.model.name, base)
    asked["benchmark"] |= {"data_dir": None, "include_path": None, "task": _task(spec.benchmark.task, base)}
    if spec.benchmark.train_on is not None:
        asked["benchmark"]["train_on"] = _task(spec.benchmark.train_on, base)
    return fingerprint(asked)


def other_request(made: RunSpec, asked: RunSpec, given: Collection[str] | None = None) -> str | None:
    """Return in what the request of a record differs from another one; None: in nothing but places.

    Args:
        made: specification of the record.
        asked: the other one.
        given: names of the fields that are compared, such as "recipe.epochs"; None: all.
    """
    differing = request_differences(made, asked)
    said = [f"{key} was {was}, is {now}" for key, (was, now) in differing.items() if given is None or key in given]
    return "; ".join(said) or None


def request_differences(made: RunSpec, asked: RunSpec) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two requests differ, by names such as "recipe.epochs", with both values; no places."""
    parts = []
    for spec in (made, asked):
        values: dict[str, Any] = spec.to_dict()
        for key in ("execution", "recipe_fingerprint", "direct", "direct_fewshot"):
            values.pop(key, None)
        if not spec.model.apply_chat_template:
            values["model"].pop("chat_template_date")
        values["model"]["name"] = os.path.basename(os.path.normpath(spec.model.name))
        values["benchmark"] |= {"data_dir": None, "include_path": None, "task": spec.benchmark.name}
        values["benchmark"].pop("train_on", None)  # part of the benchmark's name
        parts.append({(key, name): item for key, value in values.items() for name, item in _items(value)})
    before, now = parts
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return {".".join(filter(None, key)): (before.get(key), now.get(key)) for key in differing}


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else (("", value),)


def folder_name(spec: RunSpec, base: Path | None = None) -> str:
    """Return the path of a run below the results folder, <benchmark>/<model>/seed<n>-<id>; ``base`` as for ``run_id``."""
    names = (spec.benchmark.name, shown_name(spec.model.name))
    return "/".join((*map(_clean, names), f"seed{spec.seed}-{run_id(spec, base)}"))


def _clean(name: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "--", name.strip("/"))
    return cleaned if cleaned.strip(".") else "unnamed"  # "..", of a submitted record, would be the folder above


def _task(task: str, base: Path | None) -> str:
    corpus = corpus_path(task)
    if corpus is not None:
        return CORPUS_PREFIX + _place(str(corpus), base)
    return _place(task, base) if task.endswith((".yaml", ".yml")) else task


def _place(name: str, base: Path | None) -> str:
    """Return the path of an existing file or folder relative to ``base``, and any other name unchanged."""
    path = Path(name)
    if not path.exists():
        return name
    whole = path.resolve()
    try:
        return whole.as_posix() if base is None else os.path.relpath(whole, base.resolve()).replace(os.sep, "/")
    except ValueError:  # on another drive
        return whole.as_posix()


@dataclass(frozen=True, kw_only=True)
class RequestFingerprints:
    """Fingerprints of the requests to a model, 16 hexadecimal digits each."""

    run: str
    """Of requests and targets of the three splits, scoring rules, limits, and all training tokens."""
    test: str
    """Of requests, targets and rows of the test split, scoring rules, and limits."""
    sampled: bool
    """Whether the test split has sampled answers, which depend on the seed."""
    few_shot: Mapping[int, str] = field(default_factory=dict)
    """Number of examples before each question, from 1 -> the same as ``test``, of the requests with these examples."""


def request_fingerprints(
    spec: RunSpec,
    splits: Splits,
    sequences: Sequence[TokenSequence],
    *,
    counting: Mapping[str, Any],
    longest: int,
    targets: Sequence[str] = (),
    direct: Mapping[int, DirectRows] = {},
) -> RequestFingerprints:
    """Return the fingerprints of a run.

    Args:
        spec: specification of the run.
        splits: rendered rows of the run.
        sequences: training rows as token ids.
        counting: ``harness.provenance.scoring_rules`` of its task.
        longest: the model's longest input in tokens, to which requests are cut.
        targets: names of the adapted modules where neither the recipe nor PEFT names them.
        direct: number of examples before a question -> the test rows with them.
    """
    limits: dict[str, Any] = {"longest": longest, "max_new_tokens": spec.recipe.max_new_tokens}
    if spec.prompt.think_end_token is not None:  # changes answers; requests hold the rest of the prompt
        limits["think_end_token"] = spec.prompt.think_end_token
    trained = {"caps": asdict(spec.benchmark.caps), "max_length": spec.recipe.max_length, "tokens": _tokens(sequences)}
    if targets:  # the recipe says all others
        trained["targets"] = list(targets)

    def of_test(rows: Sequence[Example]) -> str:
        return fingerprint([fingerprint_of(rows), _rows(rows), counting, limits])

    return RequestFingerprints(
        run=fingerprint([splits.fingerprint(), counting, limits, trained]),
        test=of_test(splits.test),
        sampled=_is_sampled(splits.test),
        few_shot={shots: of_test(rows.examples) for shots, rows in direct.items() if shots},
    )


def direct_score_id(spec: RunSpec, asked: RequestFingerprints, sources: Iterable[Source], *, dtype: str, shots: int = 0) -> str:
    """Return the key of a direct score: a fingerprint of everything that affects it, which excludes recipe and training seed.

    Args:
        spec: specification of a run.
        asked: fingerprints of its requests.
        sources: sources of its model and task; rows count through their requests.
        dtype: number formats of weights and matrix products, as ``LanguageModel.precision`` writes them.
        shots: number of examples before each question.
    """
    model = asdict(spec.model) | {"name": None, "revision": None, "chat_template_date": None}  # only the content counts
    content = [_content(source) for source in sources if source.kind != "rows"]
    versions = {package: version(package) for package in ("lm_eval", "lm-harmony")}
    return fingerprint(
        [model, content, asked.few_shot.get(shots, asked.test), dtype, versions, spec.seed if asked.sampled else None]
    )


def _content(source: Source) -> tuple[str | None, ...]:
    """Return what identifies the content of a source; for a repository of unknown commit, its revision."""
    unknown = source.path is None and source.commit is None
    return (*source.content, source.revision) if unknown else source.content


def _is_sampled(examples: Iterable[Example]) -> bool:
    """Return whether any request has a sampled answer."""
    generations = [request.generation for example in examples for request in example.requests]
    return any(generation.get("do_sample") or generation.get("temperature") for generation in generations)


def _tokens(sequences: Iterable[TokenSequence]) -> str:
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(array("q", (len(sequence.ids), sequence.first_label, *sequence.ids)).tobytes())
    return digest.hexdigest()


def _rows(examples: Iterable[Example]) -> str:
    """Return a digest of the documents, because a task's scoring function may use columns that are in no request."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(dict(example.document), sort_keys=True, default=repr).encode())
    return digest.hexdigest()
