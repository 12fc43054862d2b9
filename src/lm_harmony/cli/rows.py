"""``lm-harmony rows``: how much training data the ranking of a study needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from lm_harmony.cli.console import Format, say, show_table
from lm_harmony.errors import MissingExtra, check_number
from lm_harmony.runs.preflight import check_folder


def rows(
    results: Annotated[Path, tyro.conf.Positional],
    /,
    tau: float = 0.95,
    figures: Path | None = None,
    format: Format = "table",
) -> None:
    """Compare scores, agreement and ranks of a study by its numbers of training rows (max_num_train: [50, 500, 5000]).

    Example: `lm-harmony rows results`

    Args:
        results: a folder of runs.
        tau: Kendall's tau with the ranks of the most rows, from which on ranks count as settled.
        figures: folder for the curves (pdf and png); default: they are not drawn.
        format: table is for people; csv, json and markdown are for other programs.
    """
    check_number("tau", tau, low=-1, high=1)
    if figures is not None:
        check_folder("figures", figures)
        try:
            from lm_harmony.report.figure_style import save
            from lm_harmony.report.row_figures import data_curves
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"figures need {error.name}. Install it with: pip install 'lm-harmony[figures]', or leave out --figures."
            ) from error
    from lm_harmony.analysis.training_rows import data_curve
    from lm_harmony.report.tables import data_curve_table

    found = data_curve(results, threshold=tau)
    if figures is not None:
        save(data_curves(found), figures, "training_rows")
    show_table(data_curve_table(found), optional=tuple(reversed(found.scores.columns)), format=format)
    if format == "table":
        say(
            f"ranks by PC1 are settled from {found.settled:,} rows on (tau with those of the most rows at least {tau:g}), which "
            f"saves {found.saved_rows:.0%} of the training rows and {found.saved_seconds:.0%} of the seconds of training",
            f"on {found.basis}",
            *found.notes,
        )
