"""Checkpoints of training runs: curves of scores, noise between the last checkpoints, and whether small models decide for large.

The noise of a benchmark is the standard deviation of a run's scores over its last checkpoints, and its signal is the range of the
scores of different models: Heineman et al. 2025, "Signal and Noise" (arXiv 2508.13144). The paper divides both by a mean score.
Here both are in the metric's unit. Decision accuracy is the share of pairs that small models, or early checkpoints, order as the
large models or the last checkpoints do: Magnusson et al. 2025, "DataDecide" (arXiv 2504.11393).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lm_harmony.analysis.agreement import rank_agreement
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import Components
from lm_harmony.analysis.score_rows import Preparation
from lm_harmony.models.checkpoint_names import checkpoint_of

LAST = 5
"""Number of last checkpoints whose scores give the noise, where a run has as many."""
PC1 = "PC1"
"""Name of the first component in the column of benchmarks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRuns:
    """Checkpoints of training runs on all benchmarks."""

    curves: pd.DataFrame
    """A row for each score of a checkpoint: run, model, step, tokens, preparation, benchmark (or "PC1"), score, stderr."""
    noise: pd.DataFrame
    """A row for each preparation and benchmark: runs, checkpoints of each, noise, signal, signal_to_noise; NaN: not known."""
    decisions: pd.DataFrame
    """A row for each comparison, preparation and benchmark: pairs that are not tied, and the share of equal order (accuracy)."""

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the training runs."""
        return tuple(dict.fromkeys(self.curves["run"]))

    def sentences(self) -> Iterator[str]:
        """Yield the main results as sentences without a full stop."""
        yield f"checkpoints: {self.curves['model'].nunique()} of {len(self.runs)} training runs"
        for preparation, noise in self.noise.groupby("preparation", sort=False):
            known = noise[noise["signal_to_noise"].notna()]
            ratios = [f"{task} {ratio:.1f}" for task, ratio in zip(known["benchmark"], known["signal_to_noise"], strict=True)]
            yield f"signal-to-noise of the last checkpoints, {preparation}: {', '.join(ratios) or 'not known'}"
        for (comparison, preparation), table in self.decisions.groupby(["comparison", "preparation"], sort=False):
            mean, pairs = table["accuracy"].mean(), int(table["pairs"].sum())
            yield f"decision accuracy, {preparation}, {comparison}: {mean:.3f}, mean of benchmarks, {pairs} pairs"


def training_runs(
    matrix: ScoreMatrix,
    fitted: Mapping[Preparation, Components],
    *,
    tokens_per_step: float | None = None,
    last: int = LAST,
) -> TrainingRuns | None:
    """Return curves, noise and decision accuracy of the training runs of a matrix; None: no run has two checkpoints.

    Args:
        matrix: scores, whose models may be checkpoints by their names (``models.checkpoint_names``).
        fitted: principal components, by preparation.
        tokens_per_step: training tokens of an optimizer step, for checkpoints whose names have steps alone.
        last: largest number of last checkpoints of a run whose scores give the noise, at least 2.
    """
    points = {name: point for name in matrix.model_names if (point := checkpoint_of(name)) is not None}
    by_run: dict[str, list[str]] = {}
    for name in sorted(points, key=lambda name: points[name].order):
        by_run.setdefault(points[name].run, []).append(name)
    by_run = {run: names for run, names in sorted(by_run.items()) if len(names) > 1}
    if not by_run:
        return None
    present = [preparation for preparation in matrix.preparations if matrix.has(preparation)]
    rows = []
    for run, names in by_run.items():
        for name in names:
            place = (run, name, points[name].step, points[name].tokens_at(tokens_per_step))
            for preparation in present:
                rows += [(*place, preparation, *score) for score in _scores_of(matrix, fitted, preparation, name)]
    columns = ["run", "model", "step", "tokens", "preparation", "benchmark", "score", "stderr"]
    curves = pd.DataFrame(rows, columns=columns).astype({"step": float, "tokens": float})
    finals = [name for name in matrix.model_names if name not in points] + [names[-1] for names in by_run.values()]
    return TrainingRuns(
        curves=curves,
        noise=pd.DataFrame(
            [_noise(matrix, one, task, by_run, finals, last) for one in present for task in matrix.benchmark_names]
        ),
        decisions=pd.DataFrame(
            [row for one in present for row in _decisions(matrix, one, list(by_run.values()), finals)],
            columns=["comparison", "preparation", "benchmark", "pairs", "accuracy"],
        ),
    )


def _scores_of(
    matrix: ScoreMatrix, fitted: Mapping[Preparation, Components], preparation: Preparation, name: str
) -> Iterator[tuple[str, float, float]]:
    """Yield (benchmark, score, standard error) of a model, and its PC1 without one."""
    scores = matrix.scores(preparation)
    for task in matrix.benchmark_names:
        yield task, float(scores.values.loc[name, task]), float(scores.stderrs.loc[name, task])
    if preparation in fitted and name in fitted[preparation].pc1.index:
        yield PC1, float(fitted[preparation].pc1[name]), float("nan")


def _noise(
    matrix: ScoreMatrix,
    preparation: Preparation,
    task: str,
    by_run: Mapping[str, Sequence[str]],
    finals: Sequence[str],
    last: int,
) -> dict[str, object]:
    """Return noise and signal of a benchmark; the noise of several runs is the root of their mean variance."""
    scores = matrix.scores(preparation).values[task]
    ends = [known[-last:] for names in by_run.values() if len(known := scores[list(names)].dropna()) > 1]
    noise = float(np.sqrt(np.mean([end.var(ddof=1) for end in ends]))) if ends else float("nan")
    models = scores[list(finals)].dropna()
    signal = float(models.max() - models.min()) if len(models) > 1 else float("nan")
    return {
        "preparation": preparation,
        "benchmark": task,
        "runs": len(ends),
        "checkpoints": min(map(len, ends), default=0),
        "noise": noise,
        "signal": signal,
        "signal_to_noise": signal / noise if noise > 0 else float("nan"),
    }


def _decisions(
    matrix: ScoreMatrix, preparation: Preparation, runs: Sequence[Sequence[str]], finals: Sequence[str]
) -> Iterator[tuple[str, Preparation, str, int, float]]:
    """Yield the decision accuracy of the smallest for the largest model of each family, and of early for last checkpoints."""
    comparisons: dict[str, list[tuple[str, str]]] = {"small for large": _small_and_large(matrix, finals)}
    most = min(map(len, runs))
    for number in range(1, most):
        comparisons[f"checkpoint {number} of {most} for the last"] = [(names[number - 1 - most], names[-1]) for names in runs]
    values = matrix.oriented(preparation)
    for comparison, pairs in comparisons.items():
        if len(pairs) < 2:
            continue
        early, late = (values.loc[[pair[side] for pair in pairs]].reset_index(drop=True) for side in (0, 1))
        for task in matrix.benchmark_names:
            accuracy = float(rank_agreement(early[[task]], late[[task]]).decision.iloc[0, 0])
            left, right = early[task].to_numpy(), late[task].to_numpy()
            first, second = np.triu_indices(len(pairs), k=1)
            untied = np.nan_to_num(left[first] - left[second]) * np.nan_to_num(right[first] - right[second]) != 0
            yield comparison, preparation, task, int(untied.sum()), accuracy


def _small_and_large(matrix: ScoreMatrix, finals: Sequence[str]) -> list[tuple[str, str]]:
    """Return the smallest and the largest model of each family and kind that has models of two sizes."""
    groups: dict[tuple[str, str | None], list[tuple[float, str]]] = {}
    for model in matrix.models:
        if model.name in finals and model.family is not None and model.params_b is not None:
            groups.setdefault((model.family, model.kind), []).append((model.params_b, model.name))
    ends = [(min(sizes), max(sizes)) for sizes in groups.values()]
    return [(small[1], large[1]) for small, large in ends if small[0] < large[0]]
