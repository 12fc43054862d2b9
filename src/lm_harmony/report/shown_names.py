"""Names as the page shows them: without the paths of the machine that wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath

import pandas as pd

from lm_harmony.analysis.matrix import ScoreMatrix, changed_scores
from lm_harmony.analysis.score_rows import Scores
from lm_harmony.runs.spec import ModelSpec

_PATH = re.compile(r"(?<![\w.:/~-])(?:~|\.{1,2})?/(?:[^\s/:;,'\"()]+/)+([^\s/:;,'\"()]*)")
"""A path in a sentence, with its last part as the group. URLs do not match, because a colon is before their slashes."""
_NAME = re.compile(r"(?=.{1,96}\Z)[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
NAME_FORM = "MODEL or ORG/MODEL, of at most 96 letters, digits, '-', '_' and '.', without '..'"
"""Form of the name of a submitted model. The name is also a part of the path of the model's runs."""


def is_name(name: str) -> bool:
    """Return whether ``name`` has the form of the name of a submitted model (``NAME_FORM``)."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def name_for_boards(model: ModelSpec) -> str:
    """Return the name on the hub, or the last part of the path, without the revision that `lm-harmony fetch` adds to it."""
    return short_names((model.name,))[model.name].removesuffix(f"@{model.revision}")


def short_names(names: tuple[str, ...]) -> dict[str, str]:
    """Return the shown name of each model: of a local path the last part, and its folder where another name has the same end.

    The folder is written as "model (folder)", with as many parent folders as make the shown name different from all others.
    """
    shown = {name: name for name in names if not _is_local(name)}
    for name in (name for name in names if _is_local(name)):
        parts = [part for part in PurePath(name).parts if part not in ("/", "..", "~")] or [name]
        same = [PurePath(other).parts[:-1] for other in names if other != name and PurePath(other).name == parts[-1]]
        shown[name] = parts[-1]
        for count in range(1, len(parts)) if same else ():
            folder = parts[-1 - count : -1]
            shown[name] = f"{parts[-1]} ({'/'.join(folder)})"
            if all(list(other[-count:]) != folder for other in same):
                break
    return shown


def _is_local(name: str) -> bool:
    """Tell whether a name is a path, which can tell of a user's machine; "owner/name" is a name on the hub."""
    return PurePath(name).is_absolute() or name.startswith(("./", "../", "~"))


def with_short_names(text: str, names: Mapping[str, str]) -> str:
    """Return a text in which the path of each model folder is its short name.

    Args:
        text: a sentence.
        names: short name by name (``short_names``).
    """
    for path in sorted(filter(_is_local, names), key=len, reverse=True):  # one path can be the beginning of another
        text = text.replace(path, names[path])
    return text


def without_local_paths(matrix: ScoreMatrix) -> ScoreMatrix:
    """Return the matrix with short names of models and of the source, and with the last parts of paths in causes and notes."""
    names = short_names(matrix.model_names)
    source = PurePath(matrix.source).name if _is_local(matrix.source) else matrix.source

    def cleaned(text: str) -> str:
        return _PATH.sub(r"\1", with_short_names(text, {**names, matrix.source: source}))

    def renamed(scores: Scores) -> Scores:
        tables: list[pd.DataFrame] = [table.rename(index=names) for table in (scores.values, scores.stderrs, scores.counts)]
        return Scores(values=tables[0], stderrs=tables[1], counts=tables[2])

    return replace(
        matrix,
        **changed_scores(matrix, renamed),
        models=tuple(replace(model, name=names[model.name]) for model in matrix.models),
        source=source,
        causes={(names.get(model, model), task, name): cleaned(cause) for (model, task, name), cause in matrix.causes.items()},
        samples={},
        without_near_duplicates={
            (names.get(model, model), task, name): part for (model, task, name), part in matrix.without_near_duplicates.items()
        },
        notes=tuple(cleaned(note) for note in matrix.notes),
    )
