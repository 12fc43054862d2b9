"""``lm-harmony run``: carry out one run, with log lines and progress bars while it works and a table of scores at its end."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from lm_harmony.benchmarks.recurrence import recurring
from lm_harmony.benchmarks.types import FewShotScore
from lm_harmony.cli.console import Format, lines_beside, logging_to, quiet_libraries, say, show_rows, show_table
from lm_harmony.cli.run_flags import RunFlags
from lm_harmony.cli.run_spec import built_in_lines, given_flags, run_spec
from lm_harmony.errors import UsageError, counted
from lm_harmony.fast_imports import fast_imports
from lm_harmony.progress import display
from lm_harmony.runs.choice import best_by_rate, chosen_rate
from lm_harmony.runs.conflicts import refuse_other_evaluation
from lm_harmony.runs.fingerprint import folder_name
from lm_harmony.runs.folder_lease import FolderLeases
from lm_harmony.runs.lease import STALE
from lm_harmony.runs.preflight import check_request, check_results_folder
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.shots import shown_direct
from lm_harmony.runs.store import RunStore
from lm_harmony.stop_signals import stop_caught, stopped_by

log = logging.getLogger(__name__)
APART = "without_near_duplicates"
"""End of the names of columns for other programs that hold scores on the test rows without a near duplicate."""


def run(flags: RunFlags, arguments: Sequence[str]) -> None:
    """Carry out the run that ``flags`` describe, and print its scores.

    Args:
        flags: the parsed command line.
        arguments: the words of the command line; some flags mean something else when they are given with their default.

    Raises:
        HarmonyError: bad input, or a training whose loss is not finite.
        KeyboardInterrupt: after a line that says how to continue, if the run was begun.
    """
    given = given_flags(arguments)
    if flags.resume_from_checkpoint and flags.overwrite:
        raise UsageError("overwrite contradicts resume_from_checkpoint: it removes what would be continued. Remove one of them.")
    spec = run_spec(flags, given)
    store = RunStore.at(flags.results_dir, flags.exp_name or folder_name(spec, flags.results_dir))
    check_request(spec)
    check_results_folder(flags.results_dir, store.folder.relative_to(flags.results_dir).as_posix())
    if flags.only_evaluate:
        plain = run_spec(RunFlags(base_model=flags.base_model, task_name=flags.task_name), frozenset())
        refuse_other_evaluation(store.folder, store.record(), spec, plain)
    elif store.is_finished() and not flags.overwrite:
        store.refuse_conflict(spec, resume=False, overwrite=False)
    console = Console(stderr=True)
    with logging_to(console, store.folder / "log.txt", debug=flags.debug), display(console):
        for line in built_in_lines(given):
            log.info(line)
        name = store.folder.relative_to(flags.results_dir).as_posix()
        log.info("%s: loading the libraries and the model ...", name)
        leases = FolderLeases(flags.results_dir)
        try:
            with leases.hold_patiently(name, lost=_end_process, waiting=_log_waiting) as lease:
                store = replace(store, lease=lease)
                if not flags.debug:
                    quiet_libraries()
                with fast_imports():
                    from lm_harmony.runs.protocol import score_again, train_before_test
                if flags.only_evaluate:
                    record = score_again(store, allow_task_code=flags.allow_task_code)
                else:
                    record = train_before_test(spec, store, resume=flags.resume_from_checkpoint, overwrite=flags.overwrite)
        except KeyboardInterrupt:
            stop_caught()
            if store.config() is not None and not store.is_finished():
                kept = f"{len(store.epochs())} finished epochs are kept in {store.folder}"
                advice = "Repeat the command with --resume_from_checkpoint to continue."
                log.warning("stopped by %s; %s. %s", stopped_by(), kept, advice)
            raise
    _show_scores(record, store, flags.format)


def _show_scores(record: RunRecord, store: RunStore, format: Format) -> None:
    if format != "table":
        show_rows(result_rows(record), format)
    elif record.scores:
        show_table(result_table(record))
    with lines_beside(format):
        say(*closing_lines(record), f"Record, samples and adapter: {store.folder}")


def closing_lines(record: RunRecord) -> list[str]:
    """Return what a run did, in lines: which epoch was chosen, how many rows were used, and rows of another benchmark."""
    data, chosen, rates = record.data, record.epochs[record.chosen_epoch - 1], record.spec.recipe.rates
    lines = [] if data.train_on is None else [f"{record.benchmark}: {data.train_on.sentence()}."]
    lines += [f"{record.benchmark}: {dropped.sentence()}."] if (dropped := data.dropped_near_duplicates) is not None else []
    recurs = recurring(data.near_duplicates, data.test)
    lines += [] if recurs is None else [f"{record.benchmark}: {recurs}."]
    lines += [f"{_column(name)}: {score.sentence()}." for name, score in record.scores.items() if isinstance(score, FewShotScore)]
    if len(rates) > 1:
        best = best_by_rate(record)
        reached = ", ".join(f"{rate:g}: {best[rate]:.4f}" if rate in best else f"{rate:g}: diverged" for rate in rates)
        lines.append(f"Best {record.metric} on validation by learning rate: {reached}. {chosen_rate(record):g} was chosen.")
    return [
        *lines,
        f"Epoch {record.chosen_epoch} of {len(record.epochs)} was chosen on {counted(data.validation, 'validation row')} "
        f"({record.metric} {chosen.validation[record.metric]:.4f}). "
        f"{counted(data.train, 'training row')}, {counted(data.test, 'test row')}. ± is one standard error.",
    ]


def _end_process() -> None:
    """End this process, because another one has taken over its run. Its writes would be refused."""
    say("lm-harmony: another process has taken over this run, because this one was suspended. It finishes the run.", stderr=True)
    os._exit(1)


def _log_waiting(holder: str) -> None:
    log.info("the run is held by %s; watching for up to %.0f seconds whether it still works.", holder, STALE)


def result_rows(record: RunRecord) -> list[dict[str, str | float | None]]:
    """Return what ``result_table`` shows as numbers for other programs; None: not known."""
    rows: list[dict[str, str | float | None]] = []
    tasks = _subtasks(record)
    for task, metric in [*((None, metric) for metric in _metrics(record)), *((task, record.metric) for task in tasks)]:
        rows.append({"metric": metric, **({"subtask": task} if tasks else {})})
        for name, score in {"direct": None, "trained": None, **record.scores}.items():
            part = score if score is None or task is None else score.subtasks.get(task)
            rows[-1][name] = None if part is None else part.metrics.get(metric)
            rows[-1][f"{name}_stderr"] = None if part is None else part.stderrs.get(metric)
        for name, score in record.without_near_duplicates.items():
            part = score if task is None else score.subtasks.get(task)
            rows[-1][f"{name}_{APART}"] = None if part is None else part.metrics.get(metric)
            rows[-1][f"{name}_{APART}_stderr"] = None if part is None else part.stderrs.get(metric)
            rows[-1][f"rows_{APART}"] = None if part is None else part.documents
    return rows


def result_table(record: RunRecord) -> Table:
    """Return a table of the direct and trained test scores: a row for each metric, first the one that chose the epoch.

    If some test rows have near duplicates in the training rows, the scores without these rows follow. Below are the tasks of a
    group, with the first metric.
    """
    table = Table(title=f"{record.spec.model.name} on {record.benchmark}", title_justify="left")
    table.add_column("metric")
    for name in record.scores:
        table.add_column(_column(name), justify="right")
    for metric in _metrics(record):
        cells = [f"[bold]{metric}[/bold]" if metric == record.metric else metric]
        table.add_row(*cells, *(score.shown(metric) for score in record.scores.values()))
        if apart := record.without_near_duplicates:
            rows = f"  {counted(next(iter(apart.values())).documents, 'row')} without near duplicates"
            table.add_row(rows, *(apart[name].shown(metric) if name in apart else "" for name in record.scores))
    for task in _subtasks(record):
        parts = (score.subtasks.get(task) for score in record.scores.values())
        table.add_row(f"  {task}", *("" if part is None else part.shown(record.metric) for part in parts))
    return table


def _column(name: str) -> str:
    """Return the heading of a score: "direct", "direct 5-shot" or "train-before-test"."""
    return "train-before-test" if name == "trained" else shown_direct(name)


def _subtasks(record: RunRecord) -> list[str]:
    """Return the tasks of a group; none for a single task."""
    return list(dict.fromkeys(task for score in record.scores.values() for task in score.subtasks))


def _metrics(record: RunRecord) -> list[str]:
    """Return the metrics of all scores, first the one that chose the epoch."""
    reported = dict.fromkeys(metric for score in record.scores.values() for metric in score.metrics)
    return sorted(reported, key=lambda key: key != record.metric)
