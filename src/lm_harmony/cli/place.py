"""``lm-harmony place``: the place of a model on the published board, from runs that are finished or that it carries out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.cli.analyze import read
from lm_harmony.cli.console import Format, lines_beside, say, show_rows
from lm_harmony.cli.place_flags import PlaceFlags
from lm_harmony.cli.run_flags import RunFlags
from lm_harmony.cli.run_spec import given_flags, run_spec
from lm_harmony.errors import UsageError, check_integer, check_number
from lm_harmony.fast_imports import fast_imports
from lm_harmony.models.catalogue import MODELS
from lm_harmony.models.model_folder import refuse_no_model
from lm_harmony.runs.preflight import check_device, check_hardware, check_results_folder
from lm_harmony.runs.spec import RunSpec

if TYPE_CHECKING:
    from lm_harmony.analysis.benchmark_selection import BenchmarkSelection
    from lm_harmony.analysis.placement import Placement, PlacementValidation

_Name = Annotated[str | None, tyro.conf.Positional]
_OF_RESULTS = {"model", "suggest"}
"""Flags for finished runs only."""
_SHARED = (
    *("data_dir", "split_protocol", "random_seed", "dtype", "device", "engine", "revision", "trust_remote_code", "results_dir"),
    *("dataset_param", "peft_config", "train_param"),
)
"""Flags that have the same name and meaning as those of ``lm-harmony run``."""
_OF_BOTH = {"format"}
"""Flags for finished runs and for runs that the command carries out; all others are for the latter."""


def place_command(words: Sequence[str]) -> Callable[..., bool]:
    """Return the command ``place``, which needs the words of the command line."""

    def place(results: _Name = None, /, *, flags: Annotated[PlaceFlags, tyro.conf.arg(name="")]) -> bool:
        """Predict the place of a model on the published board, or run benchmarks until it is known well enough.

        Example: `lm-harmony place ./my/model --until 10`

        Repeat it to continue. `lm-harmony place results --model my/model` predicts it from finished runs.

        Args:
            results: a folder of runs or a .csv or .json file of scores; with --until or --hours the model (hub name or folder).
        """
        return _place(results, flags, given_flags(words))

    return place


def _place(results: str | None, flags: PlaceFlags, given: Collection[str]) -> bool:
    """Show the place of a model on the published board, suggest benchmarks, or run benchmarks until the place is known.

    Args:
        results: a folder of runs or a file of scores; with --until or --hours the model, by its name on the hub or its folder.
        flags: the parsed command line.
        given: names of the flags that stood on the command line.

    Returns:
        False if a run failed.

    Raises:
        ModelError: the model is neither a hub id nor a folder with a model, or the device cannot be used.
        UsageError: an argument is missing, or flags of both forms of the command are mixed.
    """
    if flags.until is not None or flags.hours is not None:
        mixed = sorted(_OF_RESULTS & set(given))
        if mixed:
            raise UsageError(
                f"{mixed[0]} has no effect with --until or --hours. Give the model first: lm-harmony place MODEL --until 10."
            )
        if results is None:
            raise UsageError("the model is missing. Give its name or folder first: lm-harmony place MODEL --until 10.")
        if flags.until is not None:
            check_integer("until", flags.until, 1, len(MODELS))
        if flags.hours is not None:
            check_number("hours", flags.hours, positive=True)
        check_integer("workers", flags.workers, 1)
        if flags.hardware != "here":
            check_hardware(flags.hardware)
        specs = _specs(results, flags, given)
        check_device(flags.device, flags.engine)
        refuse_no_model(results, flags.revision)
        check_results_folder(flags.results_dir)
        with fast_imports():
            from lm_harmony.cli.place_until import place_until

        return place_until(results, flags, specs)
    others = sorted(set(given) - _OF_RESULTS - _OF_BOTH)
    if others:
        raise UsageError(f"{others[0]} has an effect only with --until or --hours. Add --until 10, or remove --{others[0]}.")
    _place_results(None if results is None else Path(results), flags.model, flags.suggest, flags.format)
    return True


def _specs(model: str, flags: PlaceFlags, given: Collection[str]) -> dict[str, RunSpec]:
    """Return the run of each published benchmark, cheapest first, after all checks that need no model and no rows."""
    if flags.train_param.metric_for_best_model is not None:
        raise UsageError(
            "train_param.metric_for_best_model cannot be chosen: each published benchmark has its metric. Remove it."
        )
    tasks = [task for task in reversed(list(BENCHMARKS)) if flags.data_dir is None or (flags.data_dir / task).is_dir()]
    if not tasks:
        raise UsageError(
            f"data_dir = {flags.data_dir} has no folder of a published benchmark, such as {flags.data_dir}/arc_challenge with "
            "train.jsonl. Give another folder, or remove --data_dir to read rows from the hub."
        )
    shared = {name: getattr(flags, name) for name in _SHARED}
    return {task: run_spec(RunFlags(base_model=model, task_name=task, **shared), given) for task in tasks}


def _place_results(results: Path | None, model: str | None, suggest: int | None, format: Format) -> None:
    from lm_harmony.analysis.benchmark_selection import select_benchmarks
    from lm_harmony.analysis.placement import placement_of, published_placement, validate
    from lm_harmony.report.tables import placement_row

    if results is None and suggest is None:
        raise UsageError("results is missing. Give a folder of runs, or ask for benchmarks with --suggest 3.")
    if results is None and model is not None:
        raise UsageError(f"results is missing. Give the folder with the runs of {model!r}.")
    known: tuple[str, ...] = ()
    if results is not None:
        if any((results / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UsageError(
                f"results: {results} is the folder of a model. Add --until 10 to run benchmarks until its place is known, or "
                "give a folder of runs."
            )
        matrix = read(results)
        if model is None and len(matrix.models) != 1:
            raise UsageError(f"model is missing: {matrix.source} has {len(matrix.models)} models. Name one with --model.")
        placed = placement_of(matrix, matrix.model_names[0] if model is None else matrix.find_model(model))
        known = placed.benchmarks
        with lines_beside(format):
            _show_placement(placed, validate(published_placement(), known))
        if format != "table" and suggest is None:
            show_rows([placement_row(placed)], format)
    if suggest is not None:
        found = select_benchmarks(published_placement(), suggest)
        with lines_beside(format):
            _show_suggestion(found, known)
        if format != "table":
            show_rows(_suggestion_rows(found), format)


def _suggestion_rows(found: BenchmarkSelection) -> list[dict[str, str | float]]:
    choices = {"suggested": found.chosen, "best": found.best, "cheapest": found.cheapest}
    return [
        {"choice": name, "benchmarks": " ".join(one.benchmarks), "tau": one.tau, "training rows": one.train_rows}
        for name, one in choices.items()
    ]


def _show_placement(placed: Placement, check: PlacementValidation) -> None:
    how = f"predicted from {', '.join(placed.benchmarks)}" if placed.missing else "computed from all its benchmarks"
    say(
        f"{placed.model} on the published board: PC1 {placed.pc1:.1f} ({placed.low:.1f} to {placed.high:.1f}), "
        f"rank {placed.rank} ({placed.rank_low} to {placed.rank_high}) among {placed.of} other models; {how}"
    )
    if placed.missing:
        say(
            f"cross-validated over families, these benchmarks predict with Kendall's tau {check.tau:.3f}, a root mean square "
            f"error of {check.rmse:.1f} in PC1 and a mean error of {check.rank_error:.1f} ranks"
        )
    if placed.outside:
        say(f"outside the range of published scores on {', '.join(placed.outside)}: the prediction extrapolates")


def _show_suggestion(found: BenchmarkSelection, known: tuple[str, ...]) -> None:
    chosen, best, cheapest = found.chosen, found.best, found.cheapest
    names = ", ".join(f"{task} (already measured)" if task in known else task for task in chosen.benchmarks)
    say(
        f"suggested: {names}: tau {chosen.tau:.3f} cross-validated over families, {chosen.train_rows:,} training rows",
        f"best: {', '.join(best.benchmarks)}: tau {best.tau:.3f}, {best.train_rows:,} training rows",
        f"cheapest: {', '.join(cheapest.benchmarks)}: tau {cheapest.tau:.3f}, {cheapest.train_rows:,} training rows",
        f"the suggested ones need the fewest rows among those within {found.tolerance} of the best of {found.tried:,} choices; "
        "the tau of a searched set is too optimistic (docs/analysis.md)",
    )
