"""Results -> figures of benchmarks. No statistics here: each is drawn from a result type of ``analysis``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lm_harmony.analysis.agreement import Agreement
from lm_harmony.analysis.metadata import BenchmarkMetadata
from lm_harmony.analysis.pca import Components
from lm_harmony.analysis.perplexity import PerplexityAgreement
from lm_harmony.report.figures import COLOURS, COLUMN, NAMES, PAGE, styled


@styled
def tau_heatmaps(agreements: Sequence[Agreement], benchmarks: Sequence[BenchmarkMetadata]) -> Figure:
    """Draw Kendall's tau between every two benchmarks, one square for each preparation, grouped by category."""
    order = sorted(range(len(benchmarks)), key=lambda i: (benchmarks[i].category, i))
    titles = [benchmarks[i].title for i in order]
    figure = Figure(figsize=(PAGE, 3.6 if len(agreements) > 1 else PAGE))
    axes = figure.subplots(1, len(agreements), sharey=True, squeeze=False)[0]
    for ax, agreement in zip(axes, agreements, strict=True):
        tau = agreement.tau.iloc[order, order].to_numpy()
        sns.heatmap(tau, ax=ax, vmin=0, vmax=1, cmap="viridis", square=True, cbar=False, xticklabels=titles, yticklabels=titles)
        ax.set_title(f"{NAMES[agreement.preparation]}: mean τ = {agreement.mean_tau:.2f}")
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
    """Draw each category's mean tau with all other benchmarks, a bar for each preparation, and the mean of all pairs."""
    tables = {agreement.preparation: agreement.by_category()["mean"] for agreement in agreements}
    means = {agreement.preparation: agreement.mean_tau for agreement in agreements}
    table = pd.concat([pd.DataFrame(tables), pd.DataFrame(means, index=["all pairs"])])
    figure = Figure(figsize=(COLUMN, 0.33 * len(table) + 0.75))
    ax = figure.subplots()
    height = 0.8 / len(tables)
    for number, preparation in enumerate(tables):
        places = np.arange(len(table)) + (number - (len(tables) - 1) / 2) * height
        bars = ax.barh(places, table[preparation], height * 0.92, color=COLOURS[preparation], label=NAMES[preparation])
        ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=6)
    ax.set_yticks(np.arange(len(table)), list(table.index))
    ax.invert_yaxis()
    ax.axhline(len(table) - 1.5, color="0.7", linewidth=0.6)
    ax.set_xlim(min(0, float(np.nanmin(table.to_numpy())) - 0.1), 1)
    ax.set_xlabel("mean Kendall's τ with other benchmarks")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def scree(fitted: Sequence[Components], *, shown: int = 8) -> Figure:
    """Draw the share of the variance that each of the first components explains."""
    figure = Figure(figsize=(COLUMN, 2.2))
    ax = figure.subplots()
    for components in fitted:
        shares = 100 * np.array(components.explained[:shown])
        colour = COLOURS[components.preparation]
        label = f"{NAMES[components.preparation]} ({len(components.basis.models)} x {len(components.basis.benchmarks)})"
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
    labels = {
        ("direct", "direct"): "direct perplexity,\ndirect scores",
        ("trained", "trained"): "trained perplexity,\ntrained scores",
    }
    labels |= {("direct", "trained"): "direct perplexity,\ntrained scores"}
    comparisons = list(dict.fromkeys((result.perplexity, result.downstream) for result in found))
    figure = Figure(figsize=(COLUMN, 2.3))
    ax = figure.subplots()
    width = 0.8 / len(groups)
    for number, group in enumerate(groups):
        there = {(r.perplexity, r.downstream): r for r in found if r.group == group}
        heights = [there[key].mean_tau if key in there else np.nan for key in comparisons]
        count = max(len(result.models) for result in there.values())
        places = np.arange(len(comparisons)) + (number - (len(groups) - 1) / 2) * width
        bars = ax.bar(places, heights, width * 0.92, color=sns.color_palette("colorblind")[number], label=f"{group} ({count})")
        ax.bar_label(bars, fmt="%.2f", padding=1.5, fontsize=6)
    ax.set_xticks(np.arange(len(comparisons)), [labels[key] for key in comparisons])
    ax.set_ylim(top=1)
    ax.set_ylabel("mean Kendall's τ")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(groups))
    return figure
