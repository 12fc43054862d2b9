"""What a run writes: its record, epochs, failure and configuration. No torch: a board reads these files on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from lm_harmony.benchmarks.catalogue import name_parts
from lm_harmony.benchmarks.types import FewShotScore, Score
from lm_harmony.errors import FILE_RULES, UsageError
from lm_harmony.recipe import Number, fingerprint
from lm_harmony.runs.data_record import DataRecord
from lm_harmony.runs.file_values import from_plain, to_plain
from lm_harmony.runs.shots import direct_name
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import RunSpec
from lm_harmony.runs.upgrades import FORMAT, upgrade_record


def _with_document(sample: dict[str, Any]) -> dict[str, Any]:
    if type(sample.get("doc_id")) is not int:
        raise ValueError(f"doc_id must be an integer, got {sample.get('doc_id')!r}")
    return sample


Sample = Annotated[dict[str, Any], AfterValidator(_with_document)]
"""Outcome of one document, in lm_eval's sample schema."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of the training, a line of epochs.jsonl."""

    __pydantic_config__ = FILE_RULES

    epoch: int
    """Number of the epoch, counted from 1."""
    loss: float
    """Mean training loss in nats per token."""
    validation: Mapping[str, float]
    """Value of every metric on the validation split, by "metric,filter"."""
    tokens: int
    """Number of training tokens in this epoch, without padding."""
    seconds: float = field(compare=False)
    """Seconds that training took."""
    validation_seconds: float = field(compare=False)
    """Seconds that scoring the validation split took."""
    learning_rate: Number | None = None
    """Peak learning rate of the epoch's training, in a run that chooses it by validation; None: the recipe has one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the epoch as plain values, without a learning rate that the recipe has."""
        optional = ("learning_rate", "run")
        return {name: value for name, value in to_plain(self).items() if name not in optional or value is not None}


@dataclass(frozen=True, kw_only=True)
class EpochLine(EpochRecord):
    """A line of epochs.jsonl: an epoch with the checksums of its checkpoint, which lines of version 0.2 and earlier lack."""

    checkpoint: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file of the epoch's checkpoint, by its path inside the checkpoint's folder."""
    run: str | None = None
    """``RunConfig.made_from`` of the run that trained the epoch; None: the line was written by an older version."""

    @classmethod
    def of(cls, epoch: EpochRecord, checkpoint: Mapping[str, str], run: str | None) -> EpochLine:
        """Return the line of an epoch of ``run`` whose checkpoint's files have the checksums ``checkpoint``."""
        return cls(**{one.name: getattr(epoch, one.name) for one in fields(EpochRecord)}, checkpoint=checkpoint, run=run)

    @property
    def record(self) -> EpochRecord:
        """The epoch alone."""
        return EpochRecord(**{one.name: getattr(self, one.name) for one in fields(EpochRecord)})


@dataclass(frozen=True, kw_only=True)
class DirectScoreFile(Score):
    """What direct.json holds: a score whose samples are in a file of their own."""

    samples_sha256: str | None = None
    """SHA-256 of samples_direct.jsonl; None: the score was written by an older version."""
    requests: str | None = None
    """Fingerprint of the requests if they have examples (``FewShotScore``); None: they have none."""
    run: str | None = None
    """``RunConfig.made_from`` of the run in whose folder it is; None: it is shared by runs, or of an older version."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run of a study failed, the content of failure.json."""

    __pydantic_config__ = FILE_RULES

    kind: str
    """Name of the error, or "worker died"."""
    cause: str
    """Message of the error, or how the worker process ended."""
    attempts: int
    """Number of attempts that were made."""
    log_tail: tuple[str, ...] = ()
    """Last lines of the worker's log."""


@with_config({"extra": "allow", "strict": True})
class Environment(TypedDict, total=False):
    """What a run was carried out with; records of other versions may have further keys."""

    versions: Mapping[str, str]
    """Version of Python and of each library, by its name on the package index."""
    system: str
    """Operating system, as ``platform.platform()`` names it."""
    hardware: Mapping[str, Any]
    """Processor, its threads, and the GPU."""
    device: str
    """Device of the model, such as "cuda:0"."""
    git_revision: str | None
    """Commit of the working folder, with "+changes" where files differ from it."""
    precision: Mapping[str, str | None]
    """Number formats of weights and matrix products."""
    engine: Mapping[str, Any]
    """Forward passes that the probe chose."""
    device_map: Mapping[str, str]
    """Name of a module -> its device, where the weights are on several devices."""
    ways_out: tuple[str, ...]
    """What ``--memory auto`` switched on because the run would not have fitted into memory; absent if nothing."""
    lora_targets: tuple[str, ...]
    """Names of the adapted modules where neither the recipe nor PEFT names them."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a run found. Two runs of one command on one machine have equal records; costs are not compared."""

    __pydantic_config__ = FILE_RULES

    spec: RunSpec
    """Specification that the run executed."""
    benchmark: str
    """Name of the benchmark's task, with what it was trained on if that is another benchmark (``catalogue.trained_name``)."""
    model_revision: str | None
    """Commit of the weights on the hub; None: not known."""
    metric: str
    """Metric that chose the epoch and is shown on boards, as "metric,filter"."""
    higher_is_better: bool
    """Whether a higher value of the metric is better."""
    data: DataRecord
    """Counts of used and left-out rows."""
    direct: Score | None
    """Test score of the untouched model; None: not requested."""
    epochs: tuple[EpochRecord, ...]
    """All epochs with their validation scores."""
    chosen_epoch: int
    """Number of the epoch that was tested, counted from 1."""
    trained: Score | None
    """Test score of the chosen epoch; None: not requested."""
    test_curve: Mapping[int, Mapping[str, float]]
    """Epoch -> test metrics; empty unless ``spec.test_curve`` is set."""
    environment: Environment = field(compare=False)
    """Versions, hardware and the git commit."""
    costs: Mapping[str, Number] = field(compare=False)
    """Seconds of each phase, numbers of tokens, and peak memory in bytes."""
    sources: tuple[Source, ...] | None = None
    """Files and hub commits that the run read; None: the record is older than this field."""
    request_fingerprint: Annotated[str | None, Field(alias="asked")] = None
    """Fingerprint of all requests and training tokens (``RequestFingerprints.run``); None: the record is older."""
    parameters: int | None = None
    """Number of the model's parameters, without the adapter; None: the record is older than this field."""
    direct_fewshot: Mapping[int, FewShotScore] = field(default_factory=dict)
    """Number of examples before each question, from 1 -> test score of the untouched model with them."""
    without_near_duplicates: Mapping[str, Score] = field(default_factory=dict)
    """Name of a score, as in ``scores`` -> that score on the test rows without a near duplicate in the training rows. Empty: no
    test row has one, fewer than ``recurrence.FEWEST_ROWS`` rows have none, or the record is older."""

    def __post_init__(self) -> None:
        rated = {epoch.epoch for epoch in self.epochs if epoch.learning_rate in self.spec.recipe.rates}
        if len(self.spec.recipe.rates) > 1 and self.chosen_epoch not in rated:
            raise UsageError(f"chosen_epoch = {self.chosen_epoch} is no epoch of a learning rate of the recipe. Run it again.")

    @property
    def scores(self) -> dict[str, Score]:
        """The test scores by the names that boards give them: direct, direct_<k>shot with k examples, and trained."""
        direct = {0: self.direct, **self.direct_fewshot}
        found = {**{direct_name(shots): direct.get(shots) for shots in sorted(direct)}, "trained": self.trained}
        return {name: score for name, score in found.items() if score is not None}

    @property
    def tested_benchmark(self) -> str:
        """Name of the benchmark whose test rows were scored, whatever the training rows are of."""
        return name_parts(self.benchmark)[0]

    def to_dict(self) -> dict[str, object]:
        """Return the record as plain values for JSON, without per-document samples."""
        plain = {"format": FORMAT, **to_plain(self), "spec": self.spec.to_dict(), "epochs": [e.to_dict() for e in self.epochs]}
        data = ((plain["data"], name) for name in ("train_on", "near_duplicates", "dropped_near_duplicates"))
        for part, name in (*data, (plain, "direct_fewshot"), (plain, "without_near_duplicates")):
            if not part[name]:  # as versions without this field wrote it
                part.pop(name)
        return {**plain, "sources": None if self.sources is None else [source.to_dict() for source in self.sources]}

    @classmethod
    def from_dict(cls, values: object) -> RunRecord:
        """Return the record that ``to_dict`` wrote.

        Raises:
            StoreError: it is of another format, or a field is missing, unknown, of another type, or against its rule.
        """
        return from_plain(cls, upgrade_record(values))


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSpec):
    """What config.yaml holds: the specification of a run that was begun, and fingerprints of what it was begun with."""

    data_fingerprint: str
    """Fingerprint of every text of the three splits."""
    recipe_fingerprint: str | None = None
    """Fingerprint of the recipe and of the version of the training, as the run was begun."""
    asked_fingerprint: str | None = None
    """Fingerprint of every request and training token; None: the run was begun by an older version."""
    sources: tuple[Source, ...] | None = None
    """Every file and hub commit that the run reads; None: the run was begun by an older version."""

    @property
    def made_from(self) -> str:
        """Fingerprint of what decides the epochs: recipe, seed, rows, requests and sources, wherever the files are."""
        sources = None if self.sources is None else sorted(map(repr, (one.content for one in self.sources)))
        known = self.recipe_fingerprint, self.seed, self.data_fingerprint, self.asked_fingerprint
        return fingerprint([*known, self.model.apply_chat_template, sources])

    @property
    def spec(self) -> RunSpec:
        """The specification alone."""
        return RunSpec(**{field.name: getattr(self, field.name) for field in fields(RunSpec)})
