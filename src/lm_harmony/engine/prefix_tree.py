"""Sequences that share beginnings, as trees: each shared token is computed once. No torch.

A question's requests form a tree: the context once, each continuation a branch. Sequences are sorted, so those that share a
beginning stand side by side; neighbours that share at least half of the shorter one become one tree, and what all trees of a
row have in common (few-shot examples, an instruction) becomes the row's trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lm_harmony.engine.sequences import TokenSequence

MAX_TREE_TOKENS = 512
"""Tokens after which a tree of several short texts takes no further one."""
MIN_PREFIX_SHARE = 0.03
"""Share of a sequence that all must begin with to be worth a trunk: below it, the mask that lets trees see the trunk costs more
than computing its few tokens again."""


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """The tokens of one group of sequences, each distinct beginning once.

    Nodes stand in preorder: the subtree of a node follows it without a gap.
    """

    ids: tuple[int, ...]
    """Token of each node."""
    depths: tuple[int, ...]
    """Position of each node in its sequences."""
    parents: tuple[int, ...]
    """Node that each node follows; -1: it follows the row's trunk, or nothing."""

    @property
    def is_chain(self) -> bool:
        """Whether each node follows the one before it: plain causal attention."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def subtree_ends(self) -> list[int]:
        """Return for each node the place after the last node of its subtree."""
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
    """Place in the row of the token that predicts it."""
    token: int
    """The token."""


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """What one forward pass computes: a trunk, then trees that each follow the trunk and do not see each other."""

    shared_prefix: tuple[int, ...]
    """Tokens that all sequences begin with."""
    trees: tuple[PrefixTree, ...]
    """What comes after it, tree by tree."""
    labels: tuple[tuple[Label, ...], ...]
    """For each sequence, in the order given, its labels."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.shared_prefix) + sum(len(tree.ids) for tree in self.trees)


def concatenated_row(sequences: Sequence[TokenSequence]) -> PackedRow:
    """Lay sequences one after another, sharing nothing: what training takes (dropout differs from copy to copy)."""
    trees, labels, start = [], [], 0
    for sequence in sequences:
        fed = sequence.ids[:-1]
        trees.append(PrefixTree(ids=fed, depths=tuple(range(len(fed))), parents=tuple(range(-1, len(fed) - 1))))
        sources = range(start + sequence.first_label - 1, start + len(fed))
        labels.append(tuple(Label(source=s, token=t) for s, t in zip(sources, sequence.labels, strict=True)))
        start += len(fed)
    return PackedRow(shared_prefix=(), trees=tuple(trees), labels=tuple(labels))


def prefix_tree_row(sequences: Sequence[TokenSequence]) -> PackedRow:
    """Lay sequences out so that every shared beginning is computed once."""
    order = sorted(range(len(sequences)), key=lambda place: sequences[place].ids)
    first, last = sequences[order[0]].ids[:-1], sequences[order[-1]].ids[:-1]
    # Sorted: what the first and the last share, all share. A sequence keeps a token of its own after the trunk.
    longest = min(len(sequence.ids) - 1 for sequence in sequences) - 1
    common = min(_common(first, last), longest)
    fed = sum(len(sequence.ids) - 1 for sequence in sequences)
    trunk = first[:common] if common * len(sequences) >= MIN_PREFIX_SHARE * fed and len(sequences) > 1 else ()
    trees: list[PrefixTree] = []
    labels: list[tuple[Label, ...]] = [()] * len(sequences)
    start = len(trunk)
    for group in _groups(sequences, order, len(trunk)):
        tree, paths = _grow([sequences[place] for place in group], len(trunk))
        for place, path in zip(group, paths, strict=True):
            row_path = [*range(len(trunk)), *(start + node for node in path)]
            sequence = sequences[place]
            sources = row_path[sequence.first_label - 1 :]
            labels[place] = tuple(Label(source=s, token=t) for s, t in zip(sources, sequence.labels, strict=True))
        trees.append(tree)
        start += len(tree.ids)
    return PackedRow(shared_prefix=trunk, trees=tuple(trees), labels=tuple(labels))


def end_by_tokens(items: Sequence[TokenSequence], start: int, size: int) -> int:
    """Return where a batch that computes at most about ``size`` tokens ends; ``items`` are sorted, so that trees lie together.

    A batch ends between trees where it can, so that no shared beginning is computed twice.
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
    shared = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def _groups(sequences: Sequence[TokenSequence], order: Sequence[int], trunk: int) -> list[list[int]]:
    """Cut the sorted sequences where a neighbour shares less than half of the shorter one (after the trunk).

    A tree is also cut when it has grown large: each of its tokens looks at all of them, so one tree of many short questions
    that begin alike costs more than computing their beginning again.
    """
    groups = [[order[0]]]
    size = len(sequences[order[0]].ids) - trunk
    for before, place in pairwise(order):
        left, right = sequences[before].ids[trunk:-1], sequences[place].ids[trunk:-1]
        shared = _common(left, right)
        size += len(right) - shared
        if 2 * shared >= min(len(left), len(right)) and size <= max(MAX_TREE_TOKENS, 2 * len(right)):
            groups[-1].append(place)
        else:
            groups.append([place])
            size = len(right)
    return groups


def _grow(sequences: Sequence[TokenSequence], trunk: int) -> tuple[PrefixTree, list[list[int]]]:
    """Merge sequences (without their trunk) into a tree; also return each sequence's path of nodes."""
    nodes: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    paths = []
    for sequence in sequences:
        path, parent = [], -1
        for depth, token in enumerate(sequence.ids[trunk:-1], start=trunk):
            node = nodes.get((parent, token))
            if node is None:
                node = nodes[parent, token] = len(ids)
                ids.append(token)
                depths.append(depth)
                parents.append(parent)
            path.append(node)
            parent = node
        paths.append(path)
    return PrefixTree(ids=tuple(ids), depths=tuple(depths), parents=tuple(parents)), paths
