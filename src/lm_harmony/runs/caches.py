"""Caches that the runs of one process share: the loaded model and the direct scores.

A loaded model is reused only if its weights have not changed.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lm_harmony.benchmarks.types import Score
from lm_harmony.engine.backends import Backend, choose_backend
from lm_harmony.errors import DamagedFile, LeaseHeld, LeaseLost
from lm_harmony.models.device import Precision, resolve_device, resolve_precision
from lm_harmony.models.loading import LanguageModel, load_model, load_text_encoder, load_without_weights
from lm_harmony.models.loading_turn import loading_turn
from lm_harmony.models.model_location import locate_model
from lm_harmony.models.text import TextEncoder
from lm_harmony.runs.lease import Lease
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.remote_lease import leases_for
from lm_harmony.runs.sources import Source, base_on_hub, model_sources, with_commits
from lm_harmony.runs.spec import ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

log = logging.getLogger(__name__)

HELD_PAUSE = 1.0
"""Seconds between two looks at a direct score that another process computes."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """Model without an adapter, with its backend and the sources that it was loaded from."""

    model: LanguageModel
    """Model with its pretrained weights."""
    backend: Backend
    """Backend that ``choose_backend`` selected for the model."""
    checksum: str
    """Checksum of the weights when they were loaded."""
    sources: tuple[Source, ...]
    """Files of the model's folder, or its hub repository with the commit."""


@dataclass(frozen=True, kw_only=True)
class _ModelKey:
    """Settings that two runs must share to use the same loaded model."""

    model: ModelSpec
    precision: Precision
    device: torch.device
    engine: str
    gradient_checkpointing: bool
    quantize: str | None
    device_map: str | None
    sources: tuple[Source, ...]


class ModelCache:
    """Cache that holds the model of the last run."""

    def __init__(self) -> None:
        """Create an empty cache. ``loads`` counts the models that were loaded."""
        self.loads = 0
        self._key: _ModelKey | None = None
        self._loaded: LoadedModel | None = None

    def chat_encoder(self, spec: RunSpec) -> TextEncoder | None:
        """Return the text encoder if ``spec`` uses the chat template, else None. Reads no weights.

        Raises:
            ModelError: the device or model does not exist, or the tokenizer cannot be loaded or has no chat template.
        """
        resolve_device(spec.execution.device)
        code = spec.model.trust_remote_code
        found = locate_model(spec.model.name, revision=spec.model.revision, trust_remote_code=code)
        if not spec.model.apply_chat_template:
            return None
        same_model = self._key is not None and self._key.model == _without_chat(spec.model)
        cached = self._loaded if same_model and self._key == _model_key(spec) else None
        text = load_text_encoder(found, trust_remote_code=code) if cached is None else cached.model.text
        text.require_chat_template()
        return text

    def structure(self, spec: RunSpec) -> LanguageModel:
        """Return the model of ``spec`` with its tokenizer and shapes: the loaded one, or one on the meta device without weights.

        Raises:
            ModelError: its configuration or tokenizer cannot be read.
        """
        if self._loaded is not None and self._key == _model_key(spec):
            return self._loaded.model
        options: dict[str, Any] = {"revision": spec.model.revision, "trust_remote_code": spec.model.trust_remote_code}
        return load_without_weights(spec.model.name, **options)

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights that this cache holds: they are used again, or freed before others are loaded."""
        return 0 if self._loaded is None else sum(tensor.nbytes for tensor in self._loaded.model.module.state_dict().values())

    def get(self, spec: RunSpec) -> LoadedModel:
        """Return the model of ``spec``. Loads it unless the cache holds it with unchanged weights.

        Raises:
            ModelError: the model cannot be loaded.
        """
        key = _model_key(spec)
        if self._loaded is not None and key == self._key and checksum(self._loaded.model.module) == self._loaded.checksum:
            return self._loaded
        if self._loaded is not None and key == self._key:
            log.info("%s is loaded again: the last run changed its weights.", spec.model.name)
        self._loaded = None  # frees the old weights before the new weights are read
        with loading_turn(needed=sum(source.size or 0 for source in key.sources)):  # files on the hub have no size here
            self._loaded, self._key = _load(key), key
        self.loads += 1
        return self._loaded


@dataclass(frozen=True)
class DirectScoreCache:
    """Cache of direct scores in a folder, in the files <id>/direct.json and <id>/samples_direct.jsonl."""

    folder: Path
    """Folder of the cached scores."""
    remote: RemoteSync | None = None
    """Synchronization with the results at a URL. None: only the folder is used."""

    def get(self, name: str) -> Score | None:
        """Return the score with the id ``name`` and its samples, or None if it is not cached or its files cannot be read."""
        store = RunStore(self.folder / name, self.remote)
        store.pull()
        try:
            return store.direct_score()
        except DamagedFile as error:
            log.warning("the direct score is computed again: %s", error)
            return None

    def get_or_compute(self, name: str, compute: Callable[[], Score]) -> Score:
        """Return the score with the id ``name``. If it is not cached, one process computes it, and the others wait for it.

        Args:
            name: id of the score.
            compute: computes the score with its samples.

        Raises:
            StoreError: the folder cannot be written, or the results cannot be reached.
        """
        leases, run = leases_for(self.folder.parent, self.remote), f"{self.folder.name}/{name}"
        while True:
            known = self.get(name)
            if known is not None:
                return known
            try:
                with leases.hold(run, lost=lambda: None) as lease:
                    known = self.get(name)  # another process may have finished it since
                    if known is None:
                        known = compute()
                        with suppress(LeaseLost):  # the process that took over writes the same score
                            self.put(name, known, lease)
                    return known
            except LeaseHeld:
                time.sleep(HELD_PAUSE)

    def put(self, name: str, score: Score, lease: Lease | None = None) -> None:
        """Store a score with its samples."""
        store = RunStore(self.folder / name, self.remote, lease)
        store.folder.mkdir(parents=True, exist_ok=True)
        store.write_direct_score(score)


@dataclass(frozen=True, kw_only=True)
class RunCaches:
    """Caches that several runs of one process share."""

    model: ModelCache = field(default_factory=ModelCache)
    """Cache of the loaded model."""
    direct_scores: DirectScoreCache | None = None
    """Cache of direct scores, shared by all seeds and recipes. None: direct scores are not shared."""


def checksum(module: torch.nn.Module) -> str:
    """Return a digest of sums over the bits of every weight. It changes if a weight changes or two weights are swapped."""
    sums: list[list[int]] = []
    # Weights on the meta device are those that accelerate keeps elsewhere, where nothing changes them.
    for tensor in (tensor for tensor in module.state_dict().values() if not tensor.is_meta):
        bits = tensor.detach().reshape(-1)
        if tensor.element_size() in _INTEGERS:
            bits = bits.view(_INTEGERS[tensor.element_size()])
        parts = [part.sum(dtype=torch.int64) for block in bits.split(_BLOCK) for part in (block, block[::2])]
        sums.append(torch.stack(parts).tolist())  # one read per tensor, so a GPU does not wait after each block
    return hashlib.sha256(repr(sums).encode()).hexdigest()


_BLOCK = 1 << 22
"""Number of weights in one sum. The block size limits the memory, because a 64-bit sum copies its input."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _model_key(spec: RunSpec) -> _ModelKey:
    device = resolve_device(spec.execution.device)
    return _ModelKey(
        model=_without_chat(spec.model),
        precision=resolve_precision(spec.recipe.dtype, device, adapter=spec.recipe.lora is not None),
        device=device,
        engine=spec.execution.engine,
        gradient_checkpointing=spec.execution.gradient_checkpointing,
        quantize=spec.recipe.quantize,
        device_map=spec.execution.device_map,
        # Read before the weights: a file that changes during loading then differs from the record.
        sources=model_sources(spec.model),
    )


def _without_chat(model: ModelSpec) -> ModelSpec:
    return replace(model, apply_chat_template=False, chat_template_date=None)


def enable_gradient_checkpointing(module: PreTrainedModel) -> None:
    """Let each layer of ``module`` keep only its input and compute the rest again in the backward pass."""
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _load(key: _ModelKey) -> LoadedModel:
    model = load_model(
        key.model.name,
        revision=key.model.revision,
        dtype=key.precision.weights,
        autocast=key.precision.autocast,
        device=str(key.device),
        trust_remote_code=key.model.trust_remote_code,
        quantize=key.quantize,
        device_map=key.device_map,
    )
    if key.gradient_checkpointing:
        enable_gradient_checkpointing(model.module)
    backend = choose_backend(model, key.engine)
    commits = {(source.name, source.revision): [model.revision] for source in key.sources}
    sources = (*with_commits(key.sources, "model", commits), *base_on_hub(model.base))
    return LoadedModel(model=model, backend=backend, checksum=checksum(model.module), sources=sources)
