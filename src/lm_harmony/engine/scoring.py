"""Replies of a model to lm_eval's requests: log-likelihoods of continuations and of texts, and generated answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lm_harmony.benchmarks.types import Reply, Request
from lm_harmony.engine.backends import PADDED, Backend
from lm_harmony.engine.generation import generate, not_finite
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.memory import halve_batch
from lm_harmony.engine.rope import regimes_of
from lm_harmony.engine.sequences import TokenSequence, scoring_sequences
from lm_harmony.errors import ScoreNotFinite
from lm_harmony.models.loading import LanguageModel
from lm_harmony.progress import progress_bar


@dataclass(kw_only=True)
class TokenCounter:
    """Adds up the tokens that a model has scored and generated."""

    tokens: int = 0
    """Tokens of contexts, continuations and generated answers; a context that two requests share counts twice."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Computes replies to requests with the current weights of a model."""

    model: LanguageModel
    """Model and tokenizer that compute the replies."""
    batch_size: int = 8
    """Largest number of sequences in one forward pass; halved when memory runs out. It changes no reply beyond rounding."""
    max_new_tokens: int = 256
    """Longest generated answer in tokens, where the request sets no limit."""
    seed: int = 0
    """Seed of sampled answers."""
    think_end: str | int | None = None
    """Text or token id that ends the think part of a generated answer, which is cut off; None: nothing is."""
    backend: Backend = PADDED
    """Which forward passes compute the replies."""
    counter: TokenCounter = field(default_factory=TokenCounter, compare=False)
    """Counts the tokens of all requests."""

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the reply to each request in order.

        Returns:
            By the kind of the request: "loglikelihood": (log-likelihood in nats, whether greedy decoding gives the continuation);
            "loglikelihood_rolling": log-likelihood of the text in nats; "generate_until": the generated answer.

        Raises:
            BenchmarkError: a request does not fit into the model.
            ScoreNotFinite: a log-likelihood or a logit is NaN or infinite.
        """
        replies: list[Reply] = [("" if request.kind == "generate_until" else 0.0) for request in requests]
        sequences, owners = scoring_sequences(self.model, requests)
        if sequences:
            self.counter.tokens += sum(len(sequence.ids) - 1 for sequence in sequences)
            sums = self._log_likelihoods(sequences)
            if not all(math.isfinite(nats) for nats, _ in sums):
                raise self._not_finite(sequences, sums, [requests[owner] for owner in owners])
            totals = dict.fromkeys(owners, 0.0)
            for owner, (nats, greedy) in zip(owners, sums, strict=True):
                totals[owner] += nats
                replies[owner] = (nats, greedy) if requests[owner].kind == "loglikelihood" else totals[owner]
        written = [index for index, request in enumerate(requests) if request.kind == "generate_until"]
        if written:
            asked = [requests[index] for index in written]
            options = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens, "seed": self.seed}
            answers = generate(self.model, asked, backend=self.backend, think_end=self.think_end, **options)
            for texts in ([request.context for request in asked], answers):
                self.counter.tokens += sum(map(len, self.model.text.encode(texts)))
            for index, answer in zip(written, answers, strict=True):
                replies[index] = answer
        return replies

    def truncated(self, requests: Sequence[Request]) -> list[bool]:
        """Return for each request whether the beginning of its context is cut, because it is too long for the model."""
        cut = [False] * len(requests)
        sequences, owners = scoring_sequences(self.model, requests)
        for sequence, owner in zip(sequences, owners, strict=True):
            cut[owner] |= sequence.truncated
        for index, request in enumerate(requests):
            if request.kind == "generate_until":
                limit = GenerationSettings.read(request.generation, default_limit=self.max_new_tokens).max_new_tokens
                cut[index] = len(self.model.text.encode([request.context])[0]) > self.model.max_length - limit
        return cut

    def _log_likelihoods(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, bool]]:
        """Return for each sequence (sum of its labels' log-probabilities in nats, whether all labels are greedy)."""
        module, backend, regimes = self.model.module, self.backend, regimes_of(self.model.module)
        order = regimes.order(sequences, backend.scoring_order(sequences))
        ordered = [sequences[index] for index in order]
        end_of_batch = regimes.within(backend.end_of_batch())
        size = backend.memory_budget.scoring_tokens if backend.packed else self.batch_size
        sums, start = [(0.0, False)] * len(sequences), 0
        with backend.active(module), torch.no_grad(), progress_bar("scoring", total=len(order)) as advance:
            while start < len(ordered):
                end = end_of_batch(ordered, start, size)
                try:
                    with self.model.mixed_precision():
                        found = backend.score_forward(module, ordered[start:end])
                    logprobs_L, greedy_L = found.logprobs_L.cpu(), found.greedy_L.cpu()
                except (RuntimeError, MemoryError) as error:
                    if end - start == 1:
                        raise
                    size = halve_batch(size, error)
                    continue
                parts = zip(order[start:end], logprobs_L.split(found.counts), greedy_L.split(found.counts), strict=True)
                for index, logprobs, greedy in parts:
                    sums[index] = float(logprobs.double().sum()), bool(greedy.all())
                advance(end - start)
                start = end
        return sums

    def _not_finite(
        self, sequences: Sequence[TokenSequence], sums: Sequence[tuple[float, bool]], requests: Sequence[Request]
    ) -> ScoreNotFinite:
        """Return the error for log-likelihoods that are NaN or infinite; ``requests`` holds the request of each sequence."""
        bad = [index for index, (nats, _) in enumerate(sums) if not math.isfinite(nats)]
        # In a prefix tree, NaN spreads to other sequences. The error names a document that has it when it is scored alone.
        alone = (index for index in bad if not math.isfinite(self._log_likelihoods([sequences[index]])[0][0]))
        index = next(alone, bad[0])
        return not_finite(requests[index], index, "log-likelihood", sums[index][0])
