"""Multi-adapter forward pass for joint training: each part of a packed row goes through the adapter of its run. EXPERIMENTAL.

Shapes: R runs, N tokens of the row, T tokens of the longest part, D inputs, O outputs, r rank.
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
    """A base model with the adapters of several runs; a with-block removes all of them at its end."""

    def __init__(self, model: LanguageModel) -> None:
        """Wrap ``model``, which has no adapter yet."""
        self.model = model
        self._peft: PeftModel | None = None

    def __enter__(self) -> SharedBase:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._peft is not None:
            self._peft.unload()

    def add_adapter(self, name: str, lora: Lora, *, seed: int) -> Trainee:
        """Attach the adapter ``name`` with the initial weights that it would have alone.

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
        """Remove the adapter of ``trainee``."""
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
        """Make the adapter of ``trainee`` the only active one and switch to evaluation mode, so that the caller can score it."""
        assert self._peft is not None
        self._peft.set_adapter(trainee.adapter)
        self._train_all()
        self._peft.eval()

    def _train_all(self) -> None:
        """Re-enable the gradients of all adapters, which ``set_adapter()`` turns off for all but one."""
        assert self._peft is not None
        self._peft.set_requires_grad(list(self._peft.peft_config))

    @contextmanager
    def adapters_by_part(self, sizes: dict[str, int]) -> Iterator[None]:
        """Inside the with-block, apply to each part of a packed row its own adapter.

        Args:
            sizes: {adapter: number of tokens of its part}, in the order of the row.
        """
        with ExitStack() as stack:
            for layer in self.model.module.modules():
                if isinstance(layer, LoraLayer):
                    assert isinstance(layer, LoraLinear), f"joint training does not support {type(layer).__name__}"
                    layer.forward = MultiAdapterForward(layer, sizes)
                    stack.callback(delattr, layer, "forward")
            yield


@dataclass(frozen=True)
class MultiAdapterForward:
    """Forward pass of one adapted layer: the parts of all runs go through their adapters in one batched product."""

    layer: LoraLinear
    """The linear layer with its adapters."""
    sizes: dict[str, int]
    """Number of tokens of each adapter's part, in the order of the row."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1 x N x O of 1 x N x D."""
        layer = self.layer
        result: torch.Tensor = layer.base_layer(x)
        parts = dict(zip(self.sizes, x[0].split(list(self.sizes.values())), strict=True))
        names = [name for name, part in parts.items() if name in layer.lora_A and len(part)]
        if not names:
            return result
        # Padded and batched instead of one masked product, so that NaN in one run does not spread to the others.
        a_RxDxr = pad_sequence([_weight(layer.lora_A[name]) for name in names], batch_first=True).transpose(1, 2)
        b_RxrxO = pad_sequence([_weight(layer.lora_B[name]).T for name in names], batch_first=True)
        inputs = [layer.lora_dropout[name](parts[name].to(a_RxDxr.dtype)[None])[0] for name in names]
        added = dict(zip(names, pad_sequence(inputs, batch_first=True) @ a_RxDxr @ b_RxrxO, strict=True))
        in_order = [
            added[name][:size] * layer.scaling[name] if name in added else b_RxrxO.new_zeros(size, result.shape[-1])
            for name, size in self.sizes.items()
        ]
        return (result + torch.cat(in_order)[None]).to(result.dtype)


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer."""
    assert isinstance(layer, torch.nn.Linear)
    return layer.weight
