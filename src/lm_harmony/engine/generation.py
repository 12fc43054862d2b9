"""What a model writes: batched generation with a key-value cache, each row ending at its own stop string."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from lm_harmony.benchmarks.examples import Request
from lm_harmony.engine.forward import smaller_batch
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


def generate(model: LanguageModel, requests: Sequence[Request], *, batch_size: int, max_new_tokens: int, seed: int) -> list[str]:
    """Write an answer to each context, cut before its first stop string or end-of-text token.

    Args:
        model: who writes.
        requests: of kind generate_until.
        batch_size: most rows at once; halved when memory runs out.
        max_new_tokens: longest answer in tokens where the request sets none.
        seed: of sampled answers; greedy ones (the rule) need none.

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
            room = model.max_length - decoding.max_new_tokens
            if room < 1:
                raise BenchmarkError(
                    f"max_new_tokens {decoding.max_new_tokens} leaves no room for a question: model {model.name} takes "
                    f"{model.max_length} tokens in all. Lower --max_new_tokens."
                )
            # Longest first: memory runs out at once or never; rows of a batch are of like length.
            places = sorted(places, key=lambda place: -len(contexts[place]))
            fed = [contexts[place][-room:] or [model.text.prefix_id] for place in places]
            written = track(_batches(model, fed, decoding, batch_size), "writing answers", total=len(fed))
            for place, answer in zip(places, written, strict=True):
                answers[place] = answer
    return answers


def _batches(model: LanguageModel, contexts: Sequence[Sequence[int]], decoding: Decoding, size: int) -> Iterator[str]:
    start = 0
    while start < len(contexts):
        batch = contexts[start : start + size]
        try:
            written = _generate_batch(model, batch, decoding)
        except RuntimeError as error:
            size = smaller_batch(len(batch), error)
            continue
        yield from written
        start += len(batch)


def _generate_batch(model: LanguageModel, contexts: Sequence[Sequence[int]], decoding: Decoding) -> list[str]:
    tokenizer, longest = model.text.tokenizer, max(map(len, contexts))
    pad = model.text.end_id
    # Padding on the left, so that every row goes on from its last token; the mask hides it and shifts positions.
    ids_BxT = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in contexts], device=model.device)
    mask_BxT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in contexts], device=model.device)
    stop = (*decoding.stop, model.text.end_text)
    output_BxT = model.module.generate(  # type: ignore[operator]
        input_ids=ids_BxT,
        attention_mask=mask_BxT,
        max_new_tokens=decoding.max_new_tokens,
        stopping_criteria=StoppingCriteriaList([_StopStrings(model, stop, longest)]),
        pad_token_id=pad,
        use_cache=True,
        **dict(decoding.options),
    )
    return [_cut(text, stop) for text in tokenizer.batch_decode(output_BxT[:, longest:], skip_special_tokens=True)]


def _cut(text: str, stop: Sequence[str]) -> str:
    for end in stop:
        if end:
            text = text.split(end)[0]
    return text


class _StopStrings(StoppingCriteria):
    """A row is done when its last tokens, decoded, hold one of its stop strings (lm_eval waits for the whole batch)."""

    def __init__(self, model: LanguageModel, stop: Sequence[str], prompt_length: int) -> None:
        self.tokenizer, self.stop, self.prompt_length = (
            model.text.tokenizer,
            [end for end in stop if end],
            prompt_length,
        )
        # Two tokens more than a stop string takes: the model may spell it in other tokens (lm_eval's rule).
        spelled = self.tokenizer(self.stop, add_special_tokens=False)["input_ids"]
        self.lookback = max(map(len, spelled)) + 2

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        written = input_ids[:, self.prompt_length :][:, -self.lookback :]
        texts = self.tokenizer.batch_decode(written)
        done = [any(end in text for end in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)
