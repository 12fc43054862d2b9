"""RoPE whose frequencies depend on the longest text of a pass: texts that need other frequencies get passes of their own.

LongRoPE (Phi-3, Phi-4-mini) has two sets of frequencies, one for passes up to its original length and one for longer passes.
Dynamic NTK scaling has one set for every length beyond the original, and transformers keeps the last one between passes.
A text must get the number that it gets alone, so all texts of a pass are of one regime: they need the same frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lm_harmony.engine.sequences import TokenSequence

Regime = tuple[int, int]
"""Equal for lengths that need the same frequencies: longer than how many LongRoPE limits, and the length beyond a dynamic one."""
EndOfBatch = Callable[[Sequence[TokenSequence], int, int], int]
"""(sequences, start, size) -> end of the batch that begins at start."""


@dataclass(frozen=True, kw_only=True)
class RopeRegimes:
    """How the RoPE frequencies of a model depend on the length of a pass."""

    longrope_limits: tuple[int, ...] = ()
    """Lengths in tokens beyond which LongRoPE takes its long factors."""
    dynamic_limit: int | None = None
    """Length in tokens beyond which dynamic NTK scaling has frequencies for each length; None: the model has none."""

    def of(self, length: int) -> Regime:
        """Return the regime of a pass over ``length`` tokens."""
        dynamic = self.dynamic_limit is not None and length > self.dynamic_limit
        return sum(length > limit for limit in self.longrope_limits), length if dynamic else 0

    def of_sequence(self, sequence: TokenSequence) -> Regime:
        """Return the regime of a sequence, whose last token is not fed."""
        return self.of(len(sequence.ids) - 1)

    def order(self, sequences: Sequence[TokenSequence], places: Iterable[int]) -> list[int]:
        """Return ``places`` with those of one regime side by side, the longest first, in their order otherwise."""
        return sorted(places, key=lambda place: self.of_sequence(sequences[place]), reverse=True)

    def within(self, end_of_batch: EndOfBatch) -> EndOfBatch:
        """Return ``end_of_batch`` with batches that also end where the regime changes."""

        def end(sequences: Sequence[TokenSequence], start: int, size: int) -> int:
            stop, regime = end_of_batch(sequences, start, size), self.of_sequence(sequences[start])
            return next((place for place in range(start, stop) if self.of_sequence(sequences[place]) != regime), stop)

        return end


def regimes_of(module: PreTrainedModel) -> RopeRegimes:
    """Read from the configuration of ``module`` how its RoPE frequencies depend on the length of a pass."""
    longrope, dynamic = set[int](), set[int]()
    for config in (module.config, module.config.get_text_config()):
        for scaling in _scalings(config):
            kind = str(scaling.get("rope_type") or scaling.get("type"))
            original = scaling.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if kind in ("longrope", "su"):  # "su" is the name in the first Phi-3 configurations
                longrope.add(int(original or config.max_position_embeddings))
            elif "dynamic" in kind:
                dynamic.add(int(config.max_position_embeddings))
    return RopeRegimes(longrope_limits=tuple(sorted(longrope)), dynamic_limit=min(dynamic, default=None))


def _scalings(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """Return the RoPE parameters of ``config``: one set, or one for each type of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "rope_type" in found or "type" in found:
        return [found]
    return [scaling for scaling in found.values() if isinstance(scaling, Mapping)]


@contextmanager
def reset_dynamic_rope(module: PreTrainedModel) -> Iterator[None]:
    """Compute dynamic NTK frequencies from the length of each pass alone for the length of a block; other RoPE stays as it is."""
    if regimes_of(module).dynamic_limit is None:
        yield
        return
    rotary = [part for part in module.modules() if any("dynamic" in kind for kind in _kinds(part).values())]
    hooks = [part.register_forward_pre_hook(_forget_longer_pass) for part in rotary]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in rotary:
            _forget_longer_pass(part)


def _kinds(part: nn.Module) -> dict[str, str]:
    """Return the RoPE type of each type of layer by the prefix of its buffers; empty for a module without rotary embedding."""
    kind = getattr(part, "rope_type", None)
    if isinstance(kind, Mapping):
        return {f"{layer_type}_": str(one) for layer_type, one in kind.items()}
    return {} if kind is None else {"": str(kind)}


def _forget_longer_pass(part: nn.Module, _: object = None) -> None:
    """Undo what transformers' ``dynamic_rope_update`` keeps of a longer pass."""
    for prefix, kind in _kinds(part).items():
        original = getattr(part, f"{prefix}original_inv_freq", None)
        if "dynamic" in kind and original is not None:
            device = getattr(part, f"{prefix}inv_freq").device
            part.register_buffer(f"{prefix}inv_freq", original.to(device), persistent=False)
            setattr(part, f"{prefix}max_seq_len_cached", part.original_max_seq_len)
