"""Placements of one benchmark after another, as ``place --until`` makes them, judged by a second training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.placement_board import PlacementBoard
from lm_harmony.analysis.placement_order import Progress
from lm_harmony.analysis.sequential_placement import SequentialPlacement
from lm_harmony.analysis.training_noise import estimate_noise
from lm_harmony.benchmarks.types import Caps


def sequential_placements(
    board: PlacementBoard,
    second: pd.DataFrame,
    until: int,
    *,
    by_cost: bool = False,
    common_shift: bool = True,
    families_out: bool = True,
) -> pd.DataFrame:
    """Place every model by its scores of another training, one benchmark after another as ``place --until`` does.

    Costs are training rows. The whole family of a model is left out of the fit and of the noise between trainings.

    Args:
        board: the reference.
        second: standardised scores of the other training, models x benchmarks.
        until: width of the rank interval, in places, at which a placement ends.
        by_cost: run the cheapest benchmark next, whatever it tells.
        common_shift: count the shift of all scores of a training.
        families_out: False: leave out only the model, and take the noise of ``board``.

    Returns:
        A row for each model: predicted PC1, number of benchmarks, share of all training rows, whether its PC1 and its rank lie in
        the intervals, the width in places, and the reason for the end.
    """
    costs = np.minimum(board.train_rows.fillna(1.0), Caps().train).to_dict()
    groups = board.families if families_out else pd.Series(board.pc1.index, index=board.pc1.index)
    found = {}
    for _, members in groups.groupby(groups):
        others = board.without(list(members.index))
        if families_out:
            others = replace(others, noise=estimate_noise((second - board.scores).drop(index=members.index), board.pc1))
        if not common_shift:
            others = replace(others, noise=replace(others.noise, common_shift=0.0))
        placement = SequentialPlacement(others, family=board.families[members.index[0]])
        for model in members.index:
            rivals = board.pc1.drop(model)
            placement.rivals = np.sort(rivals.to_numpy())
            end, reason = _place_in_sequence(placement, second.loc[model], costs, until, by_cost=by_cost)
            now, truth = end.position, board.pc1[model]
            found[model] = {
                "predicted": now.pc1,
                "benchmarks": len(end.scores),
                "rows": sum(costs[task] for task in end.scores) / sum(costs.values()),
                "pc1": now.low <= truth <= now.high,
                "rank": now.best <= 1 + int((rivals > truth).sum()) <= now.worst,
                "width": now.width,
                "reason": reason,
            }
    return pd.DataFrame.from_dict(found, orient="index")


def _place_in_sequence(
    placement: SequentialPlacement, second: pd.Series[float], costs: dict[str, float], until: int, *, by_cost: bool
) -> tuple[Progress, str]:
    scores: dict[str, float] = {}
    progress = Progress(placement=placement, scores=scores, errors={})
    while (reason := progress.stop(until, placement.tasks)) is None:
        left = {task: cost for task, cost in costs.items() if task not in scores}
        task = min(left, key=lambda name: left[name]) if by_cost else progress.next_benchmark(left)
        scores[str(task)] = float(second[task])
    return progress, reason


def show_sequences(console: Console, board: PlacementBoard, second: pd.DataFrame, widths: Sequence[int]) -> None:
    """Print a table of ``sequential_placements`` for each width, by information and by cost, and without the common shift."""
    heads = ("until", "order", "shift", "models", "benchmarks", "(median)", "rows", "width", "rank", "PC1", "tau")
    table = Table(*heads, title="One benchmark after another, by the second training, the family left out")
    for until in widths:
        for by_cost, shift in ((False, True), (True, True), (False, False)):
            found = sequential_placements(board, second, until, by_cost=by_cost, common_shift=shift)
            tau = kendall(found["predicted"], board.pc1)
            for name, part in (("all", found), ("narrow", found[found["reason"] == "narrow"])):
                means = part[["benchmarks", "rows", "width", "rank", "pc1"]].astype(float).mean()
                table.add_row(
                    str(until),
                    "cost" if by_cost else "information",
                    "yes" if shift else "no",
                    f"{name} ({len(part)})",
                    f"{means['benchmarks']:.1f}",
                    f"{part['benchmarks'].median():.0f}",
                    f"{means['rows']:.1%}",
                    f"{means['width']:.1f}",
                    f"{means['rank']:.3f}",
                    f"{means['pc1']:.3f}",
                    f"{tau:.3f}" if name == "all" else "",
                )
    console.print(table)
