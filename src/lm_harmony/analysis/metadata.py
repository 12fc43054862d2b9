"""Metadata of the models, benchmarks and metrics of a score matrix, from the catalogues and from the records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import MappingProxyType

from lm_harmony.analysis.score_rows import ScoreRows
from lm_harmony.benchmarks import catalogue as benchmark_catalogue
from lm_harmony.benchmarks.types import MetricKey
from lm_harmony.errors import UsageError, did_you_mean
from lm_harmony.models import catalogue as model_catalogue
from lm_harmony.models.checkpoint_names import checkpoint_of

PERPLEXITY = "Perplexity"
"""Category of text corpora."""
BITS_PER_BYTE = str(MetricKey("bits_per_byte"))
"""Metric of text corpora."""
PAPER_CORPORA = {"wiki_2025": "Wiki", "stackexchange_2025": "Stack", "arxiv_2025": "Arxiv"}
"""Title by name of the three text corpora in the paper's results."""


@dataclass(frozen=True)
class MetricMetadata:
    """Range and direction of a metric."""

    low: float
    """Smallest possible score, in the metric's own unit."""
    high: float
    """Largest possible score, in the metric's own unit; infinite if there is no upper limit."""
    higher_is_better: bool
    """Whether a larger value is better, as in lm_eval's registry of metrics."""


_FRACTION = MetricMetadata(0.0, 1.0, True)
METRICS: Mapping[str, MetricMetadata] = MappingProxyType(
    {
        **dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_all", "exact_match", "f1", "likelihood"), _FRACTION),
        "mcc": MetricMetadata(-1.0, 1.0, True),
        "brier_score": MetricMetadata(0.0, 2.0, False),
        **dict.fromkeys(("bleu", "chrf", "chrf++"), MetricMetadata(0.0, 100.0, True)),
        "ter": MetricMetadata(0.0, math.inf, False),
        "bits_per_byte": MetricMetadata(0.0, math.inf, False),
        **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), MetricMetadata(1.0, math.inf, False)),
    }
)
"""Metadata by lm_eval's metric name without filter. Range and direction of any other metric are not known."""


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model with its family, kind and size; None: not known."""

    name: str
    """Name on the Hugging Face hub, or folder, as in the records."""
    family: str | None = None
    """Model family, such as "Qwen" or "Gemma"."""
    kind: str | None = None
    """Kind of model: "base" or "instruct"."""
    params_b: float | None = None
    """Parameters in billions: the published count, else the count that a run recorded, else the size in the model's name."""
    pretraining_tokens_b: float | None = None
    """Number of pre-training tokens, in billions."""

    @property
    def compute(self) -> float | None:
        """Pre-training FLOPs, estimated as 6 x parameters x tokens; None: one of the two is not known."""
        if self.params_b is None or self.pretraining_tokens_b is None:
            return None
        return 6 * self.params_b * 1e9 * self.pretraining_tokens_b * 1e9


@dataclass(frozen=True, kw_only=True)
class BenchmarkMetadata:
    """A benchmark, its metric, and how boards show its scores."""

    task: str
    """Name in records and tables."""
    title: str
    """Name on boards and figures."""
    category: str
    """Category; "Perplexity" for text corpora, "Other" for benchmarks that are not catalogued."""
    metric: str
    """Metric of the scores, as lm_eval's key "metric,filter"."""
    higher_is_better: bool
    """Whether a larger value of the metric is better."""
    chance: float | None = None
    """Expected score of guessing, in the metric's unit; None: not known."""
    train_rows: int | None = None
    """Rows of the training split before caps; None: not known."""
    percent: bool = True
    """Whether scores are fractions, which boards show in percent. Other scores are shown in the metric's own unit."""

    @property
    def is_perplexity(self) -> bool:
        """Whether it is a text corpus, scored in bits per byte."""
        return self.category == PERPLEXITY

    @property
    def shown_factor(self) -> int:
        """The factor from a score to the value that boards show: 100 for fractions, else 1."""
        return 100 if self.percent else 1

    @property
    def shown_decimals(self) -> int:
        """Decimals of the value that boards show: 4 for metrics with small values, such as bits per byte, else 2."""
        metric = metric_metadata(self.metric)
        is_small = metric is not None and metric.high <= 2
        return 4 if self.is_perplexity or (is_small and not self.percent) else 2


def model_metadata(name: str, parameters: int | None = None) -> ModelMetadata:
    """Return the metadata of a model: of a catalogued one from the catalogue, of another one what its name and its runs tell.

    A checkpoint of a training run (``checkpoint_of``) has the family of the run, and the tokens before it as its tokens.

    Args:
        name: name of the model.
        parameters: number of parameters that a run recorded; None: not known.
    """
    point = checkpoint_of(name)
    info, counted = model_catalogue.find(point.run if point else name), None if parameters is None else parameters / 1e9
    tokens = None if point is None or point.tokens is None else point.tokens / 1e9
    if info is None:
        family = PurePath(point.run).name if point else None
        kind = "instruct" if base_of(name) != name else None
        return ModelMetadata(name=name, family=family, kind=kind, params_b=counted, pretraining_tokens_b=tokens)
    return ModelMetadata(
        name=name,
        family=info.family,
        kind=info.kind,
        params_b=info.params_b or counted or info.nominal_params_b,
        pretraining_tokens_b=tokens if point else info.pretraining_tokens_b,
    )


def base_of(model: str) -> str:
    """Return the name of a model without the ending that instruct models have: -Instruct, -Chat or -it."""
    for ending in ("-instruct", "-chat", "-it"):
        if model.lower().endswith(ending):
            return model[: -len(ending)]
    return model


def benchmark_metadata(task: str, *, metric: str | None = None, higher_is_better: bool | None = None) -> BenchmarkMetadata | None:
    """Return the metadata of a benchmark; None if the direction of its metric is not known.

    Args:
        task: name of the benchmark.
        metric: recorded metric, as "metric,filter"; None: the catalogued one.
        higher_is_better: recorded direction; None: the direction of the metric.
    """
    tested, trained_on = benchmark_catalogue.name_parts(task)
    if trained_on is not None:
        found = benchmark_metadata(tested, metric=metric, higher_is_better=higher_is_better)
        return found and replace(found, task=task, title=f"{found.title} (trained on {trained_on})", train_rows=None)
    info = benchmark_catalogue.find(task)
    if higher_is_better is None and metric is not None and (known := metric_metadata(metric)) is not None:
        higher_is_better = known.higher_is_better
    if info is not None:
        same = metric in (None, info.metric)
        if not same and higher_is_better is None:  # the catalogued direction belongs to another metric
            return None
        return BenchmarkMetadata(
            task=task,
            title=info.title,
            category=info.category,
            metric=metric or info.metric,
            higher_is_better=info.higher_is_better if higher_is_better is None else higher_is_better,
            chance=info.chance if same else None,
            train_rows=info.train_rows,
            percent=is_fraction(metric or info.metric) is not False,
        )
    if metric == BITS_PER_BYTE or (is_corpus(task) and metric is None):
        title = PAPER_CORPORA.get(task, benchmark_catalogue.corpus_title(task))
        return BenchmarkMetadata(
            task=task, title=title, category=PERPLEXITY, metric=BITS_PER_BYTE, higher_is_better=False, percent=False
        )
    if higher_is_better is None:
        return None
    return BenchmarkMetadata(
        task=task,
        title=task,
        category="Other",
        metric=metric or "score",
        higher_is_better=higher_is_better,
        percent=metric is None or is_fraction(metric) is not False,
    )


def metric_metadata(metric: str) -> MetricMetadata | None:
    """Return range and direction of a metric ("acc,none"); None: not known."""
    return METRICS.get(MetricKey.parse(metric).metric)


def is_fraction(metric: str) -> bool | None:
    """Tell whether the values of a metric ("acc,none") lie between -1 and 1; None: its range is not known."""
    known = metric_metadata(metric)
    return None if known is None else known.low >= -1 and known.high <= 1


def is_corpus(task: str) -> bool:
    """Tell whether a benchmark is a text corpus: requested as "corpus:PATH", recorded as "corpus-NAME"."""
    return task in PAPER_CORPORA or benchmark_catalogue.is_corpus(task)


def default_metric(task: str) -> str | None:
    """Return the metric of a benchmark's scores for sources that do not name one; None: not known."""
    info = benchmark_catalogue.find(benchmark_catalogue.name_parts(task)[0])
    return info.metric if info is not None else BITS_PER_BYTE if is_corpus(task) else None


def benchmark_order(task: str) -> tuple[int, str]:
    """Return a sort key: catalogued benchmarks in the order of the catalogue, then other benchmarks by name."""
    known, tested = list(benchmark_catalogue.BENCHMARKS), benchmark_catalogue.name_parts(task)[0]
    return (known.index(tested) if tested in known else len(known), task)


def scored_benchmark(task: str, found: ScoreRows) -> BenchmarkMetadata:
    """Return the metadata of a benchmark with the metric of its scores.

    Raises:
        UsageError: the scores are of several metrics, or the direction of their metric is not known.
    """
    scored = [row for row in found.rows if row.benchmark == task and row.value is not None]
    if not scored:  # the direction of a benchmark without scores has no effect
        return benchmark_metadata(task) or benchmark_metadata(task, higher_is_better=True)  # type: ignore[return-value]
    recorded = {(row.metric, row.higher_is_better) for row in scored}
    if len(recorded) > 1:
        metrics = ", ".join(sorted(f"{metric} ({'higher' if up else 'lower'} is better)" for metric, up in recorded))
        raise UsageError(f"benchmark {task}: {found.source} has scores of several metrics: {metrics}. Keep runs of one metric.")
    [(metric, higher)] = recorded
    metadata = benchmark_metadata(task, metric=metric, higher_is_better=higher)
    if metadata is None:
        near = did_you_mean(task, benchmark_catalogue.BENCHMARKS)
        raise UsageError(
            f"benchmark {task!r} in {found.source} is not catalogued, and its direction is not known.{near} "
            "Use the long layout with a column higher_is_better (docs/analysis.md)."
        )
    if is_fraction(metadata.metric) is None and any(abs(row.value or 0) > 1 for row in scored):
        return replace(metadata, percent=False)  # the metric's range is not known, but these scores are not fractions
    return metadata
