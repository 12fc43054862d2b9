"""Layouts of packed rows equal those of a plain prefix tree, and attention sees exactly the ancestors of each token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import DATA, needs_data
from tiny import tiny_model

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.splits import make_splits
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Caps
from lm_harmony.engine.layout import Layout, concatenated_layout, end_by_tokens, prefix_tree_layout
from lm_harmony.engine.length_groups import COSTS, DROPOUT_COSTS, GroupCosts, group_segments, length_groups
from lm_harmony.engine.packed_attention import PackedAttention
from lm_harmony.engine.sequences import TokenSequence, to_device

SPLITS = ("train", "validation", "test")
TOKEN = st.integers(2, 5)
TASKS = [path.name for path in sorted(DATA.glob("*")) if all((path / f"{name}.jsonl").is_file() for name in SPLITS)]
"""Benchmarks with real rows of all three splits."""


@st.composite
def prefix_trees(draw: st.DrawFn) -> list[TokenSequence]:
    """Draw sequences of few distinct tokens, so that beginnings of any depth are shared and some sequences are equal."""
    shared_prefix = draw(st.lists(TOKEN, min_size=0, max_size=20))
    sequences = []
    for _ in range(draw(st.integers(1, 8))):
        ids = (*shared_prefix, *draw(st.lists(TOKEN, min_size=2, max_size=12)))
        sequences.append(TokenSequence(ids=ids, first_label=draw(st.integers(1, len(ids) - 1))))
    return sequences


class Trie:
    """A prefix tree made token by token from the layout's segments, as a reference."""

    def __init__(self, layout: Layout, sequences: Sequence[TokenSequence]) -> None:
        """Find the parent of each token of the row by its position, and the row index of each sequence's tokens."""
        self.parents: list[int] = []
        starts = set(layout.starts_S.tolist())
        path: list[int] = list(range(layout.prefix))
        for index, position in enumerate(layout.positions_N.tolist()):
            if index in starts:
                path = path[: layout.prefix]
            path = [*path[:position], index]
            assert len(path) == position + 1, "a token follows no token of the position before it"
            self.parents.append(path[-2] if position else -1)
        self.ids = layout.ids_N.tolist()
        segment_of = np.searchsorted(layout.starts_S, np.arange(layout.tokens), side="right").tolist()
        nodes = set(zip(segment_of, self.parents, self.ids, strict=True))
        self.duplicates = len(self.ids) - len(nodes)

    def ancestors(self, index: int) -> set[int]:
        """Return the row indices of a token and of the tokens before it in its sequences."""
        found = set()
        while index >= 0:
            found.add(index)
            index = self.parents[index]
        return found


def attended(layout: Layout, window: int | None) -> dict[int, set[int]]:
    """Return for each token of the row the row indices that its attention mask lets it see."""
    attention = PackedAttention(layout)
    attention.place(to_device(torch.device("cpu"), *attention.arrays))
    slots, back = (array.tolist() for array in attention.arrays[:2])
    seen: dict[int, set[int]] = {}
    start = 0
    for number, group in enumerate(attention.groups):
        mask = attention.masks(window, torch.float32)[number]
        prefix = 0 if layout.prefix and number == 0 else layout.prefix
        causal = torch.full((group.longest, group.longest), -torch.inf).triu(1)
        allowed = (causal if mask is None else mask[:, 0]).expand(group.segments, -1, -1) == 0
        for segment, place in itertools.product(range(group.segments), range(group.longest)):
            slot = start + segment * group.longest + place
            if back[slots[slot]] != slot:
                continue  # padding
            keys = [*range(prefix), *slots[start + segment * group.longest :][: group.longest]]
            found = [key for key, allow in zip(keys, allowed[segment, place].tolist(), strict=True) if allow]
            assert len(found) == len(set(found)), "a token sees padding"
            seen[slots[slot]] = set(found)
        start += group.slots
    return seen


def check(layout: Layout, sequences: Sequence[TokenSequence], *, shares: bool, window: int | None) -> None:
    """Compare a layout and its attention masks with the reference tree."""
    trie, labels = Trie(layout, sequences), iter(zip(layout.sources_L.tolist(), layout.labels_L.tolist(), strict=True))
    positions = layout.positions_N.tolist()
    for sequence, count in zip(sequences, layout.counts, strict=True):
        assert count == len(sequence.labels)
        for place in range(sequence.first_label, len(sequence.ids)):
            source, label = next(labels)
            path = sorted(trie.ancestors(source), key=positions.__getitem__)
            assert tuple(trie.ids[index] for index in path) == sequence.ids[:place]
            assert label == sequence.ids[place]
    seen = attended(layout, window)
    assert len(seen) == layout.tokens
    for index, keys in seen.items():
        ancestors = trie.ancestors(index)
        assert keys == {key for key in ancestors if window is None or positions[index] - positions[key] < window}
    if shares:
        assert trie.duplicates == 0


@settings(max_examples=300, deadline=None)
@given(sequences=prefix_trees(), window=st.sampled_from([None, 2, 7, 64]))
def test_layouts_and_masks_equal_those_of_a_plain_prefix_tree(sequences: list[TokenSequence], window: int | None) -> None:
    check(prefix_tree_layout(sequences), sequences, shares=True, window=window)
    check(concatenated_layout(sequences), sequences, shares=False, window=window)


def test_a_wrong_end_of_a_subtree_is_detected() -> None:
    """Negative control of the comparison with the plain prefix tree."""
    sequences = [TokenSequence(ids=ids, first_label=3) for ids in ((5, 6, 7, 2, 9), (5, 6, 7, 3, 9), (8, 8, 8, 8))]
    layout = prefix_tree_layout(sequences)
    check(layout, sequences, shares=True, window=None)
    layout.ends_N[layout.sources_L[1]] += 1
    with pytest.raises(AssertionError):
        check(layout, sequences, shares=True, window=None)


@needs_data
@pytest.mark.parametrize("task", TASKS)
def test_layouts_of_real_rows_equal_those_of_a_plain_prefix_tree(task: str) -> None:
    splits = make_splits(
        HarnessTask(find_task_file(task), DATA), caps=Caps(train=20, validation=2, test=40), seed=0, protocol="clean", chat=None
    )
    requests = [request for example in splits.test for request in example.requests if request.kind == "loglikelihood"]
    pairs = tiny_model().text.encode_pairs([(request.context, request.continuation) for request in requests])
    texts = [TokenSequence(ids=pair.context + pair.continuation, first_label=len(pair.context)) for pair in pairs]
    sequences = sorted(texts, key=lambda sequence: sequence.ids)
    for size in (256, 2048):
        start = 0
        while start < len(sequences):
            end = end_by_tokens(sequences, start, size)
            check(prefix_tree_layout(sequences[start:end]), sequences[start:end], shares=True, window=None)
            start = end


@settings(max_examples=200, deadline=None)
@given(sequences=prefix_trees(), size=st.integers(1, 200))
def test_batches_by_tokens_contain_every_sequence_once(sequences: list[TokenSequence], size: int) -> None:
    ordered = sorted(sequences, key=lambda sequence: sequence.ids)
    start, ends = 0, []
    while start < len(ordered):
        end = end_by_tokens(ordered, start, size)
        assert end > start
        columns = zip(*(sequence.ids for sequence in ordered[start:end]), strict=False)
        common = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
        assert end == start + 1 or prefix_tree_layout(ordered[start:end]).tokens - common <= size
        ends.append(end)
        start = end
    assert ends[-1] == len(ordered)


def test_a_beginning_that_all_texts_share_does_not_count_for_the_size_of_a_batch() -> None:
    """With 300 tokens of examples, a batch of 100 tokens holds four texts of 21 tokens. Without examples that all share, one."""
    examples = tuple(range(1000, 1300))
    texts = [TokenSequence(ids=(*examples, *range(row, row + 21)), first_label=310) for row in range(0, 400, 50)]
    assert end_by_tokens(texts, 0, 100) == 4
    assert prefix_tree_layout(texts[:4]).tokens == 300 + 4 * 20
    others = [TokenSequence(ids=(row, *text.ids), first_label=310) for row, text in enumerate(texts)]
    assert end_by_tokens(others, 0, 100) == 1


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=10),
    most=st.integers(1, 3),
    costs=st.sampled_from([COSTS, DROPOUT_COSTS]),
)
def test_length_groups_have_the_least_cost(sizes: list[int], most: int, costs: GroupCosts) -> None:
    sizes_S = np.array(sizes)

    def cost(groups: Sequence[Sequence[int]]) -> int:
        longest = [max(sizes[index] for index in group) for group in groups]
        return sum(costs.call + len(group) * size * (size + costs.slot) for group, size in zip(groups, longest, strict=True))

    groups, least = length_groups(sizes_S, costs, most=most)
    found = [group.tolist() for group in groups]
    assert sorted(itertools.chain(*found)) == list(range(len(sizes))) and len(found) <= most
    by_length = sorted(range(len(sizes)), key=sizes.__getitem__)
    every = (
        [by_length[low:high] for low, high in itertools.pairwise((0, *cuts, len(sizes)))]
        for number in range(min(most, len(sizes)))
        for cuts in itertools.combinations(range(1, len(sizes)), number)
    )
    assert cost(found) == least == min(map(cost, every))


def test_a_short_row_is_one_group_without_padding() -> None:
    """Its tokens stay where they are. Rows whose sequences are equally long need no gathers, and are grouped at every length."""

    def row(*sizes: int) -> Layout:
        return concatenated_layout([TokenSequence(ids=tuple(range(size + 1)), first_label=1) for size in sizes])

    for sizes in ((5, 9), (12, 14, 16)):
        groups, slots_Q, back_N, ends_Q = group_segments(layout := row(*sizes))
        assert len(groups) == 1 and groups[0].segments == 1 and not groups[0].chains
        assert slots_Q.tolist() == back_N.tolist() == list(range(sum(sizes))) and ends_Q.tolist() == layout.ends_N.tolist()
    for sizes in ((7, 7, 7), (30, 40, 50), (300, 400, 500)):
        groups, *_ = group_segments(row(*sizes))
        assert sum(group.segments for group in groups) == 3 and all(group.chains for group in groups)
