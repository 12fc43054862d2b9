"""What ``lm-harmony run`` shows: log lines and bars while it works, a table at its end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lm_harmony.cli.run_flags import RunFlags
from lm_harmony.cli.run_spec import built_in_lines, given_flags, run_spec
from lm_harmony.progress import display
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.store import RunStore

log = logging.getLogger(__name__)


def run(flags: RunFlags, arguments: Sequence[str]) -> None:
    """Carry out the run that ``flags`` ask for, and print its result.

    Args:
        flags: the parsed command line.
        arguments: the command line itself, for flags whose default differs from saying it.

    Raises:
        HarmonyError: bad input, or a training that diverged.
        KeyboardInterrupt: after a line that says how to go on, if a run was begun.
    """
    given = given_flags(arguments)
    spec = run_spec(flags, given)
    model = Path(flags.base_model).resolve().name if Path(flags.base_model).is_dir() else flags.base_model
    store = RunStore.at(flags.results_dir, flags.exp_name or f"{Path(flags.task_name).stem}/{model}")
    console = Console(stderr=True)
    with logging_to(console, store.folder, debug=flags.debug), display(console):
        for line in built_in_lines(given):
            log.info(line)
        from lm_harmony.runs.protocol import score_again, train_before_test

        try:
            if flags.only_evaluate:
                record = score_again(store)
            else:
                record = train_before_test(spec, store, resume=flags.resume_from_checkpoint, overwrite=flags.overwrite)
        except KeyboardInterrupt:
            if store.config() is not None and not store.is_finished():
                kept = f"{len(store.epochs())} finished epochs are kept in {store.folder}"
                log.warning("stopped by Ctrl-C; %s. Repeat the command with --resume_from_checkpoint to go on.", kept)
            raise
    if record.direct or record.trained:
        Console().print(result_table(record))
    data = record.data
    for line in (
        f"Epoch {record.chosen_epoch} of {len(record.epochs)}, chosen on {data.validation:,} validation rows "
        f"({record.metric} {record.epochs[record.chosen_epoch - 1].validation[record.metric]:.4f}). "
        f"{data.train:,} rows learned, {data.test:,} tested. ± is one standard error.",
        f"Record, samples and adapter: {store.folder}",
    ):
        Console(soft_wrap=True).print(line, markup=False, highlight=False)


def result_table(record: RunRecord) -> Table:
    """Return direct and trained test scores, metric by metric, the chosen one first."""
    table = Table(title=f"{record.spec.model.name} on {record.benchmark}", title_justify="left")
    table.add_column("metric")
    if record.direct:
        table.add_column("direct", justify="right")
    if record.trained:
        table.add_column("train-before-test", justify="right")
    scores = [score for score in (record.direct, record.trained) if score]
    reported = dict.fromkeys(metric for score in scores for metric in score.metrics)
    for metric in sorted(reported, key=lambda key: key != record.metric):
        cells = [f"[bold]{metric}[/bold]" if metric == record.metric else metric]
        for score in scores:
            value, stderr = score.metrics.get(metric), score.stderrs.get(metric)
            cells.append("" if value is None else f"{value:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}"))
        table.add_row(*cells)
    return table


@contextmanager
def logging_to(console: Console, folder: Path, *, debug: bool) -> Iterator[None]:
    """Show the package's messages on ``console`` and keep them in ``folder``/log.txt; silence the libraries' chatter.

    Only commands configure logging; the handlers are taken off again at the end of the block.
    """
    shown = _Shown(console)
    kept = _LateFile(folder / "log.txt")
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours, root = logging.getLogger("lm_harmony"), logging.getLogger()
    handlers = (shown, kept)
    ours.setLevel(logging.DEBUG if debug else logging.INFO)
    for handler in handlers:
        (root if debug else ours).addHandler(handler)
    if not debug:
        quiet_libraries()
    try:
        yield
    finally:
        kept.flush_if_possible()
        for handler in handlers:
            (root if debug else ours).removeHandler(handler)
            handler.close()


def quiet_libraries() -> None:
    """Switch off the progress bars and warnings of the libraries underneath; --debug shows them."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", module=r"(transformers|datasets|peft|lm_eval|torch)\.")
    for name in ("lm_eval", "transformers", "datasets", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


class _Shown(logging.Handler):
    """Prints a message above the bars, unwrapped; warnings say that they are warnings."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        start = "warning: " if record.levelno >= logging.WARNING else ""
        self.console.print(start + record.getMessage(), markup=False, highlight=False, soft_wrap=True)


class _LateFile(logging.Handler):
    """Keeps lines until the run's folder exists (bad input leaves no folder behind), then appends them to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.waiting = path, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(self.format(record))
        self.flush_if_possible()

    def flush_if_possible(self) -> None:
        if self.waiting and self.path.parent.is_dir():
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n".join(self.waiting) + "\n")
            self.waiting.clear()
