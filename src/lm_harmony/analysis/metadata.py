"""What is known of the models and benchmarks of a matrix, beside their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lm_harmony.benchmarks import catalogue as benchmark_catalogue
from lm_harmony.benchmarks.types import MetricKey
from lm_harmony.models import catalogue as model_catalogue

PERPLEXITY = "Perplexity"
"""Category of text corpora."""
BITS_PER_BYTE = str(MetricKey("bits_per_byte"))
"""Their metric."""
PAPER_CORPORA = {"wiki_2025": "Wiki", "stackexchange_2025": "Stack", "arxiv_2025": "Arxiv"}
"""Name -> title of the three text corpora of the paper's matrix."""


@dataclass(frozen=True)
class MetricMetadata:
    """What the values of a metric can be."""

    low: float
    """Smallest possible score, in the metric's own unit."""
    high: float
    """Largest possible score."""
    higher_is_better: bool
    """Direction, as lm_eval's registry of metrics has it."""


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
"""lm_eval's metrics by name, without filter; others have no known range and no known direction."""


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model; what is not known of it is None, never guessed from its name."""

    name: str
    """Hub id or folder, as in the records."""
    family: str | None = None
    """Whose line of models it is of."""
    kind: str | None = None
    """"base" or "instruct"."""
    params_b: float | None = None
    """Parameters in billions: as counted by its makers, else as its name has them."""
    pretraining_tokens_b: float | None = None
    """Tokens that it was pretrained on, in billions."""

    @property
    def compute(self) -> float | None:
        """Pre-training FLOPs by the usual estimate, 6 x parameters x tokens; None where a factor is not known."""
        if self.params_b is None or self.pretraining_tokens_b is None:
            return None
        return 6 * self.params_b * 1e9 * self.pretraining_tokens_b * 1e9


@dataclass(frozen=True, kw_only=True)
class BenchmarkMetadata:
    """A benchmark and how its scores are to be read."""

    task: str
    """Its name in records and tables."""
    title: str
    """Its name on boards and figures."""
    category: str
    """Its group; "Perplexity" for text corpora, "Other" for what is not catalogued."""
    metric: str
    """The metric shown: lm_eval's metric, comma, filter."""
    higher_is_better: bool
    """Direction of the metric."""
    chance: float | None = None
    """What guessing scores, in the metric's unit; None: not known."""
    train_rows: int | None = None
    """Rows of its training split before caps; None: not known."""

    @property
    def is_perplexity(self) -> bool:
        """Whether it is a text corpus, scored in bits per byte."""
        return self.category == PERPLEXITY


def model_metadata(name: str) -> ModelMetadata:
    """Return what the catalogue knows of a model; of others only the name."""
    info = model_catalogue.find(name)
    if info is None:
        return ModelMetadata(name=name)
    return ModelMetadata(
        name=name,
        family=info.family,
        kind=info.kind,
        params_b=info.params_b or info.nominal_params_b,
        pretraining_tokens_b=info.pretraining_tokens_b,
    )


def benchmark_metadata(task: str, *, metric: str | None = None, higher_is_better: bool | None = None) -> BenchmarkMetadata | None:
    """Return what is known of a benchmark, or None where nobody says which direction is better.

    Args:
        task: its name.
        metric: the metric that was recorded; None: the catalogued one.
        higher_is_better: the recorded direction; None: that of the metric.
    """
    info = benchmark_catalogue.find(task)
    if higher_is_better is None and metric is not None and (known := metric_metadata(metric)) is not None:
        higher_is_better = known.higher_is_better
    if info is not None:
        same = metric in (None, info.metric)
        if not same and higher_is_better is None:  # the catalogue's direction is that of another metric
            return None
        return BenchmarkMetadata(
            task=task,
            title=info.title,
            category=info.category,
            metric=metric or info.metric,
            higher_is_better=info.higher_is_better if higher_is_better is None else higher_is_better,
            chance=info.chance if same else None,
            train_rows=info.train_rows,
        )
    if metric == BITS_PER_BYTE or (is_corpus(task) and metric is None):
        title = PAPER_CORPORA.get(task, benchmark_catalogue.corpus_title(task))
        return BenchmarkMetadata(task=task, title=title, category=PERPLEXITY, metric=BITS_PER_BYTE, higher_is_better=False)
    if higher_is_better is None:
        return None
    return BenchmarkMetadata(task=task, title=task, category="Other", metric=metric or "score", higher_is_better=higher_is_better)


def metric_metadata(metric: str) -> MetricMetadata | None:
    """Return what the values of a metric ("acc,none") can be, or None where that is not known."""
    return METRICS.get(MetricKey.parse(metric).metric)


def is_corpus(task: str) -> bool:
    """Tell whether a benchmark's name is that of a text corpus: "corpus:PATH" as asked for, "corpus-NAME" as recorded."""
    return task in PAPER_CORPORA or benchmark_catalogue.is_corpus(task)


def default_metric(task: str) -> str | None:
    """Return the metric that a benchmark's scores are of where no source names one; None: not known."""
    info = benchmark_catalogue.find(task)
    return info.metric if info is not None else BITS_PER_BYTE if is_corpus(task) else None


def benchmark_order(task: str) -> tuple[int, str]:
    """Return a key that sorts benchmarks as catalogued, others behind them by name."""
    known = list(benchmark_catalogue.BENCHMARKS)
    return (known.index(task) if task in known else len(known), task)
