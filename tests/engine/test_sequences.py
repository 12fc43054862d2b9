"""Texts are encoded as labelled token sequences. Windows equal lm_eval's, and training uses the token ids of scoring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tiny import MAX_LENGTH, tiny_model, tiny_tokenizer

from lm_harmony.benchmarks.types import Example, Request
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, cut_to_length, rolling_windows, training_sequences
from lm_harmony.errors import BenchmarkError
from lm_harmony.models.loading import LanguageModel
from lm_harmony.models.text import EncodedPair, TextEncoder

IDS = st.lists(st.integers(2, 299), max_size=80)
PREFIX = 1
QUESTIONS = (
    ("Question: Which of these would best slow the transfer of heat?\nAnswer:", " wood"),
    ("Q: what is the capital of the country?  ", "the city by the river"),
    ("naïve – ☃\n", "日本語 ✓"),
    ("yes", " no<|end|>"),
    ("", "the dog does not mind."),
)


def lm_eval_windows(ids: list[int], max_input: int) -> list[tuple[list[int], list[int]]]:
    windows = get_rolling_token_windows(ids, prefix_token=PREFIX, max_seq_len=max_input, context_len=1)
    return [make_disjoint_window(window) for window in windows]


def ids_and_labels(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    return list(sequence.ids[: sequence.first_label]), list(sequence.labels)


def rolling_example(row: int, text: str) -> Example:
    """Make the example of a rolling benchmark. It has no context, and all tokens of the text are labels."""
    requests = (Request(kind="loglikelihood_rolling", context="", continuation=text),)
    return Example(row=row, document={}, context="", continuation=text, requests=requests)


def example_of(row: int, context: str, answer: str) -> Example:
    requests = (Request(kind="loglikelihood", context=context, continuation=answer),)
    return Example(row=row, document={}, context=context, continuation=answer, requests=requests)


def sequences_of(
    model: LanguageModel, examples: list[Example], *, max_length: int = 1024, only: bool = False
) -> list[TokenSequence]:
    return training_sequences(model, examples, max_length=max_length, completion_only=only)


def input_ids_of_scoring(model: LanguageModel, requests: list[Request]) -> list[list[int]]:
    """Return the input ids of the model when the requests are scored one by one."""
    input_ids: list[list[int]] = []

    def record(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids.append(kwargs["input_ids"][0].tolist())

    hook = model.module.register_forward_pre_hook(record, with_kwargs=True)
    for request in requests:
        Scorer(model=model, batch_size=1).reply([request])
    hook.remove()
    return input_ids


@settings(max_examples=200, deadline=None)
@given(ids=IDS, max_input=st.integers(1, 30))
@example(ids=[5] * 30, max_input=30)
@example(ids=[5] * 31, max_input=30)
def test_rolling_windows_are_those_of_lm_eval(ids: list[int], max_input: int) -> None:
    """Context ids and labels of every window equal those of lm_eval's disjoint windows with context length 1."""
    assert [ids_and_labels(window) for window in rolling_windows(ids, PREFIX, max_input)] == lm_eval_windows(ids, max_input)


@settings(max_examples=200, deadline=None)
@given(ids=IDS, max_input=st.integers(1, 30))
def test_rolling_windows_predict_every_token_once_within_the_model(ids: list[int], max_input: int) -> None:
    """The concatenated labels are the text. No window exceeds the model's maximum. All windows after the first are full."""
    windows = rolling_windows(ids, PREFIX, max_input, row=7)
    assert [label for window in windows for label in window.labels] == ids
    assert all(window.first_label >= 1 and len(window.ids) - 1 <= max_input for window in windows)
    assert all(len(window.ids) == max_input + 1 for window in windows[1:])
    assert {window.row for window in windows} <= {7}


def test_windows_without_context_differ_from_those_of_lm_eval() -> None:
    """Negative control: windows that only split the text into pieces are not equal."""
    ids = list(range(2, 27))
    pieces = [([PREFIX], ids[start : start + 10]) for start in range(0, len(ids), 10)]
    assert pieces != lm_eval_windows(ids, 10)
    assert [label for _, labels in pieces for label in labels] == ids


@settings(max_examples=200, deadline=None)
@given(context=st.lists(st.integers(2, 299), min_size=1, max_size=60), continuation=IDS, max_input=st.integers(1, 40))
def test_truncation_never_shortens_the_continuation(context: list[int], continuation: list[int], max_input: int) -> None:
    """The end of the text is kept, with the full continuation and at least one context token. Otherwise the row is refused."""
    pair = EncodedPair(context=tuple(context), continuation=tuple(continuation))
    if not 1 <= len(continuation) <= max_input:
        with pytest.raises(BenchmarkError, match="row 3"):
            cut_to_length(pair, max_input, row=3)
        return
    sequence = cut_to_length(pair, max_input, row=3)
    full = pair.context + pair.continuation
    assert sequence.labels == pair.continuation
    assert sequence.first_label >= 1 and len(sequence.ids) == min(len(full), max_input + 1)
    assert full[-len(sequence.ids) :] == sequence.ids
    assert sequence.truncated == (len(full) > max_input + 1)


@pytest.mark.parametrize("bos", [False, True])
def test_training_ids_are_the_scored_ids_and_one_end_token(bos: bool) -> None:
    """The training ids of the right answer are the ids of scoring followed by exactly one end-of-text token."""
    model = tiny_model(bos=bos)
    examples = [example_of(row, context, answer) for row, (context, answer) in enumerate(QUESTIONS)]
    input_ids = input_ids_of_scoring(model, [request for item in examples for request in item.requests])
    for item, sequence, sent in zip(examples, sequences_of(model, examples), input_ids, strict=True):
        already_ended = (item.continuation or "").endswith("<|end|>")
        text = sequence.ids if already_ended else sequence.ids[:-1]
        assert list(text[:-1]) == sent  # the last scored token is only a label
        assert sequence.ids[-1] == model.text.end_id and sequence.ids[1:].count(model.text.end_id) == 1
        assert sequence.ids[:3].count(model.text.prefix_id) == (1 if bos or item.context == "" else 0)
        assert sequence.row == item.row and not sequence.truncated


def test_training_ids_of_a_rolling_text_are_the_scored_ids_and_one_end_token() -> None:
    """The training ids of a text are those of rolling scoring followed by one end-of-text token."""
    model = tiny_model()
    item = rolling_example(0, "Q: what is the capital of the country?")
    [sequence] = sequences_of(model, [item])
    [sent] = input_ids_of_scoring(model, list(item.requests))
    assert [*sent, sequence.ids[-2], model.text.end_id] == list(sequence.ids)
    assert sequence.first_label == 1


@pytest.mark.parametrize("bos", [False, True])
def test_completion_only_labels_the_answer_and_its_end(bos: bool) -> None:
    """With completion_only the labels start after the context. Without it they start after the first token."""
    model = tiny_model(bos=bos)
    examples = [example_of(row, *pair) for row, pair in enumerate(QUESTIONS)]
    everything, answers = sequences_of(model, examples), sequences_of(model, examples, only=True)
    pairs = model.text.encode_pairs(list(QUESTIONS))
    for full, answer, pair in zip(everything, answers, pairs, strict=True):
        assert answer.ids == full.ids and full.first_label == 1
        assert answer.first_label == len(pair.context)
        assert answer.labels == (pair.continuation if pair.continuation[-1] == 0 else (*pair.continuation, 0))
    assert answers[0].first_label > 1


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("max_length", [12, 40, 1024])
def test_a_long_context_is_truncated_on_the_left_and_marked(max_length: int, only: bool) -> None:
    """The sequence has the maximum length, ends with the full answer, and is marked as truncated. A shorter one is not marked."""
    model = tiny_model()
    long, short = example_of(0, "the dog " * 200 + "\nA:", " the city by"), example_of(1, "a", " b")
    truncated, kept = sequences_of(model, [long, short], max_length=max_length, only=only)
    [pair] = model.text.encode_pairs([(long.context, long.continuation or "")])
    answer = (*pair.continuation, model.text.end_id)
    assert len(truncated.ids) == min(max_length, MAX_LENGTH + 1) and truncated.truncated and not kept.truncated
    assert truncated.ids == (*pair.context, *answer)[-len(truncated.ids) :]
    assert truncated.labels == (answer if only else truncated.ids[1:])


def test_a_row_whose_answer_is_too_long_is_left_out() -> None:
    """Answers are never truncated. A row with a longer answer is left out, and the other rows are kept."""
    long, short = example_of(5, "Q:", " a long answer that needs more"), example_of(6, "Q:", " no")
    assert [sequence.row for sequence in sequences_of(tiny_model(), [long, short, long], max_length=8)] == [6]
    assert [sequence.row for sequence in sequences_of(tiny_model(), [long, short])] == [5, 6]
    with pytest.raises(BenchmarkError, match=r"every training row has more than 7 tokens\. Raise --train_param\.max_seq_length"):
        sequences_of(tiny_model(), [long], max_length=8)


def test_the_longest_answer_that_fits_is_kept() -> None:
    """At least one of max_length tokens is context. The answer and its end token may use the rest."""
    model, item = tiny_model(), example_of(0, "Q:", " a dog and the dog")
    [pair] = model.text.encode_pairs([(item.context, item.continuation or "")])
    fitting = 1 + len(pair.continuation) + 1
    [sequence] = sequences_of(model, [item], max_length=fitting, only=True)
    assert sequence.labels == (*pair.continuation, model.text.end_id) and len(sequence.ids) == fitting
    with pytest.raises(BenchmarkError):
        sequences_of(model, [item], max_length=fitting - 1)


def test_a_scored_answer_that_is_too_long_raises_an_error_with_its_row() -> None:
    """The error has the row in the split, not the index of the request."""
    long = Request(kind="loglikelihood", context="Q:", continuation="7" * 2 * MAX_LENGTH, location="test row 41")
    fine = Request(kind="loglikelihood", context="Q:", continuation=" no", location="test row 40")
    with pytest.raises(BenchmarkError, match=r"^test row 41: a continuation has \d+ tokens, the model takes 128"):
        Scorer(model=tiny_model()).reply([fine, fine, long])
    assert len(Scorer(model=tiny_model()).reply([fine, fine])) == 2


@pytest.mark.parametrize("bos", [False, True])
def test_a_tokenizer_that_appends_an_end_token_gives_one_end_token(bos: bool) -> None:
    """Training ids have one end token, although the tokenizer also appends one to every text."""
    model = tiny_model(bos=bos)
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.add_bos_token, tokenizer.add_eos_token = bos, True
    tokenizer.update_post_processor()
    assert tokenizer.encode("a")[-1] == model.text.end_id
    ending = replace(model, text=TextEncoder(tokenizer, name="m"))
    examples = [*(example_of(row, *pair) for row, pair in enumerate(QUESTIONS)), rolling_example(9, "alone")]
    assert sequences_of(ending, examples) == sequences_of(model, examples)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), max_length=st.integers(2, 40))
@example(text="0123456", max_length=8)
@example(text="01234567", max_length=8)
@example(text="012345678", max_length=8)
@pytest.mark.parametrize("only", [False, True])
def test_a_long_text_becomes_windows_that_label_every_token_once(text: str, max_length: int, only: bool) -> None:
    """The concatenated labels of the windows are the ids and the end token. No window exceeds max_length."""
    model = tiny_model()
    sequences = sequences_of(model, [rolling_example(4, text)], max_length=max_length, only=only)
    ids = model.text.tokenizer.encode(text, add_special_tokens=False)
    assert [label for sequence in sequences for label in sequence.labels] == [*ids, model.text.end_id]
    assert all(len(sequence.ids) <= max_length and sequence.row == 4 for sequence in sequences)


def test_windows_are_at_most_as_long_as_the_models_maximum() -> None:
    """If max_length is larger than the model's maximum, the model's maximum applies."""
    model = tiny_model()
    sequences = sequences_of(model, [rolling_example(0, "7" * (3 * MAX_LENGTH))])
    assert [len(sequence.ids) - 1 for sequence in sequences] == [MAX_LENGTH] * 4
    assert sum(len(sequence.labels) for sequence in sequences) == 3 * MAX_LENGTH + 1
