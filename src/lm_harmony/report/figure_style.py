"""How figures look and how they are written: sizes, colours, legend, style.

Sizes are those of a two-column page, with text of 5 to 8 points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lm_harmony.runs.shots import shown_direct

COLUMN, PAGE = 3.35, 6.75
"""Width of a figure in inches: one column, and both columns."""
COLOURS = {"direct": "#9aa5b1", "trained": "#0b6e99"}
"""Colour of each preparation without examples before the questions."""
_FEW_SHOT = ("#d08c2e", "#8a5a9e", "#5a8f4b", "#b0413e")
"""Colours of direct scores with examples, by their number."""
NAMES = {"direct": "direct evaluation", "trained": "train-before-test"}
"""Name of each preparation without examples in figures."""
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
    "text.parse_math": False,  # a dollar sign in a model's name is no TeX
}

Parameters = ParamSpec("Parameters")


def name_of(preparation: str) -> str:
    """Return the name of a preparation in figures."""
    return NAMES.get(preparation) or shown_direct(preparation)


def colours_of(preparations: Iterable[str]) -> dict[str, str]:
    """Return the colour of each preparation."""
    few_shot = [name for name in preparations if name not in COLOURS]
    return {**COLOURS, **{name: _FEW_SHOT[place % len(_FEW_SHOT)] for place, name in enumerate(few_shot)}}


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Decorate a function so that it draws with ``STYLE`` and leaves the caller's matplotlib settings unchanged."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": matplotlib.get_backend()}):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name``.pdf and ``name``.png (300 dots per inch) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.pdf", folder / f"{name}.png"
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(paths[0], metadata={"CreationDate": None})
        figure.savefig(paths[1], dpi=300)
    return paths


def family_colours(families: Iterable[str]) -> dict[str, Any]:
    """Return a colour for each family, by name in alphabetical order."""
    names = sorted(set(map(str, families)))
    palette = sns.color_palette("colorblind" if len(names) <= 10 else "husl", len(names))
    return dict(zip(names, palette, strict=True))


def family_legend(figure: Figure, colours: dict[str, Any], families: list[str], *, preparations: bool = False) -> None:
    """Add a legend of families above the axes, followed by the marker of each preparation or of each kind of model."""

    def mark(marker: str, colour: Any, face: Any, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, markersize=3.5, mec=colour, mfc=face, mew=0.6, label=label)

    marks = [mark("o", colours[family], colours[family], family) for family in families]
    if preparations:
        marks += [mark("o", "0.3", "none", NAMES["direct"]), mark("o", "0.3", "0.3", NAMES["trained"])]
        marks.append(Line2D([], [], color="0.6", linewidth=0.7, linestyle=":", label="guessing"))
    else:
        marks += [mark("o", "0.3", "0.3", "base"), mark("^", "0.3", "0.3", "instruct")]
    figure.legend(handles=marks, loc="outside upper center", ncols=9 if preparations else 4, columnspacing=1, handletextpad=0.2)
