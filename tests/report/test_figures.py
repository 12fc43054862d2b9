"""Figures: their content, and the files that they are written to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from matplotlib.figure import Figure
from matplotlib.text import Text
from page_boards import MODELS, small_board

from lm_harmony.analysis.agreement import agreement
from lm_harmony.analysis.correlations import perplexity_agreement, scaling
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import PREPARATIONS
from lm_harmony.analysis.significance import rank_ranges
from lm_harmony.analysis.summary import analyze_matrix
from lm_harmony.report.figure_style import COLUMN, save
from lm_harmony.report.figures import (
    BUMP_MODELS,
    bump,
    mean_agreement,
    pc1_against_size,
    perplexity_bars,
    score_against_size,
    scree,
    tau_heatmaps,
    write_figures,
)
from lm_harmony.report.report_folder import summary_lines


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(scope="module")
def board() -> ScoreMatrix:
    return small_board()


def test_heatmaps_show_every_tau_in_the_order_of_categories(board: ScoreMatrix) -> None:
    downstream = board.downstream()
    found = [agreement(downstream, preparation) for preparation in PREPARATIONS]
    figure = tau_heatmaps(found, downstream.benchmarks)
    order = sorted(downstream.benchmarks, key=lambda benchmark: benchmark.category)
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [label.get_text() for label in labels] == [benchmark.title for benchmark in order]
    names = [benchmark.task for benchmark in order]
    shown = np.asarray(figure.axes[1].collections[0].get_array()).reshape(len(names), len(names))
    assert np.allclose(shown, found[1].tau.loc[names, names])
    assert any(f"mean τ = {found[0].mean_tau:.2f}" in text for text in _texts(figure))


def test_bars_and_screes_show_their_values(board: ScoreMatrix) -> None:
    downstream = board.downstream()
    found = agreement(downstream)
    assert f"{found.mean_tau:.2f}" in _texts(mean_agreement([found]))
    fitted = components(downstream)
    line = scree([fitted]).axes[0].lines[0]
    assert np.allclose(line.get_ydata(), 100 * np.array(fitted.explained))
    assert any("trained perplexity" in text for text in _texts(perplexity_bars(perplexity_agreement(board))))


def test_pc1_against_size_leaves_out_models_of_unknown_size(board: ScoreMatrix) -> None:
    fitted = components(board.downstream())
    found = scaling(board, fitted)
    figure = pc1_against_size(found, size="params_b")
    points = sum(len(np.asarray(dots.get_offsets())) for dots in figure.axes[0].collections)
    assert points == found.known["params_b"] < len(found.table)
    assert figure.get_size_inches()[0] == COLUMN


def test_a_bump_chart_shows_ranks_with_their_ranges() -> None:
    table = pd.DataFrame({"a": [0.9, 0.89, 0.5], "b": [0.3, 0.6, 0.4]}, index=["x/one", "x/two", "x/three"])
    matrix = matrix_of(table, stderr=0.01)
    texts = _texts(bump(rank_ranges(matrix, "a"), rank_ranges(matrix, "b"), ("A", "B")))
    assert {"one  1 (1–2)", "two  2 (1–2)", "three  3 (3–3)", "1 (1–1)  two", "3 (3–3)  one", "A", "B"} <= set(texts)
    without = matrix_of(table)
    assert "one  1" in _texts(bump(rank_ranges(without, "a"), rank_ranges(without, "b"), ("A", "B")))


def test_a_bump_chart_stays_on_the_page() -> None:
    matrix = matrix_of(random_table(BUMP_MODELS + 20, 2), stderr=0.1)
    figure = bump(rank_ranges(matrix, "b0"), rank_ranges(matrix, "b1"), ("A", "B"))
    assert figure.get_size_inches()[1] < 11


def test_scores_against_size_have_a_panel_for_each_benchmark(board: ScoreMatrix) -> None:
    figure = score_against_size(board)
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == [benchmark.title for benchmark in board.benchmarks]
    known = sum(model.params_b is not None for model in board.models)
    assert len(np.asarray(figure.axes[0].collections[1].get_offsets())) == known == len(MODELS) - 1


@pytest.fixture
def unchanged_style() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


@pytest.mark.usefixtures("unchanged_style")
def test_all_figures_are_drawn_and_the_callers_style_is_unchanged(tmp_path: Path, board: ScoreMatrix) -> None:
    written = write_figures(analyze_matrix(board), tmp_path)
    names = {path.name for path in written}
    assert {"tau.pdf", "tau.png", "scree.pdf", "score_size.png", "bump_trained.pdf", "perplexity.png"} <= names
    for path in written:
        head = path.read_bytes()[:8]
        assert head.startswith(b"%PDF") if path.suffix == ".pdf" else head == b"\x89PNG\r\n\x1a\n"


def test_a_board_on_which_all_models_are_equal_is_drawn(tmp_path: Path) -> None:
    """Kendall's tau is then undefined for every pair of benchmarks."""
    table = random_table(3, 4)
    summary = analyze_matrix(matrix_of(table * 0 + 0.5, stderr=0.1))
    assert "tau.pdf" in {path.name for path in write_figures(summary, tmp_path)}
    lines = summary_lines(summary)
    assert any("mean Kendall's tau undefined" in line for line in lines)
    assert not any("nan" in line.split() for line in lines)


def test_names_are_never_parsed_as_markup(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "a/$\\frac{1$", "b_{x", "modèle"]
    table = random_table(4, 2).set_axis(names, axis=0)
    matrix = matrix_of(table, stderr=0.1)
    figure = bump(rank_ranges(matrix, "b0"), rank_ranges(matrix, "b1"), ("A", "B"))
    assert any("$\\frac{1$" in text for text in _texts(figure))
    save(figure, tmp_path, "names")
