"""Token sequences with their labels: the one form in which training and scoring hand text to a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lm_harmony.benchmarks.types import Example
from lm_harmony.errors import BenchmarkError
from lm_harmony.models.loading import LanguageModel
from lm_harmony.models.text import EncodedPair


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """Token ids of which all from ``first_label`` on are predicted, each from the ids before it."""

    ids: tuple[int, ...]
    """Token ids; the last one is only predicted, never fed."""
    first_label: int
    """Position of the first predicted id, at least 1; the ids before it are context."""
    row: int = -1
    """Row number of the document in its split, for messages."""
    truncated: bool = False
    """Whether context was dropped from the left because the text was too long."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The predicted ids."""
        return self.ids[self.first_label :]


def cut_to_length(pair: EncodedPair, max_input: int, *, row: int = -1, document: str = "") -> TokenSequence:
    """Join a context and its continuation, dropping context from the left beyond ``max_input`` fed tokens, as lm_eval does.

    Args:
        pair: token ids of both.
        max_input: most tokens that are fed.
        row: row number of the document in its split.
        document: which document of which split it is, for messages ("test row 5").

    Raises:
        BenchmarkError: the continuation alone is longer than the model's input, or has no token of its own.
    """
    labels, place = len(pair.continuation), document or f"row {row}"
    if labels == 0:
        raise BenchmarkError(f"{place}: a continuation has no token of its own after its context. Correct the row.")
    if labels > max_input:
        raise BenchmarkError(
            f"{place}: a continuation has {labels} tokens, the model takes {max_input}. Shorten it or use a longer model."
        )
    whole = pair.context + pair.continuation
    ids = whole[-(max_input + 1) :]
    return TokenSequence(ids=ids, first_label=len(ids) - labels, row=row, truncated=len(ids) < len(whole))


def rolling_windows(ids: Sequence[int], prefix_id: int, max_input: int, *, row: int = -1) -> list[TokenSequence]:
    """Cut a long text into windows that predict each token once, the later ones with all the context that fits.

    The windows are those of ``lm_eval.utils.get_rolling_token_windows(context_len=1)``: the first is fed the prefix token and
    ``max_input - 1`` ids; the last is moved left until it is full.
    """
    windows = []
    for start in range(0, len(ids), max_input):
        end = min(start + max_input, len(ids))
        # Position 0 of ``whole`` is the prefix token; the fed tokens end right before the last predicted one.
        fed_from = 0 if start == 0 else end - max_input
        whole = (prefix_id, *ids)[fed_from : end + 1]
        windows.append(TokenSequence(ids=whole, first_label=len(whole) - (end - start), row=row))
    return windows


def training_sequences(
    model: LanguageModel, examples: Sequence[Example], *, max_length: int, completion_only: bool
) -> list[TokenSequence]:
    """Encode what is learned: the scored text of the right answer, then the end-of-text token.

    A text longer than ``max_length`` loses context from the left, so that its answer is always learned; a whole-text example
    (rolling log-likelihood) becomes as many windows as it needs. An example whose answer alone is longer is left out.

    Args:
        model: whose tokenizer encodes.
        examples: each with an answer.
        max_length: longest sequence in tokens, the end-of-text token included.
        completion_only: label the continuation only, not the context.

    Raises:
        BenchmarkError: an answer has no token, or every answer is too long.
    """
    end, encoder = model.text.end_id, model.text
    longest = min(max_length, model.max_length + 1)
    pairs = encoder.encode_pairs([(example.context, example.continuation or "") for example in examples])
    sequences = []
    for example, pair in zip(examples, pairs, strict=True):
        ended = pair.continuation if pair.continuation[-1:] == (end,) else (*pair.continuation, end)
        if example.context == "" and len(ended) >= longest:
            sequences += rolling_windows(ended, encoder.prefix_id, longest - 1, row=example.row)
            continue
        if len(ended) > longest - 1:
            continue
        asked = EncodedPair(context=pair.context, continuation=ended)
        whole = cut_to_length(asked, longest - 1, row=example.row, document=example.location)
        sequences.append(whole if completion_only else replace(whole, first_label=1))
    if examples and not sequences:
        raise BenchmarkError(
            f"the answer of every training row has more than {longest - 1} tokens. Raise --train_param.max_seq_length "
            f"(now {max_length}), or use a model that takes more than {model.max_length} tokens."
        )
    return sequences
