"""How figures look, and how they are written. Sizes are those of a two-column page, with text of 5 to 8 points."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure

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
