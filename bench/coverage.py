"""Judge intervals and placements by repetition: a second published training, and simulations whose truth is known.

    python -m bench.coverage paper_results.json
    python -m bench.coverage paper_results.json --until 10 15

With ``--until`` it judges only placements of one benchmark after another. Without a file only the simulations run. The second
training is the matrix of the paper, which does not ship with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from bench.sequential import show_sequences
from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.bootstrap import pc1_intervals
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.placement import published_placement, validate
from lm_harmony.analysis.placement_board import PlacementBoard
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.analysis.sequential_placement import SequentialPlacement
from lm_harmony.analysis.training_noise import NO_NOISE, estimate_noise

Floats = npt.NDArray[np.float64]
SIZES = ((12, 4), (8, 6), (30, 12), (61, 24))
"""Models and benchmarks of the simulated boards."""
CHEAP = ("anli_r1", "arc_easy"), ("piqa", "gsm8k", "openbookqa", "rte")
"""The benchmarks that ``place --suggest`` names for two and for four."""


def left_out(
    board: PlacementBoard, second: pd.DataFrame, *, family: bool = False, estimated: bool = True
) -> dict[str, SequentialPlacement]:
    """Return, for each model, the placement that was fitted without it.

    Args:
        board: the reference.
        second: standardised scores of the other training, models x benchmarks.
        family: leave the whole family of a model out, also when the noise between trainings is estimated.
        estimated: False: without the noise between trainings, as if it did not exist.
    """
    groups = board.families if family else pd.Series(board.pc1.index, index=board.pc1.index)
    found = {}
    for _, members in groups.groupby(groups):
        noise = board.noise
        if family:
            noise = estimate_noise((second - board.scores).drop(index=members.index), board.pc1)
        others = replace(board.without(list(members.index)), noise=noise if estimated else NO_NOISE)
        for model in members.index:
            found[str(model)] = SequentialPlacement(others, rivals=board.pc1.drop(model), family=board.families[model])
    return found


def placement_coverage(
    board: PlacementBoard, second: pd.DataFrame, placements: dict[str, SequentialPlacement], count: int, subsets: int
) -> dict[str, float]:
    """Place every model by its scores of another training, and compare with the PC1 and the rank of the board.

    Args:
        board: the reference.
        second: standardised scores of the other training, models x benchmarks.
        placements: what ``left_out`` returns.
        count: number of benchmarks that a model is placed by.
        subsets: number of random choices of these benchmarks.
    """
    random, tasks = np.random.default_rng(count), list(board.scores.columns)
    chosen = [tasks] if count == len(tasks) else [list(random.choice(tasks, count, replace=False)) for _ in range(subsets)]
    found = []
    for model, placement in placements.items():
        truth = board.pc1[model]
        rank = 1 + int((placement.rivals > truth).sum())
        for subset in chosen:
            now = placement.position(second.loc[model, subset].to_dict(), {})
            found.append((now.low <= truth <= now.high, now.best <= rank <= now.worst, now.width + 1, abs(now.pc1 - truth)))
    values = pd.DataFrame(found, columns=["pc1", "rank", "places", "error"], dtype=float)
    return {"pc1": values["pc1"].mean(), "rank": values["rank"].mean(), "places": values["places"].median()}


def board_coverage(
    models: int, tasks: int, repetitions: int, *, benchmarks: bool = True, seed: int = 0, specific: float = 0.45
) -> dict[str, float]:
    """Simulate boards whose PC1 is known, and return the coverage of their intervals: of all, the best and the worst models.

    A score is the ability of the model, plus a part of the model and the benchmark (standard deviation ``specific``), plus noise
    of the test questions (0.25 of the ability's standard deviation). If benchmarks are resampled, the truth is PC1 without noise
    on 100 benchmarks of which the board has a few, scaled to their number. Otherwise it is PC1 of the board without noise.
    """
    random, noise = np.random.default_rng(seed), 0.25
    hits = []
    for _ in range(repetitions):
        population = 100 if benchmarks else tasks
        exact = random.normal(size=(models, 1)) + specific * random.normal(size=(models, population))
        truth = _pc1(exact) * np.sqrt(tasks / population)
        matrix = _matrix(exact[:, :tasks] + noise * random.normal(size=(models, tasks)), noise)
        table = pc1_intervals(matrix, benchmarks=benchmarks, draws=500, seed=int(random.integers(2**31))).table
        truth_of = pd.Series(truth, index=matrix.model_names).loc[table.index].to_numpy()
        inside = (table["low"].to_numpy() <= truth_of) & (truth_of <= table["high"].to_numpy())
        order = np.argsort(-truth_of)
        hits.append((inside.mean(), inside[order[0]], inside[order[-1]]))
    return dict(zip(("all", "best", "worst"), np.mean(hits, axis=0, dtype=float).tolist(), strict=True))


def worth(board: PlacementBoard, second: pd.DataFrame, subset: Sequence[str]) -> tuple[float, float]:
    """Return Kendall's tau of PC1 and its prediction without the family, by the board's own scores and by the second training."""
    placements = left_out(board, second, family=True)
    predicted = {
        model: placement.position(second.loc[model, list(subset)].to_dict(), {}).pc1 for model, placement in placements.items()
    }
    return validate(board, subset).tau, kendall(pd.Series(predicted), board.pc1)


def main(
    second: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    subsets: int = 30,
    repetitions: int = 100,
    until: tuple[int, ...] = (),
) -> None:
    """Print all tables.

    Args:
        second: scores of another training of the published models, such as paper_results.json.
        subsets: random choices of benchmarks for each number of benchmarks.
        repetitions: simulated boards of each size.
        until: widths in places; judge only placements of one benchmark after another, which end at these widths.
    """
    console = Console(width=120)
    if until:
        if second is None:
            raise SystemExit("second is missing: --until needs a file with the scores of another training.")
        board = published_placement()
        show_sequences(console, board, _standardised(board, _second_training(board, second)), until)
        return
    if second is not None:
        _show_repetition(console, second, subsets)
    table = Table("models x benchmarks", "resampled", "all", "best", "worst", title="Coverage of 95% PC1 intervals, simulated")
    for models, tasks in SIZES:
        for specific in (0.45, 1.0):
            found = board_coverage(models, tasks, repetitions, specific=specific)
            table.add_row(f"{models} x {tasks} (specific {specific})", "questions, benchmarks", *_shares(found))
    for models, tasks in ((12, 4), (61, 24)):
        found = board_coverage(models, tasks, repetitions, benchmarks=False)
        table.add_row(f"{models} x {tasks}", "questions", *_shares(found))
    console.print(table)


def _second_training(board: PlacementBoard, path: Path) -> ScoreMatrix:
    return ScoreMatrix.read(path).subset(board.reference.models, board.reference.benchmarks)


def _standardised(board: PlacementBoard, matrix: ScoreMatrix) -> pd.DataFrame:
    return (matrix.oriented("trained") - board.reference.means) / board.reference.scales


def _show_repetition(console: Console, path: Path, subsets: int) -> None:
    board = published_placement()
    matrix = _second_training(board, path)
    second = _standardised(board, matrix)
    heads = ("K", "PC1", "rank", "places", "PC1", "rank", "places", "PC1, no shift", "PC1, no noise")
    title = "Placement by the second training: the model left out, its family left out, and without parts of the noise"
    table = Table(*heads, title=title)
    without_shift = replace(board, noise=replace(board.noise, common_shift=0.0))
    ways = [left_out(board, second, family=family) for family in (False, True)]
    ways += [left_out(without_shift, second), left_out(board, second, estimated=False)]
    for count in range(1, len(board.scores.columns) + 1):
        own, family, *others = (placement_coverage(board, second, placements, count, subsets) for placements in ways)
        shown = [f"{found[name]:.3f}" if name != "places" else f"{found[name]:.0f}" for found in (own, family) for name in own]
        table.add_row(str(count), *shown, *(f"{found['pc1']:.3f}" for found in others))
    console.print(table)
    for subset in CHEAP:
        same, other = worth(board, second, subset)
        console.print(f"{', '.join(subset)}: tau {same:.3f} on the same scores, {other:.3f} on the second training")
    published = ScoreMatrix.published()
    large = [model.name for model in published.models if (model.params_b or 0) >= 6]
    repeated = components(matrix).pc1
    console.print(
        f"the board itself, two trainings: tau {kendall(repeated, board.pc1):.3f}; "
        f"{kendall(repeated[large], board.pc1[large]):.3f} among {len(large)} models of 6 billion parameters and more"
    )
    intervals = pc1_intervals(published).table.loc[repeated.index]
    again = repeated.rank(ascending=False)
    pc1 = ((intervals["low"] <= repeated) & (repeated <= intervals["high"])).mean()
    rank = ((intervals["rank_low"] <= again) & (again <= intervals["rank_high"])).mean()
    console.print(f"intervals of the published board hold the second training's PC1 for {pc1:.3f}, its rank for {rank:.3f}")


def _matrix(scores: Floats, stderr: float) -> ScoreMatrix:
    rows = [
        ScoreRow(
            model=f"m{model}",
            benchmark=f"b{task}",
            preparation="trained",
            value=float(value),
            stderr=stderr,
            metric="score",
            higher_is_better=True,
        )
        for (model, task), value in np.ndenumerate(scores)
    ]
    return ScoreMatrix.from_rows(ScoreRows(source="a simulation", rows=tuple(rows)))


def _pc1(scores: Floats) -> Floats:
    standardised = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    left, sizes, right = np.linalg.svd(standardised, full_matrices=False)
    return np.asarray(left[:, 0] * sizes[0] * np.sign(right[0].sum()) * 100)


def _shares(found: dict[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in found.values()]


if __name__ == "__main__":
    tyro.cli(main)
