"""A folder that holds a model or a PEFT adapter: its name in tables, its files that are loaded, and its revision. No torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_harmony.errors import ModelError, did_you_mean
from lm_harmony.models.folder_checks import refuse_no_decoder

_TEMPLATES = "additional_chat_templates"
_NAMES = frozenset(
    (
        *("config.json", "generation_config.json", "adapter_config.json", "processor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
        *("chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "normalizer.json", "emoji.json", "dict.txt"),
        *("vocab-src.json", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json", "byte_maps.json", "bpe.codes"),
        *("word_shape.json", "word_pronunciation.json", "prophetnet.tokenizer"),
    )
)
"""Configurations, and the files that the tokenizers of transformers name, without those of ``_SUFFIXES``."""
_SUFFIXES = (".safetensors", ".safetensors.index.json", ".jinja", ".model", ".tiktoken", ".spm", ".vocab", ".bpe", ".py")
_PICKLED = re.compile(r"(pytorch_model|adapter_model)(-\d+-of-\d+)?\.bin(\.index\.json)?")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MOST_FOLDERS = 5
"""Most names of folders that a message lists."""
_WHOLE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")
"""Weights of a whole model."""
_VERSIONED = re.compile(r"(tokenizer\.model\.v\d+|(config|tokenizer)\.[\d.]+\.json)")
"""Files for one version of a library: tokenizer.model.v3, config.4.0.0.json."""

BASE = "base model/"
"""Beginning of the name of a source that is a file of an adapter's base model."""


@dataclass(frozen=True, kw_only=True)
class AdapterBase:
    """The model that a PEFT adapter was trained on."""

    name: str
    """Hub id or folder of the base model."""
    revision: str
    """Branch, tag or commit of the base model on the hub."""
    commit: str | None = None
    """Commit of the base model that was read; None: not known yet."""


def adapter_base(name: str | Path) -> AdapterBase | None:
    """Return the base model of a folder with a PEFT adapter. None: a hub id, or a folder that holds a whole model.

    A path of the base model may be relative to the working folder or to the adapter's folder.

    Raises:
        ModelError: adapter_config.json cannot be read, or names no base model or another adapter.
    """
    file = Path(name) / "adapter_config.json"
    if not file.is_file() or is_whole_model(one.name for one in Path(name).iterdir()):
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, TypeError, KeyError):
        base = revision = None
    if not base or not isinstance(base, str):
        raise ModelError(f"model {name}: {file} names no base_model_name_or_path. Write the hub id or folder of its base there.")
    beside = Path(name) / base
    found = str(beside) if beside.is_dir() and not Path(base).is_dir() else base
    if (Path(found) / "adapter_config.json").is_file():
        raise ModelError(
            f"model {name}: base_model_name_or_path = {base!r} in {file} is an adapter itself. Merge that one into its base "
            f"(merge_and_unload) and write the merged folder there."
        )
    return AdapterBase(name=found, revision=str(revision or "main"))


def is_whole_model(files: Iterable[str]) -> bool:
    """Return whether there are weights of a whole model among ``files``."""
    return any(_WHOLE.fullmatch(name) for name in files)


def shown_name(model: str) -> str:
    """Return how tables, messages and result folders name a model: a folder by its last part, a hub id as it is."""
    return os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model


def files_read(names: Iterable[str]) -> list[str]:
    """Return, sorted, the files of a model that loading it may read, as relative paths with slashes.

    Configurations, tokenizer, chat templates and weights are at the top of the folder; Python code may be in subfolders.
    Pickled weights (.bin) are listed only if the same weights do not exist as safetensors. Such a model is refused.
    """
    known = set(names)
    return sorted(name for name in known if _may_be_read(name) and not _is_superseded(name, known))


def model_files(folder: Path) -> dict[str, Path]:
    """Return relative path -> path of the files of a model's folder that loading it may read, sorted.

    For an adapter they include the files of a base model in a folder; their names begin with ``BASE``.

    Raises:
        ModelError: the base model of an adapter is not known.
    """
    base = adapter_base(folder)
    inner = {} if base is None or not os.path.isdir(base.name) else model_files(Path(base.name))
    candidates = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja"), *folder.rglob("*.py")]
    files = {file.relative_to(folder).as_posix(): file for file in candidates if file.is_file()}
    shards = {name: folder / name for name in _named_weights(folder) if (folder / name).is_file()}
    return {name: files[name] for name in files_read(files)} | shards | {BASE + name: path for name, path in inner.items()}


def _named_weights(folder: Path) -> list[str]:
    """Return, sorted, the files of weights that an index or config.json of a model's folder names."""
    named = set[Any]()
    for file in (folder / "config.json", *folder.glob("*.safetensors.index.json")):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # loading reports what is wrong with it
            values = json.loads(file.read_text(encoding="utf-8"))
            named.update([values.get("transformers_weights")] if file.name == "config.json" else values["weight_map"].values())
    return sorted(name for name in named if isinstance(name, str))


def _may_be_read(name: str) -> bool:
    *folders, file = name.removeprefix(BASE).split("/")
    if any(part.startswith((".", "__pycache__")) for part in (*folders, file)):
        return False
    if folders:
        return file.endswith(".py") or (folders == [_TEMPLATES] and file.endswith(".jinja"))
    if file.startswith("consolidated"):  # the weights again, in the format of those who trained the model
        return False
    return file in _NAMES or file.endswith(_SUFFIXES) or bool(_PICKLED.fullmatch(file) or _VERSIONED.fullmatch(file))


def _is_superseded(name: str, names: set[str]) -> bool:
    """Return whether ``name`` holds pickled weights that also exist as safetensors."""
    before = BASE if name.startswith(BASE) else ""
    pickled = _PICKLED.fullmatch(name.removeprefix(before))
    stem = {"pytorch_model": "model", "adapter_model": "adapter_model"}[pickled[1]] if pickled else ""
    return pickled is not None and any(
        f"{before}{stem}{ending}" in names for ending in (".safetensors", ".safetensors.index.json")
    )


def refuse_no_model(name: str, revision: str) -> None:
    """Check that a model's name is a hub id or a folder with a model or adapter. Reads no weights and no network.

    Raises:
        ModelError: the name is neither, the folder holds no model that can be trained, or not the requested revision.
    """
    if not name.strip():
        raise ModelError("base_model is empty. Give a hub id such as EleutherAI/pythia-70m-deduped, or the folder of a model.")
    folder = Path(name)
    if not folder.is_dir():
        _refuse_no_hub_id(name)
        return
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelError(
            f"model {folder}: {gguf.name} is a GGUF file, which cannot be trained as it is. Convert it once with transformers: "
            f"from_pretrained({str(folder)!r}, gguf_file={gguf.name!r}) of AutoModelForCausalLM and AutoTokenizer, delete "
            f"config.quantization_config, then save_pretrained of both into a new folder."
        )
    if adapter_base(folder) is None and not (folder / "config.json").is_file():
        raise ModelError(f"model: the folder {folder} holds no config.json. Give the folder that save_pretrained wrote.")
    refuse_no_decoder(folder)
    if revision != "main" and not is_revision_of(folder, revision):
        raise ModelError(
            f"revision = {revision!r}: the folder {folder} has one revision only. Drop --revision, or give the model's hub id."
        )


def _refuse_no_hub_id(name: str) -> None:
    """Raise for a name that is no hub id: a file, or the path of a folder that does not exist."""
    path = Path(name)
    if path.is_file():
        raise ModelError(f"base_model = {name} is a file. Give the folder that holds it, or a hub id.")
    parent = path.parent
    is_path = name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or (str(parent) != "." and parent.is_dir())
    if is_path:
        near = next((one for one in path.expanduser().parents if one.is_dir()), Path("."))
        inside = sorted(one.name for one in near.iterdir() if one.is_dir() and not one.name.startswith("."))
        holds = f" holds {', '.join(inside[:_MOST_FOLDERS])}{' ...' if len(inside) > _MOST_FOLDERS else ''}" if inside else ""
        hint = did_you_mean(path.name, inside)
        raise ModelError(f"base_model: the folder {name} does not exist.{hint} {near.absolute()}{holds or ' holds no folder'}.")
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f"base_model = {name!r} is no model. Give a hub id such as EleutherAI/pythia-70m-deduped, or a folder.")


def write_source(folder: Path, *, name: str, asked: str, revision: str) -> None:
    """Write source.json: name of the model in ``folder``, the requested revision, and its commit."""
    text = json.dumps({"name": name, "asked": asked, "revision": revision}, indent=2)
    (folder / "source.json").write_text(text, encoding="utf-8")


def is_revision_of(folder: Path, revision: str) -> bool:
    """Return whether ``folder`` was fetched as ``revision``, a name or a commit."""
    return revision in (_source(folder).get("asked"), _source(folder).get("revision"))


def _source(folder: Path) -> dict[str, str]:
    """Return the content of source.json, or an empty mapping."""
    source = folder / "source.json"
    said: dict[str, str] = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
    return said


def refuse_other_revision(folder: Path, name: str, revision: str) -> None:
    """Check that a folder holds the requested revision of a model.

    Raises:
        ModelError: it holds another revision, or has no source.json.
    """
    if not is_revision_of(folder, revision):
        raise ModelError(
            f"model {name}: {folder} holds revision {_source(folder).get('asked', 'unknown')!r}, asked is {revision!r}. "
            f"Remove the folder and fetch again, or name another models_dir."
        )
