"""What makes two runs of a study the same: what is asked for, and where it lies. No torch.

The content of files does not count here. A run whose model, task or rows have changed keeps its folder and is no longer current:
``runs.sources`` tells.

Fingerprints of what a model was asked: of a whole run, and of the test alone, whose direct score other runs share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX, benchmark_name, corpus_path
from lm_harmony.benchmarks.types import Example, fingerprint_of
from lm_harmony.models.model_folder import shown_name
from lm_harmony.recipe import fingerprint
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import RunSpec

if TYPE_CHECKING:  # types alone: a study coordinator reads this module and needs no torch
    from lm_harmony.benchmarks.splits import Splits
    from lm_harmony.engine.sequences import TokenSequence


def run_id(spec: RunSpec, base: Path | None = None) -> str:
    """Return 16 hexadecimal digits that tell this run from every other one.

    Args:
        spec: the run.
        base: folder from which models and task files are named, so that a study may be moved with its results; None: by their
            whole path.
    """
    asked = spec.to_dict()
    asked.pop("execution")  # how it is carried out changes no number
    asked.pop("recipe_fingerprint")
    asked.pop("direct")  # kept beside the runs, for all of them
    if not spec.model.apply_chat_template:
        asked["model"].pop("chat_template_date")  # decides nothing
    asked["model"]["name"] = _place(spec.model.name, base)
    asked["benchmark"] |= {"data_dir": None, "include_path": None, "task": _task(spec.benchmark.task, base)}
    return fingerprint(asked)


def folder_name(spec: RunSpec, base: Path | None = None) -> str:
    """Return where a run lies below the results folder: <benchmark>/<model>/seed<n>-<id>; ``base`` as for ``run_id``."""
    names = (benchmark_name(spec.benchmark.task), shown_name(spec.model.name))
    return "/".join((*map(_clean, names), f"seed{spec.seed}-{run_id(spec, base)}"))


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name.strip("/")) or "unnamed"


def _task(task: str, base: Path | None) -> str:
    corpus = corpus_path(task)
    if corpus is not None:
        return CORPUS_PREFIX + _place(str(corpus), base)
    return _place(task, base) if task.endswith((".yaml", ".yml")) else task


def _place(name: str, base: Path | None) -> str:
    """Return a name as it is; of an existing file or folder its path from ``base``."""
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
    """Fingerprints of what a model is asked, 16 hexadecimal digits each."""

    run: str
    """Requests and targets of the three splits, how answers are counted, limits, and every token that is trained on."""
    test: str
    """Requests, targets and rows of the test split, how answers are counted, and limits."""
    sampled: bool
    """Whether the test asks for sampled answers, which the seed decides."""


def request_fingerprints(
    spec: RunSpec, splits: Splits, sequences: Sequence[TokenSequence], *, counting: Mapping[str, Any], longest: int
) -> RequestFingerprints:
    """Return the fingerprints of a run.

    Args:
        spec: the run.
        splits: its rendered rows.
        sequences: its training texts as tokens.
        counting: ``harness.provenance.scoring_rules`` of its task.
        longest: the model's longest input in tokens, which cuts what is asked.
    """
    limits = {"longest": longest, "max_new_tokens": spec.recipe.max_new_tokens}
    trained = {"caps": asdict(spec.benchmark.caps), "max_length": spec.recipe.max_length, "tokens": _tokens(sequences)}
    return RequestFingerprints(
        run=fingerprint([splits.fingerprint(), counting, limits, trained]),
        test=fingerprint([fingerprint_of(splits.test), _rows(splits.test), counting, limits]),
        sampled=_is_sampled(splits.test),
    )


def direct_score_id(spec: RunSpec, asked: RequestFingerprints, sources: Iterable[Source], *, dtype: str) -> str:
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
