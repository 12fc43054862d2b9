"""Which forward pass serves a model: the fast ones where a probe finds them exact, the plain one everywhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from lm_harmony.engine.continuous_batching import decode_greedily, supports_continuous_batching
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.memory import MemoryBudget, memory_budget, recompute_pays
from lm_harmony.engine.onednn_linear import OneDnnLinear, probe_onednn, use_onednn
from lm_harmony.engine.packed_attention import packed_attention
from lm_harmony.engine.packed_forward import packed_logprobs, prefix_tree_logprobs
from lm_harmony.engine.padded_forward import Forward, end_by_sequences, padded_logprobs
from lm_harmony.engine.prefix_tree import end_by_tokens
from lm_harmony.engine.rope import reset_dynamic_rope
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.models.device import is_out_of_memory
from lm_harmony.models.loading import LanguageModel

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of a log-probability, in nats, that the probe calls equal, beside four times the plain path's own noise."""
ROUNDING_STEPS = 8
"""The same in rounding steps of the weights' type, where that is more: 0.06 nats in bfloat16. Other kernels may round otherwise
even where the plain path repeats itself to the last bit. On trained models a lost boundary between texts moves some
log-probability by 2 nats or more, and bfloat16 itself moves it by 0.04 to 1.7 (docs/performance.md)."""
PROBE_TOKENS = 3
"""Most tokens that the probe writes after each of its texts."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How a model's forward passes are laid out."""

    train_forward: Forward
    """For training."""
    score_forward: Forward
    """For scoring."""
    packed: bool
    """Whether shared beginnings are computed once (then sequences are sorted to lie together and counted in tokens)."""
    continuous_batching: bool = False
    """Whether finished answers leave the batch and waiting ones enter, where the model's cache and the settings allow it."""
    memory_budget: MemoryBudget = MemoryBudget()
    """How much one pass may hold; on the plain path a pass is counted in sequences alone."""
    onednn: OneDnnLinear = OneDnnLinear()
    """Which products of linear layers are computed through oneDNN, on a CPU where a probe found them faster."""
    recompute: bool = False
    """Whether training keeps less for its backward pass, on a CPU where that saves a notable share of memory."""

    @contextmanager
    def active(self, module: PreTrainedModel) -> Iterator[None]:
        """Compute on these paths for the length of a block, which holds a forward pass and, in training, its backward pass."""
        with ExitStack() as stack:
            stack.enter_context(use_onednn(module, self.onednn))
            stack.enter_context(reset_dynamic_rope(module))
            if self.packed:
                stack.enter_context(packed_attention(module))
            yield

    def describe(self) -> dict[str, Any]:
        """Return the choices as plain values, for a record."""
        return {
            "fast": self.packed,
            "writes": self.continuous_batching,
            "onednn": str(self.onednn),
            "recompute": self.recompute,
        }

    def scoring_order(self, sequences: Sequence[TokenSequence]) -> list[int]:
        """Return the order in which sequences are best scored."""
        if self.packed:
            return sorted(range(len(sequences)), key=lambda place: sequences[place].ids)
        # Longest first: memory runs out at once or never, and sequences of like length share a batch.
        return sorted(range(len(sequences)), key=lambda place: -len(sequences[place].ids))

    def end_of_batch(self) -> Callable[[Sequence[TokenSequence], int, int], int]:
        """Return the rule that ends a batch of scoring: by tokens computed, or by sequences."""
        return end_by_tokens if self.packed else end_by_sequences


PADDED = Backend(train_forward=padded_logprobs, score_forward=padded_logprobs, packed=False)
"""The plain path for everything."""
PACKED = Backend(train_forward=packed_logprobs, score_forward=prefix_tree_logprobs, packed=True, continuous_batching=True)
"""The fast paths."""


def choose_backend(model: LanguageModel, engine: str = "auto") -> Backend:
    """Compare the fast paths with the plain one on this very model, and return what is exact.

    Args:
        model: in evaluation mode.
        engine: "auto", or "plain" to ask for the plain path.
    """
    if engine == "plain":
        return PADDED
    sequences = _probe_sequences(model)
    with torch.no_grad():
        padded = padded_logprobs(model.module, sequences).logprobs_L
        alone = padded_logprobs(model.module, sequences[-1:]).logprobs_L
        noise = float((padded[-len(alone) :] - alone).abs().max())
        allowed = max(TOLERANCE, ROUNDING_STEPS * torch.finfo(model.module.dtype).eps) + 4 * noise
        for name, path in (("packed training", packed_logprobs), ("shared-context scoring", prefix_tree_logprobs)):
            try:
                # In the type of the weights: the rounding of autocast would hide a small fault of the layout.
                difference = float((path(model.module, sequences).logprobs_L - padded).abs().max())
                if model.autocast is not None:
                    with model.mixed_precision():
                        path(model.module, sequences)
            # Whatever an architecture makes of a row it does not expect, it must not stop a run that the plain path can do.
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
                if is_out_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
            else:
                if difference <= allowed:
                    continue
                reason = f"log-probabilities differ by {difference:.2g} nats"
            kind = model.module.config.model_type
            log.info("%s is not exact for %s (%s); the plain path serves.", name, kind, reason.split("\n")[0])
            return PADDED
    # oneDNN's float32 products know nothing of autocast.
    onednn = probe_onednn(model.module) if model.autocast is None else OneDnnLinear()
    recompute = recompute_pays(model.module)
    if model.device.type == "cpu":
        log.info("products of linear layers through oneDNN (where it is faster here): %s", onednn)
    return Backend(
        train_forward=partial(packed_logprobs, recompute=recompute),
        score_forward=prefix_tree_logprobs,
        packed=True,
        continuous_batching=_writes_exactly(model, allowed),
        memory_budget=memory_budget(model.module),
        onednn=onednn,
        recompute=recompute,
    )


def _probe_sequences(model: LanguageModel) -> list[TokenSequence]:
    """Make texts of two questions with two answers each behind a common beginning: trunk, trees and branches are all used."""
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


@torch.no_grad()
def _writes_exactly(model: LanguageModel, allowed: float) -> bool:
    """Compare greedy decoding with ``transformers.generate``: the same tokens, but for ties within ``allowed`` nats."""
    module, contexts = model.module, [sequence.ids[-7 - place :] for place, sequence in enumerate(_probe_sequences(model)[1:])]
    if not supports_continuous_batching(module) or GenerationSettings.read({}, default_limit=PROBE_TOKENS).acting(
        module.generation_config
    ):
        return False
    try:
        found = decode_greedily(model, contexts, batch_size=2, max_new_tokens=PROBE_TOKENS, is_finished=_at_different_times)
        differing = [row.place for row in found if not _is_written(module, contexts[row.place], row.written, allowed)]
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    else:
        if not differing:
            return True
        reason = "the tokens differ from those of generate()"
    log.info("continuous batching is not exact for %s (%s); generate() writes.", module.config.model_type, reason.split("\n")[0])
    return False


def _at_different_times(written: Sequence[tuple[int, ...]]) -> list[bool]:
    """End answers after one to three tokens, so that rows leave and others enter."""
    return [len(row) > row[0] % 3 for row in written]


def _is_written(module: PreTrainedModel, context: Sequence[int], written: Sequence[int], allowed: float) -> bool:
    """Tell whether ``generate()`` writes these tokens, or another one only where both are as probable."""
    ids_1xT = torch.tensor([list(context)], device=module.device)
    options: dict[str, Any] = {"max_new_tokens": len(written), "do_sample": False, "return_dict_in_generate": False}
    output = module.generate(input_ids=ids_1xT, attention_mask=torch.ones_like(ids_1xT), **options)  # type: ignore[operator]
    expected = output[0, len(context) :].tolist()
    place = next((place for place, (one, other) in enumerate(zip(written, expected, strict=False)) if one != other), None)
    if place is None:
        return True
    logprobs_V = module(input_ids=output[:, : len(context) + place], use_cache=False).logits[0, -1].float().log_softmax(dim=-1)
    return float((logprobs_V[written[place]] - logprobs_V[expected[place]]).abs()) <= allowed
