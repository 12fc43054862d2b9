"""What a board says of where its numbers come from: versions that were mixed, files that changed, records that cannot tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.sources import UNRECORDED, changed_here

_DECIDING = ("lm_eval", "lm-harmony")
"""Packages whose code decides what is asked and how it is counted."""


def provenance_notes(records: Iterable[RunRecord]) -> Iterator[str]:
    """Yield a line for each benchmark whose scores mix versions, and for runs that are not, or may not be, current.

    Files are looked at where the records say that they were; on another machine, where they are not, nothing is said of them.
    """
    found: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        found[record.benchmark].append(record)
    for benchmark, group in sorted(found.items()):
        for package in _DECIDING:
            versions = Counter(version for record in group if (version := _version(record, package)) is not None)
            if len(versions) > 1:
                told = ", ".join(f"{version} in {count} runs" for version, count in sorted(versions.items()))
                yield f"{benchmark}: its scores mix versions of {package}: {told}"
        for changed, count in sorted(Counter(filter(None, (changed_here(record.sources) for record in group))).items()):
            yield f"{benchmark}: {count} runs are not current: {changed}"
    unrecorded = sum(record.sources is None for group in found.values() for record in group)
    if unrecorded:
        yield f"{unrecorded} runs were {UNRECORDED}: whether they are current cannot be told"


def _version(record: RunRecord, package: str) -> str | None:
    return (record.environment.get("versions") or {}).get(package)
