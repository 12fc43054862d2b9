"""Weights of a PEFT adapter: loads them into a model that has the adapter's layers, or merges them into the base model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lm_harmony.errors import ModelError
from lm_harmony.models.checkpoint_checks import damaged_file, one_line, refuse_non_finite

_MERGED = "default"
"""Name of the adapter while it is merged."""


def load_adapter(module: PeftModel, folder: Path, adapter: str, trained: Iterable[str]) -> str:
    """Load an adapter in place; return what does not fit, or "".

    Args:
        module: model with the layers of the adapter.
        folder: folder of the adapter's safetensors files.
        adapter: name of the adapter in ``module``.
        trained: names of the weights that the files must hold.

    Raises:
        SafetensorError: a file cannot be read.
    """
    weights = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    try:
        found: Any = set_peft_model_state_dict(module, weights, adapter_name=adapter)
    except RuntimeError as error:  # the first line of its message only says that there are errors
        return f"has a {str(error).splitlines()[-1].strip().rstrip('.')}"
    absent = set(trained) & set(found.missing_keys)  # the missing weights of the base model are expected
    return first_named("has weights named", found.unexpected_keys) or first_named("lacks weights named", absent)


def first_named(what: str, names: Iterable[str]) -> str:
    """Return ``what`` with the first of ``names`` in alphabetical order, or "" if there are none."""
    return next((f"{what} {name!r}" for name in sorted(names)), "")


def merge_adapter(name: str, folder: Path, module: PreTrainedModel) -> PreTrainedModel:
    """Add the weights of a PEFT adapter to its base model, and return the base model.

    Args:
        name: name of the adapter, for messages and for adapters that are trained on the merged model.
        folder: folder of its files.
        module: base model; its weights are changed.

    Raises:
        ModelError: the adapter cannot be read, does not fit the base model, cannot be merged (prompt tuning), or contains NaN.
    """
    if not any(folder.glob("adapter_model*.safetensors")):
        raise ModelError(
            f"model {name}: {folder} holds no adapter_model.safetensors. Pickled adapters (.bin) are not read; save it again "
            f"with save_pretrained of a current PEFT."
        )
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ModelError(f"model {name}: an adapter of type {config.peft_type} cannot be merged. Use LoRA or another one.")
        config.base_model_name_or_path = module.name_or_path  # PEFT warns about another spelling of the path
        adapted = get_peft_model(module, config, adapter_name=_MERGED)
        own = [weight for weight, _ in adapted.named_parameters() if f".{_MERGED}." in weight or weight.endswith(f".{_MERGED}")]
        misfit = load_adapter(adapted, folder, _MERGED, own)
        if misfit:
            raise ModelError(
                f"model {name}: the adapter does not fit its base model: it {misfit}. Use the base it was trained on."
            )
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ModelError:
        raise
    except Exception as error:  # PEFT raises errors of many kinds for a configuration that it does not know
        fault = damaged_file(folder, error) or f"it cannot be merged into its base model: {one_line(error)}. Merge it with PEFT."
        raise ModelError(f"model {name}: {fault}") from error
    refuse_non_finite(name, merged)
    merged.config.name_or_path = name  # adapters that are trained on the merged model name it as their base
    merged.name_or_path = name
    return merged
