"""What a model writes: batched generation with a key-value cache, each row ending at its own stop string."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.continuous_batching import NonFiniteLogits, check_finite, decode_greedily, supports_continuous_batching
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.engine.padded_forward import halve_batch
from lm_harmony.engine.rope import Regime, regimes_of, reset_dynamic_rope
from lm_harmony.errors import BenchmarkError, ScoreNotFinite
from lm_harmony.models.loading import LanguageModel
from lm_harmony.progress import track

log = logging.getLogger(__name__)


def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    max_new_tokens: int,
    seed: int,
    room: MemoryBudget | None = None,
) -> list[str]:
    """Write an answer to each context, cut before its first stop string or end-of-text token.

    Args:
        model: who writes.
        requests: of kind generate_until.
        batch_size: most rows at once for ``transformers.generate``; halved when memory runs out.
        max_new_tokens: longest answer in tokens where the request sets none.
        seed: of sampled answers; greedy ones (the rule) need none.
        room: let finished rows leave and waiting ones enter, as many at once as there is room for, where the model's cache
            allows it and the settings are those of plain greedy decoding; None: ``transformers.generate`` in batches.

    Raises:
        BenchmarkError: the longest answer leaves no room for a context, or several answers to a question are asked for.
        ScoreNotFinite: a logit is NaN or infinite.
    """
    contexts = model.text.encode([request.context for request in requests])
    groups: dict[str, tuple[GenerationSettings, list[int]]] = {}
    for place, request in enumerate(requests):
        decoding = GenerationSettings.read(request.generation, default_limit=max_new_tokens)
        groups.setdefault(repr(decoding), (decoding, []))[1].append(place)
    for decoding, _ in groups.values():
        _check(model, decoding)
    answers = [""] * len(requests)
    with torch.random.fork_rng(), torch.no_grad(), reset_dynamic_rope(model.module):
        torch.manual_seed(seed)
        for decoding, places in groups.values():
            most = model.max_length - decoding.max_new_tokens
            # Longest first: memory runs out at once or never; rows of a batch are of like length.
            places = sorted(places, key=lambda place: -len(contexts[place]))
            fed = [contexts[place][-most:] or [model.text.prefix_id] for place in places]
            try:
                for number, answer in track(_write(model, fed, decoding, batch_size, room), "writing answers", total=len(fed)):
                    answers[places[number]] = answer
            except NonFiniteLogits as error:
                raise not_finite(requests, places[error.place], "largest logit", error.value) from error
    return answers


def not_finite(requests: Sequence[Request], place: int, what: str, value: float) -> ScoreNotFinite:
    """Return the error for a reply that holds NaN or an infinite number, which names the document of the request at ``place``."""
    document = requests[place].location or f"request {place}"
    return ScoreNotFinite(
        f"{what} = {value} for {document}: no score is computed over it. Score in another number format (--dtype float32), or "
        f"look for NaN and infinite numbers in the weights."
    )


def _check(model: LanguageModel, decoding: GenerationSettings) -> None:
    if decoding.max_new_tokens >= model.max_length:
        raise BenchmarkError(
            f"max_new_tokens {decoding.max_new_tokens} leaves no room for a question: model {model.name} takes "
            f"{model.max_length} tokens in all. Lower --max_new_tokens."
        )
    asked = decoding.over(model.module.generation_config).get("num_return_sequences")
    if asked not in (None, 1):
        raise BenchmarkError(
            f"num_return_sequences = {asked} (generation settings of the task or of model {model.name}): one answer to each "
            f"question is counted. Set it to 1."
        )


def _write(
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    decoding: GenerationSettings,
    batch_size: int,
    room: MemoryBudget | None,
) -> Iterator[tuple[int, str]]:
    """Yield (number of the context, answer) as answers end, in batches whose rows write what each writes alone."""
    config, regimes = model.module.generation_config, regimes_of(model.module)
    alone, longest = decoding.alone(config), decoding.longest(config)
    if alone:
        log.info("answers are written one at a time, since generation settings depend on the batch: %s", ", ".join(alone))
    if decoding.acting(config) or not supports_continuous_batching(model.module):
        room = None
    parts: dict[Regime | None, list[int]] = {}
    for number, ids in enumerate(contexts):
        first, last = regimes.of(len(ids)), regimes.of(len(ids) + longest - 1)
        # An answer that may grow into other RoPE frequencies is written by itself.
        parts.setdefault(first if first == last else None, []).append(number)
    for regime, numbers in parts.items():
        together = not alone and regime is not None
        part = [contexts[number] for number in numbers]
        write = _decode(model, part, decoding, room) if room and together else None
        try:
            for place, answer in write or _generate(model, part, decoding, batch_size if together else 1):
                yield numbers[place], answer
        except NonFiniteLogits as error:
            raise NonFiniteLogits(numbers[error.place], error.value) from error


def _decode(
    model: LanguageModel, contexts: Sequence[Sequence[int]], decoding: GenerationSettings, room: MemoryBudget
) -> Iterator[tuple[int, str]]:
    """Write greedily, finished rows leaving and waiting ones entering."""
    stop = _StopStrings(model, decoding)
    limit = decoding.max_new_tokens
    rows = max(1, min(room.generation_rows, room.cache_tokens // (len(contexts[0]) + limit)))
    finished = decode_greedily(model, contexts, batch_size=rows, max_new_tokens=limit, is_finished=stop.are_finished)
    for row in finished:
        yield row.place, stop.text_of(row.written)


def _generate(
    model: LanguageModel, contexts: Sequence[Sequence[int]], decoding: GenerationSettings, batch_size: int
) -> Iterator[tuple[int, str]]:
    """Write by ``transformers.generate``, batch after batch."""
    stop = _StopStrings(model, decoding)
    start = 0
    while start < len(contexts):
        batch = contexts[start : start + batch_size]
        try:
            output = _generate_batch(model, batch, decoding, stop)
        except (RuntimeError, MemoryError) as error:
            batch_size = halve_batch(len(batch), error)
            continue
        except NonFiniteLogits as error:
            raise NonFiniteLogits(start + error.place, error.value) from error
        for place, written in enumerate(output, start=start):
            yield place, stop.text_of(written)
        start += len(batch)


def _generate_batch(
    model: LanguageModel, contexts: Sequence[Sequence[int]], decoding: GenerationSettings, stop: _StopStrings
) -> list[list[int]]:
    longest, end = max(map(len, contexts)), model.text.end_id
    settings = decoding.over(model.module.generation_config)
    # Padding on the left, so that every row goes on from its last token; the mask hides it and shifts positions. A repetition
    # penalty would see it: a token of the row's own changes nothing there.
    own = settings.get("repetition_penalty") is not None
    padding = [[ids[0] if own else end] * (longest - len(ids)) for ids in contexts]
    ids_BxT = torch.tensor([[*pad, *ids] for pad, ids in zip(padding, contexts, strict=True)], device=model.device)
    mask_BxT = torch.tensor([[0] * len(pad) + [1] * len(ids) for pad, ids in zip(padding, contexts, strict=True)])
    stop.begin(longest, beams=int(settings.get("num_beams") or 1))
    options: dict[str, Any] = {
        # A limit on the sum, as lm_eval sets it: max_new_tokens of a generation_config goes before it.
        "max_length": longest + decoding.max_new_tokens,
        **dict(decoding.options),
        "stopping_criteria": StoppingCriteriaList([stop]),
        "pad_token_id": end,
        "use_cache": True,
        "return_dict_in_generate": False,
    }
    if settings.get("stop_strings"):
        options["tokenizer"] = model.text.tokenizer

    def check(_: object, __: object, output: Any) -> None:
        check_finite(output.logits[:, -1].amax(dim=-1), rows=len(contexts))  # of beams, each text has the same number of rows

    hook = model.module.register_forward_hook(check)
    try:
        output_BxT = model.module.generate(  # type: ignore[operator]
            input_ids=ids_BxT, attention_mask=mask_BxT.to(model.device), **options
        )
    finally:
        hook.remove()
    written: list[list[int]] = output_BxT[:, longest:].tolist()
    return written


class _StopStrings(StoppingCriteria):
    """A row is done when its last tokens, decoded, hold one of its stop strings (lm_eval waits for the whole batch)."""

    def __init__(self, model: LanguageModel, decoding: GenerationSettings) -> None:
        self.tokenizer = model.text.tokenizer
        self.stop = [end for end in (*decoding.stop, model.text.end_text) if end]
        ends = decoding.over(model.module.generation_config).get("eos_token_id")
        self.end_ids = set(ends if isinstance(ends, list) else [ends]) | {model.text.end_id}
        # Two tokens more than a stop string takes: the model may spell it in other tokens (lm_eval's rule).
        spelled = self.tokenizer(self.stop, add_special_tokens=False)["input_ids"]
        self.lookbacks = [len(tokens) + 2 for tokens in spelled]
        self.lookback = max(self.lookbacks)
        self.begin(0, beams=1)

    def begin(self, prompt_length: int, *, beams: int) -> None:
        """Turn to a batch whose contexts take ``prompt_length`` tokens, padding included."""
        self.prompt_length, self.beams, self.ended = prompt_length, beams, False

    def are_finished(self, written: Sequence[Sequence[int]]) -> list[bool]:
        """Tell of each row of new tokens whether it has ended."""
        texts = self.tokenizer.batch_decode([list(tokens[-self.lookback :]) for tokens in written])
        return [
            tokens[-1] in self.end_ids or any(end in text for end in self.stop)
            for tokens, text in zip(written, texts, strict=True)
        ]

    def text_of(self, written: Sequence[int]) -> str:
        """Return the text of a row's new tokens before its first stop string."""
        text = str(self.tokenizer.decode(list(written), skip_special_tokens=True))
        for end in self.stop:
            text = text.split(end)[0]
        return text

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        written = input_ids[:, self.prompt_length :].tolist()
        if self.beams > 1:
            # lm_eval's rule for the one text of a beam search: it ends when its best candidate holds a stop string.
            tails = [written[0][-lookback:] for lookback in self.lookbacks]
            self.ended |= any(end in text for end, text in zip(self.stop, self.tokenizer.batch_decode(tails), strict=True))
            return torch.full((len(written),), self.ended, device=input_ids.device)
        return torch.tensor(self.are_finished(written), device=input_ids.device)
