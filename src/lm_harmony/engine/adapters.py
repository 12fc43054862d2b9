"""Trained weights: a LoRA adapter in PEFT's format, or all weights of the model. Attach, save, load and remove them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError
from transformers import PreTrainedModel

from lm_harmony.engine.dropout import DropoutState, seed_dropout
from lm_harmony.engine.lora_linear import use_fused_layers
from lm_harmony.engine.lora_targets import ALL_LINEAR, lora_targets
from lm_harmony.errors import DamagedFile, ModelError
from lm_harmony.models.adapter_weights import first_named, load_adapter
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora, Recipe

ONLY = "default"
"""PEFT's name for the only adapter of a model."""


@dataclass(frozen=True, kw_only=True)
class AdaptedLayer:
    """A linear layer of the model that has an adapter."""

    parent: torch.nn.Module
    """Module that holds the layer."""
    name: str
    """Attribute of ``parent`` under which the layer is found."""
    layer: LoraLayer
    """PEFT's layer, which holds the layer of the base model."""


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model that can be fine-tuned: the base model together with the weights that training changes."""

    module: PreTrainedModel | PeftModel
    """PEFT model, or the model itself if all weights are trained."""
    model: LanguageModel
    """The base model and its tokenizer."""
    dropout: DropoutState = field(default_factory=DropoutState)
    """State that the adapter's dropout layers read."""
    layers: tuple[AdaptedLayer, ...] = ()
    """Layers with an adapter, in the order of the model; empty if all weights are trained."""

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that training changes, by name."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def swap_out(self) -> None:
        """Put the base layers in the place of the adapted ones, so that other adapters can be attached to the model."""
        for place in self.layers:
            setattr(place.parent, place.name, place.layer.base_layer)
        if self.layers:
            del self.model.module.peft_config  # PEFT's mark of a model with adapters

    def swap_in(self) -> None:
        """Put the adapted layers back that ``swap_out`` removed."""
        for place in self.layers:
            setattr(place.parent, place.name, place.layer)
        if isinstance(self.module, PeftModel):
            self.model.module.peft_config = self.module.peft_config  # type: ignore[assignment]

    def save(self, folder: Path, *, model_card: bool = True) -> None:
        """Write the trained weights: in PEFT's adapter format, or as a model folder with its tokenizer.

        Args:
            folder: folder of the weights.
            model_card: whether an adapter gets a model card, which takes PEFT longer than the weights of a small adapter.
        """
        if isinstance(self.module, PeftModel):
            if not model_card:
                vars(self.module)["create_or_update_model_card"] = lambda _: None
            # With save_embedding_layers="auto", PEFT would send a request to the hub.
            self.module.save_pretrained(str(folder), save_embedding_layers=False)
            vars(self.module).pop("create_or_update_model_card", None)
        else:
            self.module.save_pretrained(folder)
            self.model.text.tokenizer.save_pretrained(folder)
        for file in folder.iterdir():  # safetensors writes files that only their owner may read, whatever the umask is
            file.chmod(folder.stat().st_mode & 0o666)

    def load(self, folder: Path) -> None:
        """Load weights that ``save`` wrote.

        Raises:
            DamagedFile: the folder holds no weights, or weights of another model.
        """
        if not any(folder.glob("*.safetensors")):
            raise DamagedFile(f"{folder} holds no safetensors file, so the weights are lost. Repeat the run with --overwrite.")
        module = self.module
        try:
            if isinstance(module, PeftModel):
                misfit = load_adapter(module, folder, ONLY, self.trained_parameters())
            else:
                misfit = _load_all(module, folder)
        except SafetensorError as error:
            raise DamagedFile(f"{folder} cannot be read: {error}. Repeat the run with --overwrite.") from error
        if misfit:
            raise DamagedFile(
                f"{folder} does not fit the model: it {misfit}. Use the model and the recipe with which it was trained."
            )


def _load_all(module: PreTrainedModel, folder: Path) -> str:
    """Load all weights in place; return what does not fit, or ""."""
    # transformers saves some weights under other names (Pythia's output layer), which only its own loader can map back.
    try:
        found: Any = type(module).from_pretrained(
            folder,
            config=module.config,
            dtype=module.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:  # for example, the folder of an adapter
        return f"holds no complete model ({' '.join(str(error).split())[:200].rstrip('.')})"
    stored, report = found
    misfit = (
        first_named("has weights named", report["unexpected_keys"])
        or first_named("lacks weights named", report["missing_keys"])
        or first_named("has a size mismatch for", [name for name, *_ in report["mismatched_keys"]])
    )
    if not misfit:
        module.load_state_dict(stored.state_dict())
    return misfit


@contextmanager
def trainable(model: LanguageModel, recipe: Recipe, *, seed: int) -> Iterator[Trainee]:
    """Make ``model`` trainable as ``recipe`` says inside the with-block; at its end the adapter is removed again.

    The initial adapter depends on ``seed`` only. The caller's random state does not change.

    Raises:
        ModelError: no adapter can be attached to the architecture, or to the modules that the recipe names.
    """
    if recipe.lora is None:
        weights = list(model.module.parameters())
        for weight in weights:
            weight.requires_grad_(True)
        try:
            yield Trainee(module=model.module, model=model)
        finally:
            for weight in weights:
                weight.grad = None  # an interrupted step leaves gradients as large as the model
        return
    own = list(model.module.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = attach(model, recipe.lora)
    # With a bias option PEFT trains biases of the base model, and unload() does not restore them.
    biases = [(weight, weight.detach().clone()) for weight in own if weight.requires_grad]
    module.eval()  # PEFT adds its layers in training mode, and their dropout would change scores
    try:
        yield Trainee(module=module, model=model, dropout=seed_dropout(module, ONLY), layers=_adapted_layers(model.module))
    finally:
        module.unload()
        for weight, value in biases:
            weight.data.copy_(value)


def _adapted_layers(module: PreTrainedModel) -> tuple[AdaptedLayer, ...]:
    """Return the layers that PEFT has adapted."""
    return tuple(
        AdaptedLayer(parent=module.get_submodule(name.rpartition(".")[0]), name=name.rpartition(".")[2], layer=layer)
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    )


def attach(model: LanguageModel, lora: Lora) -> PeftModel:
    """Attach an adapter to ``model`` and return the PEFT model.

    Raises:
        ModelError: no adapter can be attached to the architecture, or to the modules that the recipe names.
    """
    options = asdict(lora)
    options.pop("target_modules")
    targets = lora_targets(model, lora)
    chosen = "all-linear" if targets == ALL_LINEAR else list(targets)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=chosen, **options)
    try:
        module = get_peft_model(model.module, config)
    except (ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"model {model.name}: no adapter can be attached: {str(error).rstrip('.')}. "
            f"Set --peft_config.target_modules to names of its modules, or to all-linear."
        ) from error
    use_fused_layers(module, ONLY)
    return module
