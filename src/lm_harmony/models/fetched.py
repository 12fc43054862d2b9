"""What a fetched model's folder says of itself. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from lm_harmony.errors import ModelError


def write_source(folder: Path, *, name: str, asked: str, revision: str) -> None:
    """Note in source.json which model lies in ``folder``: its name, the revision asked for, and that revision's commit."""
    text = json.dumps({"name": name, "asked": asked, "revision": revision}, indent=2)
    (folder / "source.json").write_text(text, encoding="utf-8")


def refuse_other_revision(folder: Path, name: str, revision: str) -> None:
    """Refuse a folder that holds another revision of a model than is asked.

    Raises:
        ModelError: it does, or it does not say.
    """
    source = folder / "source.json"
    said = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
    if revision not in (said.get("asked"), said.get("revision")):
        raise ModelError(
            f"model {name}: {folder} holds revision {said.get('asked', 'unknown')!r}, asked is {revision!r}. "
            f"Remove the folder and fetch again, or name another models_dir."
        )
