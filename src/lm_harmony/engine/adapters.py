"""What is trained: a LoRA adapter in PEFT's format, or all weights. Attach, save, load, take out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lm_harmony.engine.dropout import DropoutState, seed_dropout
from lm_harmony.errors import DamagedFile, ModelError
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora, Recipe

ONLY = "default"
"""PEFT's name of an adapter that is alone on its model."""


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model with the weights that training may change."""

    module: PreTrainedModel | PeftModel
    """Runs forward with the trained weights applied."""
    model: LanguageModel
    """The model underneath."""
    adapter: str = ONLY
    """Name of the adapter, where several live on one model."""
    dropout: DropoutState = field(default_factory=DropoutState)
    """What the adapter's dropout draws."""

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that training changes, by name."""
        return {
            name: weight
            for name, weight in self.module.named_parameters()
            if weight.requires_grad and (self.adapter == ONLY or f".{self.adapter}." in name)
        }

    def save(self, folder: Path) -> None:
        """Write the trained weights: PEFT's adapter format, or a whole model folder with its tokenizer."""
        if isinstance(self.module, PeftModel):
            # Left on "auto", PEFT asks the hub whether the vocabulary was changed.
            self.module.save_pretrained(str(folder), selected_adapters=[self.adapter], save_embedding_layers=False)
            if self.adapter != ONLY:  # PEFT puts it into a folder of its name
                for file in (folder / self.adapter).iterdir():
                    file.replace(folder / file.name)
                (folder / self.adapter).rmdir()
        else:
            self.module.save_pretrained(folder)
            self.model.text.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Put back weights that ``save`` wrote.

        Raises:
            DamagedFile: the folder holds no weights, or those of another model.
        """
        if not any(folder.glob("*.safetensors")):
            raise DamagedFile(f"{folder} holds no safetensors. The run's weights are gone: run it again with --overwrite.")
        module = self.module
        try:
            if isinstance(module, PeftModel):
                misfit = _fill_adapter(module, folder, self.adapter, self.trained_parameters())
            else:
                misfit = _fill_all(module, folder)
        except SafetensorError as error:
            raise DamagedFile(f"{folder} cannot be read: {error}. Run it again with --overwrite.") from error
        if misfit:
            raise DamagedFile(
                f"{folder} does not fit the model: it {misfit}. Take the model and recipe that it was trained with."
            )


def _fill_adapter(module: PeftModel, folder: Path, adapter: str, trained: Iterable[str]) -> str:
    """Fill an adapter in place; return what does not fit, or nothing."""
    weights = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    try:
        found: Any = set_peft_model_state_dict(module, weights, adapter_name=adapter)
    except RuntimeError as error:  # its first line only says that there are errors
        return f"has a {str(error).splitlines()[-1].strip().rstrip('.')}"
    absent = set(trained) & set(found.missing_keys)  # the weights of the base are missing by design
    return _first("has weights named", found.unexpected_keys) or _first("lacks weights named", absent)


def _fill_all(module: PreTrainedModel, folder: Path) -> str:
    """Fill all weights in place; return what does not fit, or nothing."""
    # transformers saves some weights under their names on the hub (Pythia's head): its own reader knows them again.
    try:
        found: Any = type(module).from_pretrained(
            folder, config=module.config, dtype=module.dtype, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:  # the folder of an adapter
        return f"holds no whole model ({' '.join(str(error).split())[:200].rstrip('.')})"
    stored, report = found
    misfit = (
        _first("has weights named", report["unexpected_keys"])
        or _first("lacks weights named", report["missing_keys"])
        or _first("has a size mismatch for", [name for name, *_ in report["mismatched_keys"]])
    )
    if not misfit:
        module.load_state_dict(stored.state_dict())
    return misfit


def _first(what: str, names: Iterable[str]) -> str:
    return next((f"{what} {name!r}" for name in sorted(names)), "")


@contextmanager
def trainable(model: LanguageModel, recipe: Recipe, *, seed: int) -> Iterator[Trainee]:
    """Make ``model`` trainable as ``recipe`` says for the length of a block; an adapter is taken out again at its end.

    The initial adapter depends on ``seed`` alone and on nothing drawn before; the caller's random state is left as it was.

    Raises:
        ModelError: PEFT does not know which modules of the architecture to adapt.
    """
    if recipe.lora is None:
        weights = list(model.module.parameters())
        for weight in weights:
            weight.requires_grad_(True)
        try:
            yield Trainee(module=model.module, model=model)
        finally:
            for weight in weights:
                weight.grad = None  # a step that an error stopped leaves gradients as large as the model
        return
    own = list(model.module.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = attach(model, recipe.lora)
    # With a bias option PEFT trains biases of the model itself, which unload() leaves as they became.
    biases = [(weight, weight.detach().clone()) for weight in own if weight.requires_grad]
    module.eval()  # PEFT adds its layers in training mode: their dropout would blur a score
    try:
        yield Trainee(module=module, model=model, dropout=seed_dropout(module, ONLY))
    finally:
        module.unload()
        for weight, value in biases:
            weight.data.copy_(value)


def attach(model: LanguageModel, lora: Lora, *, adapter: str = ONLY, beside: PeftModel | None = None) -> PeftModel:
    """Attach an adapter to ``model``; ``beside`` is what carries the model's other adapters already.

    Raises:
        ModelError: PEFT does not know which modules of the architecture to adapt.
    """
    options = asdict(lora)
    targets = options.pop("target_modules")
    chosen = "all-linear" if targets == ("all-linear",) else list(targets) or None
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=chosen, **options)
    try:
        if beside is None:
            return get_peft_model(model.module, config, adapter_name=adapter)
        beside.add_adapter(adapter, config)
        return beside
    except ValueError as error:
        raise ModelError(
            f"model {model.name}: no adapter can be attached: {error} "
            f"Name its modules with --peft_config.target_modules, or use all-linear."
        ) from error
