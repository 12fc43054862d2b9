"""The published matrix with the models of other results below it: what a page of both shows."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from lm_harmony.analysis.leaderboard import MINE
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import PREPARATIONS, Scores


def joined(published: ScoreMatrix, guests: ScoreMatrix) -> ScoreMatrix:
    """Return a matrix of both: the published benchmarks; a guest that has a published model's name is marked as ``board`` does.

    A guest's scores on other benchmarks are left out, as on the published board.
    """
    names = {name: name + MINE if name in published.model_names else name for name in guests.model_names}
    direct, trained = (_below(published.scores(name), guests.scores(name), names) for name in PREPARATIONS)
    causes = {(names[model], task, name): cause for (model, task, name), cause in guests.causes.items()}
    return ScoreMatrix(
        direct=direct,
        trained=trained,
        models=(*published.models, *(replace(facts, name=names[facts.name]) for facts in guests.models)),
        benchmarks=published.benchmarks,
        source=f"{published.source} and {guests.source}",
        causes={**published.causes, **causes},
        notes=(*published.notes, *guests.notes),
    )


def _below(above: Scores, guests: Scores, names: dict[str, str]) -> Scores:
    def stacked(table: str) -> pd.DataFrame:
        first = getattr(above, table)
        return pd.concat([first, getattr(guests, table).reindex(columns=first.columns).rename(index=names)])

    return Scores(values=stacked("values"), stderrs=stacked("stderrs"), counts=stacked("counts"))
