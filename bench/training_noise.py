"""Estimate how much scores differ between two trainings, and write the file that ships with the package.

    python -m bench.training_noise paper_results.json

The second training is the matrix of the paper, which does not ship with the package. Only the 29 numbers do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.placement import published_placement
from lm_harmony.analysis.training_noise import FILE, estimate_noise, noise_csv

OUTPUT = Path(__file__).parents[1] / "src/lm_harmony/analysis" / FILE
"""The shipped file."""


def difference(second: Path) -> pd.DataFrame:
    """Return the second training minus the published board, in standard deviations of the published board."""
    board = published_placement()
    matrix = ScoreMatrix.read(second).subset(board.reference.models, board.reference.benchmarks)
    return (matrix.oriented("trained") - board.reference.means) / board.reference.scales - board.scores


def main(second: Annotated[Path, tyro.conf.Positional], output: Path = OUTPUT) -> None:
    """Write the file."""
    text = noise_csv(estimate_noise(difference(second), published_placement().pc1))
    output.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    tyro.cli(main)
