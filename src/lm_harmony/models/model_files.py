"""The files of a model's folder that decide what is loaded. No torch."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = (".json", ".safetensors", ".bin", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".vocab", ".bpe", ".py")
_TEMPLATES = "additional_chat_templates"
_OF_TRAINERS = frozenset(
    (
        *("training_args.bin", "optimizer.bin", "scheduler.bin", "trainer_state.json", "all_results.json"),
        *("train_results.json", "eval_results.json", "predict_results.json", "source.json"),
    )
)
"""Notes that trainers and ``fetch`` leave in a model's folder; nothing that loads a model reads them."""


def is_read(name: str) -> bool:
    """Tell whether loading a model may read the file ``name`` of its folder (a relative path with slashes).

    Configurations, tokenizer, chat templates and weights stand at the top of a folder; Python code may stand below it.
    """
    *folders, file = name.split("/")
    if any(part.startswith((".", "__pycache__")) for part in (*folders, file)) or file in _OF_TRAINERS:
        return False
    if folders:
        return file.endswith(".py") or (folders == [_TEMPLATES] and file.endswith(".jinja"))
    return file.endswith(_SUFFIXES) and not (file.lower().startswith(("readme", "license", "notice")))


def model_files(folder: Path) -> dict[str, Path]:
    """Return the files of a model's folder that loading it may read, by their path from the folder, in order."""
    candidates = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja"), *folder.rglob("*.py")]
    files = {file.relative_to(folder).as_posix(): file for file in candidates if file.is_file()}
    return {name: files[name] for name in sorted(files) if is_read(name)}
