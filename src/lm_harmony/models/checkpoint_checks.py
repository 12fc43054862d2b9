"""Checks that the tensors and files of a checkpoint match its config.json."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from lm_harmony.errors import ModelError

SHOWN = 4
"""Maximum number of tensor names that a message lists."""
WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel left it: save model.module instead of model",
    "_orig_mod.": "torch.compile left it: save model._orig_mod instead of model",
    "base_model.model.": "PEFT left it: save model.merge_and_unload() instead of model",
    "_fsdp_wrapped_module.": "FSDP left it: save with its full state dict",
}
"""Prefix of all tensor names -> the wrapper that adds it and what to save instead."""
_OLD_BUFFERS = re.compile(r"(\.(attn|attention)(\.attention)?\.(masked_)?bias|rotary_emb\.inv_freq|\.causal_mask)$")
"""Tables that models computed and older versions of transformers saved with the weights."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tokenizer_config.json", "vocab.json", "merges.txt")
_ALSO_CAUSAL = ("gpt_neox_japanese",)
"""Causal models whose configuration has is_decoder false."""


def refuse_adapter(name: str, revision: str) -> None:
    """Refuse a PEFT adapter: transformers would load another base, or report on the adapter's tensors only.

    Args:
        name: hub id or folder.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: it has an adapter_config.json.
    """
    if find_adapter_config_file(name, revision=revision) is not None:  # as from_pretrained looks for it
        raise ModelError(
            f"model {name}: adapter_config.json lies beside config.json: a PEFT adapter, whose base would be loaded from "
            f"elsewhere. Merge it (merge_and_unload) and give the folder that save_pretrained writes."
        )


def refuse_encoder(name: str, module: PreTrainedModel) -> None:
    """Refuse a model each of whose tokens sees the later ones, such as BERT: its log-likelihoods are not those of a text.

    Args:
        name: hub id or folder.
        module: the model; its weights are not looked at.

    Raises:
        ModelError: the configuration has is_decoder false, and no attention layer is causal.
    """
    causal = any(getattr(part, "is_causal", False) is True for part in module.modules())
    kind = module.config.model_type
    if getattr(module.config, "is_decoder", True) is False and not causal and kind not in _ALSO_CAUSAL:
        raise ModelError(
            f"model {name}: is_decoder = false in config.json: a {kind} encoder, whose tokens see the ones after them. "
            f"Use a causal language model (Llama, Qwen, GPT-NeoX and the like)."
        )


def refuse_misfit(name: str, module: PreTrainedModel, report: Mapping[str, Collection[Any]]) -> None:
    """Refuse a checkpoint whose tensors are not those of its configuration: what is missing would be random.

    Args:
        name: hub id or folder.
        module: the loaded model.
        report: ``from_pretrained``'s loading info; tied weights and what the architecture ignores are not in it.

    Raises:
        ModelError: a tensor is missing, unknown or of another size.
    """
    buffers = {buffer for buffer, _ in module.named_buffers()}  # not saved, but computed
    missing = sorted(report["missing_keys"])
    unknown = sorted(key for key in report["unexpected_keys"] if key not in buffers and not _OLD_BUFFERS.search(key))
    sizes = sorted((key, tuple(found), tuple(asked)) for key, found, asked in report["mismatched_keys"])
    faults = []
    if missing:
        faults.append(f"lacks {_listed(missing)}, which config.json asks for")
    if unknown:
        faults.append(f"holds {_listed(unknown)}, which config.json does not describe")
    if sizes:
        texts = [f"{key} {_size(found)}, by config.json {_size(asked)}" for key, found, asked in sizes]
        faults.append(f"has other sizes than config.json in {_listed(texts)}")
    if faults:
        raise ModelError(f"model {name}: the checkpoint {', and '.join(faults)}. {_remedy(module, missing, unknown)}")


def _listed(names: Collection[str]) -> str:
    shown = "; ".join(list(names)[:SHOWN])
    more = "; ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown}{more})"


def _size(shape: Iterable[int]) -> str:
    return "x".join(str(side) for side in shape)


def _remedy(module: PreTrainedModel, missing: Collection[str], unknown: Collection[str]) -> str:
    for prefix, remedy in WRAPPERS.items():
        if unknown and all(key.startswith(prefix) for key in unknown):
            return f"Every name begins with {prefix!r}. {remedy}, or take the prefix off the names."
    outputs = {f"{part}.weight" for part, one in module.named_modules() if one is module.get_output_embeddings()}
    if set(missing) == outputs and not unknown:
        return "Save the output layer too, or write tie_word_embeddings: true into config.json if it is the input embedding."
    return "Take all files of the checkpoint and the config.json that was saved with them (save_pretrained writes both)."


def refuse_non_finite(name: str, module: PreTrainedModel) -> None:
    """Refuse weights, and buffers that are saved with them, that hold NaN or infinity.

    Raises:
        ModelError: some do; the message names them.
    """
    saved = module.state_dict()
    buffers = [(key, buffer) for key, buffer in module.named_buffers() if key in saved and not _OLD_BUFFERS.search(key)]
    weights = [(key, weight) for key, weight in (*module.named_parameters(), *buffers) if _is_checked(weight)]
    if not weights:
        return
    # The smallest and the largest value are NaN or infinite if any is; no copy of the weights is made, the device is read once.
    ends = [torch.stack(torch.aminmax(weight.detach())).isfinite().all() for _, weight in weights]
    finite = torch.stack(ends).tolist()
    broken = [key for (key, _), fine in zip(weights, finite, strict=True) if not fine]
    if broken:
        raise ModelError(
            f"model {name}: NaN or infinity in {_listed(broken)}. The file is damaged or its training diverged: fetch the model "
            f"again, or take an earlier checkpoint."
        )


def _is_checked(weight: torch.Tensor) -> bool:
    return weight.is_floating_point() and weight.element_size() > 1 and weight.numel() > 0 and not weight.is_meta


def damaged_file(folder: Path, error: Exception) -> str | None:
    """Return what is wrong with the first safetensors file of ``folder`` that cannot be opened; None: it is not that.

    Args:
        folder: of the checkpoint.
        error: what reading it raised.
    """
    if not isinstance(error, SafetensorError):
        return None
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as found:
            size = file.stat().st_size
            with file.open("rb") as opened:
                pointer = opened.read(40).startswith(b"version https://git-lfs")
            if pointer:
                return f"{file} is a Git LFS pointer, not the weights. Run `git lfs pull` there."
            kind = "empty" if size == 0 else f"truncated or no safetensors file ({size:,} bytes; {one_line(found)})"
            return f"{file} is {kind}. Fetch or save it again."
    return None


def tokenizer_fault(name: str, folder: Path, error: Exception) -> str:
    """Return the message for a tokenizer that cannot be read."""
    if "trust_remote_code" in str(error):
        return f"model {name}: its tokenizer needs code from its own repository. If you trust it, add --trust_remote_code."
    there = [file for file in _TOKENIZER_FILES if (folder / file).is_file()]
    if not there:
        return f"model {name}: {folder} holds no tokenizer file. Copy tokenizer.json (or tokenizer.model) of the model there."
    return (
        f"model {name}: its tokenizer cannot be read from {folder} ({', '.join(there)}): {one_line(error)}. "
        f"Copy these files from the original model again."
    )


def one_line(error: Exception, most: int = 200) -> str:
    """Return the text of a library's error on one line, cut after ``most`` characters and without a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:most] + " ..." if len(text) > most else text.rstrip(".")
