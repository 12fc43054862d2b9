"""Layout of a packed row: its tokens, and which of them attend to each other. NumPy only, computed once for each forward pass.

A row holds segments that do not attend to each other. In training each sequence is a segment. In scoring, sequences that share a
beginning form a prefix tree, which holds each shared token once: the requests of a question are its context followed by a branch
for each continuation. What all sequences of a row begin with (few-shot examples, an instruction) is the shared prefix of the row,
to which all segments attend.

The nodes of a tree are in preorder, so the descendants of a node follow it without a gap, and token i attends to token j exactly
if ``j <= i < ends[j]``, where ``ends[j]`` is the index after the last descendant of j.

Shapes: N tokens of the row, S segments, L labels, n sequences, T tokens of the longest sequence, D of its inputs without the
shared prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from lm_harmony.engine.sequences import TokenSequence

Integers = npt.NDArray[np.int64]

MAX_TREE_TOKENS = 512
"""Tokens of a tree of several short texts after which a new tree begins."""
MIN_PREFIX_SHARE = 0.03
"""Smallest share of the tokens that a shared prefix must save. Below it, the attention mask that lets trees see the prefix costs
more than computing its few tokens several times."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The input of one packed forward pass: the shared prefix, then segments that attend to the prefix and to themselves."""

    ids_N: Integers
    """Token id of each token of the row."""
    positions_N: Integers
    """Position of each token in its sequences, counted from 0."""
    ends_N: Integers
    """Row index after the last token that attends to each token, apart from tokens that attend to the whole shared prefix."""
    prefix: int
    """Number of tokens of the shared prefix, which begins the row."""
    starts_S: Integers
    """Row index of the first token of each segment, in ascending order."""
    sources_L: Integers
    """Row index of the token whose hidden state predicts each label; the sequences are in the order in which they were given."""
    labels_L: Integers
    """Token id of each label."""
    counts: tuple[int, ...]
    """Number of labels of each sequence."""

    @property
    def tokens(self) -> int:
        """Number of input tokens of the row."""
        return len(self.ids_N)

    @cached_property
    def segment_sizes(self) -> Integers:
        """Number of tokens of each segment, S."""
        return np.diff(self.starts_S, append=self.tokens)

    @cached_property
    def chains(self) -> npt.NDArray[np.bool_]:
        """Whether each of the S segments is a single sequence, for which attention is plain causal attention."""
        stops_N = np.repeat(self.starts_S + self.segment_sizes, self.segment_sizes)
        to_the_end_N = self.ends_N[self.prefix :] == stops_N
        return np.logical_and.reduceat(to_the_end_N, self.starts_S - self.prefix)


def concatenated_layout(sequences: Sequence[TokenSequence]) -> Layout:
    """Put sequences one after another and share nothing, for training (copies of a token have different dropout)."""
    sizes = np.array([len(sequence.ids) - 1 for sequence in sequences])
    first = np.array([sequence.first_label for sequence in sequences])
    stops = sizes.cumsum()
    starts = stops - sizes
    return Layout(
        ids_N=_joined(sequence.ids[:-1] for sequence in sequences),
        positions_N=_ranges(np.zeros_like(sizes), sizes),
        ends_N=np.repeat(stops, sizes),
        prefix=0,
        starts_S=starts,
        sources_L=_ranges(starts + first - 1, sizes + 1 - first),
        labels_L=_joined(sequence.labels for sequence in sequences),
        counts=tuple((sizes + 1 - first).tolist()),
    )


def prefix_tree_layout(sequences: Sequence[TokenSequence]) -> Layout:
    """Put sequences into a row in which every shared beginning is computed once.

    In sorted order, a sequence shares its longest common beginning with the sequence before it. It adds the nodes after this
    beginning to the tree, and all earlier nodes of that depth or deeper have no descendants any more.
    """
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].ids)
    ordered = [sequences[index] for index in order]
    fed_n = np.array([len(sequence.ids) - 1 for sequence in ordered])
    ids_nxT = _rows(ordered)
    prefix = _shared_prefix(ordered, fed_n)
    shared_n = _shared_with_previous(ids_nxT, fed_n)
    is_first_n = _begins_tree(fed_n - prefix, shared_n - prefix)
    known_n = np.where(is_first_n, prefix, shared_n)  # depth from which a sequence adds nodes
    added_n = fed_n - known_n
    starts_n = prefix + added_n.cumsum() - added_n
    tokens = int(prefix + added_n.sum())

    depths_D = np.arange(prefix, fed_n.max())
    adds_nxD = depths_D >= known_n[:, None]
    is_new_nxD = adds_nxD & (depths_D < fed_n[:, None])
    # Row indices grow from sequence to sequence, so the latest node of a depth is the largest.
    nodes_nxD = np.maximum.accumulate(np.where(is_new_nxD, (starts_n - known_n)[:, None] + depths_D, 0), axis=0)
    # The first later sequence that adds nodes at this depth or above ends the subtree.
    later_nxD = np.full((len(ordered) + 1, len(depths_D)), tokens)
    np.copyto(later_nxD[:-1], starts_n[:, None], where=adds_nxD)
    ends_nxD = np.minimum.accumulate(later_nxD[::-1], axis=0)[-2::-1]

    first = np.array([sequence.first_label for sequence in sequences])
    counts = np.array([len(sequence.ids) for sequence in sequences]) - first
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    depths_L = _ranges(first - 1, counts)
    nodes_L = nodes_nxD[np.repeat(places, counts), np.maximum(depths_L - prefix, 0)]
    return Layout(
        ids_N=np.concatenate([ids_nxT[0, :prefix], ids_nxT[:, prefix:-1][is_new_nxD]]),
        positions_N=np.concatenate([np.arange(prefix), _ranges(known_n, added_n)]),
        ends_N=np.concatenate([np.full(prefix, prefix), ends_nxD[is_new_nxD]]),
        prefix=prefix,
        starts_S=starts_n[is_first_n],
        sources_L=np.where(depths_L < prefix, depths_L, nodes_L),
        labels_L=ids_nxT[np.repeat(places, counts), depths_L + 1],
        counts=tuple(counts.tolist()),
    )


def context_layouts(contexts: Sequence[Sequence[int]], tokens: int) -> list[tuple[list[int], Layout]]:
    """Put contexts whose answers are generated into rows of about ``tokens`` tokens, with every shared beginning computed once.

    Returns:
        Of each row the indices of its contexts, and its layout, in which each token of a context is the source of a label.
    """
    # A label after the last token lets each token of a context be a source. The label itself is not computed.
    fed = [TokenSequence(ids=(*ids, 0), first_label=1, row=index) for index, ids in enumerate(contexts)]
    fed.sort(key=lambda sequence: sequence.ids)
    rows, start = list[tuple[list[int], Layout]](), 0
    while start < len(fed):
        row = fed[start : end_by_tokens(fed, start, tokens)]
        rows.append(([sequence.row for sequence in row], prefix_tree_layout(row)))
        start += len(row)
    return rows


def end_by_tokens(items: Sequence[TokenSequence], start: int, size: int) -> int:
    """Return the end of a batch of about ``size`` input tokens that begins at ``start``; ``items`` are sorted by their ids.

    What all of the batch begins with (few-shot examples) does not count: otherwise a long beginning would be computed again for
    every few texts. If possible, the batch ends between two trees, so that no shared beginning is computed twice.
    """
    tokens = prefix = len(items[start].ids)
    end = cut = start + 1
    while end < len(items):
        before, ids = items[end - 1].ids, items[end].ids
        shared = _common(before, ids)
        tokens, prefix = tokens + len(ids) - shared, min(prefix, shared)
        if 2 * shared < min(len(before), len(ids)):
            cut = end
        if tokens - prefix > size:
            return cut if cut > start + 1 or shared == 0 else end
        end += 1
    return end


def _shared_prefix(ordered: Sequence[TokenSequence], fed_n: Integers) -> int:
    """Return how many tokens of the sorted sequences become the shared prefix of the row."""
    if len(ordered) == 1:
        return 0
    # What the first and the last share is shared by all. Each sequence keeps one token after the prefix.
    common = min(_common(ordered[0].ids, ordered[-1].ids), int(fed_n.min()) - 1)
    return common if common * len(ordered) >= MIN_PREFIX_SHARE * int(fed_n.sum()) else 0


def _rows(sequences: Sequence[TokenSequence]) -> Integers:
    """Return the ids of each sequence as a row, n x T, filled up with -1."""
    sizes = np.array([len(sequence.ids) for sequence in sequences])
    ids_nxT = np.full((len(sizes), sizes.max()), -1)
    ids_nxT[np.arange(sizes.max()) < sizes[:, None]] = _joined(sequence.ids for sequence in sequences)
    return ids_nxT


def _shared_with_previous(ids_nxT: Integers, fed_n: Integers) -> Integers:
    """Return how many of its ``fed_n`` input tokens each row shares with the row before."""
    differs = np.ones(ids_nxT.shape, dtype=bool)
    np.not_equal(ids_nxT[1:, :-1], ids_nxT[:-1, :-1], out=differs[1:, :-1])
    shared_n: Integers = np.minimum(differs.argmax(axis=1), fed_n)
    shared_n[1:] = np.minimum(shared_n[1:], fed_n[:-1])
    return shared_n


def _begins_tree(sizes_n: Integers, shared_n: Integers) -> npt.NDArray[np.bool_]:
    """Tell for each of the sorted sequences whether a tree begins with it: it shares less than half with the one before it.

    A large tree is also split. Its attention is computed between all pairs of its tokens, so one tree of many short questions
    with the same beginning costs more than computing that beginning several times.

    Args:
        sizes_n: tokens of each sequence after the shared prefix of the row.
        shared_n: how many of them are shared with the sequence before.
    """
    first, sizes, total = [True], sizes_n.tolist(), int(sizes_n[0]) + 1
    for before, size, shared in zip(sizes, sizes[1:], shared_n[1:].tolist(), strict=False):
        total += size - shared
        first.append(2 * shared < min(before, size) or total > max(MAX_TREE_TOKENS, 2 * size))
        if first[-1]:
            total = size
    return np.array(first)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common beginning, by bisection over slices, which Python compares without a loop."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _joined(parts: Iterable[Sequence[int]]) -> Integers:
    """Return the integers of all parts in one array."""
    return np.fromiter(chain.from_iterable(parts), dtype=np.int64)


def _ranges(starts: Integers, sizes: Integers) -> Integers:
    """Return the integers start, start + 1, ... of each range of the given size, one range after another."""
    return np.arange(int(sizes.sum())) + np.repeat(starts - (sizes.cumsum() - sizes), sizes)
