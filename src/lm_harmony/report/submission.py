"""A finished run as one file that somebody else can check and add to a board: ``lm-harmony submit`` and ``board add``.

The file is a ZIP archive:

    manifest.json            SHA-256 of the other files, and of each file of the adapter, which stays where it is
    record.json              the record, without paths of the machine that wrote it
    samples_direct.jsonl     per-document outcomes of the untouched model, if it was scored; also samples_direct_<k>shot.jsonl
    samples_test.jsonl       per-document outcomes of the trained model, if it was scored

The SHA-256 of the archive names it: equal runs give equal archives. The hash shows that nothing changed since it was told. It
does not show who made the run, or that its scores are true. Scoring a part of the test rows again does (``runs.rescoring``).
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from lm_harmony.analysis.provenance import FileStates, changed_files
from lm_harmony.errors import FILE_RULES, StoreError, UsageError
from lm_harmony.report.recomputed_scores import recompute
from lm_harmony.report.shown_names import NAME_FORM, is_name, name_for_boards
from lm_harmony.runs.file_hashes import sha256_of
from lm_harmony.runs.file_values import damage_in, read_json, to_plain, with_check
from lm_harmony.runs.files import new_file
from lm_harmony.runs.fingerprint import folder_name
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.shots import samples_file
from lm_harmony.runs.store import RunStore
from lm_harmony.runs.tested_weights import refuse_other_weights, weights_of
from lm_harmony.runs.untrusted_files import MOST_JSON, MOST_LINES
from lm_harmony.runs.upgrades import upgrade_record

FORMAT = 1
"""Version of the archive; a reader refuses a newer one."""
_ELSEWHERE = "(elsewhere)"
"""Folder of a source in a submitted record. Its content is known by size and SHA-256."""
_SAMPLES = re.compile(r"samples_(test|direct(_[1-9]\d*shot)?)\.jsonl")
_DATE = (1980, 1, 1, 0, 0, 0)
"""Time of every file in an archive, so that equal runs give equal archives."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json holds."""

    __pydantic_config__ = FILE_RULES

    format: int
    """Version of the archive."""
    lm_harmony: str
    """Version of LM-Harmony that wrote it."""
    files: Mapping[str, str]
    """Name of each other file of the archive -> its SHA-256."""
    adapter: Mapping[str, str]
    """Path of each file in the run's folder of weights -> its SHA-256; empty if the weights were not kept."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A submission whose files were checked."""

    sha256: str
    """SHA-256 of the archive."""
    manifest: Manifest
    """What its manifest.json holds."""
    store: RunStore
    """Folder with its record and samples."""
    record: RunRecord
    """What its record.json holds."""
    recomputed: tuple[str, ...]
    """Scores that follow from the samples, as "trained acc,none"."""
    unknown: tuple[str, ...]
    """Scores whose metric cannot be computed from the samples by this program."""


def plan_files(stores: Iterable[RunStore], folder: Path, name: str | None = None) -> dict[Path, tuple[RunStore, RunRecord]]:
    """Return the file of each run's submission, with the run and its record. Nothing is written.

    Args:
        stores: the runs.
        folder: folder for the files. A file is named after the benchmark, the model and the seed.
        name: name of the model on boards; None: its name on the hub, or the last part of its path.

    Raises:
        UsageError: a run has lost a file or is not finished and current, or a name or a file would be of several.
        StoreError: a file cannot be read.
    """
    states: FileStates = {}
    found = [(store, _finished(store, states)) for store in stores]
    own = {record.spec.model.name: None for _, record in found}
    if name is not None and len(own) > 1:
        raise UsageError(
            f"name = {name} is for one model, and the runs are of {len(own)}. Give the folder of one run, or leave out --name."
        )
    planned: dict[Path, tuple[RunStore, RunRecord]] = {}
    models: dict[tuple[str, str], str] = {}
    for store, record in found:
        content = portable(record, name)
        spec, model = RunRecord.from_dict(json.loads(content)).spec, record.spec.model.name
        if not is_name(spec.model.name):
            raise UsageError(f"name is missing: {spec.model.name!r} is no name for a board. Add --name: {NAME_FORM}.")
        other = models.setdefault((spec.model.name, spec.model.revision), model)
        path = folder / (folder_name(spec).replace("/", "--") + ".zip")
        if other != model:
            raise UsageError(f"name: {other} and {model} would both be {spec.model.name}. Submit each run with a --name.")
        if path in planned:
            raise UsageError(f"{planned[path][0].folder} and {store.folder} would both be {path}. Submit one of them.")
        if path.exists() and not _holds(path, content):
            raise UsageError(f"output: {path} holds another run. Choose another --output, or remove the file.")
        planned[path] = (store, record)
    return planned


def _finished(store: RunStore, states: FileStates) -> RunRecord:
    record = store.outcome()
    if not isinstance(record, RunRecord):
        raise UsageError(f"{store.folder}: the run is not finished, so that it has no scores. Finish it, then submit it.")
    if changed := changed_files(record.sources, states, read_all=True):
        raise UsageError(f"{store.folder}: the run is not current: {changed}. Carry it out again, then submit it.")
    for path in (store.folder / samples_file(score) for score in record.scores):
        if not path.is_file():
            again = f"Restore the file, or remove {store.folder} and carry the run out again."
            raise UsageError(f"{path} does not exist, so that a score cannot be checked. {again}")
    refuse_other_weights(store, record)
    return record


def _holds(path: Path, record: bytes) -> bool:
    """Return whether a file is the submission of the run with this record.json."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read("record.json") == record
    except (zipfile.BadZipFile, LookupError, OSError):
        return False


def pack(store: RunStore, record: RunRecord, path: Path, name: str | None = None) -> str:
    """Write the submission of a run that ``plan_files`` has checked into ``path``; return its SHA-256.

    Raises:
        StoreError: a file cannot be read or written.
    """
    files = {"record.json": portable(record, name)}
    for score in record.scores:
        source = store.folder / samples_file(score)
        with damage_in(source):
            files[source.name] = source.read_bytes()
    manifest = Manifest(
        format=FORMAT,
        lm_harmony=version("lm-harmony"),
        files={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        adapter=weights_of(store.folder / "adapter"),
    )
    files = {"manifest.json": json.dumps(to_plain(manifest), indent=2).encode(), **files}
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        for file, content in files.items():
            archive.writestr(zipfile.ZipInfo(file, _DATE), content, compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)
    return sha256_of(path)


def portable(record: RunRecord, name: str | None = None) -> bytes:
    """Return record.json without paths of this machine: of each one the last part is left."""
    plain = _without_paths(json.loads(json.dumps(record.to_dict())))
    plain["spec"]["model"]["name"] = name or name_for_boards(record.spec.model)
    for source in plain["sources"] or ():
        if "path" in source:
            source["path"] = f"{_ELSEWHERE}/{PurePath(source['path']).name}"
    return json.dumps(with_check(plain), indent=2, ensure_ascii=False).encode()


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    prefix, found, path = value.rpartition(":") if isinstance(value, str) else ("", "", value)
    return f"{prefix}{found}{PurePath(path).name}" if isinstance(path, str) and PurePath(path).is_absolute() else value


def open_submission(path: Path, folder: Path, sha256: str | None = None) -> Submission:
    """Extract a submission into ``folder`` and check it.

    Args:
        path: the archive.
        folder: an empty folder.
        sha256: SHA-256 that the archive must have; None: any.

    Raises:
        UsageError: the archive does not exist or has another SHA-256.
        StoreError: it is no submission, a file differs from its SHA-256, or a score does not follow from the samples.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file. Give a .zip file that `lm-harmony submit` wrote.")
    found = sha256_of(path)
    if sha256 not in (None, found):
        raise UsageError(f"sha256: {path} has {found}, not {sha256}. Ask its sender for the file again.")
    try:
        _extract(path, folder)
        manifest = read_json(folder / "manifest.json", Manifest)
        if manifest.format != FORMAT:
            raise StoreError(
                f"format = {manifest.format} is not the format {FORMAT} that LM-Harmony {version('lm-harmony')} reads"
            )
        found_files = {path.name for path in folder.iterdir()} - {"manifest.json"}
        for name in sorted({"record.json", *found_files, *manifest.files}):
            if name not in found_files or name not in manifest.files:
                raise StoreError(f"{name} is not in both the archive and the manifest")
            if sha256_of(folder / name) != manifest.files[name]:
                raise StoreError(f"{name} differs from its SHA-256 in the manifest")
        record = read_json(folder / "record.json", RunRecord, upgrade_record)
        if not is_name(record.spec.model.name):
            raise StoreError(f"model.name = {record.spec.model.name!r} is no name of a model, {NAME_FORM}")
        recomputed, unknown = recompute(record, folder)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).replace(f"{folder}/", "").split(". ")[0].rstrip(".")
        raise StoreError(f"{path} is no valid submission: {reason}. Ask its sender for the file again.") from error
    return Submission(
        sha256=found, manifest=manifest, store=RunStore(folder), record=record, recomputed=recomputed, unknown=unknown
    )


def _extract(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            most = MOST_LINES if _SAMPLES.fullmatch(info.filename) else MOST_JSON
            if most == MOST_JSON and info.filename not in ("manifest.json", "record.json"):
                raise StoreError(f"it holds {info.filename!r}")
            with archive.open(info) as source:
                content = source.read(most + 1)
            if len(content) > most:
                raise StoreError(f"{info.filename} is larger than {most:,} bytes")
            (folder / info.filename).write_bytes(content)
