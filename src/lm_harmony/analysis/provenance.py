"""What a board says of where its numbers come from: versions that were mixed, files that changed, records that cannot tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lm_harmony.runs.file_hashes import SMALL, remembered, sha256_of
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.sources import UNRECORDED, Source, shortened

_DECIDING = ("lm_eval", "lm-harmony")
"""Packages whose code decides what is asked and how it is counted."""
Looks = dict[str, tuple[int, str | None] | None]
"""Path -> size and hash of the file today; no hash: it is large and none is remembered; None: no file that can be read."""


def provenance_notes(records: Iterable[RunRecord]) -> Iterator[str]:
    """Yield a line for each benchmark whose scores mix versions, and for runs that are not, or may not be, current.

    Files are looked at where the records say that they were, each one once. Of files that are not there, as on another machine,
    or that cannot be read, nothing is said.
    """
    looks: Looks = {}
    found: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        found[record.benchmark].append(record)
    for benchmark, group in sorted(found.items()):
        for package in _DECIDING:
            versions = Counter(version for record in group if (version := _version(record, package)) is not None)
            if len(versions) > 1:
                told = ", ".join(f"{version} in {count} runs" for version, count in sorted(versions.items()))
                yield f"{benchmark}: its scores mix versions of {package}: {told}"
        for changed, count in sorted(Counter(filter(None, (files_changed(record.sources, looks) for record in group))).items()):
            yield f"{benchmark}: {count} runs are not current: {changed}"
    unrecorded = sum(record.sources is None for group in found.values() for record in group)
    if unrecorded:
        yield f"{unrecorded} runs were {UNRECORDED}: whether they are current cannot be told"


def files_changed(recorded: Sequence[Source] | None, looks: Looks) -> str | None:
    """Say which files are no longer as recorded where they were ("rte.yaml changed since"), or return None.

    Args:
        recorded: sources of a run.
        looks: what was seen of files before; what is seen now is added.
    """
    changed = []
    for source in recorded or ():
        if source.path is None:
            continue
        if source.path not in looks:
            looks[source.path] = _look(Path(source.path))
        now = looks[source.path]
        if now is not None and (now[0] != source.size or now[1] not in (None, source.sha256)):
            changed.append(source.name)
    return f"{shortened(changed)} changed since" if changed else None


def _look(path: Path) -> tuple[int, str | None] | None:
    try:
        if not path.is_file():
            return None
        size = path.stat().st_size
        return size, sha256_of(path) if size < SMALL else remembered(path)
    except OSError:  # not this user's
        return None


def _version(record: RunRecord, package: str) -> str | None:
    return (record.environment.get("versions") or {}).get(package)
