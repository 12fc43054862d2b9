"""What makes two runs of a study the same: what is asked for, and where it lies. No torch.

The content of files does not count here. A run whose model, task or rows have changed keeps its folder and is no longer current:
``runs.sources`` tells.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lm_harmony.recipe import fingerprint
from lm_harmony.runs.spec import RunSpec

_CORPUS = "corpus:"


def run_id(spec: RunSpec, base: Path | None = None) -> str:
    """Return 16 hexadecimal digits that tell this run from every other one.

    Args:
        spec: the run.
        base: folder from which models and task files are named, so that a study may be moved with its results; None: by their
            whole path.
    """
    asked = spec.to_dict()
    asked.pop("execution")  # how it is carried out changes no number
    asked.pop("recipe_fingerprint")
    asked.pop("direct")  # kept beside the runs, for all of them
    if not spec.model.apply_chat_template:
        asked["model"].pop("chat_template_date")  # decides nothing
    asked["model"]["name"] = _place(spec.model.name, base)
    asked["benchmark"] |= {"data_dir": None, "include_path": None, "task": _task(spec.benchmark.task, base)}
    return fingerprint(asked)


def folder_name(spec: RunSpec, base: Path | None = None) -> str:
    """Return where a run lies below the results folder: <benchmark>/<model>/seed<n>-<id>; ``base`` as for ``run_id``."""
    task = spec.benchmark.task
    benchmark = Path(task).stem if task.endswith((".yaml", ".yml")) else task
    if task.startswith(_CORPUS):
        benchmark = f"corpus-{Path(task).stem}"
    model = Path(spec.model.name).name if Path(spec.model.name).is_dir() else spec.model.name
    return "/".join((*(_clean(part) for part in (benchmark, model)), f"seed{spec.seed}-{run_id(spec, base)}"))


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name.strip("/")) or "unnamed"


def _task(task: str, base: Path | None) -> str:
    if task.startswith(_CORPUS):
        return _CORPUS + _place(task.removeprefix(_CORPUS), base)
    return _place(task, base) if task.endswith((".yaml", ".yml")) else task


def _place(name: str, base: Path | None) -> str:
    """Return a name as it is; of an existing file or folder its path from ``base``."""
    path = Path(name)
    if not path.exists():
        return name
    whole = path.resolve()
    try:
        return whole.as_posix() if base is None else os.path.relpath(whole, base.resolve()).replace(os.sep, "/")
    except ValueError:  # on another drive
        return whole.as_posix()
