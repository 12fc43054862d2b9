"""LM-Harmony's engine as a model of lm_eval.

Between lm_eval's instances and our requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import hash_string

from lm_harmony.benchmarks.harness.scoring import request_of
from lm_harmony.benchmarks.types import ChatTemplate, Reply, Request
from lm_harmony.errors import UsageError


class HarnessModel(LM):
    """An lm_eval model on LM-Harmony's engine, so that ``lm_eval.evaluate`` runs any of its tasks on it."""

    def __init__(self, answer: Callable[[Sequence[Request]], list[Reply]], chat: ChatTemplate | None = None) -> None:
        """Wrap a function that replies to requests (``lm_harmony.engine.scoring.Scorer.reply``)."""
        super().__init__()
        self._answer, self._chat = answer, chat

    @property
    def tokenizer_name(self) -> str:
        """What tells this chat template from others: lm_eval keys its request cache with it and refuses models without."""
        return str(hash_string(self.apply_chat_template([{"role": "user", "content": "?"}])))

    def _ask(self, requests: list[Instance]) -> list[Any]:
        return self._answer([request_of(instance) for instance in requests])

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, is greedy) of each continuation after its context."""
        return self._ask(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood in nats of each whole text, in disjoint windows of the model's length."""
        return self._ask(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return what the model writes after each context, cut before the first stop string."""
        return self._ask(requests)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages with the model's chat template."""
        if self._chat is None:
            raise UsageError("this model has no chat template. Score it without apply_chat_template.")
        return self._chat(chat_history, add_generation_prompt=add_generation_prompt)
