"""A run's folder: reads and writes its files, which ``layout`` lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import DamagedFile, StoreError, UsageError
from lm_harmony.runs.conflicts import refuse_finished, refuse_other_content, refuse_other_request
from lm_harmony.runs.direct_files import direct_score_values, read_direct_score
from lm_harmony.runs.file_values import read_json, read_json_lines, read_yaml, to_plain, with_check, without_check
from lm_harmony.runs.files import write_atomically
from lm_harmony.runs.layout import refuse_foreign, refuse_nested, remove_files, remove_leftovers, remove_run
from lm_harmony.runs.lease import Lease
from lm_harmony.runs.record import EpochLine, EpochRecord, Failure, RunConfig, RunRecord, Sample
from lm_harmony.runs.remote import RemoteSync
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import RunSpec
from lm_harmony.runs.upgrades import upgrade_config, upgrade_record


@dataclass(frozen=True)
class RunStore:
    """The folder of one run."""

    folder: Path
    """Path of the run's folder."""
    remote: RemoteSync | None = None
    """Results behind a URL, whose working copy the folder is; None: the folder itself holds the results."""
    lease: Lease | None = field(default=None, compare=False)
    """Lease of the folder, which every write checks; None: the caller knows that no other process writes."""
    results: Path | None = field(default=None, compare=False)
    """Folder of all results, if it is known. A symbolic link between it and the run's folder is not followed for removal."""

    @classmethod
    def at(cls, results: Path, name: str) -> RunStore:
        """Return the store of run ``name`` below ``results``; creates no folder.

        Raises:
            UsageError: the name is empty or would leave the results folder.
        """
        parts = PurePosixPath(name).parts
        if not name.strip() or name.startswith(("/", "~")) or ".." in parts or "\\" in name or not parts:
            raise UsageError(f"exp_name must be a relative path without '..', got {name!r}. Name a folder inside {results}.")
        return cls(results.joinpath(*parts), results=results)

    def is_finished(self) -> bool:
        """Return whether the run has a record. An empty file is none: a machine that failed may leave one."""
        path = self.folder / "record.json"
        return path.is_file() and path.stat().st_size > 0

    def outcome(self) -> RunRecord | Failure | None:
        """Return the record of a finished run, the failure of a failed one, or None."""
        return self.record() if self.is_finished() else self.failure()

    def requested(self) -> RunSpec | None:
        """Return the specification in config.yaml, or None if there is none that can be read."""
        with suppress(DamagedFile):
            config = self.config()
            return config and config.spec
        return None

    def refuse_conflict(self, spec: RunSpec, *, resume: bool, overwrite: bool) -> None:
        """Check, before anything is loaded, that a run may start or continue in this folder.

        Raises:
            UsageError: the folder holds a run and neither ``resume`` nor ``overwrite`` is set, or a run with another
                specification or other sources is resumed, or the folder is inside or above that of another run.
        """
        if overwrite:
            refuse_foreign(self.folder, self.results)
        elif self.is_finished():
            refuse_finished(self.folder, self.record(), spec)
        begun = None if overwrite else self.config()
        if begun is None:
            return refuse_nested(self.folder, lambda folder: RunStore(folder).requested() is not None)
        refuse_other_request(self.folder, begun, spec, resume=resume)

    def begin(
        self, spec: RunSpec, *, data: str, overwrite: bool, asked: str | None = None, sources: Sequence[Source] = ()
    ) -> None:
        """Write config.yaml; if the run is continued, check that rows, requests and sources are those of its beginning.

        Args:
            spec: the specification of the run.
            data: fingerprint of the rows.
            overwrite: remove what an earlier run left in the folder.
            asked: fingerprint of all requests and training tokens.
            sources: files and hub commits that the run reads.

        Raises:
            UsageError: one of these has changed since the run began, or the folder holds files that no run writes.
            StoreError: the earlier run cannot be removed, or the folder cannot be written.
        """
        if overwrite:
            with self.guard():
                remove_run(self.folder, self.results)
        begun = self.config()
        if begun is not None:
            refuse_other_content(self.folder, begun, data=data, asked=asked, sources=sources)
            with self.guard():
                remove_leftovers(self.folder, checkpoints=False)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            made_from = {"data_fingerprint": data, "asked_fingerprint": asked, "sources": [one.to_dict() for one in sources]}
            self._write("config.yaml", yaml.safe_dump(with_check({**spec.to_dict(), **made_from}), sort_keys=False))

    def config(self) -> RunConfig | None:
        """Return what config.yaml holds, or None where no run was begun.

        Raises:
            DamagedFile: it cannot be read. The other methods that return what a file holds raise it too.
        """
        path = self.folder / "config.yaml"
        return read_yaml(path, RunConfig, upgrade_config) if path.exists() else None

    def made_from(self) -> str | None:
        """Return ``RunConfig.made_from`` of the run, or None where config.yaml is missing or cannot be read."""
        with suppress(DamagedFile):
            config = self.config()
            return None if config is None else config.made_from
        return None

    def epochs(self) -> tuple[EpochRecord, ...]:
        """Return the finished epochs; a last line without its newline, left by a killed process, is skipped."""
        return tuple(line.record for line in self.epoch_lines())

    def epoch_lines(self) -> tuple[EpochLine, ...]:
        """Return the lines of ``epochs`` with the checksums of their checkpoints."""
        path = self.folder / "epochs.jsonl"
        return read_json_lines(path, EpochLine, without_check, skip_torn_end=True) if path.exists() else ()

    def write_epochs(self, lines: Iterable[EpochLine]) -> None:
        """Write the finished epochs, whose checkpoints must be written before."""
        self._write("epochs.jsonl", "".join(json.dumps(with_check(line.to_dict())) + "\n" for line in lines))
        self._push()

    def add_epoch(self, epoch: EpochRecord, checkpoint: Mapping[str, str] = {}) -> None:
        """Append a finished epoch, whose checkpoint, of files with these checksums, must be written before."""
        self.write_epochs([*self.epoch_lines(), EpochLine.of(epoch, checkpoint, self.made_from())])

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of an epoch's checkpoint folder."""
        return self.folder / "checkpoints" / f"epoch-{epoch}"

    def remove_other_checkpoints(self, epochs: Iterable[int]) -> None:
        """Remove the checkpoints of all other epochs."""
        kept = {self.checkpoint(epoch) for epoch in epochs}
        for folder in (self.folder / "checkpoints").glob("*"):
            if folder not in kept:
                self.remove(folder)
        if not kept:
            self.remove(self.folder / "checkpoints")
            self._push()

    def remove(self, part: Path) -> None:
        """Remove the run's files in a folder inside the run's; other files and symbolic links stay."""
        with self.guard():
            remove_files(self.folder, part)

    def direct_score(self, name: str = "direct", requests: str | None = None) -> Score | None:
        """Return the direct score ``name`` (``direct_name``) with its samples; None: there is none of these requests."""
        return read_direct_score(self.folder, name, requests, self.made_from())

    def write_direct_score(self, score: Score, name: str = "direct", requests: str | None = None) -> None:
        """Write a score of the untouched model, which a resumed run reads. Its samples are written first."""
        sha256 = self.write_samples(name, score.samples)
        values = direct_score_values(score, samples_sha256=sha256, requests=requests, run=self.made_from())
        self._write(f"{name}.json", json.dumps(with_check(values)))
        self._push()

    def write_samples(self, split: str, samples: Iterable[Mapping[str, object]]) -> str:
        """Write the per-document outcomes of a split, and return the SHA-256 of the file."""
        text = "".join(json.dumps(sample, default=str, ensure_ascii=False) + "\n" for sample in samples)
        self._write(f"samples_{split}.jsonl", text)
        return hashlib.sha256(text.encode()).hexdigest()

    def samples(self, split: str) -> tuple[Mapping[str, object], ...]:
        """Return the per-document outcomes of a split; empty if none were written."""
        path = self.folder / f"samples_{split}.jsonl"
        return read_json_lines(path, Sample) if path.exists() else ()

    def write_results(self, results: Mapping[str, object], *, time: str) -> None:
        """Write `results_<time>.json` in lm_eval's schema."""
        self._write(f"results_{time}.json", json.dumps(results, indent=2, default=str, ensure_ascii=False))

    def write_record(self, record: RunRecord) -> None:
        """Write record.json, which marks the run as finished."""
        self._write("record.json", json.dumps(with_check(record.to_dict()), indent=2, ensure_ascii=False))
        self._push()

    def write_failure(self, failure: Failure) -> None:
        """Write failure.json; epochs and checkpoints stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("failure.json", json.dumps(with_check(to_plain(failure)), indent=2, ensure_ascii=False))
        self._push()

    def failure(self) -> Failure | None:
        """Return why the run failed, or None."""
        path = self.folder / "failure.json"
        return read_json(path, Failure) if path.exists() else None

    def remove_failure(self) -> None:
        """Remove failure.json, so that a study tries the run again."""
        with self.guard():
            (self.folder / "failure.json").unlink(missing_ok=True)
        if self.remote is not None:
            self.remote.remove(f"{self._path}/failure.json")

    def guard(self) -> AbstractContextManager[None]:
        """Return the block in which a file of this folder may be written: it checks the lease, if there is one."""
        return nullcontext() if self.lease is None else self.lease.writing()

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, text, self.guard)

    def pull(self) -> None:
        """Copy the run from the results behind a URL into the working copy; does nothing for results in a folder.

        Raises:
            StoreError: the results cannot be reached.
        """
        if self.remote is not None:
            self.remote.pull(self._path)

    def _push(self) -> None:
        if self.remote is not None:
            self.remote.push(self._path, *([self.lease.check] if self.lease else []))

    @property
    def _path(self) -> str:
        assert self.remote is not None
        return self.folder.relative_to(self.remote.folder).as_posix()

    def record(self) -> RunRecord:
        """Read the record of a finished run; raises StoreError if the run is not finished."""
        if not (path := self.folder / "record.json").exists():
            raise StoreError(f"{path} does not exist: the run is not finished. Run it first.")
        return read_json(path, RunRecord, upgrade_record)
