"""Several adapters over one frozen base, each on its own part of a packed row.

Shapes: R runs, N tokens of the row, T tokens of the longest run's part, D inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch.nn.utils.rnn import pad_sequence

from lm_harmony.engine.adapters import Trainee, attach
from lm_harmony.engine.dropout import seed_dropout
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Lora


class SharedBase:
    """A base with the adapters of the runs that are being trained on it; all are taken out at the end of its block."""

    def __init__(self, model: LanguageModel) -> None:
        """Begin with no adapter on ``model``."""
        self.model = model
        self._peft: PeftModel | None = None

    def __enter__(self) -> SharedBase:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._peft is not None:
            self._peft.unload()

    def add_adapter(self, name: str, lora: Lora, *, seed: int) -> Trainee:
        """Attach an adapter, with the weights that it would have alone.

        Raises:
            ModelError: PEFT does not know which modules of the architecture to adapt.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._peft = attach(self.model, lora, adapter=name, beside=self._peft)
        dropout = seed_dropout(self._peft, name)
        self._train_all()
        return Trainee(module=self._peft, model=self.model, adapter=name, dropout=dropout)

    def remove_adapter(self, trainee: Trainee) -> None:
        """Take an adapter out."""
        assert self._peft is not None
        others = [name for name in self._peft.peft_config if name != trainee.adapter]
        if others:
            self._peft.set_adapter(others[0])
            self._peft.delete_adapter(trainee.adapter)
            self._train_all()
        else:
            self._peft.unload()
            self._peft = None

    def activate(self, trainee: Trainee) -> None:
        """Switch to one adapter, in evaluation mode, for whoever asks the model now."""
        assert self._peft is not None
        self._peft.set_adapter(trainee.adapter)
        self._train_all()
        self._peft.eval()

    def _train_all(self) -> None:
        """Undo that PEFT stops the training of every adapter but the one it switches to."""
        assert self._peft is not None
        self._peft.set_requires_grad(list(self._peft.peft_config))

    @contextmanager
    def adapters_by_part(self, sizes: dict[str, int]) -> Iterator[None]:
        """Let each part of a packed row go through its own adapter for the length of a block.

        Args:
            sizes: adapter -> tokens of its part, in the order of the row.
        """
        with ExitStack() as stack:
            for layer in self.model.module.modules():
                if isinstance(layer, LoraLayer):
                    assert isinstance(layer, LoraLinear), f"{type(layer).__name__} cannot be routed"
                    layer.forward = MultiAdapterForward(layer, sizes)
                    stack.callback(delattr, layer, "forward")
            yield


@dataclass(frozen=True)
class MultiAdapterForward:
    """The forward pass of an adapted layer over the parts of several runs: one product for all of their adapters."""

    layer: LoraLinear
    """The layer, with its adapters."""
    sizes: dict[str, int]
    """Adapter -> tokens of its part, in the order of the row."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1 x N x O of 1 x N x D."""
        layer = self.layer
        result: torch.Tensor = layer.base_layer(x)
        parts = dict(zip(self.sizes, x[0].split(list(self.sizes.values())), strict=True))
        names = [name for name, part in parts.items() if name in layer.lora_A and len(part)]
        if not names:
            return result
        # Padded and batched, not one product under a mask: a run whose numbers are not finite must not touch the others'.
        a_RxDxr = pad_sequence([_weight(layer.lora_A[name]) for name in names], batch_first=True).transpose(1, 2)
        b_RxrxO = pad_sequence([_weight(layer.lora_B[name]).T for name in names], batch_first=True)
        inputs = [layer.lora_dropout[name](parts[name].to(a_RxDxr.dtype)[None])[0] for name in names]
        added = dict(zip(names, pad_sequence(inputs, batch_first=True) @ a_RxDxr @ b_RxrxO, strict=True))
        whole = [
            added[name][:size] * layer.scaling[name] if name in added else b_RxrxO.new_zeros(size, result.shape[-1])
            for name, size in self.sizes.items()
        ]
        return (result + torch.cat(whole)[None]).to(result.dtype)


def _weight(product: torch.nn.Module) -> torch.Tensor:
    assert isinstance(product, torch.nn.Linear)
    return product.weight
