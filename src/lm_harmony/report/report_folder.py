"""The folder that ``lm-harmony analyze`` writes: tables in CSV and a summary in words. No statistics are computed here.

<folder>/summary.md                     the main results, and the analyses that were not possible
<folder>/tables/scores.csv              every score, in the long layout
<folder>/tables/leaderboard_<p>.csv     <p>: direct, direct_<k>shot or trained
<folder>/tables/notes.csv               what limits each leaderboard: mixed recipes and versions, gaps
<folder>/tables/tau_<p>.csv, pearson_<p>.csv, decision_<p>.csv, common_<p>.csv    benchmarks x benchmarks
<folder>/tables/preparations.csv          if there are direct scores with examples
<folder>/tables/without_near_duplicates.csv   if test questions recur in training rows: scores on the others
<folder>/tables/categories_<p>.csv, agreement_by_<family|kind|size>.csv
<folder>/tables/loadings_<p>.csv, components_<p>.csv, size_<p>.csv
<folder>/tables/benchmark_quality_<p>.csv, noise_ceiling_<p>.csv, noise_ceiling_by_size_<p>.csv, disattenuated_<p>.csv, audit.csv
<folder>/tables/perplexity.csv, perplexity_change.csv, rank_ranges_<p>.csv, told_apart_<p>.csv, stability_<p>.csv
<folder>/tables/checkpoints.csv, checkpoint_noise.csv, decision_accuracy.csv      if there are checkpoints of training runs
<folder>/tables/rate_moves.csv, rate_agreement.csv, rate_benchmarks.csv, rates_chosen.csv      with --fixed
<folder>/figures/*.pdf, *.png           unless --no-figures is given (``report.figures``)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import isnan
from pathlib import Path
from statistics import median

import pandas as pd

from lm_harmony.analysis.load_tables import LONG, csv_text
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.summary import AnalysisSummary
from lm_harmony.errors import counted
from lm_harmony.report.shown_names import short_names, with_short_names
from lm_harmony.report.tables import board_csv


def write_tables(summary: AnalysisSummary, folder: Path) -> list[Path]:
    """Write every table of ``summary`` and summary.md below ``folder``, and return the paths."""
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in _tables(summary):
        path = tables / f"{name}.csv"
        _with_safe_text(table).to_csv(path, index=table.index.name is not None, float_format="%.10g")
        written.append(path)
    for preparation, board in summary.boards.items():
        path = tables / f"leaderboard_{preparation}.csv"
        path.write_text(board_csv(board), encoding="utf-8")
        written.append(path)
    summary_path = folder / "summary.md"
    summary_path.write_text(
        "\n".join(["# " + summary.matrix.source, "", *(f"- {line}" for line in summary_lines(summary)), ""]), "utf-8"
    )
    return [summary_path, *written]


def summary_lines(summary: AnalysisSummary) -> list[str]:
    """Return the main results as sentences, one per line."""
    matrix = summary.matrix
    present = [preparation for preparation in matrix.preparations if matrix.has(preparation)]
    gaps = ", ".join(f"{len(matrix.gaps(preparation))} {preparation} scores missing" for preparation in present)
    lines = [f"{counted(len(matrix.models), 'model')}, {counted(len(matrix.benchmarks), 'benchmark')}; {gaps}"]
    for name, found in summary.agreements.items():
        lines.append(
            f"agreement, {name}: mean Kendall's tau {_number(found.mean_tau)}, Pearson {_number(found.mean_pearson)}, "
            f"decision accuracy {_number(found.mean_decision)}, on {len(found.models)} models x "
            f"{len(found.benchmarks)} benchmarks"
        )
    if summary.preparations is not None:
        lines += summary.preparations.sentences()
    if (trained := summary.change) is not None and trained.pairs:
        lines.append(f"tau is larger after training for {trained.improved:.1%} of {counted(trained.pairs, 'pair')} of benchmarks")
    for name, found in summary.agreements.items():
        means = [f"{category} {_number(mean)}" for category, mean in found.by_category()["mean"].items()]
        lines += [f"mean tau with all others by category, {name}: {', '.join(means)}"] if len(means) > 1 else []
    for preparation, fitted in summary.components.items():
        shares = ", ".join(f"{share:.1%}" for share in fitted.explained[:5])
        lines.append(f"components, {preparation}: variance explained {shares}; on {fitted.basis}")
    for preparation, scaled in summary.scaling.items():
        sizes = (("params_b", "parameters"), ("compute", "pre-training compute"))
        parts = (
            f"with {name} "
            + (f"{_number(scaled.spearman[size])} ({scaled.known[size]} models)" if scaled.known[size] else "unknown")
            for size, name in sizes
        )
        lines.append(f"PC1, {preparation}: Spearman's rho {', '.join(parts)}")
    for result in summary.perplexity:
        lines.append(
            f"perplexity ({result.perplexity}) and benchmarks ({result.downstream}), {result.group}: mean tau "
            f"{result.mean_tau:.3f} on {len(result.models)} models, {len(result.without_perplexity)} without perplexity left out"
        )
    lines += [*_noise(summary), *_significance(summary)]
    for preparation, stable in summary.stability.items():
        for change in ("benchmark", "family", "seed"):
            effects = [effect for effect in stable.changes if effect.change == change]
            if effects:
                largest = min(effects, key=lambda effect: effect.tau)
                lines.append(
                    f"stability, {preparation}, {change}: smallest tau {largest.tau:.3f} ({largest.name}); "
                    f"the rank of {largest.most_changed} changes by {largest.largest}"
                )
    lines += () if summary.training_runs is None else summary.training_runs.sentences()
    lines += () if summary.rates is None else summary.rates.sentences()
    lines += [*summary.matrix.notes, *(f"not computed: {line}" for line in summary.skipped)]
    names = short_names(summary.matrix.model_names)
    return [with_short_names(line, names) for line in lines]


def _number(value: float) -> str:
    """Return a correlation as text; it is undefined for fewer than three models, or where all of them are equal."""
    return "undefined" if isnan(value) else f"{value:.3f}"


def _noise(summary: AnalysisSummary) -> Iterator[str]:
    yield from (ceiling.sentence() for ceiling in summary.ceilings.values())
    for corpus, change in summary.perplexity_change.iterrows():
        yield f"direct and trained bits per byte, {corpus}: tau {change['tau']:.3f} on {change['models']:.0f} models"
    if summary.audit is not None:
        yield from summary.audit.sentences()


def _significance(summary: AnalysisSummary) -> Iterator[str]:
    for preparation, board in summary.boards.items():
        widths = [row.rank_high - row.rank_low + 1 for row in board.rows if row.rank_low and row.rank_high]
        if widths:
            groups = max(row.group or 0 for row in board.rows)
            yield f"PC1 ranks, {preparation}: half of the intervals span {median(widths):g} ranks or fewer; tie groups: {groups}"
    titles = {benchmark.task: benchmark.title for benchmark in summary.matrix.benchmarks}
    for preparation, table in summary.distinguishable.items():
        known = table[table["pairs"] > 0].rename(index=titles)
        if not known.empty:
            yield (
                f"pairs of models that differ significantly, {preparation}: {known['plain'].mean():.1%} by 1.96 standard errors, "
                f"{known['holm'].mean():.1%} after Holm's correction, mean of {len(known)} benchmarks with standard errors "
                f"(smallest {known['holm'].idxmin()} {known['holm'].min():.1%}, "
                f"largest {known['holm'].idxmax()} {known['holm'].max():.1%})"
            )


def _tables(summary: AnalysisSummary) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "scores", _long(summary.matrix)
    noted = [(f"leaderboard_{preparation}", note) for preparation, board in summary.boards.items() for note in board.notes]
    yield "notes", pd.DataFrame(noted, columns=["table", "note"])
    for name, found in summary.agreements.items():
        for kind in ("tau", "pearson", "decision", "common"):
            yield f"{kind}_{name}", _named(getattr(found, kind), "benchmark")
        yield f"categories_{name}", _named(found.by_category(), "category")
    if summary.preparations is not None:
        yield "preparations", _named(pd.concat([summary.preparations.table, summary.preparations.differences]), "preparation")
    for grouping, table in summary.groups.items():
        yield f"agreement_by_{grouping}", _named(table, grouping)
    for preparation, fitted in summary.components.items():
        loadings = fitted.loadings.copy()
        loadings.loc["(variance explained)"] = list(fitted.explained)
        yield f"loadings_{preparation}", _named(loadings, "benchmark")
        yield f"components_{preparation}", _named(fitted.scores, "model")
    for preparation, scaled in summary.scaling.items():
        yield f"size_{preparation}", _named(scaled.table, "model")
    if parts := summary.matrix.without_near_duplicates:
        rows = [(*key, part.value, part.stderr, part.count) for key, part in parts.items()]
        yield "without_near_duplicates", pd.DataFrame(rows, columns=list(LONG[:6]))
    if summary.perplexity:
        yield "perplexity", pd.DataFrame(_perplexity_rows(summary))
    for preparation in summary.matrix.preparations:
        ranges = {task: found.table for (name, task), found in summary.ranges.items() if name == preparation}
        if ranges:
            yield f"rank_ranges_{preparation}", pd.concat(ranges, names=["benchmark", "model"]).reset_index()
    for preparation, table in summary.distinguishable.items():
        yield f"told_apart_{preparation}", _named(table, "benchmark")
    for preparation, quality in summary.quality.items():
        yield f"benchmark_quality_{preparation}", _named(quality, "benchmark")
    for preparation, ceiling in summary.ceilings.items():
        yield f"noise_ceiling_{preparation}", _named(ceiling.ceiling, "benchmark")
        yield f"disattenuated_{preparation}", _named(ceiling.disattenuated, "benchmark")
        yield f"noise_ceiling_by_size_{preparation}", _named(summary.ceiling_groups[preparation], "size")
    if summary.audit is not None:
        yield "audit", _named(summary.audit.table, "model")
    if not summary.perplexity_change.empty:
        yield "perplexity_change", _named(summary.perplexity_change, "corpus")
    if (runs := summary.training_runs) is not None:
        yield from (("checkpoints", runs.curves), ("checkpoint_noise", runs.noise), ("decision_accuracy", runs.decisions))
    yield from () if summary.rates is None else summary.rates.tables()
    for preparation, stable in summary.stability.items():
        effects = pd.DataFrame([asdict(effect) for effect in stable.changes])
        yield f"stability_{preparation}", effects.rename(columns={"most_changed": "mover"})


def _perplexity_rows(summary: AnalysisSummary) -> Iterator[dict[str, object]]:
    for result in summary.perplexity:
        for corpus, line in result.tau.iterrows():
            for task, tau in line.items():
                yield {
                    "perplexity": result.perplexity,
                    "scores": result.downstream,
                    "group": result.group,
                    "models": len(result.models),
                    "corpus": corpus,
                    "benchmark": task,
                    "tau": tau,
                    "pearson": result.pearson.loc[corpus, task],
                }


def _long(matrix: ScoreMatrix) -> pd.DataFrame:
    """Return every score in the long layout that ``ScoreMatrix.from_csv`` reads; a missing score is an empty cell."""
    rows = []
    for preparation in matrix.preparations:
        if not matrix.has(preparation):
            continue
        scores = matrix.scores(preparation)
        for benchmark in matrix.benchmarks:
            task, metric, higher = benchmark.task, benchmark.metric, benchmark.higher_is_better
            for name in matrix.model_names:
                tables = (scores.values, scores.stderrs, scores.counts)
                score, stderr, count = (table.loc[name, task] for table in tables)
                rows.append((name, task, preparation, score, stderr, count, metric, higher))
    columns = ["model", "benchmark", "preparation", "score", "stderr", "count", "metric", "higher_is_better"]
    return pd.DataFrame(rows, columns=columns)


def _with_safe_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which no text is a formula for a spreadsheet; numbers stay numbers."""
    safe = table.rename(index=csv_text, columns=csv_text)
    for name in safe.columns:
        cells = [csv_text(cell) for cell in safe[name]]
        if any(new is not old for new, old in zip(cells, safe[name], strict=True) if isinstance(new, str)):
            safe[name] = cells
    return safe


def _named(table: pd.DataFrame, index: str) -> pd.DataFrame:
    return table.rename_axis(index)
