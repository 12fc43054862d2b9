"""Names as the page shows them: without the paths of the machine that wrote it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import Scores


def short_names(names: tuple[str, ...]) -> dict[str, str]:
    """Return the shown name of each model: of a local path the last parts, as many as make it different from all other names."""
    local = [name for name in names if PurePath(name).is_absolute()]
    shown: dict[str, str] = {name: name for name in names if name not in local}
    for name in local:
        parts = PurePath(name).parts[1:]
        others = [other for other in names if other != name]
        for count in range(1, len(parts) + 1):
            end = "/".join(parts[-count:])
            if not any(other == end or other.endswith("/" + end) for other in others):
                break
        shown[name] = end
    return shown


def without_local_paths(matrix: ScoreMatrix) -> ScoreMatrix:
    """Return the matrix with short names of models and of the source. Causes and notes lose the path of the source."""
    names = short_names(matrix.model_names)
    source = PurePath(matrix.source).name if PurePath(matrix.source).is_absolute() else matrix.source

    def cleaned(text: str) -> str:
        return text.replace(matrix.source, source)

    def renamed(scores: Scores) -> Scores:
        tables: list[pd.DataFrame] = [table.rename(index=names) for table in (scores.values, scores.stderrs, scores.counts)]
        return Scores(values=tables[0], stderrs=tables[1], counts=tables[2])

    return replace(
        matrix,
        direct=renamed(matrix.direct),
        trained=renamed(matrix.trained),
        models=tuple(replace(model, name=names[model.name]) for model in matrix.models),
        source=source,
        causes={(names.get(model, model), task, name): cleaned(cause) for (model, task, name), cause in matrix.causes.items()},
        samples={},
        notes=tuple(cleaned(note) for note in matrix.notes),
    )
