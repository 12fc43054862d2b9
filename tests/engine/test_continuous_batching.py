"""Continuous batching: a cache in place, few reads by the host, and the same answers whatever the batch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MAX_LENGTH, PACKABLE, VOCABULARY, tiny_model, tiny_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lm_harmony.engine.attention_function import packed_attention
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.continuous_batching import NonFiniteLogits, _Batch, decode_greedily
from lm_harmony.engine.key_value_cache import COLUMNS
from lm_harmony.models.loading import LanguageModel, build_language_model

LIMIT = 12


@cache
def model_of(architecture: str) -> LanguageModel:
    return tiny_model(architecture)


def ids(*lengths: int) -> list[list[int]]:
    """Return random contexts of these lengths."""
    draw = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(1, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]


def alone(model: LanguageModel, context: Sequence[int], tokens: int) -> list[int]:
    """Return so many tokens of greedy decoding, computed from the definition: a forward pass over the text for each token."""
    text = list(context)
    with torch.no_grad():
        for _ in range(tokens):
            text.append(int(model.module(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(context) :]


def decoded(model: LanguageModel, contexts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """Return the tokens of each answer, in the order of the contexts."""
    given: dict[str, Any] = {"batch_size": 4, "max_new_tokens": LIMIT, "is_finished": lambda _: False, **options}
    with torch.no_grad():
        rows = {row.place: list(row.written) for row in decode_greedily(model, contexts, **given)}
    return [rows[place] for place in range(len(contexts))]


def cut(written: Sequence[int], is_finished: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return the answer up to the first token after which it has ended."""
    ends = (count for count in range(1, len(written) + 1) if is_finished(written[:count]))
    return list(written[: next(ends, len(written))])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, MAX_LENGTH - LIMIT), min_size=1, max_size=9),
    shared=st.integers(0, 60),
    batch_size=st.integers(1, 5),
    steps=st.integers(1, 7),
    limit=st.integers(1, LIMIT),
    divisor=st.integers(1, 9),
    tokens=st.integers(1, 200),
)
def test_answers_do_not_depend_on_reads_batch_size_or_other_rows(
    lengths: list[int], shared: int, batch_size: int, steps: int, limit: int, divisor: int, tokens: int
) -> None:
    """Rows enter and leave, and the host reads after any number of steps: each answer is the one that its context gets alone.

    Contexts have up to ``shared`` tokens of their beginning in common, and passes over contexts have about ``tokens`` tokens.
    """
    model, begin = model_of("llama"), ids(shared)[0]
    contexts = [[*begin[: len(context)], *context[shared:]] for context in ids(*lengths)]

    def is_finished(written: Sequence[int]) -> bool:
        return sum(written) % divisor == divisor - 1

    expected = [cut(alone(model, context, limit), is_finished) for context in contexts]
    options = {"batch_size": batch_size, "max_new_tokens": limit, "is_finished": is_finished}
    assert decoded(model, contexts, **options, steps_per_read=steps, context_tokens=tokens) == expected


@pytest.mark.parametrize("architecture", PACKABLE)
def test_every_architecture_generates_with_slots_that_grow(architecture: str) -> None:
    """Contexts shorter and longer than the sliding window of 16 tokens, answers that need more columns than the slots had.

    Two contexts begin with 20 tokens of another one, one of them has no more, and one context recurs.
    """
    model, contexts = model_of(architecture), ids(2 * COLUMNS - 3, 3, 20, 2 * COLUMNS - 9, 14, 17, 40)
    contexts += [[*contexts[0][:20], *contexts[1]], contexts[0][:20], contexts[1]]
    assert choose_backend(model).continuous_batching
    expected = [alone(model, context, LIMIT) for context in contexts]
    for steps in (1, 4):
        assert decoded(model, contexts, steps_per_read=steps) == expected


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_window_hides_most_of_a_long_text(architecture: str) -> None:
    """More than 512 columns before the window: PyTorch's CPU kernel computes them in blocks, of which some are hidden."""
    module = tiny_module(architecture, max_position_embeddings=2048)
    model = build_language_model("long", module, model_of(architecture).text.tokenizer)
    contexts = ids(1200, 30, 700)
    assert decoded(model, contexts) == [alone(model, context, LIMIT) for context in contexts]


def test_no_step_has_a_position_that_the_model_lacks() -> None:
    """The model has one position for each token of the longest text. The host reads after the last token at the latest."""
    model, contexts = model_of("gpt2"), ids(MAX_LENGTH - 5, 9)
    assert decoded(model, contexts, max_new_tokens=6, steps_per_read=4) == [alone(model, context, 6) for context in contexts]
    with pytest.raises(IndexError), torch.no_grad():  # negative control
        model.module(torch.tensor([contexts[0] + [1] * 6]))


class LargeCopies(TorchDispatchMode):
    """Counts operators other than views whose result is at least as large as the keys of all rows in one layer."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.seen = numbers, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        views = any(one.alias_info is not None for one in func._schema.returns)
        large = any(isinstance(one, torch.Tensor) and one.numel() >= self.numbers for one in tree_leaves(found))
        self.seen[func.overloadpacket.__name__] += large and not views
        return found

    @property
    def names(self) -> set[str]:
        return {name for name, count in self.seen.items() if count}


def new_batch(module: Any) -> _Batch:
    return _Batch(module, slots=3, longest=90 + LIMIT, max_new_tokens=LIMIT, is_finished=lambda _: False)


def enter(module: Any, batch: _Batch, contexts: list[list[int]]) -> None:
    """Compute three contexts as ``decode_greedily`` does."""
    for inputs in batch.enter([0, 1, 2], contexts, 512):
        batch.first_tokens(module.base_model(**inputs).last_hidden_state)
    batch.read_first_tokens()


def decode(module: Any, batch: _Batch) -> None:
    """Generate four tokens a row as ``decode_greedily`` does."""
    for inputs in batch.steps(4):
        batch.advance(module.base_model(**inputs).last_hidden_state)
    batch.read_steps()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_a_decoding_step_does_not_copy_the_cache(architecture: str) -> None:
    """Three rows of up to 90 tokens: no operator of four steps makes a tensor as large as their keys in one layer."""
    model, contexts = model_of(architecture), ids(90, 70, 85)
    heads = model.module.config.get_text_config().to_dict().get("num_key_value_heads") or 4
    batch = new_batch(model.module)
    with torch.no_grad(), packed_attention(model.module):
        enter(model.module, batch, contexts)
        with LargeCopies(3 * 90 * heads * 8) as copies:
            decode(model.module, batch)
    assert copies.names == set()
    # Negative control: the cache of transformers is concatenated with the new token.
    mask = torch.tensor([[0] * (90 - len(one)) + [1] * len(one) for one in contexts])
    padded = torch.tensor([[0] * (90 - len(one)) + one for one in contexts])
    with torch.no_grad():
        cached = model.module(padded, attention_mask=mask, use_cache=True).past_key_values
        longer = torch.cat([mask, torch.ones(3, 1, dtype=torch.int64)], dim=1)
        with LargeCopies(3 * 90 * heads * 8) as copies:
            model.module(padded[:, -1:], attention_mask=longer, past_key_values=cached)
    assert "cat" in copies.names


def test_the_host_reads_no_value_between_its_reads_of_the_tokens() -> None:
    """On device meta, tensors have no values: a context and four steps run up to the point where the host reads the tokens."""
    model, contexts = model_of("llama"), ids(90, 70, 85)
    module = copy.deepcopy(model.module).to("meta")
    batch = new_batch(module)
    passes: list[torch.Size] = []
    module.model.embed_tokens.register_forward_hook(lambda *args: passes.append(args[-1].shape))
    with torch.no_grad(), packed_attention(module):
        for read in (partial(enter, module, batch, contexts), partial(decode, module, batch)):
            with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
                read()
            for row in batch.rows:
                row.written.append(0)
    assert [shape[:2] for shape in passes] == [(1, 90 + 70 + 85), *[(3, 1)] * 4]


def test_logits_after_the_end_of_an_answer_do_not_count() -> None:
    """The second token of a context is the last one that counts. Its logits are read together with those of later tokens."""
    model = tiny_model()
    context = ids(9)[0]
    first, second, third = alone(model, context, 3)
    assert third not in (first, second)
    with torch.no_grad():
        model.module.model.embed_tokens.weight[second] = torch.nan
    ends = {"is_finished": lambda written: written[-1] == second, "steps_per_read": 6}
    assert decoded(model, [context], **ends) == [[first, second]]
    with pytest.raises(NonFiniteLogits) as found:
        decoded(model, [context], steps_per_read=6)
    assert found.value.place == 0


def test_a_common_beginning_is_computed_once() -> None:
    model, begin, ends = model_of("llama"), ids(40)[0], ids(5, 6, 7)
    contexts, tokens = [[*begin, *end] for end in ends], list[int]()
    hook = model.module.model.register_forward_pre_hook(
        lambda module, inputs, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    for texts in (contexts, ids(45, 46, 47)):  # the second ones have nothing in common
        decoded(model, texts, max_new_tokens=1)
    hook.remove()
    assert tokens == [40 + 5 + 6 + 7, 45 + 46 + 47]


def test_the_error_names_the_context_that_has_a_logit_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN spreads to the other contexts of its packed row, of which the first one by its ids is another one."""
    model, contexts = tiny_model(), ids(9, 14, 11, 12)
    bad = contexts[2][4]
    contexts = [[token for token in context if token != bad or place == 2] for place, context in enumerate(contexts)]
    assert min(contexts) != contexts[2]
    with torch.no_grad():
        model.module.model.embed_tokens.weight[bad] = torch.nan
    places, read = list[int](), _Batch._read

    def reading(batch: _Batch, tokens: Any, largest: Any, first: int) -> Any:
        places.extend(row.place for row, logit in zip(batch.rows, largest[0].tolist(), strict=True) if logit != logit)
        return read(batch, tokens, largest, first)

    monkeypatch.setattr(_Batch, "_read", reading)
    with pytest.raises(NonFiniteLogits) as found:
        decoded(model, contexts)
    assert found.value.place == 2
    assert sorted(places[:4]) == [0, 1, 2, 3] and places[4:] == [2]  # negative control: together, all of them have it


def test_a_slot_keeps_nothing_of_the_row_that_had_it_before() -> None:
    """After its end, the first row leaves NaN in columns of its slot that the second row reads masked before it writes them."""
    model, (first, second) = tiny_model(), ids(20, 19)
    answer, expected = alone(model, first, 2), alone(model, second, LIMIT)
    assert answer[1] not in (answer[0], *first, *second, *expected)
    with torch.no_grad():
        model.module.model.embed_tokens.weight[answer[1]] = torch.nan
    one_slot = {"batch_size": 1, "is_finished": lambda written: written[-1] == answer[1], "steps_per_read": 4}
    assert decoded(model, [first, second], **one_slot) == [answer, expected]
