"""events.jsonl: what happened in a study, one JSON line each, for other tools to follow."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends to <results>/events.jsonl. A convenience: nothing is ever decided by what it holds."""

    def __init__(self, results_dir: Path) -> None:
        """Write below ``results_dir``."""
        self._path = results_dir / "events.jsonl"

    def add(self, event: str, **values: Any) -> None:
        """Append one line with the time in seconds since 1970; one write call, so that two studies' lines do not mix."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, ensure_ascii=False)
        with contextlib.suppress(OSError):  # a full disk is the runs' to report
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
