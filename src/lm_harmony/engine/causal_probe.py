"""Probe that refuses a model whose tokens see the ones after them, whatever its configuration calls that.

Encoders (is_decoder false) and decoders that became embedding models (is_causal false, use_bidirectional_attention true) are
loaded as causal language models. They read the answer and the padding behind a token before they predict it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from lm_harmony.engine.forward import padded_logprobs
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.errors import ModelError


def refuse_later_tokens(
    name: str, module: PreTrainedModel, sequences: Sequence[TokenSequence], logprobs_L: torch.Tensor, allowed: float
) -> None:
    """Raise for a model in which the log-probability of a token depends on later tokens.

    Args:
        name: hub id or folder of the model.
        module: the model in evaluation mode.
        sequences: texts with a common beginning and other tokens after it. All have the same first label, and the first one is
            as long as any.
        logprobs_L: log-probabilities of their labels in one padded batch.
        allowed: largest difference by rounding, in nats, beside four times the noise of padded batches.

    Raises:
        ModelError: a label of the common beginning has different log-probabilities.
    """
    columns = list(zip(*(sequence.ids for sequence in sequences), strict=False))
    common = next((place for place, ids in enumerate(columns) if len(set(ids)) > 1), len(columns))
    parts = logprobs_L.split([len(sequence.labels) for sequence in sequences])
    first, *others = (part[: common - sequences[0].first_label] for part in parts)
    difference = max(float((other - first).abs().max()) for other in others)
    if difference <= allowed:
        return
    # The first text has no padding, so without the other rows only rounding changes it.
    alone = padded_logprobs(module, sequences[:1]).logprobs_L
    noise = float((logprobs_L[: len(alone)] - alone).abs().max())
    if difference > allowed + 4 * noise:
        raise ModelError(
            f"model {name}: the tokens after a token change its log-probability by {difference:.2g} nats, so it is no causal "
            f"language model (model_type = {module.config.model_type!r}; config.json may say is_causal = false or "
            f"use_bidirectional_attention = true). Use a causal language model (Llama, Qwen, GPT-NeoX and the like)."
        )
