"""What a fetched model's folder says of itself. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from lm_harmony.errors import ModelError


def write_source(folder: Path, *, name: str, asked: str, revision: str) -> None:
    """Note in source.json which model lies in ``folder``: its name, the revision asked for, and that revision's commit."""
    text = json.dumps({"name": name, "asked": asked, "revision": revision}, indent=2)
    (folder / "source.json").write_text(text, encoding="utf-8")


def is_revision_of(folder: Path, revision: str) -> bool:
    """Tell whether ``folder`` was fetched as ``revision``, a name or a commit."""
    return revision in (_source(folder).get("asked"), _source(folder).get("revision"))


def _source(folder: Path) -> dict[str, str]:
    """Return what ``write_source`` noted in ``folder``, or nothing."""
    source = folder / "source.json"
    said: dict[str, str] = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
    return said


def refuse_other_revision(folder: Path, name: str, revision: str) -> None:
    """Refuse a folder that holds another revision of a model than is asked.

    Raises:
        ModelError: it does, or it does not say.
    """
    if not is_revision_of(folder, revision):
        raise ModelError(
            f"model {name}: {folder} holds revision {_source(folder).get('asked', 'unknown')!r}, asked is {revision!r}. "
            f"Remove the folder and fetch again, or name another models_dir."
        )
