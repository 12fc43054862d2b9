"""Probe that compares answers of continuous batching with those of ``transformers.generate`` on a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from lm_harmony.engine.continuous_batching import decode_greedily, supports_continuous_batching
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.models.device import is_out_of_memory
from lm_harmony.models.loading import LanguageModel

log = logging.getLogger(__name__)

PROBE_TOKENS = 3
"""Largest number of tokens that the probe generates after each of its contexts."""
PROBE_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""What an architecture may raise for inputs that it does not expect. It must not stop a run that padded batches can do."""


@torch.no_grad()
def generates_exactly(model: LanguageModel, contexts: Sequence[Sequence[int]], allowed: float) -> bool:
    """Tell whether continuous batching gives the tokens of ``transformers.generate``.

    Args:
        model: a model whose packed forward pass is exact.
        contexts: token ids to continue, of different lengths.
        allowed: largest difference of two log-probabilities, in nats, at which either token is accepted.
    """
    module = model.module
    settings = GenerationSettings.read({}, default_limit=PROBE_TOKENS)
    if not supports_continuous_batching(module) or settings.beyond_greedy(module.generation_config):
        return False
    try:
        found = decode_greedily(model, contexts, batch_size=2, max_new_tokens=PROBE_TOKENS, is_finished=_at_different_times)
        differing = [row.place for row in found if not _is_generated(module, contexts[row.place], row.written, allowed)]
    except PROBE_FAILURES as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    else:
        if not differing:
            return True
        reason = "the tokens differ from those of transformers.generate"
    kind = module.config.model_type
    log.info("continuous batching is not exact for %s (%s): falling back to transformers.generate.", kind, reason.split("\n")[0])
    return False


def _at_different_times(written: Sequence[int]) -> bool:
    """End answers after one to three tokens, so that rows leave the batch and others enter."""
    return len(written) > written[0] % 3


def _is_generated(module: PreTrainedModel, context: Sequence[int], written: Sequence[int], allowed: float) -> bool:
    """Tell whether ``generate()`` gives these tokens, or another one only where both are equally probable."""
    ids_1xT = torch.tensor([list(context)], device=module.device)
    options: dict[str, Any] = {"max_new_tokens": len(written), "do_sample": False, "return_dict_in_generate": False}
    output = module.generate(input_ids=ids_1xT, attention_mask=torch.ones_like(ids_1xT), **options)  # type: ignore[operator]
    expected = output[0, len(context) :].tolist()
    place = next((place for place, (one, other) in enumerate(zip(written, expected, strict=False)) if one != other), None)
    if place is None:
        return True
    logprobs_V = module(input_ids=output[:, : len(context) + place], use_cache=False).logits[0, -1].float().log_softmax(dim=-1)
    return float((logprobs_V[written[place]] - logprobs_V[expected[place]]).abs()) <= allowed
