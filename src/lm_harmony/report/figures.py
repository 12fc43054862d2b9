"""The figures of an analysis, drawn from its result types and written into a folder. No statistics are computed here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lm_harmony.analysis.agreement import Agreement
from lm_harmony.analysis.correlations import PerplexityAgreement, Scaling
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import BenchmarkMetadata
from lm_harmony.analysis.pca import Components
from lm_harmony.analysis.score_rows import PREPARATIONS
from lm_harmony.analysis.significance import RankRanges
from lm_harmony.analysis.summary import AnalysisSummary
from lm_harmony.report.checkpoint_figures import checkpoint_curves
from lm_harmony.report.figure_style import COLUMN, PAGE, colours_of, family_colours, family_legend, name_of, save, styled

BUMP_MODELS = 80
"""Maximum number of models in a bump chart, so that it fits on a page."""


def write_figures(summary: AnalysisSummary, folder: Path, *, pair: tuple[str, str] | None = None) -> list[Path]:
    """Draw every figure that ``summary`` has results for, write each as .pdf and .png, and return the paths.

    Args:
        summary: results to draw.
        folder: folder for the files; it is created if it does not exist.
        pair: benchmarks of the bump chart; None: the two with the smallest tau after training.
    """
    return [path for name, figure in _figures(summary, pair) for path in save(figure, folder, name)]


def _figures(summary: AnalysisSummary, pair: tuple[str, str] | None) -> Iterator[tuple[str, Figure]]:
    matrix, agreements = summary.matrix, list(summary.agreements.values())
    if agreements:
        yield "tau", tau_heatmaps(agreements, matrix.downstream().benchmarks)
        yield "mean_agreement", mean_agreement(agreements)
    if summary.components:
        yield "scree", scree(list(summary.components.values()))
    for preparation, scaled in summary.scaling.items():
        for size, name in (("compute", "compute"), ("params_b", "parameters")):
            if scaled.known[size] > 1:
                yield f"pc1_{name}_{preparation}", pc1_against_size(scaled, size=size)
    if summary.perplexity:
        yield "perplexity", perplexity_bars(summary.perplexity)
    if any(model.params_b is not None for model in matrix.models):
        yield "score_size", score_against_size(matrix)
    if summary.training_runs is not None:
        yield "checkpoints", checkpoint_curves(summary.training_runs)
    yield from _bump_charts(summary, pair)


def _bump_charts(summary: AnalysisSummary, pair: tuple[str, str] | None) -> Iterator[tuple[str, Figure]]:
    titles = {benchmark.task: benchmark.title for benchmark in summary.matrix.benchmarks}
    trained = summary.agreements.get("trained")
    if pair is None and trained is not None and len(trained.benchmarks) > 1:
        known = trained.tau.stack().dropna()  # tau is undefined for a benchmark on which all models are equal
        pair = None if known.empty else (str(known.idxmin()[0]), str(known.idxmin()[1]))
    if pair is None:
        return
    for preparation in summary.agreements:
        left, right = (summary.ranges[preparation, task] for task in pair)
        if len(left.table.index.intersection(right.table.index)) > 1:
            yield f"bump_{preparation}", bump(left, right, (titles[pair[0]], titles[pair[1]]))


@styled
def tau_heatmaps(agreements: Sequence[Agreement], benchmarks: Sequence[BenchmarkMetadata]) -> Figure:
    """Draw a heatmap of Kendall's tau between every two benchmarks for each preparation, benchmarks grouped by category."""
    order = sorted(range(len(benchmarks)), key=lambda i: (benchmarks[i].category, i))
    titles = [benchmarks[i].title for i in order]
    figure = Figure(figsize=(PAGE, 3.6 if len(agreements) > 1 else PAGE))
    axes = figure.subplots(1, len(agreements), sharey=True, squeeze=False)[0]
    for ax, agreement in zip(axes, agreements, strict=True):
        tau = agreement.tau.iloc[order, order].to_numpy()
        sns.heatmap(tau, ax=ax, vmin=0, vmax=1, cmap="viridis", square=True, cbar=False, xticklabels=titles, yticklabels=titles)
        ax.set_title(f"{name_of(agreement.preparation)}: mean τ = {agreement.mean_tau:.2f}")
        ax.tick_params(length=0, labelsize=5.5)
        ax.tick_params(axis="x", rotation=90)
        categories = [benchmarks[i].category for i in order]
        for edge in (i for i in range(1, len(order)) if categories[i] != categories[i - 1]):
            ax.axhline(edge, color="white", linewidth=0.8)
            ax.axvline(edge, color="white", linewidth=0.8)
    bar = figure.colorbar(axes[-1].collections[0], ax=list(axes), shrink=0.6, aspect=25, pad=0.01, extend="min")
    bar.set_label("Kendall's τ")
    bar.outline.set_visible(False)
    return figure


@styled
def mean_agreement(agreements: Sequence[Agreement]) -> Figure:
    """Draw a bar of each category's mean tau with all other benchmarks, and of the mean over all pairs, for each preparation."""
    tables = {agreement.preparation: agreement.by_category()["mean"] for agreement in agreements}
    means = {agreement.preparation: agreement.mean_tau for agreement in agreements}
    table = pd.concat([pd.DataFrame(tables), pd.DataFrame(means, index=["all pairs"])])
    figure = Figure(figsize=(COLUMN, 0.33 * len(table) + 0.75))
    ax = figure.subplots()
    height, colours = 0.8 / len(tables), colours_of(tables)
    for number, preparation in enumerate(tables):
        places = np.arange(len(table)) + (number - (len(tables) - 1) / 2) * height
        bars = ax.barh(places, table[preparation], height * 0.92, color=colours[preparation], label=name_of(preparation))
        ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=6)
    ax.set_yticks(np.arange(len(table)), list(table.index))
    ax.invert_yaxis()
    ax.axhline(len(table) - 1.5, color="0.7", linewidth=0.6)
    ax.set_xlim(min(0, float(table.min(axis=None)) - 0.1), 1)
    ax.set_xlabel("mean Kendall's τ with other benchmarks")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def scree(fitted: Sequence[Components], *, shown: int = 8) -> Figure:
    """Draw the share of the variance that each of the first ``shown`` components explains."""
    figure = Figure(figsize=(COLUMN, 2.2))
    ax, colours = figure.subplots(), colours_of(components.preparation for components in fitted)
    for components in fitted:
        shares = 100 * np.array(components.explained[:shown])
        colour = colours[components.preparation]
        label = f"{name_of(components.preparation)} ({len(components.basis.models)} x {len(components.basis.benchmarks)})"
        ax.plot(np.arange(1, len(shares) + 1), shares, marker="o", markersize=3.5, color=colour, label=label)
        ax.annotate(
            f"{shares[0]:.0f}%", (1, shares[0]), xytext=(-5, 0), textcoords="offset points", ha="right", va="center", color=colour
        )
    ax.set_xlabel("principal component")
    ax.set_ylabel("variance explained (%)")
    ax.set_xticks(range(1, min(shown, max(len(components.explained) for components in fitted)) + 1))
    ax.set_xlim(left=-0.1)
    ax.set_ylim(0, 100)
    ax.legend()
    return figure


@styled
def perplexity_bars(found: Sequence[PerplexityAgreement]) -> Figure:
    """Draw mean tau between bits per byte and benchmarks, by comparison and by kind of model."""
    groups = list(dict.fromkeys(result.group for result in found))
    comparisons = list(dict.fromkeys((result.perplexity, result.downstream) for result in found))
    figure = Figure(figsize=(COLUMN, 2.3))
    ax = figure.subplots()
    width = 0.8 / len(groups)
    for number, group in enumerate(groups):
        results = {(result.perplexity, result.downstream): result for result in found if result.group == group}
        heights = [results[key].mean_tau if key in results else np.nan for key in comparisons]
        count = max(len(result.models) for result in results.values())
        places = np.arange(len(comparisons)) + (number - (len(groups) - 1) / 2) * width
        bars = ax.bar(places, heights, width * 0.92, color=sns.color_palette("colorblind")[number], label=f"{group} ({count})")
        ax.bar_label(bars, fmt="%.2f", padding=1.5, fontsize=6)
    labels = [f"{perplexity} perplexity,\n{downstream} scores" for perplexity, downstream in comparisons]
    ax.set_xticks(np.arange(len(comparisons)), labels)
    ax.set_ylim(top=1)
    ax.set_ylabel("mean Kendall's τ")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(groups))
    return figure


@styled
def pc1_against_size(scaled: Scaling, *, size: str = "compute") -> Figure:
    """Draw PC1 against pre-training compute (with a line through the base models of a family) or against parameters."""
    table = scaled.table[scaled.table[size].notna()].sort_values(size)
    figure = Figure(figsize=(COLUMN, 2.7))
    ax = figure.subplots()
    colours = family_colours(scaled.table["family"])
    for family, members in table.groupby("family", sort=True):
        if size == "compute":  # over parameters, the line through several generations of a family would zigzag
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
    family_legend(figure, colours, sorted(map(str, table["family"].unique())))
    return figure


@styled
def bump(left: RankRanges, right: RankRanges, titles: tuple[str, str]) -> Figure:
    """Draw a bump chart: a line for each model from its rank on the left to its rank on the right.

    A rank is followed by its rank range in brackets. Vertical bars beside the ranks are tie groups. At most ``BUMP_MODELS``
    models are drawn, the best ones by the left rank.
    """
    models = [name for name in left.table.index if name in right.table.index][:BUMP_MODELS]
    heights = [ranges.table.loc[models, "rank"].rank(method="first") for ranges in (left, right)]
    figure = Figure(figsize=(COLUMN, 0.12 * len(models) + 0.6))
    ax = figure.subplots()
    for number, colour in enumerate(sns.color_palette("viridis", len(models))):
        ends = [float(series[models[number]]) for series in heights]
        ax.plot([0.03, 0.97], ends, color=colour, linewidth=0.9, alpha=0.85)
        for side, ranges in enumerate((left, right)):
            label = _rank_label(ranges, models[number], flipped=side == 1)
            ax.text((-0.05, 1.05)[side], ends[side], label, ha=("right", "left")[side], va="center", fontsize=5)
    for x, ranges, series in ((0, left, heights[0]), (1, right, heights[1])):
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


def _rank_label(ranges: RankRanges, model: str, *, flipped: bool) -> str:
    """Return a model's name and its rank with the rank range; ``flipped``: the rank first."""
    row = ranges.table.loc[model]
    rank = f"{int(row['rank'])}" + (f" ({int(row['low'])}–{int(row['high'])})" if np.isfinite(row["low"]) else "")
    name = model.split("/")[-1]
    return f"{rank}  {name}" if flipped else f"{name}  {rank}"


@styled
def score_against_size(matrix: ScoreMatrix) -> Figure:
    """Draw a panel of each benchmark's scores against parameters: direct scores hollow, trained scores filled."""
    sized = [model for model in matrix.models if model.params_b is not None]
    names, params = [model.name for model in sized], [model.params_b for model in sized]
    rows = int(np.ceil(len(matrix.benchmarks) / 4))
    figure = Figure(figsize=(PAGE, 1.25 * rows + 0.6))
    axes = figure.subplots(rows, 4, sharex=True, squeeze=False).ravel()
    colours = family_colours(model.family or "unknown" for model in sized)
    dots = [colours[model.family or "unknown"] for model in sized]
    for ax, benchmark in zip(axes, matrix.benchmarks, strict=False):
        for preparation in PREPARATIONS:
            faces = dots if preparation == "trained" else "none"
            values = matrix.scores(preparation).values.loc[names, benchmark.task]
            ax.scatter(params, values, s=5, facecolors=faces, edgecolors=dots, linewidths=0.4, alpha=0.8)
        if benchmark.chance:
            ax.axhline(benchmark.chance, color="0.6", linewidth=0.5, linestyle=":")
        ax.set_title(benchmark.title, pad=2)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    for ax in axes[len(matrix.benchmarks) :]:
        ax.set_visible(False)
    figure.supxlabel("parameters (billions)", fontsize=7)
    figure.supylabel("score in the metric's unit", fontsize=7)
    family_legend(figure, colours, sorted(colours), preparations=True)
    return figure
