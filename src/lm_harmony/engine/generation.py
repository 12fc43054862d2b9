"""Generated answers: batches with a key-value cache in which each row ends at its own stop string."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import StoppingCriteriaList

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.backends import PADDED, Backend
from lm_harmony.engine.continuous_batching import (
    FinishedRow,
    NonFiniteLogits,
    check_finite,
    decode_greedily,
    supports_continuous_batching,
)
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.memory import halve_batch
from lm_harmony.engine.onednn_linear import use_onednn
from lm_harmony.engine.rope import Regime, regimes_of, reset_dynamic_rope
from lm_harmony.engine.stop_strings import StopStrings
from lm_harmony.errors import ScoreNotFinite
from lm_harmony.models.loading import LanguageModel
from lm_harmony.progress import progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Requests that can be generated in one batch."""

    settings: GenerationSettings
    """Generation settings that all of them share."""
    numbers: list[int]
    """Index of each request, longest context first."""
    contexts: list[Sequence[int]]
    """Token ids of each context, cut on the left to what the model takes."""
    alone: bool
    """Whether each answer must be generated in a batch of its own."""
    greedy: bool
    """Whether the settings are those of plain greedy decoding."""


def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    max_new_tokens: int,
    seed: int,
    backend: Backend = PADDED,
    think_end: str | int | None = None,
) -> list[str]:
    """Generate an answer to each context, cut before its first stop string or end-of-text token.

    Args:
        model: model and tokenizer that generate.
        requests: requests of kind "generate_until".
        batch_size: largest batch of ``transformers.generate``; halved when memory runs out.
        max_new_tokens: longest answer in tokens where the request sets no limit.
        seed: seed of sampled answers; greedy decoding, the default, does not use it.
        backend: continuous batching where it allows it and the settings are those of plain greedy decoding, else
            ``transformers.generate``.
        think_end: text or token id that ends the think part of an answer, which is cut off; stop strings count after it only.

    Raises:
        BenchmarkError: the longest answer leaves no space for a context, or several answers to a question are requested.
        ScoreNotFinite: a logit is NaN or infinite.
    """
    answers, groups = [""] * len(requests), _groups(model, requests, max_new_tokens)
    with (
        use_onednn(model.module, backend.onednn),
        model.mixed_precision(),
        torch.random.fork_rng(),
        torch.no_grad(),
        reset_dynamic_rope(model.module),
        progress_bar("writing answers", total=len(requests)) as advance,
    ):
        torch.manual_seed(seed)
        for group in groups:
            stop = StopStrings(model, group.settings, think_end)
            try:
                for row in _rows(model, group, stop, backend, batch_size):
                    answers[group.numbers[row.place]] = stop.text_of(row.written)
                    advance(1)
            except NonFiniteLogits as error:
                number = group.numbers[error.place]
                raise not_finite(requests[number], number, "largest logit", error.value) from error
    return answers


def _rows(model: LanguageModel, group: _Group, stop: StopStrings, backend: Backend, batch_size: int) -> Iterator[FinishedRow]:
    """Return an iterator over the answers of ``group`` as they end."""
    budget, limit = backend.memory_budget, group.settings.max_new_tokens
    if not backend.continuous_batching or not group.greedy or group.alone or not supports_continuous_batching(model.module):
        return _generate_in_batches(model, group, stop, 1 if group.alone else batch_size)
    rows = max(1, min(budget.generation_rows, budget.cache_tokens // (len(group.contexts[0]) + limit)))
    options = {"batch_size": rows, "context_tokens": budget.scoring_tokens, "max_new_tokens": limit}
    return decode_greedily(model, group.contexts, is_finished=stop.is_finished, **options)


def not_finite(request: Request, number: int, what: str, value: float) -> ScoreNotFinite:
    """Return the error for a reply that is NaN or infinite; it names the document of ``request``, the ``number``-th one."""
    document = request.location or f"request {number}"
    return ScoreNotFinite(
        f"{what} = {value} for {document}: no score is computed over it. Score in another number format (--dtype float32), or "
        f"look for NaN and infinite numbers in the weights."
    )


def _groups(model: LanguageModel, requests: Sequence[Request], max_new_tokens: int) -> list[_Group]:
    """Group requests by their settings and by the RoPE frequencies that their texts need.

    Raises:
        BenchmarkError: settings that cannot be followed.
    """
    contexts = model.text.encode([request.context for request in requests])
    config, regimes = model.module.generation_config, regimes_of(model.module)
    by_settings: dict[str, tuple[GenerationSettings, list[int]]] = {}
    for number, request in enumerate(requests):
        settings = GenerationSettings.read(request.generation, default_limit=max_new_tokens)
        by_settings.setdefault(repr(settings), (settings, []))[1].append(number)
    groups = []
    for settings, numbers in by_settings.values():
        settings.check(model)
        alone, longest = settings.batch_dependent(config), settings.longest_answer(config)
        if alone:
            log.info("answers are generated one at a time, because settings depend on the batch: %s", ", ".join(alone))
        parts: dict[Regime | None, tuple[list[int], list[Sequence[int]]]] = {}
        # Longest first: memory runs out in the first batch or never, and the rows of a batch are of similar length.
        for number in sorted(numbers, key=lambda number: -len(contexts[number])):
            ids = contexts[number][settings.max_new_tokens - model.max_length :] or [model.text.prefix_id]
            first, last = regimes.of(len(ids)), regimes.of(len(ids) + longest - 1)
            # An answer that may grow into other RoPE frequencies is generated by itself.
            part = parts.setdefault(first if first == last else None, ([], []))
            part[0].append(number)
            part[1].append(ids)
        greedy = not settings.beyond_greedy(config)
        for regime, (members, fed) in parts.items():
            single = bool(alone) or regime is None
            groups.append(_Group(settings=settings, numbers=members, contexts=fed, alone=single, greedy=greedy))
    return groups


def _generate_in_batches(model: LanguageModel, group: _Group, stop: StopStrings, batch_size: int) -> Iterator[FinishedRow]:
    """Generate by ``transformers.generate``, batch after batch."""
    start = 0
    while start < len(group.contexts):
        batch = group.contexts[start : start + batch_size]
        hook = model.module.register_forward_hook(partial(_check_logits, len(batch)))
        try:
            options = _options(model, batch, group.settings, stop)
            output_BxT = model.module.generate(**options)  # type: ignore[operator]
        except (RuntimeError, MemoryError) as error:
            batch_size = halve_batch(len(batch), error)
            continue
        except NonFiniteLogits as error:
            raise NonFiniteLogits(start + error.place, error.value) from error
        finally:
            hook.remove()
        for place, written in enumerate(output_BxT[:, max(map(len, batch)) :].tolist(), start=start):
            yield FinishedRow(place=place, written=tuple(written))
        start += len(batch)


def _check_logits(contexts: int, _: object, __: object, output: Any) -> None:
    """Raise NonFiniteLogits unless the next token's logits are finite (of beams, each context has the same number of rows)."""
    check_finite(output.logits[:, -1].amax(dim=-1), rows=contexts)


def _options(
    model: LanguageModel, contexts: Sequence[Sequence[int]], settings: GenerationSettings, stop: StopStrings
) -> dict[str, Any]:
    """Return the arguments of ``transformers.generate`` for a batch, and prepare ``stop`` for it."""
    longest, end = max(map(len, contexts)), model.text.end_id
    merged = settings.merged_with(model.module.generation_config)
    # Padding on the left, so that every row continues after its last token. The mask hides it and shifts positions. A repetition
    # penalty would still see it, so it is a token of the row itself there.
    own = merged.get("repetition_penalty") is not None
    padding = [[ids[0] if own else end] * (longest - len(ids)) for ids in contexts]
    ids_BxT = torch.tensor([[*pad, *ids] for pad, ids in zip(padding, contexts, strict=True)], device=model.device)
    mask_BxT = torch.tensor([[0] * len(pad) + [1] * len(ids) for pad, ids in zip(padding, contexts, strict=True)])
    stop.begin(longest, beams=int(merged.get("num_beams") or 1))
    return {
        "input_ids": ids_BxT,
        "attention_mask": mask_BxT.to(model.device),
        # A limit of the total length, as lm_eval sets it: max_new_tokens of a generation_config takes precedence over it.
        "max_length": longest + settings.max_new_tokens,
        **dict(settings.options),
        "stopping_criteria": StoppingCriteriaList([stop]),
        "pad_token_id": end,
        "use_cache": True,
        "return_dict_in_generate": False,
        **({"tokenizer": model.text.tokenizer} if merged.get("stop_strings") else {}),
    }
