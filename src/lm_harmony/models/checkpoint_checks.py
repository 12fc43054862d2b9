"""Checks that the tensors and files of a checkpoint match its config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from lm_harmony.errors import ModelError
from lm_harmony.models.folder_checks import no_safetensors

SHOWN = 4
"""Maximum number of tensor names that a message lists."""
WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel left it: save model.module instead of model",
    "_orig_mod.": "torch.compile left it: save model._orig_mod instead of model",
    "base_model.model.": "PEFT left it: save model.merge_and_unload() instead of model",
    "_fsdp_wrapped_module.": "FSDP left it: save with its full state dict",
}
"""Prefix of all tensor names -> the wrapper that adds it and what to save instead."""
_SAFE = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
_IF_PRESENT = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_gated_repo": False}
"""Options of transformers' ``cached_file`` that let it return None for a file that a model does not have."""
_OLD_BUFFERS = re.compile(r"(\.(attn|attention)(\.attention)?\.(masked_)?bias|rotary_emb\.inv_freq|\.causal_mask)$")
"""Names of computed buffers that older versions of transformers saved with the weights."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tokenizer_config.json", "vocab.json", "merges.txt")
_ALSO_CAUSAL = ("gpt_neox_japanese",)
"""Model types that are causal although their configuration has is_decoder false."""


def refuse_pickles(name: str, revision: str) -> None:
    """Raise for weights that are no safetensors: unpickling a file can run any code.

    Args:
        name: hub id or folder of the model.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: there are no safetensors, or their index names files of another kind.
    """
    try:
        found = [cached_file(name, file, revision=revision, **_IF_PRESENT) for file in _SAFE]
    except OSError:  # the hub cannot be reached: loading says so
        return
    if found == [None, None]:
        raise no_safetensors(name)
    if found[0] is None:
        try:
            shards = json.loads(Path(str(found[1])).read_text(encoding="utf-8"))["weight_map"].values()
            foreign = sorted({str(shard) for shard in shards if not str(shard).endswith(".safetensors")})
        except (OSError, ValueError, LookupError, AttributeError, TypeError):  # loading says what is wrong with it
            return
        if foreign:
            raise ModelError(
                f"model {name}: {SAFE_WEIGHTS_INDEX_NAME} names {foreign[0]}, which is no safetensors file. Pickles are never "
                f"loaded, because they can run code. Fetch the model again."
            )


def refuse_encoder(name: str, module: PreTrainedModel) -> None:
    """Raise for a model without causal attention, such as BERT: its token probabilities do not give the likelihood of a text.

    Args:
        name: hub id or folder of the model.
        module: the model. Its weights are not read.

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
    """Raise if the tensors of a checkpoint do not match its configuration: missing tensors would be initialized at random.

    Args:
        name: hub id or folder of the model.
        module: the loaded model.
        report: loading info of ``from_pretrained``. It lists neither tied weights nor tensors that the architecture ignores.

    Raises:
        ModelError: a tensor is missing, is unknown, or has another shape.
    """
    buffers = {buffer for buffer, _ in module.named_buffers()}  # they are computed, so a checkpoint may hold or lack them
    missing = sorted(report["missing_keys"])
    unknown = sorted(key for key in report["unexpected_keys"] if key not in buffers and not _OLD_BUFFERS.search(key))
    sizes = sorted((key, tuple(found), tuple(expected)) for key, found, expected in report["mismatched_keys"])
    faults = []
    if missing:
        faults.append(f"lacks {_listed(missing)}, which config.json asks for")
    if unknown:
        faults.append(f"holds {_listed(unknown)}, which config.json does not describe")
    if sizes:
        texts = [f"{key} {_size(found)}, by config.json {_size(expected)}" for key, found, expected in sizes]
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
    """Raise if weights, or buffers that are saved with them, contain NaN or infinity.

    Raises:
        ModelError: a tensor contains NaN or infinity. The message names the tensors.
    """
    saved = module.state_dict()
    buffers = [(key, buffer) for key, buffer in module.named_buffers() if key in saved and not _OLD_BUFFERS.search(key)]
    weights = [(key, weight) for key, weight in (*module.named_parameters(), *buffers) if _is_checked(weight)]
    if not weights:
        return
    # If any value is NaN or infinite, so is the minimum or the maximum. This copies no weights and reads from the device once.
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
    """Return a message about the first safetensors file of ``folder`` that cannot be opened, or None if all can be opened.

    Args:
        folder: folder of the checkpoint.
        error: exception from loading the checkpoint.
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


def tokenizer_files(folder: Path) -> list[str]:
    """Return the names of the tokenizer files in ``folder``."""
    return [file for file in _TOKENIZER_FILES if (folder / file).is_file()]


def refuse_ambiguous_tokenizer(name: str) -> None:
    """Raise for a folder whose only tokenizer file is tokenizer.model, if it says nothing about how to read it.

    Without a tokenizer class, transformers 5 encodes texts without the space that SentencePiece puts before the first word.

    Raises:
        ModelError: neither tokenizer.json nor tokenizer_config.json lies beside tokenizer.model.
    """
    if tokenizer_files(Path(name)) == ["tokenizer.model"]:
        raise ModelError(
            f"model {name}: tokenizer.model alone does not say how texts are encoded. Copy tokenizer.json or "
            f"tokenizer_config.json (with its tokenizer_class) of the model there."
        )


def tokenizer_fault(name: str, folder: Path, error: Exception) -> str:
    """Return the message for a tokenizer that cannot be read."""
    if "trust_remote_code" in str(error):
        return f"model {name}: its tokenizer needs code from its own repository. If you trust it, add --trust_remote_code."
    present = tokenizer_files(folder)
    if not present:
        return f"model {name}: {folder} holds no tokenizer file. Copy tokenizer.json (or tokenizer.model) of the model there."
    if "tokenizer.json" not in present and "tokenizer.model" in present and find_spec("sentencepiece") is None:
        return (
            f"model {name}: reading tokenizer.model in {folder} needs sentencepiece. Run "
            f"pip install 'lm-harmony[sentencepiece]', or copy tokenizer.json of the model there."
        )
    return (
        f"model {name}: its tokenizer cannot be read from {folder} ({', '.join(present)}): {one_line(error)}. "
        f"Copy these files from the original model again."
    )


def one_line(error: Exception, most: int = 200) -> str:
    """Return the text of an exception on one line, truncated to ``most`` characters, without a final full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:most] + " ..." if len(text) > most else text.rstrip(".")
