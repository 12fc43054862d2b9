"""Caches that runs of one process share: the loaded model, reused only if its weights are unchanged, and direct scores."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lm_harmony.benchmarks.types import Score
from lm_harmony.engine.backends import Backend, choose_backend
from lm_harmony.errors import DamagedFile
from lm_harmony.models.device import Precision, resolve_device, resolve_precision
from lm_harmony.models.loading import LanguageModel, load_model, load_text_encoder, locate_model
from lm_harmony.models.text import TextEncoder
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.sources import Source, model_sources, with_commit
from lm_harmony.runs.spec import ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A loaded model without an adapter, with its backend and sources."""

    model: LanguageModel
    """Model whose weights no run has trained."""
    backend: Backend
    """Forward passes that the probe chose for the model."""
    checksum: str
    """Checksum of the weights when they were loaded."""
    sources: tuple[Source, ...]
    """Files of the model's folder, or its hub repository with the commit."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What two runs must share to use the same loaded model."""

    model: ModelSpec
    precision: Precision
    device: torch.device
    engine: str
    gradient_checkpointing: bool
    sources: tuple[Source, ...]


class ModelCache:
    """Holds the model of the last run, for the next run on the same model."""

    def __init__(self) -> None:
        """Start empty; ``loads`` counts the models that were loaded."""
        self.loads = 0
        self._asked: _Asked | None = None
        self._base: LoadedModel | None = None

    def chat_encoder(self, spec: RunSpec) -> TextEncoder | None:
        """Return the text encoder if ``spec`` uses the chat template, else None; reads no weights.

        Raises:
            ModelError: the device or model does not exist, or the tokenizer cannot be loaded or has no chat template.
        """
        resolve_device(spec.execution.device)
        options: dict[str, Any] = {"revision": spec.model.revision, "trust_remote_code": spec.model.trust_remote_code}
        _, folder, _ = locate_model(spec.model.name, **options)
        if not spec.model.apply_chat_template:
            return None
        same_model = self._asked is not None and self._asked.model == _without_chat(spec.model)
        held = self._base if same_model and self._asked == _asked(spec) else None
        text = load_text_encoder(spec.model.name, folder=folder, **options) if held is None else held.model.text
        text.require_chat_template()
        return text

    def get(self, spec: RunSpec) -> LoadedModel:
        """Return the model of ``spec``; loads it unless it is held with unchanged weights.

        Raises:
            ModelError: the model cannot be loaded.
        """
        asked = _asked(spec)
        if self._base is not None and asked == self._asked and checksum(self._base.model.module) == self._base.checksum:
            return self._base
        if self._base is not None and asked == self._asked:
            log.info("%s is loaded again: the last run changed its weights.", spec.model.name)
        self._base = None  # frees the old weights before the new ones are read
        self._base, self._asked = _load(asked), asked
        self.loads += 1
        return self._base


@dataclass(frozen=True)
class DirectScoreCache:
    """Direct scores in a folder, as <id>/direct.json and <id>/samples_direct.jsonl."""

    folder: Path
    """Folder of the cached scores."""
    remote: RemoteSync | None = None
    """Results behind a URL; None: the folder alone."""

    def get(self, name: str) -> Score | None:
        """Return the score of the id ``name`` with its samples; None: not cached, or its files cannot be read."""
        store = RunStore(self.folder / name, self.remote)
        store.pull()
        try:
            known = store.direct_score()
            return known and replace(known, samples=store.samples("direct"))
        except DamagedFile as error:
            log.warning("the direct score is computed again: %s", error)
            return None

    def put(self, name: str, score: Score) -> None:
        """Store a score; samples are written first, so that a score that is found has them."""
        store = RunStore(self.folder / name, self.remote)
        store.folder.mkdir(parents=True, exist_ok=True)
        store.write_samples("direct", score.samples)
        store.write_direct_score(score)


@dataclass(frozen=True, kw_only=True)
class RunCaches:
    """Caches that several runs of one process share."""

    model: ModelCache = field(default_factory=ModelCache)
    """Cache of the loaded model."""
    direct_scores: DirectScoreCache | None = None
    """Cache of direct scores, for every seed and recipe; None: not shared."""


def checksum(module: torch.nn.Module) -> str:
    """Return a digest of sums over the bits of every weight, which changes when a weight changes or two change places."""
    sums: list[list[int]] = []
    for tensor in module.state_dict().values():
        bits = tensor.detach().reshape(-1)
        if tensor.element_size() in _INTEGERS:
            bits = bits.view(_INTEGERS[tensor.element_size()])
        parts = [part.sum(dtype=torch.int64) for block in bits.split(_BLOCK) for part in (block, block[::2])]
        sums.append(torch.stack(parts).tolist())  # read once a tensor: a GPU computes the sums of the next block meanwhile
    return hashlib.sha256(repr(sums).encode()).hexdigest()


_BLOCK = 1 << 22
"""Weights summed at once: a sum in 64 bits makes a copy of them."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _asked(spec: RunSpec) -> _Asked:
    device = resolve_device(spec.execution.device)
    return _Asked(
        model=_without_chat(spec.model),
        precision=resolve_precision(spec.recipe.dtype, device, adapter=spec.recipe.lora is not None),
        device=device,
        engine=spec.execution.engine,
        gradient_checkpointing=spec.execution.gradient_checkpointing,
        sources=model_sources(spec.model),  # read before loading: what changes in between differs from the record
    )


def _without_chat(model: ModelSpec) -> ModelSpec:
    return replace(model, apply_chat_template=False, chat_template_date=None)


def _load(asked: _Asked) -> LoadedModel:
    model = load_model(
        asked.model.name,
        revision=asked.model.revision,
        dtype=asked.precision.weights,
        autocast=asked.precision.autocast,
        device=str(asked.device),
        trust_remote_code=asked.model.trust_remote_code,
    )
    if asked.gradient_checkpointing:
        model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backend = choose_backend(model, asked.engine)
    sources = with_commit(asked.sources, "model", model.revision)
    return LoadedModel(model=model, backend=backend, checksum=checksum(model.module), sources=sources)
