"""Which files a run's folder holds, and their removal. Nothing else is ever removed, and no symbolic link is followed.

    <results>/<exp_name>/
        config.yaml               the specification, its fingerprints and sources; written first
        log.txt                   the log, with times
        direct.json               test score of the untouched model, where requested
        direct_<k>shot.json       the same with k examples before each question, where requested
        epochs.jsonl              one line per epoch, appended when it ends
        checkpoints/epoch-<n>/    weights and optimizer of the last and of the best epoch, until the run has finished;
                                  epoch-0: the weights from which every learning rate begins, where a run has several
        trackers/                 TensorBoard's files, where requested
        adapter/                  weights of the chosen epoch (PEFT format; a model folder after --no-use_peft)
        samples_<split>.jsonl     per-document outcomes in lm_eval's sample schema
        results_<time>.json       the trained model in lm_eval's results schema, plus the key train_before_test
        direct/results_<time>.json  the untouched model in lm_eval's results schema, where requested; also direct_<k>shot/
        failure.json              why the run of a study failed; removed when it is tried again
        record.json               the record; written last, so that a run that has it is finished
        *.damaged                 a file that could not be read and was therefore written again

A folder without record.json is an unfinished run, which --resume_from_checkpoint continues after its last line in epochs.jsonl.
The file .<run>.lease beside the folder names the process that works in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from lm_harmony.errors import StoreError, StoreUnavailable, UsageError

_FIRST = ("record.json", "epochs.jsonl")
"""Files that are removed before all others: what an interruption leaves is an unfinished run without epochs."""
_LAST = "config.yaml"
"""File that is removed after all others, because it marks the folder as that of a run."""
_WEIGHTS = (
    "README.md", "adapter_config.json", "adapter_model.*", "model.safetensors", "model-*.safetensors", "*.index.json",
    "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "chat_template.*", "vocab.*", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "modeling_*.py", "configuration_*.py", "tokenization_*.py",
)  # fmt: skip
"""Files that PEFT and transformers write into a folder of weights."""
_RUN = (
    "config.yaml",
    "log.txt",
    "direct.json",
    "direct_*shot.json",
    "epochs.jsonl",
    "failure.json",
    "record.json",
    "samples_*.jsonl",
    "results_*.json",
)
_KNOWN = (
    *_RUN,
    *(f"{name}.damaged*" for name in ("config.yaml", "direct.json", "direct_*shot.json", "epochs.jsonl", "samples_*.jsonl")),
    "direct/results_*.json",
    "direct_*shot/results_*.json",
    "checkpoints/epoch-*/optimizer.safetensors",
    *(f"{folder}/{name}" for folder in ("adapter", "checkpoints/epoch-*/weights") for name in _WEIGHTS),
)  # fmt: skip
"""Files of a run, as patterns for each part of their path."""
_SCRATCH = re.compile(r"\..+\.part")
"""Files and folders that are still being written, or that a killed process left."""


def first_foreign(folder: Path) -> Path | None:
    """Return a file or a symbolic link below a run's folder that no run writes, or None."""
    return next((path for path, known in _files(folder, folder) if not known), None)


def refuse_foreign(folder: Path, results: Path | None = None) -> None:
    """Check that everything in a run's folder was written by a run, so that it may be removed.

    Args:
        folder: the run's folder.
        results: folder of all results, if it is known: nothing between the two may be a symbolic link.

    Raises:
        UsageError: the folder is a symbolic link or a file, or holds something that no run writes.
    """
    above = [] if results is None else [part for part in folder.parents if part != results and part.is_relative_to(results)]
    link = next((part for part in (folder, *above) if part.is_symlink()), None)
    if link is not None:
        raise UsageError(
            f"overwrite: {link} is a symbolic link to {link.resolve()}, and links are not followed for removal. Remove "
            f"the link, or choose another --exp_name."
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"overwrite: {folder} is a file, not the folder of a run. Choose another --exp_name.")
    foreign = first_foreign(folder)
    if foreign is not None:
        raise UsageError(
            f"overwrite: {folder} holds files that no run writes: {foreign.relative_to(folder)}. Move them away, or choose "
            f"another --exp_name."
        )
    left = [path.name for path, _ in _files(folder, folder) if path.name not in ("failure.json", "log.txt")]
    if left and not (folder / _LAST).is_file():
        raise UsageError(f"overwrite: {folder} has no {_LAST}, so no run wrote {left[0]}. Choose another --exp_name.")


def refuse_nested(folder: Path, is_run: Callable[[Path], bool]) -> None:
    """Check that a new run's folder is neither inside nor above that of another run.

    Args:
        folder: the new run's folder.
        is_run: tells whether a folder that holds a config.yaml is that of a run.

    Raises:
        UsageError: it is.
    """
    below = (Path(root) for root, _, names in os.walk(folder) if Path(root) != folder and (_LAST in names or _FIRST[0] in names))
    for where, others in (("inside", folder.parents), ("above", below)):
        for other in others:
            if is_run(other) or (where == "above" and (other / _FIRST[0]).is_file()):
                raise UsageError(
                    f"exp_name: {folder} would be {where} the folder of another run, {other}. Choose another "
                    f"--exp_name or results folder, or move that run away."
                )


def remove_run(folder: Path, results: Path | None = None) -> None:
    """Remove a run's folder. Its record goes first, so that an interruption leaves an unfinished run.

    Args:
        folder: the run's folder.
        results: as for ``refuse_foreign``.

    Raises:
        UsageError: the folder is a symbolic link, or holds something that no run writes.
        StoreUnavailable: something could not be removed.
    """
    refuse_foreign(folder, results)
    remove_files(folder, folder)
    if folder.exists():
        raise StoreUnavailable(f"{folder} could not be removed: it is still there. Check its permissions, or remove it yourself.")


def remove_files(folder: Path, part: Path) -> None:
    """Remove the files of the run in ``folder`` that are in its sub-folder ``part``, and the folders that are empty then.

    Raises:
        StoreUnavailable: something could not be removed.
    """
    way = [folder.joinpath(*part.relative_to(folder).parts[:depth]) for depth in range(len(part.relative_to(folder).parts) + 1)]
    if not part.is_dir() or any(step.is_symlink() for step in way):
        return
    files = [path for path, known in _files(folder, part) if known]
    files.sort(key=lambda path: path.parent != folder or path.name not in _FIRST)
    last = folder / _LAST
    try:
        for path in files:
            if path != last:
                path.unlink(missing_ok=True)
        folders = [Path(root) for root, _, _ in os.walk(part, topdown=False)]  # os.walk follows no symbolic links
        for inner in folders:
            if last in files and inner == folder:
                last.unlink(missing_ok=True)
            if not any(inner.iterdir()):
                inner.rmdir()
    except OSError as error:
        raise StoreUnavailable(
            f"{error.filename or part} cannot be removed: {error.strerror}. Check the permissions of {part}."
        ) from error


def remove_leftovers(folder: Path, *, checkpoints: bool) -> None:
    """Remove what processes that were killed have left in a run's folder: files that were being written.

    Args:
        folder: the run's folder, whose lease the caller holds.
        checkpoints: also remove the checkpoints, because the run has finished.

    Raises:
        StoreUnavailable: something could not be removed.
    """
    if folder.is_symlink():
        return
    for path in sorted(folder.rglob(".*.part")):
        if not path.is_symlink() and path.is_dir():
            remove_files(folder, path)
        elif not path.is_symlink():
            path.unlink(missing_ok=True)
    if checkpoints:
        remove_files(folder, folder / "checkpoints")


def has_leftovers(folder: Path) -> bool:
    """Return whether a finished run's folder holds checkpoints or files that were being written; looks at its top only."""
    with os.scandir(folder) as entries:
        return any(entry.name == "checkpoints" or _SCRATCH.fullmatch(entry.name) for entry in entries)


def _files(folder: Path, part: Path) -> Iterator[tuple[Path, bool]]:
    """Yield every file and symbolic link below ``part``, and whether a run in ``folder`` writes it.

    Raises:
        StoreError: a folder cannot be read.
    """
    for root, folders, names in os.walk(part, onerror=_refuse_unreadable):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in (*links, *names):
            path = Path(root) / name
            yield path, _is_known(path.relative_to(folder).parts, link=path.is_symlink())


def _is_known(parts: tuple[str, ...], *, link: bool) -> bool:
    if parts[0] == "trackers":  # belongs to the trackers; W&B makes links in it, which are removed without what they point to
        return len(parts) > 1
    if link:
        return False
    if any(_SCRATCH.fullmatch(part) for part in parts):
        return True
    patterns = (pattern.split("/") for pattern in _KNOWN)
    return any(len(parts) == len(names) and all(map(fnmatchcase, parts, names)) for names in patterns)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise StoreError(f"{error.filename} cannot be read: {error.strerror}. Check its permissions.") from error
