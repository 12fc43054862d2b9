"""Curves of checkpoints of training runs. No statistics are computed here."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from lm_harmony.analysis.training_runs import TrainingRuns
from lm_harmony.report.figure_style import PAGE, family_colours, name_of, styled

_LINES = {"direct": (0, (4, 2)), "trained": "-"}
"""Preparation -> line style of its curves; that of direct scores with examples is dotted."""


@styled
def checkpoint_curves(found: TrainingRuns) -> Figure:
    """Draw a panel of PC1 and of each benchmark against tokens: direct scores dashed, trained scores with a solid line.

    Where the tokens of a checkpoint are not known, the panels are drawn against steps. A checkpoint without either is left out.
    """
    curves = found.curves
    x = "tokens" if curves["tokens"].notna().all() else "step"
    panels = sorted(curves["benchmark"].unique(), key=lambda name: name != "PC1")
    rows = int(np.ceil(len(panels) / 3))
    figure = Figure(figsize=(PAGE, 1.6 * rows + 0.5))
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    colours = family_colours(found.runs)
    for ax, panel in zip(axes, panels, strict=False):
        for (run, preparation), part in curves[curves["benchmark"] == panel].groupby(["run", "preparation"]):
            part = part[part[x].notna()].sort_values(x)
            style = {"color": colours[run], "linestyle": _LINES.get(preparation, ":"), "linewidth": 1}
            ax.plot(part[x], part["score"], marker="o", markersize=2, **style)
        ax.set_title(panel, pad=2)
        if (curves[x] > 0).all() and curves[x].max() > 20 * curves[x].min():
            ax.set_xscale("log")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel("training tokens" if x == "tokens" else "optimizer steps", fontsize=7)
    handles = [axes[0].plot([], [], color=colours[run], label=run.split("/")[-1])[0] for run in found.runs]
    styles = {one: _LINES.get(one, ":") for one in curves["preparation"].unique()}
    handles += [axes[0].plot([], [], color="0.3", linestyle=style, label=name_of(one))[0] for one, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))
    return figure
