"""Notes about the provenance of scores: mixed package versions, changed source files, records without sources."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lm_harmony.benchmarks.catalogue import name_parts
from lm_harmony.benchmarks.recurrence import recurring
from lm_harmony.errors import ModelError, counted
from lm_harmony.models.model_folder import model_files
from lm_harmony.runs.file_hashes import SMALL, sha256_if_known, sha256_of
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.sources import UNRECORDED, Source, shortened

_DECIDING = ("lm_eval", "lm-harmony")
"""Packages whose code determines requests and metrics."""
FileStates = dict[str, tuple[int, str | None] | None]
"""Current size and hash of each file by path. Hash None: a large file that was never read here. None: it cannot be read."""


def provenance_notes(records: Iterable[RunRecord]) -> Iterator[str]:
    """Yield a note for each benchmark with scores of several package versions, quantized weights or chosen learning rates.

    Another note counts the stale runs of each benchmark, and one names the sources whose content differs between its runs.

    A note on each benchmark says how many of its test questions recur in the training rows, by the run with most of them, and how
    many near duplicates were left out of training, if they were.

    Another note names the models whose adapter changes derived modules, if PEFT's default or other modules hold for other models.

    Each source file is checked once, at the path in the records. Files that cannot be read are skipped, as are those that are
    missing together with all others of their kind, as on another machine.
    """
    states: FileStates = {}
    found: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        found[record.benchmark].append(record)
    for benchmark, group in sorted(found.items()):
        if group[0].spec.benchmark.train_on is not None:
            yield f"{benchmark}: {_other_rows(group)}"
        data = max((record.data for record in group), key=lambda data: sum(map(len, data.near_duplicates.values())))
        if recurs := recurring(data.near_duplicates, data.test):
            yield f"{benchmark}: {recurs}"
        dropped = [one for record in group if (one := record.data.dropped_near_duplicates) is not None]
        if dropped:
            most = max(dropped, key=lambda one: sum(one.train.values()))
            yield f"{benchmark}: {most.sentence()}, in {len(dropped)} of {counted(len(group), 'run')}"
        for package in _DECIDING:
            versions = Counter(version for record in group if (version := _version(record, package)) is not None)
            if len(versions) > 1:
                counts = ", ".join(f"{version} in {counted(count, 'run')}" for version, count in sorted(versions.items()))
                yield f"{benchmark}: its scores mix versions of {package}: {counts}"
        for changed, count in sorted(Counter(filter(None, (changed_files(record.sources, states) for record in group))).items()):
            yield f"{benchmark}: {counted(count, 'run is', 'runs are')} not current: {changed}"
        yield from _other_content(benchmark, group)
        quantized = Counter(kind for record in group if (kind := record.spec.recipe.quantize) is not None)
        for kind, count in sorted(quantized.items()):
            have = "has" if count == 1 else "have"
            runs = f"{count} of {counted(len(group), 'run')} {have}"
            yield f"{benchmark}: {runs} weights quantized to {kind}, which is another recipe"
        tuned = sum(len(record.spec.recipe.rates) > 1 for record in group)
        if tuned:
            runs = f"{tuned} of {counted(len(group), 'run')}"
            yield f"{benchmark}: {runs} chose their learning rate on validation, which is another recipe"
    yield from _mixed_targets(record for group in found.values() for record in group)
    unrecorded = sum(record.sources is None for group in found.values() for record in group)
    if unrecorded:
        were, they = ("was", "it is") if unrecorded == 1 else ("were", "they are")
        yield f"{counted(unrecorded, 'run')} {were} {UNRECORDED}, so it is not known whether {they} current"


def _other_rows(group: Sequence[RunRecord]) -> str:
    """Return what the models of a column were trained on that is not the benchmark's own training split."""
    left_out = {one.exact + one.overlapping for record in group if (one := record.data.train_on) is not None}
    tested, trained = name_parts(group[0].benchmark)
    counts = " to ".join(f"{count:,}" for count in sorted({min(left_out), max(left_out)})) if left_out else "no"
    return (
        f"trained on rows of {trained} in the format of {tested}, so its scores are not comparable with those of {tested}; "
        f"{counts} rows that recur in the test rows were left out"
    )


def _other_content(benchmark: str, group: Sequence[RunRecord]) -> Iterator[str]:
    """Yield a note on sources whose content differs between runs on one benchmark, and one for each model whose files differ.

    The files themselves may be on another machine: their hashes are compared.
    """
    found: dict[tuple[str, str] | None, dict[tuple[str, str], set[frozenset[str]]]] = defaultdict(lambda: defaultdict(set))
    for record in group:
        model = (record.spec.model.name, record.spec.model.revision)
        read: dict[tuple[str, str], set[str]] = defaultdict(set)  # tasks of a group may read several commits of a data set
        for source in record.sources or ():
            if content := source.sha256 or source.commit:
                read[source.kind, source.name].add(content)
        for (kind, name), contents in read.items():
            found[model if kind == "model" else None][kind, name].add(frozenset(contents))
    for named, sources in found.items():
        names = [name for (_, name), known in sources.items() if len(known) > 1]
        if names:
            runs = "its runs" if named is None else f"the runs of {named[0]}"
            yield f"{benchmark}: {runs} were not made from the same files, so their scores are not comparable: {shortened(names)}"


def _mixed_targets(records: Iterable[RunRecord]) -> Iterator[str]:
    """Yield a note on the modules that adapters change, where the recipe names none and they are not alike for all models."""
    models: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for record in records:
        lora = record.spec.recipe.lora
        if lora is not None and not lora.target_modules:
            models[tuple(record.environment.get("lora_targets", ()))].add(record.spec.model.name)
    derived = {targets: names for targets, names in sorted(models.items()) if targets}
    if not derived or len(models) == 1:
        return
    listed = [f"{' '.join(targets)} in {shortened(sorted(names))}" for targets, names in derived.items()]
    others = f"; PEFT's default in {counted(len(models[()]), 'model')}" if models.get(()) else ""
    yield f"adapters change different modules, because PEFT has no default for some models: {'; '.join(listed)}{others}"


def changed_files(recorded: Sequence[Source] | None, states: FileStates, *, read_all: bool = False) -> str | None:
    """Return which source files differ from the record ("rte.yaml changed since"); None: none does.

    Args:
        recorded: sources of a run.
        states: files checked before; files checked now are added.
        read_all: read also large files that were never read here; otherwise only their size is compared.
    """
    changed, gone, here = [], [], set[str]()
    files = [(source, Path(source.path)) for source in recorded or () if source.path is not None]
    for source, path in files:
        if str(path) not in states:
            states[str(path)] = _file_state(path, read_all)
        now = states[str(path)]
        if now is not None:
            here.add(source.kind)
            if now[0] != source.size or now[1] not in (None, source.sha256):
                changed.append(source.name)
        elif not os.path.lexists(path):
            gone.append(source)
    missing = [source.name for source in gone if source.kind in here]
    said = [(changed, "changed since"), (missing, "no longer there"), (_added_files(files), "added since")]
    return "; ".join(f"{shortened(names)} {what}" for names, what in said if names) or None


def _added_files(files: Sequence[tuple[Source, Path]]) -> list[str]:
    """Return the files of a model's folder that loading would read now, and that its record does not list."""
    known = {source.name: path for source, path in files if source.kind == "model"}
    folders = {path.parent for name, path in known.items() if "/" not in name}
    if len(folders) != 1:  # a model on the hub, or a record whose model has been in several places
        return []
    with suppress(OSError, ModelError):
        return [name for name in model_files(folders.pop()) if name not in known]
    return []


def _file_state(path: Path, read_all: bool) -> tuple[int, str | None] | None:
    try:
        if not path.is_file():
            return None
        size = path.stat().st_size
        return size, sha256_of(path) if read_all or size < SMALL else sha256_if_known(path)
    except OSError:  # no permission
        return None


def _version(record: RunRecord, package: str) -> str | None:
    return (record.environment.get("versions") or {}).get(package)
