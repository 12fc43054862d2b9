"""A placement that is under way, and what ``lm-harmony place MODEL --until 10`` prints about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rich.table import Column, Table

from lm_harmony.analysis.placement import Placement, published_placement
from lm_harmony.analysis.placement_order import Progress, Stop, planned_order
from lm_harmony.analysis.published import TEST_ROWS
from lm_harmony.analysis.sequential_placement import SequentialPlacement
from lm_harmony.cli.console import Format, say, show_table
from lm_harmony.models.model_folder import shown_name
from lm_harmony.runs.published_settings import differences_from_published
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.plan import RunPrice
from lm_harmony.studies.study import Study

_NAMED = 3
"""Largest number of benchmarks whose differences from the published runs are named."""


@dataclass(kw_only=True)
class Placing:
    """A placement that is under way."""

    study: Study
    """The model on every published benchmark."""
    until: int | None
    """Accepted width of the rank interval in places; None: every benchmark that fits into the hours."""
    placement: SequentialPlacement
    """Distribution that scores are judged by."""
    prices: dict[str, RunPrice] = field(default_factory=dict)
    """Benchmarks that can be run and have no score yet, with what they take."""
    failed: dict[str, str] = field(default_factory=dict)
    """Benchmarks whose run failed, with the cause."""
    scores: dict[str, float] = field(default_factory=dict)
    """Standardised score of each finished benchmark."""
    errors: dict[str, float] = field(default_factory=dict)
    """Standard error of each score in standardised units, measured or expected."""
    differences: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Benchmark -> what differs from the published runs."""

    @property
    def specs(self) -> dict[str, RunSpec]:
        """The runs by benchmark."""
        return {spec.benchmark.task: spec for spec in self.study.spec.runs}

    @property
    def left(self) -> dict[str, RunPrice]:
        """Benchmarks that can still be run, with what they take."""
        return {task: one for task, one in self.prices.items() if task not in self.scores and task not in self.failed}

    @property
    def progress(self) -> Progress:
        """The placement with the scores of now."""
        return Progress(placement=self.placement, scores=self.scores, errors=self.errors)

    def position(self, model: str) -> Placement:
        """Return where the model stands with the scores of now."""
        now, rivals = self.progress.position, self.placement.rivals
        return Placement(
            model=shown_name(model),
            benchmarks=tuple(self.scores),
            missing=tuple(task for task in self.placement.tasks if task not in self.scores),
            pc1=now.pc1,
            low=now.low,
            high=now.high,
            rank=1 + int((rivals > now.pc1).sum()),
            rank_low=now.best,
            rank_high=now.worst,
            of=len(rivals),
            outside=(),
        )

    def read_results(self) -> None:
        """Read the scores of finished runs and the causes of failed ones."""
        reference, status = published_placement().reference, self.study.status()
        for run in status.finished:
            task, record = run.spec.benchmark.task, run.store.record()
            if record.trained is not None:
                scale = reference.scales[task]
                self.scores[task] = float((record.trained.metrics[record.metric] - reference.means[task]) / scale)
                own = (record.trained.stderrs.get(record.metric) or 0.0) / scale
                # The standard error of no right answer among a few is 0, which is not what is known of the model.
                self.errors[task] = max(float(own), self._expected_error(task, record.trained.documents))
                self.differences[task] = differences_from_published(record.spec, record.data.train)
        self.failed = {run.spec.benchmark.task: failure.cause for run, failure in status.failed.items()}

    def add_price(self, task: str, found: RunPrice) -> None:
        """Note what a benchmark takes, and the standard error that its number of test questions lets expect."""
        self.prices[task] = found
        self.differences[task] = differences_from_published(self.specs[task], found.training_rows)
        self.errors[task] = self._expected_error(task, found.test_rows)

    def _expected_error(self, task: str, test_rows: int) -> float:
        """Return the standard error of a usual model on ``test_rows`` questions, in standardised units."""
        usual = self.placement.usual_errors[self.placement.tasks.index(task)]
        return float(usual * np.sqrt(max(1.0, TEST_ROWS[task] / test_rows)))


def show_plan(placing: Placing, hardware: str, format: Format = "table") -> None:
    """Print the order of the benchmarks, what each one takes, and the width that is expected after it."""
    right = [Column(head, justify="right") for head in ("training rows", "hours", "hours so far", "expected width")]
    narrow = [] if placing.until is None else [Column(f"at most {placing.until} places", justify="right")]
    table = Table("", "benchmark", *right, *narrow, title="Planned order", title_justify="left")
    total, left = 0.0, placing.left
    for number, one in enumerate(planned_order(placing.progress, {task: left[task].hours for task in left}, placing.until), 1):
        total += left[one.task].hours
        cells = [f"{left[one.task].training_rows:,}", f"{left[one.task].hours:.3g}", f"{total:.3g}", f"{one.width:.1f}"]
        table.add_row(str(number), one.task, *cells, *([f"{one.reached:.0%}"] if narrow else []))
    show_table(table, optional=("hours so far", "training rows"), format=format)
    if format != "table":
        return
    say(
        f"Hours are predicted for {hardware}. The width is that of the 95% interval of the rank, in places. "
        "The order changes with the scores."
    )


def show_differences(placing: Placing) -> None:
    """Say what follows from runs that differ from the published ones."""
    differing = {task: found for task, found in placing.differences.items() if found}
    if differing:
        named = "; ".join(f"{task}: {', '.join(found)}" for task, found in list(differing.items())[:_NAMED])
        more = f"; and {len(differing) - _NAMED} more benchmarks" if len(differing) > _NAMED else ""
        say(
            f"NOT COMPARABLE with the published board: {named}{more}. The published models were trained by the published recipe "
            "on all rows, and other training gives other scores. The ranks below are therefore not the model's place. "
            "Remove the caps and changes of the recipe, and use complete rows, to get it."
        )


def show_position(placing: Placing, model: str) -> None:
    """Print where the model stands, if it has a score."""
    if not placing.scores:
        return
    now = placing.position(model)
    say(
        f"{now.model} after {', '.join(now.benchmarks)}: rank {now.rank} ({now.rank_low} to {now.rank_high}, "
        f"{now.rank_high - now.rank_low} places wide) among {now.of} other models, PC1 {now.pc1:.0f} ({now.low:.0f} to "
        f"{now.high:.0f}){_incomparable(placing)}"
    )


def _incomparable(placing: Placing) -> str:
    differing = sum(bool(placing.differences.get(task)) for task in placing.scores)
    return f" NOT COMPARABLE ({differing} of {len(placing.scores)} runs differ)" if differing else ""


def show_place(placing: Placing, model: str) -> None:
    """Print the place of the model in one sentence, if it has a score."""
    if placing.scores:
        now = placing.position(model)
        span = f"{_ordinal(now.rank_low)} to {_ordinal(now.rank_high)} (95% interval)"
        say(f"{now.model} is {_ordinal(now.rank)} of {now.of + 1}, {span}{_incomparable(placing)}")


def _ordinal(number: int) -> str:
    """Return "1st", "2nd", "3rd", "4th", "11th" and so on."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def show_end(placing: Placing, reason: Stop | None) -> None:
    """Say why no further benchmark is run, and what to do for a narrower interval."""
    if reason == "narrow":
        say(f"done: the interval of the rank is at most {placing.until} places wide")
    elif reason == "out of reach":
        width, probability = placing.progress.expected(list(placing.left), placing.until)
        say(
            f"stopped: {placing.until} places are probably out of reach. With all benchmarks that can be run, the interval would "
            f"be about {width:.0f} places wide, and at most {placing.until} with a probability of {probability:.0%}. Repeat the "
            f"command with --until {round(width) + 1}, or with --hours to run them all the same."
        )
    elif reason == "no benchmark left":
        say("stopped: no benchmark is left to run")
    else:
        say("stopped: the hours are used. Repeat the command to continue.")
