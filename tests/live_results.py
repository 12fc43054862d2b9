"""Look for files in a folder of results while processes create and remove folders in it, at which ``Path.rglob`` fails."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path


def is_written(folder: Path, pattern: str) -> bool:
    """Tell whether there is a file below ``folder`` whose name has the pattern."""
    return any(fnmatch.filter(files, pattern) for _, _, files in os.walk(folder))
