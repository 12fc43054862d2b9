"""Is one learning rate fair? Ranks and agreement with a fixed learning rate beside those with a rate chosen on validation.

Both are computed from the trained scores of the same models and benchmarks. Intervals of the moves of ranks are those of
``bootstrap.rank_moves``, and those of mean tau and of the share of PC1 are those of ``preparation_comparison``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lm_harmony.analysis.agreement import kendall
from lm_harmony.analysis.bootstrap import in_fixed_order, rank_moves
from lm_harmony.analysis.load_records import find_runs, settings_of
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.preparation_comparison import agreement_tables, shown_agreement
from lm_harmony.analysis.score_rows import CompletePart
from lm_harmony.analysis.subsets import common_part
from lm_harmony.errors import StoreError, UsageError, counted
from lm_harmony.runs.choice import chosen_rate
from lm_harmony.runs.record import RunRecord

NAMES = ("fixed", "chosen")
"""Names of the two kinds of results in tables: one learning rate for all runs, and a rate that each run chose on validation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RateComparison:
    """The trained scores of the same models and benchmarks with a fixed and with a chosen learning rate."""

    basis: CompletePart
    """Models and benchmarks that have a trained score in both."""
    moves: pd.DataFrame
    """Models, best first with the fixed rate, x (fixed, chosen, move, low, high): ranks by PC1, and how many places the rank is
    better with chosen rates, with its interval (``bootstrap.rank_moves``)."""
    agreement: pd.DataFrame
    """(fixed, chosen, chosen - fixed) x columns of ``PreparationComparison.table``."""
    benchmarks: pd.DataFrame
    """Benchmarks x (tau: of the models' order with both; change: mean of chosen minus fixed score, in the metric's unit)."""
    chosen: pd.DataFrame
    """Learning rates x (runs: how many runs have chosen it)."""

    @property
    def moved(self) -> list[str]:
        """Models with a move whose interval does not hold 0."""
        return [str(name) for name in self.moves.index[(self.moves["low"] > 0) | (self.moves["high"] < 0)]]

    def sentences(self) -> list[str]:
        """Return the results as sentences without a full stop."""
        largest = self.moves["move"].abs().max()
        most = self.moves[self.moves["move"].abs() == largest]
        widths = (self.moves["high"] - self.moves["low"]).median()
        rates = ", ".join(f"{rate:g} by {counted(runs, 'run')}" for rate, runs in self.chosen["runs"].items())
        lines = [f"learning rate: chosen on validation were {rates}; compared on {self.basis}"]
        for name, row in self.agreement.iterrows():
            shown = str(name).replace(" - ", " minus ")
            lines.append(f"learning rate, {shown}: {shown_agreement(row, '' if shown == name else '+')}")
        tau = kendall(-self.moves["fixed"], -self.moves["chosen"])
        lines.append(
            f"learning rate: ranks by PC1 with fixed and with chosen rates have tau {tau:.3f}; mean move "
            f"{self.moves['move'].abs().mean():.2f} ranks, largest {largest:.0f} ({', '.join(map(str, most.index))})"
        )
        if pd.isna(widths):
            return [*lines, "learning rate: too few benchmarks for intervals of the moves"]
        moved = ", ".join(self.moved) or "none"
        lines.append(
            f"learning rate: models whose move has a 95% interval without 0: {moved}; half of the intervals span {widths + 1:g} "
            "ranks or fewer"
        )
        return lines

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield each table with the name of its file."""
        yield "rate_moves", self.moves.rename_axis("model")
        yield "rate_agreement", self.agreement.rename_axis("learning_rate")
        yield "rate_benchmarks", self.benchmarks.rename_axis("benchmark")
        yield "rates_chosen", self.chosen.rename_axis("learning_rate")


def compare_rates(chosen: ScoreMatrix, fixed: ScoreMatrix, rates: pd.DataFrame) -> RateComparison:
    """Compare the trained scores of runs that chose their learning rate with those of runs that had one.

    Args:
        chosen: scores of the runs that chose their rate on validation.
        fixed: scores of the runs that had one rate.
        rates: ``chosen_rates`` of their records.

    Raises:
        UsageError: fewer than two models or benchmarks have trained scores in both, or all models have one score on a benchmark.
    """
    matrices = dict(zip(NAMES, (fixed.downstream(), chosen.downstream()), strict=True))
    basis = common_part(matrices.values(), f"in both {chosen.source} and {fixed.source}", "fixed")
    parts = {name: in_fixed_order(matrix.subset(basis.models, basis.benchmarks)) for name, matrix in matrices.items()}
    moves = rank_moves(parts["fixed"], parts["chosen"]).rename(columns={"before": "fixed", "after": "chosen"})
    oriented = {name: part.oriented("trained") for name, part in parts.items()}
    table, differences = agreement_tables(
        {name: (oriented[name].to_numpy(), part.trained.stderrs.to_numpy()) for name, part in parts.items()}
    )
    benchmarks = {
        task: {
            "tau": kendall(oriented["fixed"][task], oriented["chosen"][task]),
            "change": float((parts["chosen"].trained.values[task] - parts["fixed"].trained.values[task]).mean()),
        }
        for task in basis.benchmarks
    }
    return RateComparison(
        basis=basis,
        moves=moves.sort_values("fixed", kind="stable"),
        agreement=pd.concat([table, differences]),
        benchmarks=pd.DataFrame.from_dict(benchmarks, orient="index"),
        chosen=rates,
    )


def chosen_rates(chosen: Path, fixed: Path) -> pd.DataFrame:
    """Return how many runs chose each learning rate, as ``RateComparison.chosen``; records that cannot be read are left out.

    Args:
        chosen: folder of runs that chose their learning rate on validation.
        fixed: folder of runs with one learning rate.

    Raises:
        UsageError: a run of ``chosen`` had one rate, or one of ``fixed`` several, or both differ in more than the rate.
    """
    found, others = _records(chosen), _records(fixed)
    for folder, records, few in ((chosen, found, True), (fixed, others, False)):
        wrong = next((one for one in records if (len(one.spec.recipe.rates) == 1) == few), None)
        if wrong is not None:
            raise UsageError(
                f"fixed: {wrong.spec.model.name} on {wrong.benchmark} in {folder} was run with learning_rate = "
                f"{wrong.spec.recipe.learning_rate}. Give results with choose: validation first, and with one rate after --fixed."
            )
    settings = {(one.spec.model.name, one.spec.model.revision, one.benchmark): settings_of(one) for one in found}
    for record in others:
        theirs = settings_of(record)
        ours = settings.get((record.spec.model.name, record.spec.model.revision, record.benchmark), theirs)
        for key in {**ours, **theirs}:
            if key != "recipe.learning_rate" and ours.get(key) != theirs.get(key):
                raise UsageError(
                    f"fixed: {record.spec.model.name} on {record.benchmark} has {key} {ours.get(key)!r} in {chosen} and "
                    f"{theirs.get(key)!r} in {fixed}, so that ranks would move for another reason. Run both alike."
                )
    counts = pd.Series([chosen_rate(record) for record in found]).value_counts().sort_index()
    return counts.to_frame("runs")


def _records(results: Path) -> list[RunRecord]:
    """Return the records of finished runs; the notes of ``record_rows`` name those that cannot be read."""
    records = []
    for store in find_runs(results):
        with suppress(StoreError):
            ended = store.outcome()
            records += [ended] if isinstance(ended, RunRecord) else []
    return records
