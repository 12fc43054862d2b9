"""Notes about the provenance of scores: mixed package versions, changed source files, records without sources."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lm_harmony.benchmarks.catalogue import name_parts
from lm_harmony.benchmarks.recurrence import recurring
from lm_harmony.errors import counted
from lm_harmony.runs.file_hashes import SMALL, remembered, sha256_of
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.sources import UNRECORDED, Source, shortened

_DECIDING = ("lm_eval", "lm-harmony")
"""Packages whose code determines requests and metrics."""
FileStates = dict[str, tuple[int, str | None] | None]
"""Current size and hash of each file by path. Hash None: a large file without a cached hash. None: the file cannot be read."""


def provenance_notes(records: Iterable[RunRecord]) -> Iterator[str]:
    """Yield a note for each benchmark with scores of several package versions, quantized weights or chosen learning rates.

    Another note counts the stale runs of each benchmark.

    A note on each benchmark says how many of its test questions recur in the training rows, by the run with most of them, and how
    many near duplicates were left out of training, if they were.

    Another note names the models whose adapter changes derived modules, if PEFT's default or other modules hold for other models.

    Each source file is checked once, at the path in the records. Files that are missing, as on another machine, or that cannot be
    read are skipped.
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


def changed_files(recorded: Sequence[Source] | None, states: FileStates) -> str | None:
    """Return which source files differ from the record ("rte.yaml changed since"); None: none does.

    Args:
        recorded: sources of a run.
        states: files checked before; files checked now are added.
    """
    changed = []
    for source in recorded or ():
        if source.path is None:
            continue
        if source.path not in states:
            states[source.path] = _file_state(Path(source.path))
        now = states[source.path]
        if now is not None and (now[0] != source.size or now[1] not in (None, source.sha256)):
            changed.append(source.name)
    return f"{shortened(changed)} changed since" if changed else None


def _file_state(path: Path) -> tuple[int, str | None] | None:
    try:
        if not path.is_file():
            return None
        size = path.stat().st_size
        return size, sha256_of(path) if size < SMALL else remembered(path)
    except OSError:  # no permission
        return None


def _version(record: RunRecord, package: str) -> str | None:
    return (record.environment.get("versions") or {}).get(package)
