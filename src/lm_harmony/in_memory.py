"""What Python programs hand to ``evaluate`` in memory: a loaded model, and rows with a task's configuration."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_harmony.engine.backends import choose_backend
from lm_harmony.errors import UsageError
from lm_harmony.models.loading import LanguageModel, build_language_model
from lm_harmony.models.text import TextEncoder
from lm_harmony.runs.caches import LoadedModel, ModelCache, checksum, enable_gradient_checkpointing
from lm_harmony.runs.files import write_atomically
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec

Loaded = LanguageModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A loaded model: what ``load_model`` returns, or a transformers model with its tokenizer."""
Rows = Mapping[str, Iterable[Mapping[str, object]]]
"""Rows of each split by the split's name: a ``datasets.DatasetDict``, or lists of dictionaries."""
_SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def language_model(model: Loaded) -> LanguageModel:
    """Return a loaded model as the engine takes it, in evaluation mode.

    Raises:
        UsageError: it is no transformers model with its tokenizer.
        ModelError: the tokenizer is not the model's, or has no end-of-text token.
    """
    module = _module_of(model)
    module.eval()
    if isinstance(model, LanguageModel):
        return model
    return build_language_model(str(module.config.name_or_path or module.config.model_type), module, model[1])


def _module_of(model: Loaded) -> PreTrainedModel:
    module = model.module if isinstance(model, LanguageModel) else model[0] if isinstance(model, tuple) else model
    if not isinstance(module, PreTrainedModel) or not isinstance(model, LanguageModel | tuple):
        raise UsageError(
            f"model = {type(module).__name__} is not supported (allowed: a name, a folder, what load_model returns, or a "
            "transformers model with its tokenizer). Give (model, tokenizer); merge a PEFT model first (merge_and_unload)."
        )
    return module


@contextmanager
def restored(model: Loaded, *, weights: bool) -> Iterator[None]:
    """Restore the training mode, the gradients and the configuration of a loaded model after the block.

    Args:
        model: the loaded model.
        weights: restore its weights too, of which a copy is kept.
    """
    module = _module_of(model)
    modes = {part: part.training for part in module.modules()}
    gradients = [(weight, weight.requires_grad, weight.grad) for weight in module.parameters()]
    settings = [(one, copy.deepcopy(vars(one))) for one in (module.config, module.generation_config) if one is not None]
    copies = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()} if weights else None
    for weight in module.parameters():
        weight.grad = None  # else the first step would add to the caller's gradients
    try:
        yield
    finally:
        if copies is not None:
            module.load_state_dict(copies)
        for weight, required, gradient in gradients:
            weight.requires_grad_(required)
            weight.grad = gradient
        for part, mode in modes.items():
            part.training = mode
        for one, values in settings:  # save_pretrained() writes into the configuration
            vars(one).clear()
            vars(one).update(values)


class InMemoryModel(ModelCache):
    """A model cache that returns the model which the caller has loaded."""

    def __init__(self, model: LanguageModel, *, dtype: str, device: str) -> None:
        """Compute the digest that names the model in records.

        Args:
            model: the loaded model.
            dtype: what the recipe asks for; "auto" is the model's own type.
            device: what the caller asks for; "auto" is where the model is.

        Raises:
            UsageError: the model is of another type or on another device, or its weights are not on its devices.
        """
        super().__init__()
        weights, place = model.precision.weights, model.device
        if dtype not in (weights, "auto") or weights not in ("float32", "bfloat16"):
            raise UsageError(
                f"dtype = {dtype!r}: the loaded model is {weights}. Load it in float32 or bfloat16, and leave dtype at auto."
            )
        if device not in ("auto", str(place), place.type):
            raise UsageError(f"device = {device!r}: the loaded model is on {place}. Move the model, or leave device at auto.")
        if any(weight.is_meta for weight in model.module.parameters()):
            raise UsageError(
                f"model {model.name} has weights on disk or in host memory, outside of its devices. Load it onto its devices."
            )
        digest = _digest(model)
        name = f"in-memory/{Path(model.name).name}-{digest[:12]}"
        self.spec = ModelSpec(name=name)
        """The model as a record names it: its name and the beginning of its digest."""
        self.device = place
        """Where the model is."""
        self._model = replace(model, name=name)
        self._sources = (Source(kind="model", name=name, sha256=digest),)

    def chat_encoder(self, spec: RunSpec) -> TextEncoder | None:
        """Return None: the chat template of a loaded model is not used."""
        return None

    def structure(self, spec: RunSpec) -> LanguageModel:
        """Return the model itself.

        Raises:
            UsageError: the recipe quantizes the weights, which happens only while they are loaded.
        """
        if spec.recipe.quantize is not None:
            raise UsageError(f"quantize = {spec.recipe.quantize}: the model is loaded already. Give its name or folder instead.")
        return self._model

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights, which are in memory already."""
        return sum(weight.nbytes for weight in self._model.module.parameters())

    def get(self, spec: RunSpec) -> LoadedModel:
        """Return the model with the forward passes that are exact for it."""
        if spec.execution.gradient_checkpointing:
            enable_gradient_checkpointing(self._model.module)
        return LoadedModel(
            model=self._model,
            backend=choose_backend(self._model, spec.execution.engine),
            checksum=checksum(self._model.module),
            sources=self._sources,
        )


def _digest(model: LanguageModel) -> str:
    """Return the SHA-256 of a loaded model's weights, configuration and tokenizer, without the name of where they came from."""
    digest = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    with tempfile.TemporaryDirectory() as folder:
        model.text.tokenizer.save_pretrained(folder)
        model.module.config.save_pretrained(folder)
        if model.module.generation_config is not None:
            model.module.generation_config.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                text = re.sub(rb'"(_name_or_path|name_or_path)": "[^"]*",?', b"", file.read_bytes())
                digest.update(file.name.encode() + text)
    return digest.hexdigest()


def write_rows(rows: Rows, config: Mapping[str, object], folder: Path) -> BenchmarkSpec:
    """Write rows and their task below ``folder`` as the files of an ordinary lm_eval task.

    Raises:
        UsageError: the task has no usable name, a split is missing, or a value cannot be written.
    """
    task = config.get("task")
    if not isinstance(task, str) or not re.fullmatch(r"[\w.-]+", task):
        raise UsageError(f"task = {task!r} is no name (allowed: letters, digits, '_', '.', '-'). Set it in the configuration.")
    named = {role: config.get(field, role if role in rows else None) for role, field in _SPLITS.items()}
    for role, split in named.items():
        if split is not None and split not in rows:
            raise UsageError(f"{_SPLITS[role]} = {split!r}: the rows have no such split (they have: {', '.join(rows)}).")
    files = {f"{task}/{role}.jsonl": _json_lines(split, rows[str(split)]) for role, split in named.items() if split is not None}
    splits = {_SPLITS[role]: role for role, split in named.items() if split is not None}
    try:
        files[f"{task}.yaml"] = yaml.safe_dump({"dataset_path": task, **config, **splits}, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise UsageError(
            f"configuration of task {task}: {' '.join(str(error).split())[:200]}. Write templates as text, not as functions."
        ) from error
    inputs = folder / f"{task}-{hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]}"
    (inputs / task).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(inputs / name, text)
    return BenchmarkSpec(task=str(inputs / f"{task}.yaml"), data_dir=inputs)


def _json_lines(split: object, rows: Iterable[Mapping[str, object]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"benchmark rows, split {split!r}, row {number}: {error}. Values must be text, numbers, true, false, null, "
                "lists or mappings."
            ) from error
    return "\n".join(lines) + "\n"
