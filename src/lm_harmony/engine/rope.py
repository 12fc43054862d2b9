"""RoPE whose frequencies depend on the length of a forward pass: sequences that need different frequencies are not mixed.

LongRoPE (Phi-3, Phi-4-mini) has two sets of frequencies, one for passes up to its original length and one for longer passes.
Dynamic NTK scaling has one set for every length beyond the original, and transformers keeps the last set between passes.
A sequence must get the log-probabilities that it gets alone. Therefore all sequences of a pass belong to one regime, which means
that they need the same frequencies.
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
"""(number of LongRoPE limits that a length exceeds, the length itself beyond a dynamic limit): equal if frequencies are equal."""
EndOfBatch = Callable[[Sequence[TokenSequence], int, int], int]
"""(sequences, start, size) -> end of the batch that begins at start."""


@dataclass(frozen=True, kw_only=True)
class RopeRegimes:
    """How the RoPE frequencies of a model depend on the length of a forward pass."""

    longrope_limits: tuple[int, ...] = ()
    """Lengths in tokens beyond which LongRoPE uses its long factors."""
    dynamic_limit: int | None = None
    """Length in tokens beyond which dynamic NTK scaling has frequencies for each length; None without such scaling."""

    def of(self, length: int) -> Regime:
        """Return the regime of a pass over ``length`` tokens."""
        dynamic = self.dynamic_limit is not None and length > self.dynamic_limit
        return sum(length > limit for limit in self.longrope_limits), length if dynamic else 0

    def of_sequence(self, sequence: TokenSequence) -> Regime:
        """Return the regime of a sequence, whose last token is not an input."""
        return self.of(len(sequence.ids) - 1)

    def order(self, sequences: Sequence[TokenSequence], indices: Iterable[int]) -> list[int]:
        """Return ``indices`` grouped by the regime of their sequences, the longest first; the sort is stable."""
        return sorted(indices, key=lambda index: self.of_sequence(sequences[index]), reverse=True)

    def within(self, end_of_batch: EndOfBatch) -> EndOfBatch:
        """Return an ``end_of_batch`` whose batches also end where the regime changes."""

        def end(sequences: Sequence[TokenSequence], start: int, size: int) -> int:
            stop, regime = end_of_batch(sequences, start, size), self.of_sequence(sequences[start])
            return next((index for index in range(start, stop) if self.of_sequence(sequences[index]) != regime), stop)

        return end


def regimes_of(module: PreTrainedModel) -> RopeRegimes:
    """Return how the RoPE frequencies of ``module`` depend on the length of a pass, according to its configuration."""
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
    """Return the RoPE parameters of ``config``: one mapping, or one for each type of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "rope_type" in found or "type" in found:
        return [found]
    return [scaling for scaling in found.values() if isinstance(scaling, Mapping)]


@contextmanager
def reset_dynamic_rope(module: PreTrainedModel) -> Iterator[None]:
    """Inside the with-block, compute dynamic NTK frequencies from the length of each pass alone; other RoPE is unchanged."""
    if regimes_of(module).dynamic_limit is None:
        yield
        return
    rotary = [part for part in module.modules() if any("dynamic" in kind for kind in _kinds(part).values())]
    hooks = [part.register_forward_pre_hook(_reset_frequencies) for part in rotary]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in rotary:
            _reset_frequencies(part)


def _kinds(part: nn.Module) -> dict[str, str]:
    """Return {prefix of its buffers: RoPE type} for a rotary embedding, and {} for other modules."""
    kind = getattr(part, "rope_type", None)
    if isinstance(kind, Mapping):
        return {f"{layer_type}_": str(one) for layer_type, one in kind.items()}
    return {} if kind is None else {"": str(kind)}


def _reset_frequencies(part: nn.Module, _: object = None) -> None:
    """Reset the frequencies that transformers' ``dynamic_rope_update`` keeps after a longer pass."""
    for prefix, kind in _kinds(part).items():
        original = getattr(part, f"{prefix}original_inv_freq", None)
        if "dynamic" in kind and original is not None:
            device = getattr(part, f"{prefix}inv_freq").device
            part.register_buffer(f"{prefix}inv_freq", original.to(device), persistent=False)
            setattr(part, f"{prefix}max_seq_len_cached", part.original_max_seq_len)
