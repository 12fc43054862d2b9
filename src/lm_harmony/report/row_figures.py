"""Curves of scores and agreement against the number of training rows. No statistics are computed here."""

from __future__ import annotations

import seaborn as sns
from matplotlib.figure import Figure

from lm_harmony.analysis.training_rows import DataCurve
from lm_harmony.report.figure_style import COLOURS, PAGE, styled


@styled
def data_curves(found: DataCurve) -> Figure:
    """Draw agreement of benchmarks, tau of the ranks with those of the most rows, and mean scores, against training rows."""
    figure = Figure(figsize=(PAGE, 2.4))
    ranks, scores = figure.subplots(1, 2)
    rows = found.table["rows"]
    for name, label, style in (("tau", "ranks by PC1 with those of the most rows", "-"), ("mean_tau", "benchmarks", "--")):
        ranks.plot(rows, found.table[name], style, marker="o", markersize=3, color=COLOURS["trained"], label=label)
    ranks.axvline(rows[found.settled], color="0.6", linewidth=0.6, linestyle=":")
    ranks.set_ylabel("Kendall's τ")
    for task, colour in zip(found.scores, sns.color_palette("husl", found.scores.shape[1]), strict=True):
        scores.plot(rows, found.scores[task], marker="o", markersize=3, color=colour, label=task)
    scores.set_ylabel("mean score in the metric's unit")
    for ax in (ranks, scores):
        ax.set_xscale("symlog", linthresh=max(1.0, float(rows[rows > 0].min())))
        ax.set_xlabel("training rows (0: direct)" if 0 in rows.index else "training rows")
        ax.legend(fontsize=5)
    return figure
