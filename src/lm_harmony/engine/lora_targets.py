"""Which modules a LoRA adapter changes: PEFT's default for the architecture, or what the published recipe would adapt.

The published recipe adapts the query and value projections of attention, or their fused projection, as PEFT does for Llama,
Qwen2, GPT-NeoX and others. PEFT has no default for most architectures of the last years. For these, the same projections are
found by the names of the modules in the attention layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_harmony.errors import ModelError, did_you_mean
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora

ALL_LINEAR = ("all-linear",)
"""Value of ``target_modules`` for every linear layer except the output layer."""

_ATTENTION = re.compile(r"(^|_)(attn|att|attention|attentions)($|_)")
"""Part of a module's path that belongs to an attention layer."""
_OTHER = re.compile(r"cross_|encoder_attn|indexer|compressor|router|expert|vision|visual|audio|image")
"""Part of a path that is not of the text's own attention: it gets no gradient, or it chooses what other modules compute."""
_FUSED = {"qkv_proj", "query_key_value", "c_attn", "wqkv", "qkv", "in_proj_qkv", "in_proj_qkvz"}
"""Names of projections that compute queries, keys and values together."""
_QUERY = {"q_proj", "query", "q_lin", "wq", "project_q", "query_proj", "q_b_proj", "q_gate_proj"}
"""Names of query projections; of a query projection of low rank the second part."""
_VALUE = {"v_proj", "value", "v_lin", "wv", "project_v", "value_proj", "kv_b_proj", "kv_proj", "v_proj_current", "v_proj_delayed"}
"""Names of value projections; some compute keys and values together."""


def lora_targets(model: LanguageModel, lora: Lora) -> tuple[str, ...]:
    """Return names of the modules that an adapter of ``model`` changes.

    Raises:
        ModelError: a given name matches no module; or none is given, PEFT has no default, and no attention layer has query and
            value projections.
    """
    module = model.module
    if lora.target_modules == ALL_LINEAR:
        return _linear(module)
    paths = [name for name, _ in module.named_modules()]
    for target in lora.target_modules:
        if not any(path == target or path.endswith(f".{target}") for path in paths):  # PEFT is silent if another name matches
            raise ModelError(
                f"model {model.name}: peft_config.target_modules names {target!r}, but it has no such module."
                f"{did_you_mean(target, {path.rsplit('.', 1)[-1] for path in paths})} Set "
                f"--peft_config.target_modules to names of its modules, or to all-linear."
            )
    targets = lora.target_modules or peft_default(module) or _derived(module)
    if not targets:
        raise ModelError(
            f"model {model.name}: no adapter can be attached by default: architecture {module.config.model_type} has no query "
            f"and value projections in attention layers. Set --peft_config.target_modules to names of its modules, or to "
            f"all-linear."
        )
    return targets


def are_derived(module: PreTrainedModel, lora: Lora) -> bool:
    """Tell whether neither the recipe nor PEFT says which modules of the architecture to adapt."""
    return not lora.target_modules and not peft_default(module)


def peft_default(module: PreTrainedModel) -> tuple[str, ...]:
    """Return PEFT's default for the architecture; empty if it has none."""
    return tuple(sorted(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(module.config.model_type, ())))


def _derived(module: PreTrainedModel) -> tuple[str, ...]:
    """Return names of the query and value projections, or of the fused projection, of every attention layer.

    Returns:
        The last parts of the modules' paths if no other module has them, or else whole paths; empty if there are none.
    """
    linear = [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, Conv1D))]
    return _shortest(module, (name for name in linear if _is_adapted(name)))


def _linear(module: PreTrainedModel) -> tuple[str, ...]:
    """Return the modules of "all-linear", without routers that PEFT cannot wrap.

    A router of a mixture of experts may be a linear layer that returns more than a product. It has a forward pass of its own.
    """
    linear = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    routers = {name for name, part in linear.items() if type(part).forward is not nn.Linear.forward}
    if not routers:
        return ALL_LINEAR
    output = module.get_output_embeddings()
    return _shortest(module, (name for name, part in linear.items() if name not in routers and part is not output))


def _is_adapted(path: str) -> bool:
    """Tell from its path whether a linear layer is a query, value or fused projection of an attention layer."""
    *above, name = path.split(".")
    if name == "linear" and above:  # a projection that is wrapped in a module of its own
        name = above.pop()
    in_attention = any(_ATTENTION.search(part) for part in above)
    return in_attention and not _OTHER.search(path) and name.lower() in _FUSED | _QUERY | _VALUE


def _shortest(module: PreTrainedModel, paths: Iterable[str]) -> tuple[str, ...]:
    """Return names that PEFT matches with exactly the modules at ``paths``: the ends of the paths, or whole paths."""
    wanted = set(paths)
    ends = {path.rsplit(".", 1)[-1] for path in wanted}
    matched = {name for name, _ in module.named_modules() if name.rsplit(".", 1)[-1] in ends}
    return tuple(sorted(ends if matched == wanted else wanted))
