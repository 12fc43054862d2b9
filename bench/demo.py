"""Check the demo's claim by builds with several seeds and a study of each: ``python -m bench.demo``.

Intervals are percentiles of bootstrap draws. A draw resamples every benchmark's test examples, the same ones for all models and
both preparations. It computes all scores from them, and Kendall's tau-b between every two benchmarks. With several seeds, it also
resamples the pairs of benchmarks. Finished builds and studies stay in the folder and are not repeated.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import tyro
from scipy.stats import mannwhitneyu

from lm_harmony.analysis.agreement import rank_agreement, upper_triangle
from lm_harmony.analysis.audit import audit
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.pca import components
from lm_harmony.analysis.score_rows import PREPARATIONS
from lm_harmony.cli.demo import demo_matrix
from lm_harmony.cli.study import run_study
from lm_harmony.demo import build
from lm_harmony.demo.family import MEMBERS
from lm_harmony.demo.study import demo_study, demo_workers

Outcomes = dict[str, npt.NDArray[np.float64]]
"""Benchmark -> models x examples x values: 0 or 1 (accuracy, exact match), or label and answer (mcc)."""


@dataclass(frozen=True)
class Flags:
    """Flags of this benchmark."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the builds."""
    folder: Path = Path("results/demo-seeds")
    """Folder of the builds and results."""
    draws: int = 1_000
    """Number of bootstrap draws."""


def main(flags: Flags) -> None:
    """Build, run and compare; print a Markdown table and one JSON line."""
    pooled: dict[str, list[npt.NDArray[np.float64]]] = {preparation: [] for preparation in PREPARATIONS}
    results, audits = {}, []
    print("| seed | tau direct | tau trained | pairs improved | PC1 direct | PC1 trained | study |")
    print("|---|---|---|---|---|---|---|")
    for seed in flags.seeds:
        matrix, seconds = study_of(seed, flags.folder / f"seed-{seed}")
        audits.append(audited(matrix))
        draws = {preparation: taus(matrix, preparation, flags.draws, seed) for preparation in PREPARATIONS}
        found = {preparation: observed(matrix, preparation) for preparation in PREPARATIONS}
        improved = float((found["trained"] > found["direct"]).mean())
        shares = [components(matrix, preparation).explained[0] for preparation in PREPARATIONS]
        cells = [interval(found[preparation].mean(), draws[preparation].mean(axis=1)) for preparation in PREPARATIONS]
        print(f"| {seed} | {' | '.join(cells)} | {improved:.0%} | {shares[0]:.0%} | {shares[1]:.0%} | {seconds:.0f} s |")
        for preparation in PREPARATIONS:
            pooled[preparation].append(np.vstack([found[preparation], draws[preparation]]))
        results[seed] = {
            "tau": [float(found[p].mean()) for p in PREPARATIONS],
            "pc1": shares,
            "improved": improved,
            "seconds": seconds,
        }
    every = {preparation: np.hstack(parts) for preparation, parts in pooled.items()}
    cells = [interval(every[p][0].mean(), resampled(every[p][1:]).mean(axis=1)) for p in PREPARATIONS]
    difference = every["trained"] - every["direct"]
    gain = interval(difference[0].mean(), resampled(difference[1:]).mean(axis=1))
    print(f"| all | {' | '.join(cells)} | {(difference[0] > 0).mean():.0%} | | | |")
    print(f"trained minus direct, over {difference.shape[1]} pairs of benchmarks: {gain}")
    for seed, found in zip(flags.seeds, audits, strict=True):
        print(f"audit of seed {seed}: {audit_line(found)}")
    print(f"audit of all seeds: {audit_line(pd.concat(audits))}")
    print(json.dumps({"bench": "demo", "seeds": results, "direct": cells[0], "trained": cells[1], "gain": gain}))


def study_of(seed: int, folder: Path) -> tuple[ScoreMatrix, float]:
    """Build the demo with ``seed`` and run its study, unless both are finished. Return the scores and the seconds."""
    if not (folder / "build.log").is_file():
        build.main(["--seed", str(seed), "--out", str(folder)])
    started = time.perf_counter()
    study = demo_study(folder / "results", build=folder)
    assert run_study(study, workers=demo_workers(), ray=None, retry_failed=False), "the study failed"
    return demo_matrix(study, folder), time.perf_counter() - started


def audited(matrix: ScoreMatrix) -> pd.DataFrame:
    """Return the z and the flag of the preparedness audit, and whether the model's pre-training had formats of benchmarks."""
    table = audit(matrix).table[["z", "flagged"]]
    return table.assign(planted=[name in {member.name for member in MEMBERS if member.exposed} for name in table.index])


def audit_line(found: pd.DataFrame) -> str:
    """Return the ROC curve of z against what was planted, and the area under it, as text."""
    planted, others = found.loc[found["planted"], "z"], found.loc[~found["planted"], "z"]
    area = mannwhitneyu(planted, others).statistic / (len(planted) * len(others))
    steps = [(float((others >= z).mean()), float((planted >= z).mean())) for z in sorted(found["z"].unique(), reverse=True)]
    marked = found["flagged"]
    return (
        f"area under the ROC curve {area:.2f} for {len(planted)} exposed and {len(others)} other models; flagged "
        f"{marked[found['planted']].sum()} and {marked[~found['planted']].sum()}; false and true positive rates: "
        + ", ".join(f"{false:.2f} {true:.2f}" for false, true in steps)
    )


def observed(matrix: ScoreMatrix, preparation: str) -> npt.NDArray[np.float64]:
    """Return Kendall's tau of every pair of benchmarks."""
    scores = matrix.oriented(preparation)  # type: ignore[arg-type]
    return upper_triangle(rank_agreement(scores, scores).tau)


def taus(matrix: ScoreMatrix, preparation: str, draws: int, seed: int) -> npt.NDArray[np.float64]:
    """Return draws x pairs of benchmarks: tau on resampled test examples."""
    outcomes = read_outcomes(matrix, preparation)
    draw = np.random.default_rng(seed)  # the same for both preparations, which are then compared on the same examples
    rows = []
    for _ in range(draws):
        scores = {}
        for task, values in outcomes.items():
            chosen = values[:, draw.integers(0, values.shape[1], values.shape[1])]
            scores[task] = mcc(chosen) if values.shape[2] == 2 else chosen[..., 0].mean(axis=1)
        table = pd.DataFrame(scores)
        rows.append(upper_triangle(rank_agreement(table, table).tau))
    return np.nan_to_num(np.array(rows))


def read_outcomes(matrix: ScoreMatrix, preparation: str) -> Outcomes:
    """Read the outcome of every model on every test example."""
    outcomes = {}
    for benchmark in matrix.benchmarks:
        metric = benchmark.metric.split(",")[0]
        lines = [matrix.samples[model, benchmark.task, preparation][0].read_text().splitlines() for model in matrix.model_names]
        values = [[np.atleast_1d(json.loads(line)[metric]) for line in part] for part in lines]
        outcomes[benchmark.task] = np.array(values, dtype=float)
    return outcomes


def mcc(pairs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return Matthews correlation of each model, or 0 if a model gives only one answer."""
    label, answer = pairs[..., 0], pairs[..., 1]
    covariance = (label * answer).mean(axis=1) - label.mean(axis=1) * answer.mean(axis=1)
    scale = label.std(axis=1) * answer.std(axis=1)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def resampled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Resample the pairs of benchmarks of each draw."""
    draw = np.random.default_rng(0)
    return np.array([row[draw.integers(0, len(row), len(row))] for row in values])


def interval(value: float, draws: npt.NDArray[np.float64]) -> str:
    """Format a value with its 95% percentile interval."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main(tyro.cli(Flags))
