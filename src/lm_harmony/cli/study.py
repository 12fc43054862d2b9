"""``lm-harmony study``, ``status`` and ``fetch``: progress bars and an estimate on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from lm_harmony.cli.console import Format, lines_beside, logging_to, say, show_table
from lm_harmony.errors import DamagedFile, HarmonyError, UsageError, cause_of, counted
from lm_harmony.progress import display
from lm_harmony.runs.preflight import check_device, check_folder, check_request, check_results_folder
from lm_harmony.runs.record import EpochRecord
from lm_harmony.stop_signals import stop_caught, stopped_by
from lm_harmony.studies.config import StudySpec
from lm_harmony.studies.pool import RunQueue
from lm_harmony.studies.run_location import RunLocation
from lm_harmony.studies.study import Status, Study


def run_study(
    study: Study,
    *,
    workers: int | None,
    ray: str | None,
    retry_failed: bool,
    joint: int | None = None,
    format: Format = "table",
) -> bool:
    """Carry out what remains of ``study`` and print its state in a format; return whether every run is finished.

    Raises:
        UsageError: the results folder cannot be written, or this machine cannot have the device.
        StoreError: the results cannot be written.
        KeyboardInterrupt: after a line that says how to continue.
    """
    if study.spec.results_url is None:
        check_results_folder(study.spec.results_dir)
    for device in {run.spec.execution.device for run in study.runs} if ray is None else ():
        check_device(device)
    console = Console(stderr=True, soft_wrap=True)
    before, started = status_of(study), time.monotonic()
    total = len(study.runs)
    done = len(before.finished)
    with logging_to(console), _view(console) as view:
        try:
            for queue in study.advance(workers=workers, ray=ray, retry_failed=retry_failed, joint=joint):
                status = study.status()
                ended = len(status.finished) - done
                view.show(queue, status, total, _hours_left(started, ended, total - len(status.finished) - len(status.failed)))
        except KeyboardInterrupt:
            stop_caught()
            finished = len(study.status().finished)
            console.print(f"stopped by {stopped_by()}; {finished} of {total} runs are finished. Repeat the command to continue.")
            raise
    status = study.status()
    show_status(study, status, format)
    return not status.failed and len(status.finished) == total


def status_of(study: Study) -> Status:
    """Return the state of a study, with a progress bar while large files are checked for changes.

    Raises:
        UsageError: the results folder is a file.
    """
    if study.spec.results_url is None:
        check_results_folder(study.spec.results_dir, written=False)
    with display(Console(stderr=True)):
        return study.status()


def show_status(study: Study, status: Status, format: Format = "table") -> None:
    """Print how many runs are finished, running, failed and waiting, with the causes of failures.

    Args:
        study: the study.
        status: its state.
        format: "table", or a format for other programs, which has a row for each run.
    """
    if format != "table":
        _show_states(study, status, format)
        return
    spec = study.spec
    say(
        f"{len(status.finished)} finished, {len(status.running)} running, {len(status.failed)} failed, "
        f"{len(status.waiting)} waiting. Results: {spec.results_url or spec.results_dir}"
    )
    if status.running:
        _show_runs("Running", "held by", {run.name: status.holders[run] for run in status.running})
    if status.changed:
        _show_runs("Waiting again", "reason", {run.name: reason for run, reason in status.changed.items()})
    for reason, runs in Counter(status.unverified.values()).items():
        say(f"{runs} of the finished runs: {reason}; whether it changed cannot be checked.")
    if status.failed:
        causes = {run.name: cause_of(failure.kind, failure.cause) for run, failure in status.failed.items()}
        _show_runs("Failed", "cause", causes)
        say("Remove the cause and repeat the study with --retry-failed.")


def _show_runs(title: str, column: str, said: Mapping[str, str]) -> None:
    table = Table("run", column, title=title, title_justify="left")
    for name, text in said.items():
        table.add_row(Text(name), Text(text))  # a cause may hold [brackets], which are markup in a plain string
    show_table(table)


def fetch_study(spec: StudySpec, *, data_dir: Path | None, models_dir: Path | None) -> bool:
    """Download the rows and models of a study, with a line for each; return whether all of them are there.

    Raises:
        UsageError: neither the flag nor the study names a folder for rows, or a folder cannot be written.
    """
    rows, models = data_dir or spec.data_dir, models_dir or spec.models_dir
    if rows is None:
        raise UsageError("data_dir is missing in the flags and in the study file. Add --data_dir FOLDER.")
    check_folder("data_dir", rows)
    if models is not None:
        check_folder("models_dir", models)
    from lm_harmony.studies.download import download  # it imports datasets

    whole = True
    for part in download(spec.runs, data_dir=rows, models_dir=models):
        say(f"{part.outcome:13} {part.name}: {part.error or part.folder}")
        whole &= part.error is None
    for key, folder, named in (("data_dir", rows, spec.data_dir), ("models_dir", models, spec.models_dir)):
        if folder is not None and named is None:
            say(f"Add {key}: {folder.resolve()} to the study file.")
    return whole


def list_runs(study: Study, format: Format = "table") -> bool:
    """Print the state of every run and what is wrong with models, tasks, rows and the results folder; return whether nothing is.

    Raises:
        UsageError: the results folder cannot be written.
    """
    if study.spec.results_url is None:
        check_results_folder(study.spec.results_dir)
    if format == "table":
        for name, state, reason in _states(study, status_of(study)):
            say(f"{state:9} {name}" + (f" ({reason})" if reason else ""))
    else:
        _show_states(study, status_of(study), format)
    problems: Counter[str] = Counter()
    for run in study.runs:
        try:
            check_request(run.spec)
        except HarmonyError as error:
            problems[str(error)] += 1
    with lines_beside(format):
        say(*(f"{counted(runs, 'run')} cannot start: {problem}" for problem, runs in problems.items()))
    return not problems


def _show_states(study: Study, status: Status, format: Format) -> None:
    """Print a table with the name, the state and the reason of the state of every run."""
    table = Table("run", "state", "reason")
    for cells in _states(study, status):
        table.add_row(*map(Text, cells))
    show_table(table, format=format)


def _states(study: Study, status: Status) -> Iterator[tuple[str, str, str]]:
    """Yield for each run its name, its state, and the cause of a failure, the holder, or why it is not current."""
    stands = {
        **dict.fromkeys(status.finished, "finished"),
        **dict.fromkeys(status.running, "running"),
        **dict.fromkeys(status.failed, "failed"),
    }
    for run in study.runs:
        failure = status.failed.get(run)
        reason = cause_of(failure.kind, failure.cause) if failure else status.changed.get(run) or status.unverified.get(run)
        yield run.name, stands.get(run, "waiting"), reason or status.holders.get(run, "")


def watch(study: Study, seconds: float = 2.0) -> None:
    """Show the study's progress bars until no run is running or waiting, or Ctrl-C."""
    console = Console()
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            status = study.status()
            live.update(_picture(list(status.running), status, len(study.runs), None))
            if not status.running and not status.waiting:
                return
            time.sleep(seconds)


def _hours_left(started: float, ended: int, left: int) -> float | None:
    """Estimate the hours until the end from the runs of this session; None before the first one has ended."""
    return (time.monotonic() - started) / ended * left / 3600 if ended > 0 else None


def _left(hours: float) -> str:
    """Return the estimated time until the end as text, in hours, minutes or seconds."""
    if hours >= 1:
        return f"about {hours:.1f} hours left"
    minutes = hours * 60
    return f"about {minutes:.0f} minutes left" if minutes >= 2 else f"about {minutes * 60:.0f} seconds left"


def _picture(running: list[RunLocation], status: Status, total: int, hours: float | None) -> RenderableType:
    """Return a progress bar for the study, and one in epochs for each running run."""
    bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    note = _left(hours) if hours else ""
    failed = f"{len(status.failed)} failed  " if status.failed else ""
    bars.add_task("study", total=total, completed=len(status.finished), note=failed + note)
    for run in running:
        epochs: tuple[EpochRecord, ...] = ()
        with suppress(DamagedFile):  # the worker sets the file aside
            epochs = run.store.epochs()
        last = f"loss {epochs[-1].loss:.3f}" if epochs else "direct score, or loading"
        bars.add_task(f"  {run.name}", total=run.spec.recipe.total_epochs, completed=len(epochs), note=last)
    return Group(bars)


class _Live:
    """Progress bars on a terminal, drawn four times a second from the folders of the runs."""

    def __init__(self) -> None:
        self.draw: Callable[[], RenderableType] = Group

    def show(self, queue: RunQueue, status: Status, total: int, hours: float | None) -> None:
        self.draw = lambda: _picture(queue.running(), status, total, hours)


class _Lines:
    """One line for each run that ends, for a log file or a pipe."""

    def show(self, queue: RunQueue, status: Status, total: int, hours: float | None) -> None:
        left = f", {_left(hours)}" if hours else ""  # nothing is left after the last run
        say(f"{len(status.finished)} of {total} runs finished, {len(status.failed)} failed{left}", stderr=True)


@contextmanager
def _view(console: Console) -> Iterator[_Live | _Lines]:
    if not console.is_terminal:
        yield _Lines()
        return
    view = _Live()
    with Live(get_renderable=lambda: view.draw(), console=console, refresh_per_second=4, transient=True):
        yield view
