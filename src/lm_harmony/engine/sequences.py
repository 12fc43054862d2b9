"""Token sequences with their labels: the form in which training and scoring pass text to a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from lm_harmony.benchmarks.types import Example, Request
from lm_harmony.errors import BenchmarkError
from lm_harmony.models.loading import LanguageModel
from lm_harmony.models.text import EncodedPair


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """Token ids with labels: every id from ``first_label`` on is predicted from the ids before it."""

    ids: tuple[int, ...]
    """Token ids. The last one is only predicted and is not an input of the model."""
    first_label: int
    """Position of the first predicted id, at least 1; the ids before it are context."""
    row: int = -1
    """Row number of the document in its split, for messages."""
    truncated: bool = False
    """Whether context was dropped on the left because the text was too long."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The predicted ids."""
        return self.ids[self.first_label :]


def cut_to_length(pair: EncodedPair, max_input: int, *, row: int = -1, document: str = "") -> TokenSequence:
    """Join a context and its continuation and drop context on the left beyond ``max_input`` input tokens, as lm_eval does.

    Args:
        pair: token ids of the context and of the continuation.
        max_input: largest number of input tokens.
        row: row number of the document in its split.
        document: split and row of the document for error messages, such as "test row 5".

    Raises:
        BenchmarkError: the continuation is longer than ``max_input`` tokens, or has no tokens.
    """
    labels, place = len(pair.continuation), document or f"row {row}"
    if labels == 0:
        raise BenchmarkError(f"{place}: a continuation has no token of its own after its context. Correct the row.")
    if labels > max_input:
        raise BenchmarkError(
            f"{place}: a continuation has {labels} tokens, the model takes {max_input}. Shorten it, or use a model that takes "
            f"longer inputs."
        )
    joined = pair.context + pair.continuation
    ids = joined[-(max_input + 1) :]
    return TokenSequence(ids=ids, first_label=len(ids) - labels, row=row, truncated=len(ids) < len(joined))


def rolling_windows(ids: Sequence[int], prefix_id: int, max_input: int, *, row: int = -1) -> list[TokenSequence]:
    """Cut a long text into windows that together predict each token once.

    The windows are those of ``lm_eval.utils.get_rolling_token_windows(context_len=1)``. The input of the first window is the
    prefix token and ``max_input - 1`` ids. The last window is moved to the left until its input has ``max_input`` tokens.
    """
    windows = []
    for start in range(0, len(ids), max_input):
        end = min(start + max_input, len(ids))
        # Position 0 of (prefix_id, *ids) is the prefix token. The inputs end right before the last predicted token.
        input_start = 0 if start == 0 else end - max_input
        window = (prefix_id, *ids)[input_start : end + 1]
        windows.append(TokenSequence(ids=window, first_label=len(window) - (end - start), row=row))
    return windows


def training_sequences(
    model: LanguageModel, examples: Sequence[Example], *, max_length: int, completion_only: bool
) -> list[TokenSequence]:
    """Encode the training texts: the text that scoring uses for the right answer, then the end-of-text token.

    A text longer than ``max_length`` loses context on the left, so that its answer is always trained on. An example without
    context (rolling log-likelihood) becomes as many windows as it needs. An example whose answer is longer than ``max_length`` is
    left out.

    Args:
        model: the model whose tokenizer encodes the texts.
        examples: examples with an answer.
        max_length: longest sequence in tokens, including the end-of-text token.
        completion_only: label the continuation only, not the context.

    Raises:
        BenchmarkError: an answer has no tokens, or every answer is too long.
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
        ended_pair = EncodedPair(context=pair.context, continuation=ended)
        sequence = cut_to_length(ended_pair, longest - 1, row=example.row, document=example.location)
        sequences.append(sequence if completion_only else replace(sequence, first_label=1))
    if examples and not sequences:
        raise BenchmarkError(
            f"the answer of every training row has more than {longest - 1} tokens. Raise --train_param.max_seq_length "
            f"(now {max_length}), or use a model that takes more than {model.max_length} tokens."
        )
    return sequences


def scoring_sequences(model: LanguageModel, requests: Sequence[Request]) -> tuple[list[TokenSequence], list[int]]:
    """Encode requests for log-likelihoods as lm_eval does.

    A request of kind "loglikelihood" becomes one sequence whose labels are its continuation. A request of kind
    "loglikelihood_rolling" becomes as many windows as its text needs.

    Args:
        model: the model whose tokenizer encodes the texts.
        requests: requests of these two kinds.

    Returns:
        The sequences, and for each sequence the index of its request.

    Raises:
        BenchmarkError: a continuation is too long for the model, or has no tokens.
    """
    single = [index for index, request in enumerate(requests) if request.kind == "loglikelihood"]
    rolling = [index for index, request in enumerate(requests) if request.kind == "loglikelihood_rolling"]
    pairs = model.text.encode_pairs([(requests[index].context, requests[index].continuation) for index in single])
    sequences = [
        cut_to_length(pair, model.max_length, document=requests[index].location)
        for index, pair in zip(single, pairs, strict=True)
    ]
    owners = list(single)
    texts = model.text.encode([requests[index].continuation for index in rolling])
    for index, ids in zip(rolling, texts, strict=True):
        windows = rolling_windows(ids, model.text.prefix_id, model.max_length)
        sequences += windows
        owners += [index] * len(windows)
    return sequences, owners


def end_by_sequences(items: Sequence[TokenSequence], start: int, size: int) -> int:
    """Return the end of a batch of at most ``size`` sequences that begins at ``start``."""
    return min(start + size, len(items))


def to_device(device: torch.device, *arrays: npt.ArrayLike) -> list[torch.Tensor]:
    """Return integer arrays as int64 tensors on ``device``, copied together in one transfer that does not block the host."""
    integers = [np.asarray(array, dtype=np.int64) for array in arrays]
    joined = torch.from_numpy(np.concatenate(integers))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return list(torch.split(joined.to(device, non_blocking=True), [array.size for array in integers]))
