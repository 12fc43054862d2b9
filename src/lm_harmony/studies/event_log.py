"""The log of a study's events, one JSON object a line, for other tools."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends to <results>/events.jsonl, which other tools can follow. LM-Harmony itself never reads it."""

    def __init__(self, results_dir: Path) -> None:
        """Write below ``results_dir``."""
        self._path = results_dir / "events.jsonl"

    def add(self, event: str, **values: Any) -> None:
        """Append one line with the time in seconds since 1970, by one write call, so that two studies' lines do not mix."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, ensure_ascii=False)
        with contextlib.suppress(OSError):  # if the disk is full, the runs report it
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
