"""A report -> its figures, in a folder. The only room that needs matplotlib and seaborn, with those it draws by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from lm_harmony.analysis.report import Report
from lm_harmony.report.figure_style import save
from lm_harmony.report.figures import mean_agreement, perplexity_bars, scree, tau_heatmaps
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
