"""Results -> figures of models. No statistics here: each is drawn from a result type of ``analysis``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.scaling import Scaling
from lm_harmony.analysis.score_rows import PREPARATIONS
from lm_harmony.analysis.significance import RankRanges
from lm_harmony.report.figures import COLUMN, NAMES, PAGE, styled

BUMP_MODELS = 80
"""The most models in a bump chart: more would be taller than a page."""


@styled
def pc1_against_size(scaled: Scaling, *, size: str = "compute") -> Figure:
    """Draw PC1 against pre-training compute (a family's base models joined by lines) or parameters."""
    table = scaled.table[scaled.table[size].notna()].sort_values(size)
    figure = Figure(figsize=(COLUMN, 2.7))
    ax = figure.subplots()
    colours = _family_colours(scaled.table["family"])
    for family, members in table.groupby("family", sort=True):
        if size == "compute":  # by parameters alone, generations of one family would zigzag
            base = members[members["kind"] != "instruct"]
            ax.plot(base[size], base["pc1"], color=colours[str(family)], linewidth=0.6, alpha=0.5)
        for kind, part in members.groupby(members["kind"] == "instruct"):
            ax.scatter(part[size], part["pc1"], s=13, color=colours[str(family)], marker="^" if kind else "o", linewidths=0)
    ax.set_xscale("log")
    ax.set_xlabel("pre-training compute (FLOPs, 6 x parameters x tokens)" if size == "compute" else "parameters (billions)")
    if size == "params_b":
        ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylabel("PC1 (x 100)")
    ax.set_title(f"Spearman ρ = {scaled.spearman[size]:.2f}, {scaled.known[size]} of {len(scaled.table)} models")
    _family_legend(figure, colours, sorted(map(str, table["family"].unique())))
    return figure


@styled
def bump(left: RankRanges, right: RankRanges, titles: tuple[str, str]) -> Figure:
    """Draw every model's rank on two benchmarks, or before and after training, joined.

    Behind a rank stand the places that the model could hold; the bars beside the ranks are tie groups. Of more than
    ``BUMP_MODELS`` models the best ones on the left are drawn.
    """
    models = [name for name in left.table.index if name in right.table.index][:BUMP_MODELS]
    places = [ranges.table.loc[models, "rank"].rank(method="first") for ranges in (left, right)]
    figure = Figure(figsize=(COLUMN, 0.12 * len(models) + 0.6))
    ax = figure.subplots()
    for number, colour in enumerate(sns.color_palette("viridis", len(models))):
        ends = [float(series[models[number]]) for series in places]
        ax.plot([0.03, 0.97], ends, color=colour, linewidth=0.9, alpha=0.85)
        for side, ranges in enumerate((left, right)):
            label = _place(ranges, models[number], flipped=side == 1)
            ax.text((-0.05, 1.05)[side], ends[side], label, ha=("right", "left")[side], va="center", fontsize=5)
    for x, ranges, series in ((0, left, places[0]), (1, right, places[1])):
        for _, group in series.groupby(ranges.table.loc[models, "group"]):
            ax.plot([x, x], [group.min() - 0.35, group.max() + 0.35], color="0.45", linewidth=1.6, solid_capstyle="butt")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(len(models) + 0.8, 0.2)
    ax.set_xticks([0, 1], titles)
    ax.xaxis.tick_top()
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def _place(ranges: RankRanges, model: str, *, flipped: bool) -> str:
    """Write a model's rank with its range and its name, the rank towards the middle of the chart."""
    row = ranges.table.loc[model]
    place = f"{int(row['rank'])}" + (f" ({int(row['low'])}–{int(row['high'])})" if np.isfinite(row["low"]) else "")
    name = model.split("/")[-1]
    return f"{place}  {name}" if flipped else f"{name}  {place}"


@styled
def score_against_size(matrix: ScoreMatrix) -> Figure:
    """Draw every benchmark's scores against parameters: hollow before, filled after training, coloured by family."""
    sized = [model for model in matrix.models if model.params_b is not None]
    names, params = [model.name for model in sized], [model.params_b for model in sized]
    rows = int(np.ceil(len(matrix.benchmarks) / 4))
    figure = Figure(figsize=(PAGE, 1.25 * rows + 0.6))
    axes = figure.subplots(rows, 4, sharex=True, squeeze=False).ravel()
    colours = _family_colours(pd.Series([model.family or "unknown" for model in sized]))
    dots = [colours[model.family or "unknown"] for model in sized]
    for ax, fact in zip(axes, matrix.benchmarks, strict=False):
        for preparation in PREPARATIONS:
            faces = dots if preparation == "trained" else "none"
            values = matrix.scores(preparation).values.loc[names, fact.task]
            ax.scatter(params, values, s=5, facecolors=faces, edgecolors=dots, linewidths=0.4, alpha=0.8)
        if fact.chance:
            ax.axhline(fact.chance, color="0.6", linewidth=0.5, linestyle=":")
        ax.set_title(fact.title, pad=2)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    for ax in axes[len(matrix.benchmarks) :]:
        ax.set_visible(False)
    figure.supxlabel("parameters (billions)", fontsize=7)
    figure.supylabel("score (text corpora: bits per byte)" if _has_corpora(matrix) else "score", fontsize=7)
    _family_legend(figure, colours, sorted(colours), preparations=True)
    return figure


def _has_corpora(matrix: ScoreMatrix) -> bool:
    return any(fact.is_perplexity for fact in matrix.benchmarks)


def _family_colours(families: pd.Series[str]) -> dict[str, Any]:
    names = sorted(set(map(str, families)))
    palette = sns.color_palette("colorblind" if len(names) <= 10 else "husl", len(names))
    return dict(zip(names, palette, strict=True))


def _family_legend(figure: Figure, colours: dict[str, Any], families: list[str], *, preparations: bool = False) -> None:
    def mark(marker: str, colour: Any, face: Any, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, markersize=3.5, mec=colour, mfc=face, mew=0.6, label=label)

    marks = [mark("o", colours[family], colours[family], family) for family in families]
    if preparations:
        marks += [mark("o", "0.3", "none", NAMES["direct"]), mark("o", "0.3", "0.3", NAMES["trained"])]
        marks.append(Line2D([], [], color="0.6", linewidth=0.7, linestyle=":", label="guessing"))
    else:
        marks += [mark("o", "0.3", "0.3", "base"), mark("^", "0.3", "0.3", "instruct")]
    figure.legend(handles=marks, loc="outside upper center", ncols=9 if preparations else 4, columnspacing=1, handletextpad=0.2)
