"""What makes two runs the same: model and revision, benchmark and its rows, recipe, seed. No torch.

Names and paths alone would call a retrained model in the same folder, or mended rows, the same run: of folders the content
counts.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

from lm_harmony.recipe import fingerprint
from lm_harmony.runs.spec import RunSpec

_MODEL_FILES = (".json", ".safetensors", ".jinja", ".bin", ".txt", ".model")
_BLOCK, _BLOCKS = 1 << 16, 64
"""Of a large file 64 blocks of 64 KiB, evenly spread, are read: weights that were trained differ in all of them."""


def run_id(spec: RunSpec) -> str:
    """Return 16 hexadecimal digits that tell this run from every other one.

    Where the rows come from the hub, their texts are not known before they are loaded: then the task's name counts here, and the
    run's own folder refuses to go on when its rows have changed.
    """
    asked = spec.to_dict()
    asked.pop("execution")  # how it is carried out changes no number
    asked.pop("recipe_fingerprint")
    asked.pop("direct")  # kept beside the runs, for all of them
    asked["model"]["name"] = _model(spec.model.name)
    if not spec.model.apply_chat_template:
        asked["model"].pop("chat_template_date")  # decides nothing
    asked["benchmark"] |= {"data_dir": _data(spec), "include_path": None, "task": _task(spec.benchmark.task)}
    return fingerprint(asked)


def direct_id(spec: RunSpec, texts: str) -> str:
    """Return what tells a direct score from others: the model and what it was asked, whatever seed and recipe trained it later.

    Args:
        spec: a run.
        texts: fingerprint of the texts and targets that were asked.
    """
    recipe = {"dtype": spec.recipe.dtype, "max_new_tokens": spec.recipe.max_new_tokens}
    model = {**asdict(spec.model), "name": _model(spec.model.name)}
    model.pop("chat_template_date")  # the texts hold it
    return fingerprint({"model": model, "texts": texts, **recipe})


def folder_name(spec: RunSpec) -> str:
    """Return where a run lies below the results folder: <benchmark>/<model>/seed<n>-<id>."""
    task = spec.benchmark.task
    benchmark = Path(task).stem if task.endswith((".yaml", ".yml")) else task
    if task.startswith("corpus:"):
        benchmark = f"corpus-{Path(task).stem}"
    model = Path(spec.model.name).name if Path(spec.model.name).is_dir() else spec.model.name
    return "/".join((*(_clean(part) for part in (benchmark, model)), f"seed{spec.seed}-{run_id(spec)}"))


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name.strip("/")) or "unnamed"


def _model(name: str) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix in _MODEL_FILES]
    return fingerprint([(file.relative_to(folder).as_posix(), _content(file)) for file in files])


def _data(spec: RunSpec) -> str | None:
    folder = spec.benchmark.data_dir
    if folder is None:
        return None
    task = spec.benchmark.task
    rows = folder / (Path(task).stem if task.endswith((".yaml", ".yml")) else task)
    return fingerprint([(file.name, _content(file)) for file in sorted(rows.glob("*.jsonl"))])


def _task(task: str) -> str:
    path = Path(task.removeprefix("corpus:"))
    if path.is_dir() and task.startswith("corpus:"):
        return fingerprint([(file.name, _content(file)) for file in sorted(path.iterdir()) if file.is_file()])
    return fingerprint(_content(path)) if path.is_file() else task


def _content(file: Path) -> str:
    stat = file.stat()
    return _digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: str, size: int, _: int) -> str:
    """Return the SHA-256 of a file, of a large one that of its spread blocks and its size; read once while it does not change."""
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= _BLOCK * _BLOCKS:
            digest.update(file.read())
        else:
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()
