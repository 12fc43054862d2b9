"""What is trained: a LoRA adapter in PEFT's format, or all weights. Attach, save, load, take out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lm_harmony.errors import ModelError, StoreError
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora, Recipe


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model with the weights that training may change."""

    module: PreTrainedModel | PeftModel
    """Runs forward with the trained weights applied."""
    model: LanguageModel
    """The model underneath."""

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that training changes, by name."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the trained weights: PEFT's adapter format, or a whole model folder with its tokenizer."""
        if isinstance(self.module, PeftModel):
            # Left on "auto", PEFT asks the hub whether the vocabulary was changed.
            self.module.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.module.save_pretrained(folder)
            self.model.text.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Put back weights that ``save`` wrote.

        Raises:
            StoreError: the folder holds no weights, or those of another model.
        """
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise StoreError(f"{folder} holds no safetensors. The run's weights are gone: run it again with --overwrite.")
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        try:
            if isinstance(self.module, PeftModel):
                unexpected = set_peft_model_state_dict(self.module, weights).unexpected_keys  # type: ignore[attr-defined]
            else:
                # Tied weights are saved once, so some names are absent on purpose.
                unexpected = self.module.load_state_dict(weights, strict=False).unexpected_keys
                self.module.tie_weights()
        except RuntimeError as error:
            raise StoreError(f"{folder} does not fit the model: {str(error).splitlines()[0]}") from error
        if unexpected:
            raise StoreError(f"{folder} does not fit the model: it has weights named {unexpected[0]!r}.")


@contextmanager
def trainee(model: LanguageModel, recipe: Recipe, *, seed: int) -> Iterator[Trainee]:
    """Make ``model`` trainable as ``recipe`` says for the length of a block; an adapter is taken out again at its end.

    The initial adapter depends on ``seed`` alone and on nothing drawn before; the caller's random state is left as it was.

    Raises:
        ModelError: PEFT does not know which modules of the architecture to adapt.
    """
    if recipe.lora is None:
        for weight in model.module.parameters():
            weight.requires_grad_(True)
        yield Trainee(module=model.module, model=model)
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _with_lora(model, recipe.lora)
    module.eval()  # PEFT adds its layers in training mode: their dropout would blur a score
    try:
        yield Trainee(module=module, model=model)
    finally:
        module.unload()


def _with_lora(model: LanguageModel, lora: Lora) -> PeftModel:
    options = asdict(lora)
    targets = options.pop("target_modules")
    chosen = "all-linear" if targets == ("all-linear",) else list(targets) or None
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=chosen, **options)
    try:
        return get_peft_model(model.module, config)
    except ValueError as error:
        raise ModelError(
            f"model {model.name}: no adapter can be attached: {error} "
            f"Name its modules with --peft_config.target_modules, or use all-linear."
        ) from error
