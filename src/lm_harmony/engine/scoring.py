"""A model answers requests: log-likelihoods of continuations, of whole texts, and written answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lm_harmony.benchmarks.types import Reply, Request
from lm_harmony.engine.backends import PADDED, Backend
from lm_harmony.engine.generation import generate, not_finite
from lm_harmony.engine.onednn_linear import use_onednn
from lm_harmony.engine.padded_forward import LabelLogprobs, in_batches
from lm_harmony.engine.rope import regimes_of
from lm_harmony.engine.sequences import TokenSequence, cut_to_length, rolling_windows
from lm_harmony.models.loading import LanguageModel
from lm_harmony.progress import track


@dataclass(kw_only=True)
class TokenCounter:
    """What was asked of a model so far."""

    tokens: int = 0
    """Tokens of contexts and continuations, and those written, each request counted by itself."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model that answers; whatever weights it holds at that moment answer."""

    model: LanguageModel
    """Who answers."""
    batch_size: int = 8
    """Most sequences in one forward pass; halved when memory runs out. It changes no answer beyond rounding."""
    max_new_tokens: int = 256
    """Longest written answer in tokens, where the request sets none."""
    seed: int = 0
    """Seed of sampled answers."""
    backend: Backend = PADDED
    """How forward passes are laid out."""
    counter: TokenCounter = field(default_factory=TokenCounter, compare=False)
    """Adds up what was asked."""

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Reply to each request in order: (nats, greedy?), nats or text, by its kind."""
        replies: list[Reply] = [""] * len(requests)
        by_kind: dict[str, Callable[[Sequence[Request]], Sequence[Reply]]] = {
            "loglikelihood": self.loglikelihood,
            "loglikelihood_rolling": self.loglikelihood_rolling,
            "generate_until": self.generate_until,
        }
        for kind, respond in by_kind.items():
            places = [place for place, request in enumerate(requests) if request.kind == kind]
            if places:
                for place, reply in zip(places, respond([requests[place] for place in places]), strict=True):
                    replies[place] = reply
        return replies

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Return for each continuation its log-likelihood in nats after its context, and whether greedy decoding writes it.

        Raises:
            ScoreNotFinite: a log-likelihood is NaN or infinite.
        """
        pairs = self.model.text.encode_pairs([(request.context, request.continuation) for request in requests])
        asked = zip(requests, pairs, strict=True)
        return self._sums([cut_to_length(pair, self.model.max_length, document=one.location) for one, pair in asked], requests)

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Return the log-likelihood in nats of each whole text, each token predicted once in windows of the model's length.

        Raises:
            ScoreNotFinite: a log-likelihood is NaN or infinite.
        """
        texts = self.model.text.encode([request.continuation for request in requests])
        windows: list[TokenSequence] = []
        owners: list[int] = []
        for place, ids in enumerate(texts):
            windows += rolling_windows(ids, self.model.text.prefix_id, self.model.max_length)
            owners += [place] * (len(windows) - len(owners))
        totals = [0.0] * len(texts)
        for place, (nats, _) in zip(owners, self._sums(windows, [requests[place] for place in owners]), strict=True):
            totals[place] += nats
        return totals

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Write an answer to each context: see ``generation.generate``."""
        # Writing uses transformers' own attention over its cache: only the products of linear layers follow the paths.
        with use_onednn(self.model.module, self.backend.onednn), self.model.mixed_precision():
            answers = generate(
                self.model,
                requests,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
                room=self.backend.memory_budget if self.backend.continuous_batching else None,
            )
        for texts in ([request.context for request in requests], answers):
            self.counter.tokens += sum(map(len, self.model.text.encode(texts)))
        return answers

    def _sums(self, sequences: Sequence[TokenSequence], requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Return (nats, greedy?) of each sequence, which belongs to the request at the same place."""
        self.counter.tokens += sum(len(sequence.ids) - 1 for sequence in sequences)
        sums = self._compute(sequences)
        bad = [place for place, (nats, _) in enumerate(sums) if not math.isfinite(nats)]
        if bad:
            # In a prefix tree NaN spreads to the other sequences: the document is one that has it alone.
            culprits = (place for place in bad if not math.isfinite(self._compute([sequences[place]])[0][0]))
            place = next(culprits, bad[0])
            raise not_finite(requests, place, "log-likelihood", sums[place][0])
        return sums

    def _compute(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, bool]]:
        regimes = regimes_of(self.model.module)
        order = regimes.order(sequences, self.backend.scoring_order(sequences))
        size = self.backend.memory_budget.scoring_tokens if self.backend.packed else self.batch_size
        end_of_batch = regimes.within(self.backend.end_of_batch())
        batches = in_batches([sequences[place] for place in order], size, self._forward, end_of_batch=end_of_batch)
        sums = [(0.0, False)] * len(sequences)
        with self.backend.active(self.model.module):
            for place, found in zip(order, track(_each(batches), "scoring", total=len(order)), strict=True):
                sums[place] = found
        return sums

    def _forward(self, sequences: Sequence[TokenSequence]) -> LabelLogprobs:
        with torch.no_grad(), self.model.mixed_precision():
            found = self.backend.score_forward(self.model.module, sequences)
        return LabelLogprobs(logprobs_L=found.logprobs_L.cpu(), greedy_L=found.greedy_L.cpu(), counts=found.counts)


def _each(batches: Iterable[LabelLogprobs]) -> Iterator[tuple[float, bool]]:
    """Yield (sum in nats, all greedy?) of each sequence of each batch."""
    for batch in batches:
        for logprobs, greedy in zip(batch.logprobs_L.split(batch.counts), batch.greedy_L.split(batch.counts), strict=True):
            yield float(logprobs.double().sum()), bool(greedy.all())
