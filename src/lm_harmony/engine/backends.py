"""Backends: which forward passes a model uses. The faster ones are used where a probe finds them exact, else padded batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from lm_harmony.engine.attention_function import packed_attention
from lm_harmony.engine.attention_kernels import DEFAULT_KERNELS
from lm_harmony.engine.attention_probe import choose_kernels
from lm_harmony.engine.causal_probe import refuse_later_tokens
from lm_harmony.engine.compiled_layers import compiled_layers
from lm_harmony.engine.forward import Forward, packed_logprobs, padded_logprobs, prefix_tree_logprobs
from lm_harmony.engine.generation_probe import PROBE_FAILURES, generates_exactly
from lm_harmony.engine.layout import end_by_tokens
from lm_harmony.engine.lm_head_blocks import HeadBlocks
from lm_harmony.engine.lm_head_probe import choose_head_blocks
from lm_harmony.engine.memory import MemoryBudget, memory_budget, recompute_pays
from lm_harmony.engine.onednn_linear import OneDnnLinear, probe_onednn, use_onednn
from lm_harmony.engine.rope import reset_dynamic_rope
from lm_harmony.engine.sequences import TokenSequence, end_by_sequences
from lm_harmony.errors import ModelError
from lm_harmony.models.device import is_out_of_memory
from lm_harmony.models.loading import LanguageModel

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats, that the probe accepts, beside four times the noise of padded batches."""
ROUNDING_STEPS = 8
"""The same in rounding steps of the weights' type, where that is more: 0.06 nats in bfloat16. Other kernels may round differently
even where padded batches repeat to the last bit. On trained models, a lost boundary between sequences changes some
log-probability by 2 nats or more, and bfloat16 itself changes it by 0.04 to 1.7 (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How a model computes its forward passes."""

    train_forward: Forward
    """Forward pass for training."""
    score_forward: Forward
    """Forward pass for scoring."""
    packed: bool
    """Whether rows are packed (then scoring computes shared beginnings once and sizes its passes in tokens)."""
    continuous_batching: bool = False
    """Whether generation uses continuous batching, where the generation settings allow it."""
    memory_budget: MemoryBudget = MemoryBudget()
    """Largest passes. Padded passes are limited by their number of sequences only."""
    onednn: OneDnnLinear = OneDnnLinear()
    """Linear layers that use oneDNN, on a CPU where a probe found it faster."""
    recompute: bool = False
    """Whether training recomputes activations, on a CPU where that saves a notable share of memory."""
    head_blocks: HeadBlocks | None = None
    """How training and scoring compute the output layer in blocks of its vocabulary, on a CPU where a probe found that faster."""
    compiled: bool = False
    """Whether the decoder layers are compiled, on request and on CUDA only."""

    @contextmanager
    def active(self, module: PreTrainedModel) -> Iterator[None]:
        """Let ``module`` compute with this backend inside the block.

        The block must hold the forward pass and, in training, the backward pass.
        """
        with ExitStack() as stack:
            stack.enter_context(use_onednn(module, self.onednn))
            stack.enter_context(reset_dynamic_rope(module))
            if self.packed:
                stack.enter_context(packed_attention(module))
            if self.compiled:
                stack.enter_context(compiled_layers(module))
            yield

    def describe(self) -> dict[str, Any]:
        """Return the choices under their names in record.json."""
        onednn, recompute = str(self.onednn), self.recompute
        found = {"fast": self.packed, "writes": self.continuous_batching, "onednn": onednn, "recompute": recompute}
        found |= {"head": str(self.head_blocks)} if self.head_blocks else {}
        return {**found, "compiled": True} if self.compiled else found

    def scoring_order(self, sequences: Sequence[TokenSequence]) -> list[int]:
        """Return the order in which sequences should be scored."""
        if self.packed:
            return sorted(range(len(sequences)), key=lambda index: sequences[index].ids)
        # Longest first: memory runs out in the first batch or never, and sequences of similar length share a batch.
        return sorted(range(len(sequences)), key=lambda index: -len(sequences[index].ids))

    def end_of_batch(self) -> Callable[[Sequence[TokenSequence], int, int], int]:
        """Return the function (sequences, start, size) -> end of a scoring batch; size is in tokens or in sequences."""
        return end_by_tokens if self.packed else end_by_sequences


PADDED = Backend(train_forward=padded_logprobs, score_forward=padded_logprobs, packed=False)
"""Padded batches, which are exact for every architecture."""
PACKED = Backend(train_forward=packed_logprobs, score_forward=prefix_tree_logprobs, packed=True, continuous_batching=True)
"""Packed rows and continuous batching, without a probe."""


def choose_backend(model: LanguageModel, engine: str = "auto") -> Backend:
    """Return the fastest backend that is exact on this model, by comparison with padded batches.

    Args:
        model: the model in evaluation mode.
        engine: "auto"; "compiled" for the same with compiled decoder layers; or "plain" for padded batches.

    Raises:
        ModelError: the engine is "compiled" and the model is not on a CUDA device; the model is not causal, or cannot compute.
    """
    if engine == "compiled" and model.device.type != "cuda":
        raise ModelError(
            f"engine compiled needs a CUDA device, and the model is on {model.device}. Compiling gained nothing on a CPU: use "
            f"--engine auto."
        )
    sequences = _probe_sequences(model)
    rounding = max(TOLERANCE, ROUNDING_STEPS * torch.finfo(model.module.dtype).eps)
    with torch.no_grad():
        padded = _expected(model, sequences, rounding)
        if engine == "plain":
            return PADDED
        alone = padded_logprobs(model.module, sequences[-1:]).logprobs_L
        allowed = rounding + 4 * float((padded[-len(alone) :] - alone).abs().max())
        for name, forward in (("packed training", packed_logprobs), ("prefix-tree scoring", prefix_tree_logprobs)):
            reason = _inexact(model, forward, sequences, padded, allowed)
            if reason:
                kind = model.module.config.model_type
                log.info("%s is not exact for %s (%s): falling back to padded batches.", name, kind, reason)
                return PADDED
    # oneDNN's float32 operator does not support autocast.
    onednn = probe_onednn(model.module) if model.autocast is None else OneDnnLinear()
    head_blocks = _exact_head_blocks(model, onednn, sequences, padded, allowed)
    recompute = recompute_pays(model.module)
    kernels = choose_kernels(model) if model.device.type == "cuda" else DEFAULT_KERNELS
    if model.device.type == "cpu":
        log.info("linear layers that use oneDNN (where it is faster on this machine): %s", onednn)
    elif model.device.type == "cuda":
        log.info("attention kernels (where they are faster on this machine): %s", kernels)
    contexts = [sequence.ids[-7 - index :] for index, sequence in enumerate(sequences[1:])]
    return replace(
        PACKED,
        train_forward=partial(packed_logprobs, recompute=recompute, kernels=kernels, head_blocks=head_blocks),
        score_forward=partial(prefix_tree_logprobs, kernels=kernels, head_blocks=head_blocks),
        continuous_batching=generates_exactly(model, contexts, allowed),
        memory_budget=memory_budget(model.module),
        onednn=onednn,
        recompute=recompute,
        head_blocks=head_blocks,
        compiled=engine == "compiled" and _compiles_exactly(model, sequences, padded, allowed),
    )


def _exact_head_blocks(
    model: LanguageModel, onednn: OneDnnLinear, sequences: Sequence[TokenSequence], expected_L: torch.Tensor, allowed: float
) -> HeadBlocks | None:
    """Return the blocks of the output layer that the probe chooses, if they give the log-probabilities of padded batches."""
    blocks = choose_head_blocks(model, onednn)
    log.info("output layer (what is faster on this machine): %s", blocks or "chunks of few rows")
    if blocks is None:
        return None
    with torch.no_grad():
        reason = _inexact(model, partial(packed_logprobs, head_blocks=blocks), sequences, expected_L, allowed)
    if reason:
        kind = model.module.config.model_type
        log.info("blocks of the vocabulary are not exact for %s (%s): falling back to chunks of rows.", kind, reason)
    return None if reason else blocks


def _compiles_exactly(model: LanguageModel, sequences: Sequence[TokenSequence], expected_L: torch.Tensor, allowed: float) -> bool:
    """Tell whether compiled layers give the log-probabilities of padded batches."""
    with torch.no_grad(), replace(PACKED, compiled=True).active(model.module):
        reason = _inexact(model, packed_logprobs, sequences, expected_L, allowed)
    if reason:
        log.warning("compiled layers are not exact for %s (%s): they are not used.", model.module.config.model_type, reason)
    return not reason


def _expected(model: LanguageModel, sequences: Sequence[TokenSequence], rounding: float) -> torch.Tensor:
    """Return the log-probabilities of padded batches.

    Raises:
        ModelError: the model cannot compute them, or its tokens see the ones after them by more than ``rounding``, in nats.
    """
    try:
        padded = padded_logprobs(model.module, sequences).logprobs_L
        refuse_later_tokens(model.name, model.module, sequences, padded, rounding)
    except PROBE_FAILURES as error:
        if is_out_of_memory(error):
            raise
        fault = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ModelError(
            f"model {model.name}: its forward pass fails ({fault}). Use another version of transformers, or another model."
        ) from error
    return padded


def _inexact(
    model: LanguageModel, forward: Forward, sequences: Sequence[TokenSequence], expected_L: torch.Tensor, allowed: float
) -> str:
    """Return why a forward pass is not exact, or "" if all log-probabilities are within ``allowed`` nats of the expected ones."""
    try:
        # In the type of the weights: the rounding of autocast would hide a small error of the layout.
        difference = float((forward(model.module, sequences).logprobs_L - expected_L).abs().max())
        if model.autocast is not None:
            with model.mixed_precision():
                forward(model.module, sequences)
    except PROBE_FAILURES as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return "" if difference <= allowed else f"log-probabilities differ by {difference:.2g} nats"


def _probe_sequences(model: LanguageModel) -> list[TokenSequence]:
    """Return two questions with two answers each after a common beginning: a row with a shared prefix, trees and branches."""
    generator = torch.Generator().manual_seed(0)
    rows = int(model.module.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    ids = torch.randint(rows, (40,), generator=generator).tolist()
    begin, first, second = ids[:18], ids[18:26], ids[26:32]
    texts = [
        (*begin, *first, *ids[32:35]),
        (*begin, *first, *ids[35:37]),
        (*begin, *second, ids[37]),
        (*begin, *second, *ids[38:]),
    ]
    return [TokenSequence(ids=tuple(text), first_label=2) for text in texts]
