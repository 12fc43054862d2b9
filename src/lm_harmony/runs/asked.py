"""Fingerprints of what a model was asked: of a whole run, and of the test alone, whose direct score other runs share."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from lm_harmony.benchmarks.examples import Example
from lm_harmony.benchmarks.splits import Splits, fingerprint_of
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.recipe import fingerprint
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Fingerprints of what a model is asked, 16 hexadecimal digits each."""

    run: str
    """Requests and targets of the three splits, how answers are counted, limits, and every token that is trained on."""
    test: str
    """Requests, targets and rows of the test split, how answers are counted, and limits."""
    sampled: bool
    """Whether the test asks for sampled answers, which the seed decides."""


def what_is_asked(
    spec: RunSpec, splits: Splits, sequences: Sequence[TokenSequence], *, counting: Mapping[str, Any], longest: int
) -> Asked:
    """Return the fingerprints of a run.

    Args:
        spec: the run.
        splits: its rendered rows.
        sequences: its training texts as tokens.
        counting: ``harness.counting.counting_rules`` of its task.
        longest: the model's longest input in tokens, which cuts what is asked.
    """
    limits = {"longest": longest, "max_new_tokens": spec.recipe.max_new_tokens}
    trained = {"caps": asdict(spec.benchmark.caps), "max_length": spec.recipe.max_length, "tokens": _tokens(sequences)}
    return Asked(
        run=fingerprint([splits.fingerprint(), counting, limits, trained]),
        test=fingerprint([fingerprint_of(splits.test), _rows(splits.test), counting, limits]),
        sampled=_is_sampled(splits.test),
    )


def direct_id(spec: RunSpec, asked: Asked, sources: Iterable[Source], *, dtype: str) -> str:
    """Return what tells a direct score from others: all that decides it, and no seed or recipe of a later training.

    Args:
        spec: a run.
        asked: its fingerprints.
        sources: of its model and of its task; the rows count as they are asked.
        dtype: types of the weights and of the products, as ``LanguageModel.precision`` writes them.
    """
    model = asdict(spec.model) | {"name": None, "revision": None, "chat_template_date": None}  # the content counts
    content = [_content(source) for source in sources if source.kind != "rows"]
    versions = {package: version(package) for package in ("lm_eval", "lm-harmony")}
    return fingerprint([model, content, asked.test, dtype, versions, spec.seed if asked.sampled else None])


def _content(source: Source) -> tuple[str | None, ...]:
    """Return what decides a source's content: of a repository whose commit could not be told, the revision that was asked."""
    unknown = source.path is None and source.commit is None
    return (*source.content, source.revision) if unknown else source.content


def _is_sampled(examples: Iterable[Example]) -> bool:
    """Tell whether any request asks for a sampled answer."""
    generations = [request.generation for example in examples for request in example.requests]
    return any(generation.get("do_sample") or generation.get("temperature") for generation in generations)


def _tokens(sequences: Iterable[TokenSequence]) -> str:
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(array("q", (len(sequence.ids), sequence.first_label, *sequence.ids)).tobytes())
    return digest.hexdigest()


def _rows(examples: Iterable[Example]) -> str:
    """Return a digest of the documents: a task's own function may count what stands in no request and no target."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(dict(example.document), sort_keys=True, default=repr).encode())
    return digest.hexdigest()
