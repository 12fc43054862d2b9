"""Where a generated answer ends: at an end token, or where its decoded text contains a stop string.

A think part is cut off by the rule of lm_eval's models: the answer is what follows the last ``think_end_token``, and stop strings
are searched in the answer alone (``HFLM.generate_until``, ``postprocess_generated_text``). A row does not end inside its think
part, as with lm_eval's vLLM model. HFLM ends a batch when each of its rows has generated a stop string anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from lm_harmony.benchmarks.prompt import cut_think_part
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.models.loading import LanguageModel

REPLACEMENT = "\ufffd"
"""What a decoder puts in the place of bytes that are no complete UTF-8 character. Stop strings do not contain it."""


class StopStrings(StoppingCriteria):
    """Ends a row when its decoded text contains a stop string (lm_eval waits for all rows of the batch)."""

    def __init__(self, model: LanguageModel, settings: GenerationSettings, think_end: str | int | None = None) -> None:
        self.tokenizer, self.think_end = model.text.tokenizer, think_end
        self.stop = [end for end in (*settings.stop, model.text.end_text) if end]
        ends = settings.merged_with(model.module.generation_config).get("eos_token_id")
        self.end_ids = set(ends if isinstance(ends, list) else [ends]) | {model.text.end_id}
        # Two tokens more than the tokenizer needs, because the model may spell a stop string in other tokens (lm_eval's rule).
        self._lookbacks = [len(tokens) + 2 for tokens in self.tokenizer(self.stop, add_special_tokens=False)["input_ids"]]
        self._longest = max(map(len, self.stop))
        # For each token that was seen: 0 if it cannot complete a stop string, else the length of its text, decoded twice.
        self._completing: dict[int, int] = {}
        self.begin(0, beams=1)

    def begin(self, prompt_length: int, *, beams: int) -> None:
        """Start a batch of ``transformers.generate`` whose contexts take ``prompt_length`` tokens, including padding."""
        self.prompt_length, self.beams, self.ended = prompt_length, beams, False

    def is_finished(self, written: Sequence[int]) -> bool:
        """Tell whether a row ends with its last generated token, if it did not end before.

        Most tokens cost a look into a dictionary: the last tokens are decoded only after one that can complete a stop string, and
        all tokens only where that is needed to be sure.
        """
        last = written[-1]
        if last in self.end_ids:
            return True
        if last not in self._completing:
            # Decoded twice, so that the second one is decoded as it is after other text. A part of a character may complete it.
            text = self._decode([last, last])
            completes = REPLACEMENT in text or any(end[-1] in text for end in self.stop)
            self._completing[last] = len(text) if completes else 0
        if not self._completing[last]:
            return False
        tail = self._tail(written, self._longest + self._completing[last])
        # In a row cut between two tokens, parts of a character are no character, and a decoder may join bytes differently.
        if REPLACEMENT not in tail and not self._contains_stop(tail):
            return False
        return self._stops(written)

    def _stops(self, written: Sequence[int]) -> bool:
        """Return whether the answer of a row contains a stop string."""
        thinks = self.think_end is not None
        answer = self._after_thinking(written, skip_special_tokens=False) if thinks else self._decode(written)
        return answer is not None and self._contains_stop(answer)

    def _after_thinking(self, written: Sequence[int], *, skip_special_tokens: bool) -> str | None:
        """Return the text of a row after its last ``think_end``, without spaces before it; None: the row has no ``think_end``."""
        rest = list(written)
        if isinstance(self.think_end, int):
            if self.think_end not in rest:
                return None
            rest = rest[len(rest) - rest[::-1].index(self.think_end) :]
        text = str(self.tokenizer.decode(rest, skip_special_tokens=skip_special_tokens))
        if isinstance(self.think_end, str):
            if self.think_end not in text:
                return None
            text = cut_think_part(text, self.think_end)
        return text.lstrip()

    def _contains_stop(self, text: str) -> bool:
        return any(end in text for end in self.stop)

    def _tail(self, written: Sequence[int], characters: int) -> str:
        """Decode the last tokens of a row, so many that their text has more than ``characters``, or all of them."""
        tokens = characters + 1
        while len(text := self._decode(written[-tokens:])) <= characters and tokens < len(written):
            tokens *= 2
        return text

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def text_of(self, written: Sequence[int]) -> str:
        """Return the text of a row's generated tokens after its think part and before its first stop string."""
        answer = None if self.think_end is None else self._after_thinking(written, skip_special_tokens=True)
        if answer is None:
            answer = str(self.tokenizer.decode(list(written), skip_special_tokens=True))
            answer = answer if self.think_end is None else answer.lstrip()
        for end in self.stop:
            answer = answer.split(end)[0]
        return answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Tell ``transformers.generate`` for each row whether it has ended."""
        written = input_ids[:, self.prompt_length :].tolist()
        if self.beams > 1:
            # lm_eval's rule for beam search: the answer ends when its best candidate contains a stop string.
            tails = [written[0][-lookback:] for lookback in self._lookbacks]
            found = any(end in text for end, text in zip(self.stop, self.tokenizer.batch_decode(tails), strict=True))
            self.ended |= found and (self.think_end is None or self._stops(written[0]))
            return torch.full((len(written),), self.ended, device=input_ids.device)
        return torch.tensor([self.is_finished(row) for row in written], device=input_ids.device)
