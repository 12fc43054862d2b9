"""What a model writes: batched generation with a key-value cache, each row ending at its own stop string."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from lm_harmony.benchmarks.examples import Request
from lm_harmony.engine.decoding import can_decode, decode_greedily
from lm_harmony.engine.forward import smaller_batch
from lm_harmony.engine.room import Room
from lm_harmony.errors import BenchmarkError
from lm_harmony.models.loading import LanguageModel
from lm_harmony.progress import track

log = logging.getLogger(__name__)

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm_eval's names of the longest answer in tokens, by priority (``lm_eval.models.utils.normalize_gen_kwargs``)."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """lm_eval's generation arguments, read once."""

    stop: tuple[str, ...]
    """The answer ends before the first of these."""
    max_new_tokens: int
    """Longest answer in tokens."""
    options: tuple[tuple[str, Any], ...]
    """The rest, as ``transformers.generate`` takes it; greedy unless a temperature or do_sample asks for sampling."""

    @classmethod
    def read(cls, arguments: Mapping[str, Any], *, default_limit: int) -> Decoding:
        """Read a task's ``generation_kwargs`` by lm_eval's rules."""
        rest = dict(arguments)
        until = rest.pop("until", None) or []
        limits = [rest.pop(name) for name in _LIMITS if name in rest]
        temperature = float(rest.pop("temperature", None) or 0.0)
        sampling = bool(rest.pop("do_sample", None) if rest.get("do_sample") is not None else temperature > 0)
        rest["do_sample"] = sampling
        if sampling and temperature > 0:
            rest["temperature"] = temperature
        return cls(
            stop=tuple([until] if isinstance(until, str) else until),
            max_new_tokens=int(next((limit for limit in limits if limit is not None), default_limit)),
            options=tuple(sorted(rest.items())),
        )


def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    max_new_tokens: int,
    seed: int,
    room: Room | None = None,
) -> list[str]:
    """Write an answer to each context, cut before its first stop string or end-of-text token.

    Args:
        model: who writes.
        requests: of kind generate_until.
        batch_size: most rows at once for ``transformers.generate``; halved when memory runs out.
        max_new_tokens: longest answer in tokens where the request sets none.
        seed: of sampled answers; greedy ones (the rule) need none.
        room: let finished rows leave and waiting ones enter, as many at once as there is room for, where the model's cache
            allows it; None: ``transformers.generate`` in batches.

    Raises:
        BenchmarkError: the longest answer leaves no room for a context.
    """
    contexts = model.text.encode([request.context for request in requests])
    groups: dict[Decoding, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(Decoding.read(request.generation, default_limit=max_new_tokens), []).append(place)
    answers = [""] * len(requests)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for decoding, places in groups.items():
            most = model.max_length - decoding.max_new_tokens
            if most < 1:
                raise BenchmarkError(
                    f"max_new_tokens {decoding.max_new_tokens} leaves no room for a question: model {model.name} takes "
                    f"{model.max_length} tokens in all. Lower --max_new_tokens."
                )
            # Longest first: memory runs out at once or never; rows of a batch are of like length.
            places = sorted(places, key=lambda place: -len(contexts[place]))
            fed = [contexts[place][-most:] or [model.text.prefix_id] for place in places]
            written = _write(model, fed, decoding, batch_size, room)
            for number, answer in track(written, "writing answers", total=len(fed)):
                answers[places[number]] = answer
    return answers


def _write(
    model: LanguageModel, contexts: Sequence[Sequence[int]], decoding: Decoding, batch_size: int, room: Room | None
) -> Iterator[tuple[int, str]]:
    """Yield (number of the context, answer) as answers end."""
    stop = _StopStrings(model, decoding.stop)
    limit = decoding.max_new_tokens
    if room is not None and decoding.options == (("do_sample", False),) and can_decode(model.module):
        rows = max(1, min(room.written_rows, room.cached_tokens // (len(contexts[0]) + limit)))
        finished = decode_greedily(model, contexts, batch_size=rows, max_new_tokens=limit, is_finished=stop.are_finished)
        for row in finished:
            yield row.place, stop.text_of(row.written)
        return
    start = 0
    while start < len(contexts):
        batch = contexts[start : start + batch_size]
        try:
            output = _generate_batch(model, batch, decoding, stop)
        except (RuntimeError, MemoryError) as error:
            batch_size = smaller_batch(len(batch), error)
            continue
        for place, written in enumerate(output, start=start):
            yield place, stop.text_of(written)
        start += len(batch)


def _generate_batch(
    model: LanguageModel, contexts: Sequence[Sequence[int]], decoding: Decoding, stop: _StopStrings
) -> list[list[int]]:
    longest, pad = max(map(len, contexts)), model.text.end_id
    # Padding on the left, so that every row goes on from its last token; the mask hides it and shifts positions.
    ids_BxT = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in contexts], device=model.device)
    mask_BxT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in contexts], device=model.device)
    stop.prompt_length = longest
    output_BxT = model.module.generate(  # type: ignore[operator]
        input_ids=ids_BxT,
        attention_mask=mask_BxT,
        max_new_tokens=decoding.max_new_tokens,
        stopping_criteria=StoppingCriteriaList([stop]),
        pad_token_id=pad,
        use_cache=True,
        **dict(decoding.options),
    )
    written: list[list[int]] = output_BxT[:, longest:].tolist()
    return written


class _StopStrings(StoppingCriteria):
    """A row is done when its last tokens, decoded, hold one of its stop strings (lm_eval waits for the whole batch)."""

    def __init__(self, model: LanguageModel, stop: Sequence[str]) -> None:
        self.tokenizer, self.prompt_length = model.text.tokenizer, 0
        self.stop = [end for end in (*stop, model.text.end_text) if end]
        ends = model.module.generation_config.eos_token_id
        self.end_ids = set(ends if isinstance(ends, list) else [ends]) | {model.text.end_id}
        # Two tokens more than a stop string takes: the model may spell it in other tokens (lm_eval's rule).
        spelled = self.tokenizer(self.stop, add_special_tokens=False)["input_ids"]
        self.lookback = max(map(len, spelled)) + 2

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
        return torch.tensor(self.are_finished(input_ids[:, self.prompt_length :].tolist()), device=input_ids.device)
