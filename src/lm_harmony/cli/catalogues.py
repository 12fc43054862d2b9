"""``lm-harmony benchmarks`` and ``models``: the catalogues, and rows of a benchmark that recur. No model is needed."""
# Heavy imports are inside functions, as in ``main``.

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from lm_harmony.cli.console import Format, quiet_libraries, say, show_rows, show_table
from lm_harmony.errors import UsageError

if TYPE_CHECKING:
    from lm_harmony.benchmarks.near_duplicates import NearDuplicates
    from lm_harmony.benchmarks.recurrence import Recurrence

MEANINGS: Mapping[Recurrence, str] = {
    "exact": "the same question and choices; the clean protocol leaves the training row out",
    "normalized": "the same words, in another spacing, case or punctuation",
    "choices": "the same question with other choices, or with choices in another order",
    "overlapping": "half or more of the question's sequences of 13 words are in one training row",
}
"""How a row recurs -> the words for users."""


def benchmarks(
    overlap: str | None = None,
    data_dir: Path | None = None,
    include_path: Path | None = None,
    allow_task_code: bool = True,
    format: Format = "table",
) -> None:
    """List the benchmarks of the catalogue. Every other lm_eval task with a training split works too.

    Example: `lm-harmony benchmarks --overlap arc_easy --data_dir data`

    Args:
        overlap: a task; count its scored rows whose question recurs in its training rows, exactly or nearly, instead of the list.
        data_dir: with --overlap: a folder that holds <task>/{train,validation,test}.jsonl.
        include_path: with --overlap: a folder of your own task files.
        allow_task_code: with --overlap: whether Python code of the task may run that lm_eval does not ship.
        format: table shows the columns that fit the terminal; the other formats have all of them.
    """
    if overlap is not None:
        return _show_overlap(overlap, include_path, data_dir, allow_code=allow_task_code, format=format)
    for name, given in (("data_dir", data_dir), ("include_path", include_path)):
        if given is not None:
            raise UsageError(f"{name} = {given}: the list of benchmarks needs no rows. Add --overlap TASK, or remove the flag.")
    from lm_harmony.benchmarks.catalogue import BENCHMARKS

    table = Table("task", "title", "category", "metric", Column("training rows", justify="right"), "splits", "chance")
    for info in BENCHMARKS.values():
        splits, rows = " ".join(info.splits), f"{info.train_rows:,}"
        table.add_row(info.task, info.title, info.category, info.metric, rows, splits, f"{info.chance:.2f}")
    show_table(table, optional=("splits", "category", "chance", "title"), format=format)


def models(format: Format = "table") -> None:
    """List the models of the published board. Every other causal language model from the hub or a folder works too.

    Example: `lm-harmony models --format csv`

    Args:
        format: table shows the columns that fit the terminal; the other formats have all of them.
    """
    from lm_harmony.models.catalogue import MODELS

    sizes = (Column(f"{what} (billions)", justify="right") for what in ("parameters", "training tokens"))
    table = Table("model", "family", "kind", *sizes)
    for info in MODELS.values():
        tokens = "" if info.pretraining_tokens_b is None else f"{info.pretraining_tokens_b:,.0f}"
        table.add_row(info.model, info.family, info.kind, f"{info.params_b or info.nominal_params_b:g}", tokens)
    show_table(table, optional=("training tokens (billions)", "family", "kind"), format=format)


def _show_overlap(task: str, include_path: Path | None, data_dir: Path | None, *, allow_code: bool, format: Format) -> None:
    """Print how many scored rows of a task recur in its training rows, and which; the arguments are those of ``open_task``."""
    from lm_harmony.benchmarks.catalogue import corpus_path
    from lm_harmony.benchmarks.task_index import find_task_file

    if corpus_path(task) is None:
        find_task_file(task, include_path)  # refuses a name that is wrong before libraries are loaded
    from lm_harmony.benchmarks.harness import open_task
    from lm_harmony.benchmarks.near_duplicates import near_duplicates

    quiet_libraries()
    opened = open_task(task, include_path=include_path, data_dir=data_dir, allow_code=allow_code)
    found = near_duplicates(opened)
    if format != "table":
        show_rows(
            [
                {
                    "task": opened.name,
                    "split": one.split,
                    "rows": one.rows,
                    "training_rows": one.training_rows,
                    **{kind: len(rows) for kind, rows in one.found.items()},
                    **{f"{kind}_rows": " ".join(map(str, rows)) for kind, rows in one.found.items()},
                }
                for one in found
            ],
            format,
        )
        return
    table = Table("split", *(Column(name, justify="right") for name in ("rows", *MEANINGS)))
    for one in found:
        table.add_row(one.split, f"{one.rows:,}", *(f"{len(one.found[kind]):,}" for kind in MEANINGS))
    show_table(table)
    say(
        f"{opened.name}: rows whose question recurs in the {found[0].training_rows:,} training rows. Each is in the first kind:"
        if found
        else f"{opened.name}: its scored rows are split off from its training rows."
    )
    say(*(f"{kind}: {meaning}" for kind, meaning in MEANINGS.items()) if found else ())
    say(*_numbers(found))


def _numbers(found: Sequence[NearDuplicates]) -> Iterator[str]:
    """Yield the numbers of the rows of each kind, in lines of 80 characters."""
    for one in found:
        for kind, rows in one.found.items():
            if rows:
                yield from textwrap.wrap(f"{one.split}, {kind}: rows {', '.join(map(str, rows))} (from 0)", 80)
