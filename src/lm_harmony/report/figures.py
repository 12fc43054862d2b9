"""A report -> its figures, in a folder. The only room that needs matplotlib and seaborn, with those it draws by.

How figures look, and how they are written. Sizes are those of a two-column page, with text of 5 to 8 points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure

from lm_harmony.analysis.summary import Report
from lm_harmony.report.benchmark_figures import mean_agreement, perplexity_bars, scree, tau_heatmaps
from lm_harmony.report.model_figures import bump, pc1_against_size, score_against_size


def write_figures(report: Report, folder: Path, *, pair: tuple[str, str] | None = None) -> list[Path]:
    """Draw every figure that ``report`` allows, as .pdf and .png.

    Args:
        report: what to draw.
        folder: where to write.
        pair: benchmarks of the bump chart; None: the two whose trained ranks agree least.
    """
    return [path for name, figure in _figures(report, pair) for path in save(figure, folder, name)]


def _figures(report: Report, pair: tuple[str, str] | None) -> Iterator[tuple[str, Figure]]:
    matrix, agreements = report.matrix, list(report.agreements.values())
    if agreements:
        yield "tau", tau_heatmaps(agreements, matrix.downstream().benchmarks)
        yield "mean_agreement", mean_agreement(agreements)
    if report.components:
        yield "scree", scree(list(report.components.values()))
    for preparation, scaled in report.scaling.items():
        for size, name in (("compute", "compute"), ("params_b", "parameters")):
            if scaled.known[size] > 1:
                yield f"pc1_{name}_{preparation}", pc1_against_size(scaled, size=size)
    if report.perplexity:
        yield "perplexity", perplexity_bars(report.perplexity)
    if any(model.params_b is not None for model in matrix.models):
        yield "score_size", score_against_size(matrix)
    yield from _bumps(report, pair)


def _bumps(report: Report, pair: tuple[str, str] | None) -> Iterator[tuple[str, Figure]]:
    titles = {fact.task: fact.title for fact in report.matrix.benchmarks}
    trained = report.agreements.get("trained")
    if pair is None and trained is not None and len(trained.benchmarks) > 1:
        least = trained.tau.stack().idxmin()
        pair = (str(least[0]), str(least[1]))
    if pair is None:
        return
    for preparation in report.agreements:
        left, right = (report.ranges[preparation, task] for task in pair)
        if len(left.table.index.intersection(right.table.index)) > 1:
            yield f"bump_{preparation}", bump(left, right, (titles[pair[0]], titles[pair[1]]))


COLUMN, PAGE = 3.35, 6.75
"""Width of a figure in inches: of one column, of both."""
COLOURS = {"direct": "#9aa5b1", "trained": "#0b6e99"}
"""Of the two preparations."""
NAMES = {"direct": "direct evaluation", "trained": "train-before-test"}
"""What the preparations are called in figures."""
STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names from records are names, also with a dollar sign in them
}

Parameters = ParamSpec("Parameters")


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw in the style of this module, whatever the caller's is, and leave the caller's as it was."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": matplotlib.get_backend()}):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name``.pdf and ``name``.png (300 dots an inch) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.pdf", folder / f"{name}.png"
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(paths[0], metadata={"CreationDate": None})
        figure.savefig(paths[1], dpi=300)
    return paths
