"""Test scores of untouched models, one folder each: computed once, shared by every seed and recipe that is trained on it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import DamagedFile
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.store import RunStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DirectScoreCache:
    """The folder that holds them: <id>/direct.json and <id>/samples_direct.jsonl."""

    folder: Path
    """Where they are."""
    mirror: RemoteSync | None = None
    """Where the results are behind a URL."""

    def find(self, name: str) -> Score | None:
        """Return the score kept under ``asked.direct_id``, with its samples; None where there is none that can be read."""
        store = RunStore(self.folder / name, self.mirror)
        store.pull()
        try:
            known = store.direct()
            return known and replace(known, samples=store.samples("direct"))
        except DamagedFile as error:
            log.warning("the direct score is computed again: %s", error)
            return None

    def keep(self, name: str, score: Score) -> None:
        """Keep a score; the samples go first, so that a score that is found is whole."""
        store = RunStore(self.folder / name, self.mirror)
        store.folder.mkdir(parents=True, exist_ok=True)
        store.write_samples("direct", score.samples)
        store.keep_direct(score)
