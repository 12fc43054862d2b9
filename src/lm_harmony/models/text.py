"""Encodes text to token ids as lm_eval's HFLM does, for scoring and for training. Does not import torch."""

from __future__ import annotations

import itertools
import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from lm_harmony.errors import ModelError
from lm_harmony.models.chat_template import FAILURES, failed_line, place_of_template, refuse_unused, render, think_end_text
from lm_harmony.recipe import CHAT_TEMPLATE_DATE

log = logging.getLogger(__name__)

MOST_HELD = 4_000_000
"""Number of cached token ids above which the cache is cleared. The ids take 16 MB; their texts take more."""


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """Token ids of a context and of its continuation. Concatenated, they are the encoding of the text."""

    context: tuple[int, ...]
    """Token ids of the context. Never empty."""
    continuation: tuple[int, ...]
    """Token ids whose log-probabilities are scored."""


class TextEncoder:
    """Tokenizer that follows lm_eval's rules (``lm_eval.models.huggingface.HFLM``, ``TemplateLM._encode_pair``).

    One rule differs: an end-of-text token that the tokenizer appends is removed. If it stayed, every context would end with
    that token before the answer, and every answer of one token would get the same score.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, vocabulary: int | None = None) -> None:
        """Wrap ``tokenizer``.

        Args:
            tokenizer: the model's tokenizer.
            name: name of the model, for messages.
            vocabulary: number of token ids that have an embedding; None: all that the tokenizer has.

        Raises:
            ModelError: the tokenizer has no end-of-text token, which training appends to every text, or only special tokens.
        """
        special = {*tokenizer.all_special_ids, *(number for number, one in tokenizer.added_tokens_decoder.items() if one.special)}
        if len(tokenizer) <= len(special):  # transformers builds such a tokenizer where tokenizer.json is missing
            raise ModelError(
                f"model {name}: its tokenizer has {len(tokenizer)} tokens, all of them special, so its vocabulary is missing. "
                f"Copy tokenizer.json, or the other files of the vocabulary, from the original model."
            )
        if tokenizer.eos_token_id is None:
            raise ModelError(f"model {name}: its tokenizer has no eos_token. Set eos_token in its tokenizer_config.json.")
        self.tokenizer, self.name = tokenizer, name
        self.end_id: int = tokenizer.eos_token_id
        self.prefix_id: int = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end_id
        self.end_text = str(tokenizer.decode(self.end_id))
        self.appended: tuple[str, ...] = tuple(tokenizer.convert_ids_to_tokens(_appended_ids(tokenizer)))
        """Tokens that the tokenizer appends to every text. ``encode`` removes them."""
        self._vocabulary = vocabulary if vocabulary is not None and vocabulary < len(tokenizer) else None
        self._prefix_text = str(tokenizer.decode(self.prefix_id))
        self._warned_without_system = False
        self._known: dict[str, array[int]] = {}
        self._held = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts with the special tokens that the tokenizer adds at the start, and without those it adds at the end.

        A text that already begins with the text of the BOS token (a rendered chat) gets no second BOS token. Encodings are
        cached, because the same texts are encoded in the validation of every epoch, for every seed of a study, and for the
        test score after the direct score.

        Raises:
            ModelError: a text contains a token that has no embedding.
        """
        if self._held > MOST_HELD:
            self._known.clear()
            self._held = 0
        unknown = list(dict.fromkeys(text for text in texts if text not in self._known))
        for added in (True, False):
            group = [text for text in unknown if text.startswith(self._prefix_text) is not added]
            if group:
                # verbose=False: no warning about texts longer than the model's limit. They are truncated later.
                batch = self.tokenizer(group, add_special_tokens=added, verbose=False)["input_ids"]
                self._refuse_unknown(batch)
                if added and self.appended:
                    batch = [ids[: -len(self.appended)] for ids in batch]
                self._known |= {text: array("i", ids) for text, ids in zip(group, batch, strict=True)}
                self._held += sum(map(len, batch))
        return [self._known[text].tolist() for text in texts]

    def _refuse_unknown(self, batch: Sequence[Sequence[int]]) -> None:
        if self._vocabulary is None:
            return
        unknown = next((token for ids in batch for token in ids if token >= self._vocabulary), None)
        if unknown is not None:
            raise ModelError(
                f"model {self.name}: a text contains the token {self.tokenizer.convert_ids_to_tokens(unknown)!r}, which has no "
                f"embedding. Use the model's own tokenizer, or rows without this token."
            )

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        """Encode (context, continuation) texts. The continuation starts after the number of tokens that the context has alone.

        Trailing spaces of a context move to the continuation. An empty context becomes the BOS (or end-of-text) token.
        """
        moved = []
        for context, continuation in pairs:
            bare = context.rstrip()
            moved.append((bare, context[len(bare) :] + continuation) if context else ("", continuation))
        contexts = list(dict.fromkeys(context for context, _ in moved))
        context_ids = dict(zip(contexts, self.encode(contexts), strict=True))
        joined_ids = self.encode([context + continuation for context, continuation in moved])
        encoded = []
        for (given, _), (context, continuation), joined in zip(pairs, moved, joined_ids, strict=True):
            if given == "":
                encoded.append(self._after_prefix(continuation))
            else:
                # A context of spaces alone is empty after the spaces move to the continuation.
                nonempty = context_ids[context] or [self.prefix_id]
                cut = len(context_ids[context])
                encoded.append(EncodedPair(context=tuple(nonempty), continuation=tuple(joined[cut:])))
        return encoded

    def _after_prefix(self, text: str) -> EncodedPair:
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        self._refuse_unknown([ids])
        if ids and ids[0] == self.prefix_id:
            return EncodedPair(context=ids[:1], continuation=ids[1:])
        return EncodedPair(context=(self.prefix_id,), continuation=ids)

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool = True,
        *,
        date: str = CHAT_TEMPLATE_DATE,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Render messages with the model's chat template. Drops system messages if it refuses them (as lm_eval).

        Args:
            messages: mappings with the keys "role" and "content".
            add_generation_prompt: if True, the text ends with the start of an assistant message. If False, the last message
                is continued.
            date: date that the template uses as the current date, as YYYY-MM-DD.
            variables: further variables of the template, such as enable_thinking (lm_eval's chat_template_args).

        Raises:
            ModelError: the tokenizer has no chat template, or the template fails. The message names its file and line.
        """
        self.require_chat_template()
        options: dict[str, Any] = {"day": date, "generation_prompt": add_generation_prompt, "variables": variables}
        try:
            try:
                return render(self.tokenizer, messages, **options)
            except jinja2.TemplateError as error:
                without_system = [message for message in messages if message["role"] != "system"]
                if len(without_system) in (0, len(messages)):
                    raise
                text = render(self.tokenizer, without_system, **options)
                self._warn_without_system(error)
                return text
        except FAILURES as error:
            line = failed_line(error, self.tokenizer)
            raise ModelError(
                f"model {self.name}: its chat template fails: {_in_one_line(error)} ({place_of_template(self.name)}"
                f"{'' if line is None else f', line {line} of the template'}). Correct the template, "
                f"or drop --dataset_param.apply_chat_template."
            ) from error

    def chat_renderer(self, date: str | None, variables: Mapping[str, Any]) -> Callable[..., str]:
        """Return ``render_chat`` with a date (None: the default) and further variables of the template.

        Raises:
            ModelError: the tokenizer has no chat template, or the template uses no variable of such a name.
        """
        self.require_chat_template()
        refuse_unused(variables, self.tokenizer, self.name)
        return partial(self.render_chat, date=date or CHAT_TEMPLATE_DATE, variables=variables)

    def think_end_text(self, token: str | int) -> str:
        """Return the text of a think_end_token: see ``chat_template.think_end_text``."""
        return think_end_text(token, self.tokenizer, self.name)

    def _warn_without_system(self, error: Exception) -> None:
        if not self._warned_without_system:
            self._warned_without_system = True
            reason = _in_one_line(error)
            log.warning("model %s: its chat template takes no system message (%s); it is left out.", self.name, reason)

    def require_chat_template(self) -> None:
        """Raise if the tokenizer has no chat template.

        Raises:
            ModelError: the tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"model {self.name}: its tokenizer has no chat template. Drop --dataset_param.apply_chat_template, "
                f"or add chat_template.jinja to the model's folder."
            )

    def check_single_prefix(self, text: str) -> None:
        """Raise if the encoding of a text begins with two BOS tokens.

        Raises:
            ModelError: the encoding of ``text`` begins with the BOS token twice.
        """
        ids = self.encode([text])[0]
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ModelError(
                f"model {self.name}: a text begins with two {self.tokenizer.bos_token!r} tokens: {text[:80]!r}. "
                f"Its chat template and its tokenizer both add one; switch one of them off."
            )


def _appended_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids that the tokenizer appends to a text (``add_eos_token``, a template post-processor)."""
    special = set(tokenizer.all_special_ids)
    # The texts are decoded tokens: a vocabulary of words may hold no single letters, and some tokenizers raise at unknown text.
    known_texts = (str(tokenizer.decode([token])) for token in range(len(tokenizer)) if token not in special)
    for text in itertools.islice(known_texts, 100):
        without_special: list[int] = tokenizer.encode(text, add_special_tokens=False)
        if without_special:
            with_special: list[int] = tokenizer.encode(text, add_special_tokens=True)
            size = len(without_special)
            ends = [end for end in range(len(with_special), 0, -1) if with_special[max(0, end - size) : end] == without_special]
            return with_special[ends[0] :] if ends else []
    return []


def _in_one_line(error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {reason[:200]}"
