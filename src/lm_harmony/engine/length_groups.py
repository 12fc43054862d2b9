"""Groups of segments of similar length, padded to the longest one of each group, for attention. NumPy only.

A short row is one group without padding: to multiply all its queries with all its keys takes less time than the gathers.

Shapes: N tokens of the row, S segments, G segments of a group, M tokens of its longest segment, Q slots of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lm_harmony.engine.layout import Integers, Layout

MAX_GROUPS = 3
"""Largest number of calls of scaled_dot_product_attention in a layer."""


@dataclass(frozen=True, kw_only=True)
class GroupCosts:
    """Costs apart from attention, in multiples of the cost of one key for one query: estimates."""

    slot: int
    """Cost of a slot: the copies of its query, key and value."""
    call: int
    """Cost of a group: one more call of scaled_dot_product_attention, about 60 microseconds with its backward pass on a CPU."""


COSTS = GroupCosts(slot=40, call=1000)
"""Costs of a row without dropout in attention."""
DROPOUT_COSTS = GroupCosts(slot=128, call=0)
"""Costs of a row with dropout in attention. Its random numbers follow from the shapes of the groups, so that other costs would
change the results of a training (GPT-2, GPT-Neo)."""


@dataclass(frozen=True, kw_only=True)
class LengthGroup:
    """Segments of similar length, padded to the longest one."""

    segments: int
    """Number of segments, G."""
    longest: int
    """Slots of each segment, M."""
    deepest: int
    """Largest position of a token of the group."""
    chains: bool
    """Whether every segment is a single sequence. Then attention inside the segments is plain causal attention. A row that is one
    group counts as one segment."""

    @property
    def slots(self) -> int:
        """Number of slots, G x M."""
        return self.segments * self.longest

    def pairs(self, prefix: int) -> int:
        """Return the number of pairs of a query and a key that attention multiplies; plain causal attention skips half.

        Args:
            prefix: tokens of the shared prefix to which the group attends.
        """
        if self.chains and not prefix:
            return self.segments * self.longest * (self.longest + 1) // 2
        return self.slots * (prefix + self.longest)


def group_segments(layout: Layout, *, dropout: bool = False) -> tuple[tuple[LengthGroup, ...], Integers, Integers, Integers]:
    """Group the segments of a row by their lengths.

    Args:
        layout: the row.
        dropout: whether attention has dropout. Then a short row is padded too.

    Returns:
        The groups; the row index of the token in each slot; the slot of each token; the end of each slot's subtree, counted from
        the first slot of its segment.
    """
    starts_S, sizes_S, chains_S = _with_prefix(layout)
    own = int(layout.prefix > 0)  # the shared prefix is a group of its own
    equal = not own and bool(sizes_S.min() == sizes_S.max())
    costs, unpadded = (DROPOUT_COSTS, False) if dropout else (COSTS, not own and not equal)
    # No grouping costs less than each segment without padding: often that says enough, without looking for the groups.
    whole = unpadded and layout.tokens**2 <= int((sizes_S * (sizes_S + costs.slot)).sum())
    parts, cost = ([], 0) if whole or equal else length_groups(sizes_S[own:], costs, most=MAX_GROUPS - own)
    if equal or whole or (unpadded and costs.call + layout.tokens**2 <= cost):
        segments, row_N = len(sizes_S) if equal else 1, np.arange(layout.tokens)
        size, chains = layout.tokens // segments, equal and bool(chains_S.all())
        row = LengthGroup(segments=segments, longest=size, deepest=int(layout.positions_N.max()), chains=chains)
        return (row,), row_N, row_N, layout.ends_N - row_N // size * size
    members = [np.arange(own)] if own else []
    members += [own + part for part in parts]
    groups, slots, ends, back_N, start = [], [], [], np.empty(layout.tokens, dtype=np.int64), 0
    for part in members:
        sizes, longest = sizes_S[part], int(sizes_S[part].max())
        places_M = np.arange(longest)
        # Padding repeats the last token of its own segment: its values are finite, and no other token attends to it.
        slots_GxM = starts_S[part, None] + np.minimum(places_M, sizes[:, None] - 1)
        is_token_GxM = places_M < sizes[:, None]
        back_N[slots_GxM[is_token_GxM]] = start + np.flatnonzero(is_token_GxM)
        ends.append(np.where(is_token_GxM, layout.ends_N[slots_GxM] - starts_S[part, None], longest).ravel())
        slots.append(slots_GxM.ravel())
        deepest = int(layout.positions_N[slots_GxM].max())
        groups.append(LengthGroup(segments=len(part), longest=longest, deepest=deepest, chains=bool(chains_S[part].all())))
        start += groups[-1].slots
    return tuple(groups), np.concatenate(slots), back_N, np.concatenate(ends)


def length_groups(sizes_S: Integers, costs: GroupCosts, *, most: int) -> tuple[list[Integers], int]:
    """Return the segments of each of at most ``most`` groups, by length, with the least cost of all padded groups, and that cost.

    The best first groups of every number are known for each length, so adding one group is a minimum over the places of a cut.
    """
    lengths, counts = np.unique(sizes_S, return_counts=True)
    # cost[i, j] of one group of the lengths i to j
    totals = np.concatenate([[0], counts.cumsum()])
    members = totals[None, 1:] - totals[:-1, None]
    cost = np.where(members > 0, costs.call + members * lengths * (lengths + costs.slot), np.iinfo(np.int64).max // 4)
    best, cuts = cost[0], []
    for _ in range(min(most, len(lengths)) - 1):
        added = np.concatenate([[0], best[:-1]])[:, None] + cost
        cuts.append(added.argmin(axis=0))
        best = added.min(axis=0)
    stops, last = [len(lengths)], len(lengths) - 1
    for cut in reversed(cuts):
        if last < 0:
            break
        stops.append(int(cut[last]))
        last = stops[-1] - 1
    bounds = [0, *sorted(stop for stop in set(stops) if stop)]
    place_S = np.searchsorted(lengths, sizes_S)
    return [np.flatnonzero((low <= place_S) & (place_S < high)) for low, high in pairwise(bounds)], int(best[-1])


def _with_prefix(layout: Layout) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Return (first token, size, whether it is a chain) of each segment; the shared prefix is the first segment, if any."""
    if not layout.prefix:
        return layout.starts_S, layout.segment_sizes, layout.chains
    return (
        np.concatenate([[0], layout.starts_S]),
        np.concatenate([[layout.prefix], layout.segment_sizes]),
        np.concatenate([[True], layout.chains]),
    )
