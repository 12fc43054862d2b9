"""Prefix trees: sequences that share a beginning are laid out so that each shared token is computed once. No torch.

The requests of a question form a tree: its context is stored once, and each continuation is a branch. The sequences are sorted,
so that those with a common beginning are neighbours. Neighbours that share at least half of the shorter one become one tree.
What all sequences of a row begin with (few-shot examples, an instruction) becomes the shared prefix of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lm_harmony.engine.sequences import TokenSequence

MAX_TREE_TOKENS = 512
"""Tokens of a tree of several short texts after which a new tree begins."""
MIN_PREFIX_SHARE = 0.03
"""Smallest share of the tokens that a shared prefix must save. Below it, the attention mask that lets trees see the prefix costs
more than computing its few tokens several times."""


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """The tokens of a group of sequences, with every distinct beginning stored once.

    Nodes are in preorder: the subtree of a node follows it without a gap.
    """

    ids: tuple[int, ...]
    """Token of each node."""
    depths: tuple[int, ...]
    """Position of each node in its sequences, counted from 0."""
    parents: tuple[int, ...]
    """Index of the node before each node; -1 if it follows the row's shared prefix, or nothing."""

    @property
    def is_chain(self) -> bool:
        """Whether the tree is a single sequence, for which attention is plain causal attention."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def subtree_ends(self) -> list[int]:
        """Return for each node the index after the last node of its subtree."""
        ends = list(range(1, len(self.parents) + 1))
        for node in range(len(ends) - 1, -1, -1):
            parent = self.parents[node]
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[node])
        return ends


@dataclass(frozen=True, kw_only=True)
class Label:
    """A token to predict."""

    source: int
    """Position in the row whose hidden state predicts the token."""
    token: int
    """Token id that is predicted."""


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """The input of one packed forward pass: a shared prefix, then trees that attend to the prefix but not to each other."""

    shared_prefix: tuple[int, ...]
    """Token ids that all sequences begin with."""
    trees: tuple[PrefixTree, ...]
    """The sequences without the shared prefix, in the order of the row."""
    labels: tuple[tuple[Label, ...], ...]
    """Labels of each sequence, in the order in which the sequences were given."""

    @property
    def tokens(self) -> int:
        """Number of input tokens of the row."""
        return len(self.shared_prefix) + sum(len(tree.ids) for tree in self.trees)


def concatenated_row(sequences: Sequence[TokenSequence]) -> PackedRow:
    """Put sequences one after another and share nothing, for training (copies of a token have different dropout)."""
    trees, labels, start = [], [], 0
    for sequence in sequences:
        fed = sequence.ids[:-1]
        trees.append(PrefixTree(ids=fed, depths=tuple(range(len(fed))), parents=tuple(range(-1, len(fed) - 1))))
        sources = range(start + sequence.first_label - 1, start + len(fed))
        labels.append(tuple(Label(source=s, token=t) for s, t in zip(sources, sequence.labels, strict=True)))
        start += len(fed)
    return PackedRow(shared_prefix=(), trees=tuple(trees), labels=tuple(labels))


def prefix_tree_row(sequences: Sequence[TokenSequence]) -> PackedRow:
    """Put sequences into a row in which every shared beginning is computed once."""
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].ids)
    first, last = sequences[order[0]].ids[:-1], sequences[order[-1]].ids[:-1]
    # In sorted order, what the first and the last share is shared by all. Each sequence keeps one token after the prefix.
    longest = min(len(sequence.ids) - 1 for sequence in sequences) - 1
    common = min(_common(first, last), longest)
    fed = sum(len(sequence.ids) - 1 for sequence in sequences)
    prefix = first[:common] if common * len(sequences) >= MIN_PREFIX_SHARE * fed and len(sequences) > 1 else ()
    trees: list[PrefixTree] = []
    labels: list[tuple[Label, ...]] = [()] * len(sequences)
    start = len(prefix)
    for group in _groups(sequences, order, len(prefix)):
        tree, nodes_of = _merge([sequences[index] for index in group], len(prefix))
        for index, nodes in zip(group, nodes_of, strict=True):
            positions = [*range(len(prefix)), *(start + node for node in nodes)]
            sequence = sequences[index]
            sources = positions[sequence.first_label - 1 :]
            labels[index] = tuple(Label(source=s, token=t) for s, t in zip(sources, sequence.labels, strict=True))
        trees.append(tree)
        start += len(tree.ids)
    return PackedRow(shared_prefix=prefix, trees=tuple(trees), labels=tuple(labels))


def end_by_tokens(items: Sequence[TokenSequence], start: int, size: int) -> int:
    """Return the end of a batch of about ``size`` input tokens that begins at ``start``; ``items`` are sorted by their ids.

    If possible, the batch ends between two trees, so that no shared beginning is computed twice.
    """
    tokens, end, cut = len(items[start].ids), start + 1, start + 1
    while end < len(items):
        before, ids = items[end - 1].ids, items[end].ids
        shared = _common(before, ids)
        tokens += len(ids) - shared
        if 2 * shared < min(len(before), len(ids)):
            cut = end
        if tokens > size:
            return cut if cut > start + 1 or shared == 0 else end
        end += 1
    return end


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    shared = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def _groups(sequences: Sequence[TokenSequence], order: Sequence[int], prefix: int) -> list[list[int]]:
    """Split the sorted sequences into trees, where neighbours share less than half of the shorter one (after the prefix).

    A large tree is also split. Its attention is computed between all pairs of its tokens, so one tree of many short questions
    with the same beginning costs more than computing that beginning several times.
    """
    groups = [[order[0]]]
    size = len(sequences[order[0]].ids) - prefix
    for before, index in pairwise(order):
        left, right = sequences[before].ids[prefix:-1], sequences[index].ids[prefix:-1]
        shared = _common(left, right)
        size += len(right) - shared
        if 2 * shared >= min(len(left), len(right)) and size <= max(MAX_TREE_TOKENS, 2 * len(right)):
            groups[-1].append(index)
        else:
            groups.append([index])
            size = len(right)
    return groups


def _merge(sequences: Sequence[TokenSequence], prefix: int) -> tuple[PrefixTree, list[list[int]]]:
    """Return the tree of some sequences without their first ``prefix`` tokens, and the nodes of each sequence."""
    nodes: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    nodes_of = []
    for sequence in sequences:
        own, parent = [], -1
        for depth, token in enumerate(sequence.ids[prefix:-1], start=prefix):
            node = nodes.get((parent, token))
            if node is None:
                node = nodes[parent, token] = len(ids)
                ids.append(token)
                depths.append(depth)
                parents.append(parent)
            own.append(node)
            parent = node
        nodes_of.append(own)
    return PrefixTree(ids=tuple(ids), depths=tuple(depths), parents=tuple(parents)), nodes_of
