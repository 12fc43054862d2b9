"""Direct scores in files: reads direct.json with its samples, and refuses a file that was copied from another run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import StoreError
from lm_harmony.runs.file_values import damage_in, read_json, read_json_lines, to_plain
from lm_harmony.runs.record import DirectScoreFile, Sample


def read_direct_score(folder: Path, name: str, requests: str | None, run: str | None) -> Score | None:
    """Return a direct score with its samples; None: there is none of these requests.

    Args:
        folder: folder of a run, or of a score that runs share.
        name: ``direct_name`` of the number of examples before each question.
        requests: fingerprint of the requests with examples; None: they have none.
        run: ``RunConfig.made_from`` of the run; None: it is not known.

    Raises:
        DamagedFile: a file cannot be read, or is of another run.
    """
    path = folder / f"{name}.json"
    if not path.exists() or (known := read_json(path, DirectScoreFile)).requests != requests:
        return None
    with damage_in(path):
        refuse_other_run(known.run, run)
    samples = read_json_lines(folder / f"samples_{name}.jsonl", Sample, sha256=known.samples_sha256)
    return Score(**{one.name: getattr(known, one.name) for one in fields(Score)} | {"samples": samples})


def direct_score_values(score: Score, **more: str | None) -> Mapping[str, Any]:
    """Return what direct.json holds; ``more``: those fields of ``DirectScoreFile`` that a ``Score`` lacks."""
    return {**to_plain(score), **{key: value for key, value in more.items() if value is not None}}


def refuse_other_run(written: str | None, own: str | None) -> None:
    """Refuse a file, or a line, that was copied from the folder of another run.

    Args:
        written: ``RunConfig.made_from`` of the run that wrote it; None: not known.
        own: the same of the run in whose folder it is; None: not known.

    Raises:
        StoreError: they differ.
    """
    if written != own and None not in (written, own):
        raise StoreError("it is of a run with another request or other files")
