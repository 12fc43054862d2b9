"""A run whose rows and model are loaded: what training, scoring and the record take from it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property

from lm_harmony.benchmarks.harness import Benchmark
from lm_harmony.benchmarks.harness.few_shot import DirectRows
from lm_harmony.benchmarks.near_duplicates import recurring_rows
from lm_harmony.benchmarks.recurrence import FEWEST_ROWS
from lm_harmony.benchmarks.splits import Splits
from lm_harmony.benchmarks.types import Example, FewShotScore, Reply, Score, requests_of
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.errors import ScoreNotFinite
from lm_harmony.models.loading import LanguageModel
from lm_harmony.runs.data_record import DataRecord
from lm_harmony.runs.environment import describe_environment
from lm_harmony.runs.fingerprint import RequestFingerprints, direct_score_id
from lm_harmony.runs.memory_errors import memory_errors
from lm_harmony.runs.record import Environment, RunRecord
from lm_harmony.runs.shots import direct_name
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import RunSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """A run whose rows and model are loaded, ready for training and scoring."""

    spec: RunSpec
    """The request that the run was set up for."""
    task: Benchmark = field(repr=False)
    """Task, or group of tasks, which turns replies into metrics."""
    scorer: Scorer = field(repr=False)
    """Model with its backend, and a count of the tokens it has scored."""
    splits: Splits = field(repr=False)
    """Rendered rows for training, validation and test."""
    direct: Mapping[int, DirectRows] = field(repr=False)
    """Number of examples before each question -> the test rows with them, of every requested direct score."""
    sequences: Sequence[TokenSequence] = field(repr=False)
    """Training rows as token ids, without those whose answer is too long."""
    metric: str
    """Metric that chooses the epoch, as "metric,filter"."""
    higher_is_better: bool
    """Whether a higher value of the metric is better."""
    sources: tuple[Source, ...] = field(repr=False)
    """Files and hub commits that the run reads."""
    fingerprints: RequestFingerprints
    """Fingerprints of the requests and of the training tokens."""
    derived_targets: tuple[str, ...]
    """Names of the adapted modules where neither the recipe nor PEFT names them; else empty."""
    ways_out: tuple[str, ...] = ()
    """What ``--memory auto`` switched on so that the run fits into memory."""

    @property
    def model(self) -> LanguageModel:
        """The model that is trained and scored."""
        return self.scorer.model

    @property
    def answer_too_long(self) -> int:
        """Number of training rows left out because their answer is longer than a training sequence may be."""
        return len(self.splits.train) - len({sequence.row for sequence in self.sequences})

    @cached_property
    def near_duplicates(self) -> dict[str, tuple[int, ...]]:
        """How test rows recur in the training rows -> numbers of these test rows, from 0."""
        if self.splits.dropped_near_duplicates is not None:  # in none that is left
            return {}
        return recurring_rows(self.task, self.splits.test, self.splits.train)

    def direct_score_id(self, shots: int = 0) -> str:
        """Return the key of a direct score in the cache; runs with equal keys have equal direct scores."""
        return direct_score_id(self.spec, self.fingerprints, self.sources, dtype=repr(self.model.precision), shots=shots)

    def few_shot_score(self, shots: int, score: Score) -> FewShotScore:
        """Return a direct score with what is known of its examples, and log how many rows were cut."""
        rows = self.direct[shots]
        cut = iter(self.scorer.truncated(requests_of(rows.examples)))
        truncated = sum(any([next(cut) for _ in one.requests]) for one in rows.examples)
        if truncated:
            log.warning(
                "%s, %d examples: %d of %d rows are longer than the model's %d tokens and lose the beginning of their examples.",
                *(self.task.name, shots, truncated, len(rows.examples), self.model.max_length),
            )
        known = {one.name: getattr(score, one.name) for one in fields(Score)}
        requests = self.fingerprints.few_shot[shots]
        return FewShotScore(**known, requests=requests, split=rows.split, replaced=rows.replaced, truncated=truncated)

    def with_scores_without_near_duplicates(self, record: RunRecord) -> RunRecord:
        """Return the record with the scores on test rows without a near duplicate, of each score that has its samples."""
        rows = record.data.recurring_rows
        if not rows or record.data.test - len(rows) < FEWEST_ROWS:
            return record
        found = {name: self.task.score_without(score, rows) for name, score in record.scores.items() if score.samples}
        return replace(record, without_near_duplicates={**record.without_near_duplicates, **found})

    def environment(self) -> Environment:
        """Return versions and hardware, the number formats, and the forward passes that the probe chose."""
        described = describe_environment(self.model.device, use_git=self.spec.execution.use_git)
        formats = asdict(self.model.precision)
        found: Environment = {**described, "precision": formats, "engine": self.scorer.backend.describe()}
        optional = {"device_map": self.model.device_map, "ways_out": self.ways_out, "lora_targets": self.derived_targets}
        return {**found, **{key: value for key, value in optional.items() if value}}  # type: ignore[typeddict-item]

    def data_record(self) -> DataRecord:
        """Return the counts of rows that were used and left out."""
        splits = self.splits
        return DataRecord(
            fingerprint=splits.fingerprint(),
            train=len(splits.train) - self.answer_too_long,
            validation=len(splits.validation),
            test=len(splits.test),
            carved=splits.carved,
            dropped_from_train=splits.dropped_from_train,
            dropped_from_validation=splits.dropped_from_validation,
            without_answer=splits.without_answer,
            truncated=sum(sequence.truncated for sequence in self.sequences),
            answer_too_long=self.answer_too_long,
            appended_tokens=self.model.text.appended,
            train_on=splits.train_on,
            near_duplicates=self.near_duplicates,
            dropped_near_duplicates=splits.dropped_near_duplicates,
        )

    def phases(self) -> list[tuple[str, float]]:
        """Return the (name, work) of each phase of the run, for its progress bar. The unit is a character that is scored."""
        splits, spec = self.splits, self.spec
        epoch = 2.0 * sum(len(row.context) + len(row.continuation or "") for row in splits.train)  # forward and backward
        validation, test = (sum(map(_characters, rows)) for rows in (splits.validation, splits.test))
        found = [(f"{direct_name(shots)} test", sum(map(_characters, rows.examples))) for shots, rows in self.direct.items()]
        for number in range(1, spec.recipe.total_epochs + 1):
            name = f"epoch {number}/{spec.recipe.total_epochs}"
            found += [(name, epoch), (f"validation of {name}", validation)]
        return found + [("test", test)] * (spec.recipe.epochs if spec.test_curve else int(spec.test))

    def score(self, examples: Sequence[Example], *, final: bool) -> Score:
        """Return the score of the model's current weights on ``examples``.

        Args:
            examples: rows of one split.
            final: add standard errors and per-document samples.

        Raises:
            ScoreNotFinite: a log-likelihood is not finite, or the metric that chooses the epoch has no finite value.
        """
        with memory_errors(self.spec, "scoring"):
            replies = self.scorer.reply(requests_of(examples))
        return self.grade(examples, iter(replies), final=final)

    def grade(self, examples: Sequence[Example], replies: Iterator[Reply], *, final: bool) -> Score:
        """Return the score of ``replies`` to the requests of ``examples``; ``final`` and errors are those of ``score``."""
        grouped = [list(itertools.islice(replies, len(example.requests))) for example in examples]
        score = self.task.score(examples, grouped, errors=final, samples=final)
        if self.metric not in score.metrics:
            raise ScoreNotFinite(
                f"train_param.metric_for_best_model = {self.metric} of {self.task.name} has no finite value on these "
                f"{len(examples)} documents. Choose one of {', '.join(score.metrics) or 'another benchmark'}."
            )
        return score


def _characters(example: Example) -> float:
    """Return the number of characters that the requests of a document have; a context that they share counts once."""
    return float(sum(map(len, {request.context for request in example.requests}))) + sum(
        len(request.continuation) for request in example.requests
    )
