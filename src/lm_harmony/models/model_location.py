"""Where the files of a model are: a folder, the hub, or an adapter with its base model. Reads configurations, no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from transformers import AutoConfig, PretrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from lm_harmony.errors import ModelError
from lm_harmony.hub_connection import missing_hub
from lm_harmony.models.checkpoint_checks import one_line
from lm_harmony.models.model_folder import AdapterBase, adapter_base, is_whole_model, refuse_no_model

ADAPTER_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "adapter_model*.safetensors"]
"""Files of an adapter on the hub that are downloaded, if they are not in a subfolder: configuration, tokenizer and weights."""


@dataclass(frozen=True, kw_only=True)
class ModelLocation:
    """A model's configuration, and the places of its files."""

    name: str
    """Hub id or folder, as it was requested."""
    place: str
    """Hub id or folder of the tokenizer and adapter; for an adapter on the hub, its folder in the hub's cache."""
    revision: str
    """Branch, tag or commit of ``place``."""
    commit: str | None
    """Commit of ``name`` on the hub, or of the base model of an adapter in a folder; None: no model on the hub."""
    config: PretrainedConfig
    """Configuration of the whole model; for an adapter, of its base model."""
    folder: Path
    """Local folder of the configuration and weights of the whole model."""
    base: AdapterBase | None
    """Base model of an adapter; None: a whole model."""
    hub_base: AdapterBase | None = None
    """Base model of an adapter on the hub, with its commit; None: not an adapter on the hub."""


def locate_model(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> ModelLocation:
    """Find the files of a model. Those of an adapter on the hub are downloaded; its base model is only looked up.

    Raises:
        ModelError: it does not exist, cannot be reached, needs its own code, or is an adapter whose base is not clear.
    """
    refuse_no_model(name, revision)
    if not Path(name).is_dir():
        missing_hub()
    adapter = _hub_adapter(name, revision)
    place = name if adapter is None else str(adapter[0])
    base = adapter_base(place)
    if adapter is not None and base is not None and Path(base.name).is_dir():
        raise ModelError(
            f"model {name}: its base model {base.name} is also a folder here, so that it is not clear which is meant. "
            f"Work in another folder, or fetch both into a models_dir."
        )
    whole, at = (name, revision) if base is None else (base.name, base.revision)
    refuse_no_model(whole, at)
    if not Path(whole).is_dir():
        missing_hub()
    config, folder, commit = _locate_whole(whole, at, trust_remote_code)
    found = ModelLocation(name=name, place=place, revision=revision, commit=commit, config=config, folder=folder, base=base)
    if adapter is None or base is None:
        return found
    return replace(found, commit=adapter[1], hub_base=replace(base, commit=commit))


def _locate_whole(name: str, revision: str, trust_remote_code: bool) -> tuple[PretrainedConfig, Path, str | None]:
    """Return the configuration of a whole model, the folder of its files, and its commit on the hub."""
    try:
        beside = find_adapter_config_file(name, revision=revision)  # from_pretrained calls the same function
        if beside is not None:
            raise _two_models(name)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        found = cached_file(name, "config.json", revision=revision)
    except ModelError:
        raise
    except Exception as error:  # a damaged file raises an error of any kind
        raise ModelError(why_not(name, error)) from error
    return config, *((Path(name), None) if Path(name).is_dir() else (Path(str(found)).parent, extract_commit_hash(found, None)))


def _hub_adapter(name: str, revision: str) -> tuple[Path, str] | None:
    """Return the folder of an adapter's files in the hub's cache, and its commit. None: a folder, or a whole model."""
    if Path(name).is_dir():
        return None
    try:
        file = find_adapter_config_file(name, revision=revision)
        commit = extract_commit_hash(file, None)
        if file is None or commit is None:
            return None
        if is_whole_model(_names_on_hub(name, commit, Path(file).parent)):
            raise _two_models(name)
        return Path(snapshot_download(name, revision=commit, allow_patterns=ADAPTER_FILES, ignore_patterns="*/*")), commit
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(why_not(name, error)) from error


def _names_on_hub(name: str, commit: str, cached: Path) -> list[str]:
    """Return the names of all files of a repository; without network, of those in the cache."""
    try:
        return HfApi().list_repo_files(name, revision=commit)
    except Exception:  # noqa: BLE001 - the HTTP library has its own errors for a missing connection
        return [file.name for file in cached.iterdir()]


def _two_models(name: str) -> ModelError:
    return ModelError(
        f"model {name}: adapter_config.json lies beside config.json or weights of a whole model, or belongs to the base of "
        f"another adapter, so that it is not clear which model is meant. Give an adapter alone, on a base that is none."
    )


def why_not(name: str, error: Exception) -> str:
    """Return the message for a configuration that cannot be loaded."""
    reason = one_line(error, 300)
    if "trust_remote_code" in str(error):
        return f"model {name} needs code from its own repository. If you trust it, add --trust_remote_code."
    if Path(name).is_dir():
        return f"model {name}: {Path(name) / 'config.json'} cannot be used: {reason}. Take the one saved with the weights."
    if (missing := missing_hub()) is not None:
        return (
            f"model {name!r} cannot be loaded: {missing}, and the hub's cache on this machine has not all of its files. "
            f"Connect to the hub, or give an existing model folder."
        )
    return f"model {name!r} cannot be loaded: {reason}. Give a hub id that exists, or an existing model folder."
