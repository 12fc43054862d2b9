"""Size of a model and of its adapter, counted on the modules. They may be on the meta device, so that no weights are read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_harmony.engine.adapters import trainable
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Recipe

_GATE = re.compile(r"(gate_proj|gate_up_proj|up_gate|w3|fc_gate)$")
"""End of the name of a linear layer that computes the gate of an MLP."""
_COMPOSED = ("NewGELUActivation", "FastGELUActivation")
"""Activations that transformers composes of elementary operators."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model's size, counted from its configuration."""

    parameters: int
    """Number of all weights. A matrix that is both input embedding and output layer counts once."""
    computing: int
    """Weights that multiply every token: all but the input embedding and the output layer."""
    output: int
    """Weights of the output layer, which multiply only what is predicted."""
    trained: int
    """Weights that the recipe trains."""
    layers: int
    """Number of Transformer layers (blocks)."""
    adapted: int
    """Number of linear layers with an adapter, in all blocks together; 0 if all weights are trained."""
    query_width: int
    """Attention heads times head size: width of the queries of one token in one layer."""
    key_width: int
    """Key-value heads times head size: width of the keys of one token in one layer."""
    hidden: int = 0
    """Hidden size: width of the residual stream."""
    inner: int = 0
    """Intermediate size of the MLP; in a mixture of experts that of all experts that compute one token."""
    vocabulary: int = 0
    """Number of logits of one position."""
    linear: int = 0
    """Weights of linear layers inside the blocks, which quantization stores in fewer bits."""
    norms: int = 0
    """Widths of the inputs of all normalization layers of one block, added."""
    mlp_tensors: int = 3
    """Tensors of the intermediate size that the MLP of one block keeps for its backward pass if its weights are frozen."""
    adapted_inputs: int = 0
    """Widths of the inputs of all linear layers with an adapter, added over all blocks."""

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one key head."""
        return self.key_width < self.query_width


_KNOWN: WeakKeyDictionary[PreTrainedModel, dict[Recipe, ModelSize]] = WeakKeyDictionary()
"""Sizes that were counted. Each run of a study asks for the size of its model, and attaching an adapter takes 0.1 s."""


def model_size(model: LanguageModel, recipe: Recipe) -> ModelSize:
    """Count the weights and widths of ``model`` and of what ``recipe`` trains, once for each of both.

    Raises:
        ModelError: no adapter can be attached to the architecture, or to the modules that the recipe names.
    """
    known = _KNOWN.setdefault(model.module, {})
    if recipe not in known:
        known[recipe] = _counted(model, recipe)
    return known[recipe]


def _counted(model: LanguageModel, recipe: Recipe) -> ModelSize:
    module, config = model.module, model.module.config.get_text_config()
    output = sum(weight.numel() for weight in module.get_output_embeddings().parameters())
    embedding = sum(weight.numel() for weight in module.get_input_embeddings().parameters())
    total = module.num_parameters()
    tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    hidden = int(getattr(config, "hidden_size", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or hidden // heads)
    layers = int(getattr(config, "num_hidden_layers", None) or 1)
    widths = {"hidden": hidden, "query_width": heads * head_size, "layers": layers}
    widths["key_width"] = int(getattr(config, "num_key_value_heads", None) or heads) * head_size
    linear = {name: part for name, part in module.named_modules() if isinstance(part, (torch.nn.Linear, Conv1D))}
    inside = {name: part for name, part in linear.items() if part is not module.get_output_embeddings()}
    with trainable(model, recipe, seed=0) as trainee:
        weights = {name: weight.shape for name, weight in trainee.trained_parameters().items()}
    adapted = [shape for name, shape in weights.items() if ".lora_A." in name]
    return ModelSize(
        parameters=total,
        computing=total - embedding - (0 if tied else output),
        output=output,
        trained=sum(shape.numel() for shape in weights.values()),
        adapted=len(adapted),
        inner=_inner(config, hidden),
        vocabulary=int(module.get_output_embeddings().weight.shape[0]),
        linear=sum(part.weight.numel() for part in inside.values()),
        norms=_norm_widths(module, widths) // layers,
        mlp_tensors=_mlp_tensors(module, inside),
        adapted_inputs=sum(int(shape[-1]) for shape in adapted),
        **widths,
    )


def _inner(config: object, hidden: int) -> int:
    """Return the intermediate size, or in a mixture of experts the sum of those that compute one token."""
    inner = int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden)
    experts = int(getattr(config, "num_experts_per_tok", None) or 0)
    return experts * int(getattr(config, "moe_intermediate_size", None) or inner) if experts else inner


def _mlp_tensors(module: PreTrainedModel, linear: Iterable[str]) -> int:
    """Return how many tensors of the intermediate size an MLP keeps: gate, activation and product, or the activation's input.

    An activation that is composed of elementary operators, as GPT-2's, keeps the input of each of them.
    """
    if any(_GATE.search(name) for name in linear):
        return 3
    return 7 if any(type(part).__name__ in _COMPOSED for part in module.modules()) else 1


def _norm_widths(module: PreTrainedModel, widths: dict[str, int]) -> int:
    """Return the added widths of the inputs of all normalization layers; one of a head is applied to every head."""
    added = 0
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if type(part).__name__.endswith("Norm") and isinstance(weight, torch.Tensor):
            own = weight.numel()
            of_heads = {"q_norm": "query_width", "k_norm": "key_width"}.get(name.rsplit(".", 1)[-1])
            added += own if of_heads is None else max(own, widths[of_heads])
    return added
