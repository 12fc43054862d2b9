"""How much training data a ranking needs: scores, agreement of benchmarks and ranks by the largest number of training rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lm_harmony.analysis.agreement import agreement, kendall
from lm_harmony.analysis.load_records import find_runs, record_rows
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components, ranks
from lm_harmony.analysis.score_rows import CompletePart, Preparation
from lm_harmony.analysis.subsets import common_part
from lm_harmony.errors import StoreError, UsageError
from lm_harmony.runs.record import RunRecord

SETTLED = 0.95
"""Kendall's tau with the ranks of the most training rows, from which on ranks count as settled."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataCurve:
    """Results of the same models and benchmarks by the largest number of training rows; 0 stands for the direct scores."""

    table: pd.DataFrame
    """max_num_train x (rows: mean number that was trained on; seconds: of training, all runs; mean_tau: between benchmarks; tau:
    of the ranks by PC1 with those of the most rows; largest_change: of a rank from those). NaN: not known."""
    scores: pd.DataFrame
    """Mean score of the models, max_num_train x benchmarks, in the metric's unit."""
    basis: CompletePart
    """Models and benchmarks that have a trained score for every number of training rows."""
    settled: int
    """Smallest number of rows from which on every tau is at least ``threshold``."""
    threshold: float
    """Kendall's tau from which on ranks count as settled."""
    notes: tuple[str, ...]
    """Remarks on the scores, such as records that cannot be read."""

    @property
    def saved_rows(self) -> float:
        """Share of the training rows that the settled number saves."""
        return 1 - float(self.table["rows"][self.settled] / self.table["rows"].iloc[-1])

    @property
    def saved_seconds(self) -> float:
        """Share of the seconds of training that the settled number saves."""
        return 1 - float(self.table["seconds"][self.settled] / self.table["seconds"].iloc[-1])


def data_curve(results: Path, *, threshold: float = SETTLED) -> DataCurve:
    """Return the results of a folder of runs by their largest number of training rows.

    Args:
        results: folder of the runs of a study with several values of max_num_train.
        threshold: Kendall's tau from which on ranks count as settled.

    Raises:
        UsageError: the runs have one number only, or fewer than two models or benchmarks have scores for every number.
    """
    records = _by_rows(results)
    if not records:
        record_rows(results)  # says why no run is finished
    if len(records) < 2:
        known = ", ".join(map(str, records)) or "none"
        raise UsageError(
            f"rows: the runs below {results} have these values of max_num_train: {known}. Several are needed. Run a study with "
            f"max_num_train: [50, 500, 5000]."
        )
    matrices = {rows: ScoreMatrix.from_records(results, max_num_train=rows).downstream() for rows in records}
    basis = common_part(matrices.values(), f"for every max_num_train ({', '.join(map(str, matrices))})", "rows")
    parts = {rows: matrix.subset(basis.models, basis.benchmarks) for rows, matrix in matrices.items()}
    most = max(parts)
    preparations = {(rows, "trained"): part for rows, part in parts.items()}
    direct = parts[most].has("direct") and not parts[most].gaps("direct")
    if direct:
        preparations = {(0, "direct"): parts[most], **preparations}
    final = components(parts[most], "trained").pc1
    lines, scores = {}, {}
    for (rows, preparation), part in preparations.items():
        kept = [one for one in records.get(rows, ()) if one.benchmark in basis.benchmarks]
        pc1 = _pc1_or_none(part, preparation)
        lines[rows] = {
            "rows": float(np.mean([one.data.train for one in kept])) if kept else 0.0,
            "seconds": float(sum(epoch.seconds for one in kept for epoch in one.epochs)),
            "mean_tau": agreement(part, preparation).mean_tau,
            "tau": float("nan") if pc1 is None else kendall(pc1, final),
            "largest_change": float("nan") if pc1 is None else float((ranks(pc1) - ranks(final)).abs().max()),
        }
        scores[rows] = part.scores(preparation).values.mean()
    table = pd.DataFrame.from_dict(lines, orient="index")
    return DataCurve(
        table=table,
        scores=pd.DataFrame(scores).T,
        basis=basis,
        settled=_settled(table["tau"].drop(index=0, errors="ignore"), threshold),
        threshold=threshold,
        notes=parts[most].notes,
    )


def _by_rows(results: Path) -> dict[int, list[RunRecord]]:
    """Return the records of finished runs by max_num_train; the notes of ``record_rows`` name those that cannot be read."""
    records: dict[int, list[RunRecord]] = {}
    for store in find_runs(results):
        with suppress(StoreError):
            ended = store.outcome()
            if isinstance(ended, RunRecord):
                records.setdefault(ended.spec.benchmark.caps.train, []).append(ended)
    return dict(sorted(records.items()))


def _pc1_or_none(matrix: ScoreMatrix, preparation: Preparation) -> pd.Series[float] | None:
    """Return PC1 of the models; None where it is not defined, because all models have one score on a benchmark."""
    try:
        return components(matrix, preparation).pc1
    except UsageError:
        return None


def _settled(tau: pd.Series[float], threshold: float) -> int:
    """Return the smallest index from which on every value is at least ``threshold``; the last one always is."""
    found = int(tau.index[-1])
    for rows in reversed(tau.index[:-1]):
        if not tau[rows] >= threshold:
            break
        found = int(rows)
    return found
