"""``lm-harmony place MODEL --until 10``: benchmarks are run until the rank of a model is known well enough.

It is a study of one model on the published benchmarks, of which only the runs that are needed are carried out. Finished runs in
the results folder count, so that a repeated command continues.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from lm_harmony.analysis.placement import fit_placement, published_placement
from lm_harmony.analysis.placement_order import Stop
from lm_harmony.cli.console import lines_beside, quiet_libraries, say, show_rows
from lm_harmony.cli.place_flags import PlaceFlags
from lm_harmony.cli.placing import Placing, show_differences, show_end, show_place, show_plan, show_position
from lm_harmony.cli.study import run_study
from lm_harmony.errors import BenchmarkError, UsageError
from lm_harmony.report.tables import placement_row
from lm_harmony.runs.spec import RunSpec
from lm_harmony.studies.calibration import calibrate
from lm_harmony.studies.config import StudySpec
from lm_harmony.studies.hardware import Hardware, hardware_named
from lm_harmony.studies.plan import price
from lm_harmony.studies.study import Study


def place_until(model: str, flags: PlaceFlags, specs: Mapping[str, RunSpec]) -> bool:
    """Run benchmarks until the rank interval is narrow enough or the hours are used; return whether no run failed.

    Args:
        model: name of the model on the hub, or its folder.
        flags: the parsed command line, with ``until`` or ``hours``.
        specs: the run of each benchmark that may be run, cheapest first.

    Raises:
        UsageError: no benchmark can be run, or the hours suffice for none.
        ModelError: the model cannot be loaded.
        KeyboardInterrupt: after a line that says how to continue.
    """
    quiet_libraries()
    board = published_placement()
    placing = Placing(
        study=Study(StudySpec(runs=tuple(specs.values()), results_dir=flags.results_dir, data_dir=flags.data_dir)),
        until=flags.until,
        placement=fit_placement(board.without([model]), board.families.get(model)),
    )
    with lines_beside(flags.format):
        done = _place(placing, model, flags)
    if flags.dry_run and placing.left:
        show_plan(placing, flags.hardware, flags.format)
    elif flags.format == "table":
        show_place(placing, model)
    else:
        show_rows([placement_row(placing.position(model))] if placing.scores else [], flags.format)
    return done


def _place(placing: Placing, model: str, flags: PlaceFlags) -> bool:
    """Run benchmarks as ``place_until`` does, and print all but the result; return whether no run failed."""
    placing.read_results()
    failed = {} if flags.retry_failed else dict(placing.failed)
    say(*(f"left out, because its run failed: {task}: {cause}" for task, cause in failed.items()))
    if placing.scores:
        show_differences(placing)
        show_position(placing, model)
    if placing.progress.stop(flags.until, placing.specs) == "narrow":  # nothing has to be run
        show_end(placing, "narrow")
        return True
    _price_runs(placing, flags)
    placing.failed = failed
    show_differences(placing)
    if flags.dry_run:
        return True
    show_plan(placing, flags.hardware)
    show_end(placing, _run(placing, model, flags))
    return not placing.failed


def _price_runs(placing: Placing, flags: PlaceFlags) -> None:
    """Count what each benchmark without a score takes on the machine; those whose rows cannot be used are left out.

    Raises:
        UsageError: none is left.
    """
    open_specs = {task: spec for task, spec in placing.specs.items() if task not in placing.scores}
    causes: dict[str, str] = {}
    machine = hardware_named(flags.hardware) if flags.hardware != "here" else _measured(open_specs, causes)
    for task, spec in open_specs.items():
        if task not in causes and machine is not None:
            try:
                placing.add_price(task, price(spec, machine))
            except (OSError, ValueError) as error:  # every HarmonyError of loading is also one of these two
                causes[task] = " ".join(str(error).split())
    if not placing.prices and not placing.scores:
        raise UsageError(f"no benchmark of the published board can be run. {next(iter(causes.values()))}")
    say(*(f"left out: {task}: {cause}" for task, cause in causes.items()))


def _measured(specs: Mapping[str, RunSpec], causes: dict[str, str]) -> Hardware | None:
    """Measure this machine on the first benchmark with usable rows; ``causes`` receives why others have none."""
    for task, spec in specs.items():
        try:
            return calibrate(spec)
        except BenchmarkError as error:
            causes[task] = str(error)
    return None


def _run(placing: Placing, model: str, flags: PlaceFlags) -> Stop | None:
    """Run one benchmark after another, and return why it ended; None: no other benchmark fits into the hours.

    Raises:
        UsageError: the hours do not suffice for any benchmark.
    """
    started, slowness = time.monotonic(), 1.0
    measured = predicted = 0.0
    while (reason := placing.progress.stop(placing.until, [*placing.scores, *placing.left])) is None:
        used = (time.monotonic() - started) / 3600
        costs = {task: one.hours * slowness for task, one in placing.left.items()}
        fitting = {task: hours for task, hours in costs.items() if flags.hours is None or used + hours <= flags.hours}
        if not fitting:
            shortest = min(costs, key=lambda task: costs[task])
            lacking = f"the shortest benchmark that is left, {shortest}, is predicted to take {costs[shortest]:.3g} hours"
            if not predicted:
                raise UsageError(f"hours = {flags.hours:g} is too few: {lacking}. Give more hours.")
            say(f"{lacking}, and {flags.hours:g} - {used:.3g} are left")
            return None
        batch: list[str] = []
        while len(batch) < flags.workers and (task := placing.progress.next_benchmark(fitting, batch)) is not None:
            batch.append(task)
        say(f"next: {', '.join(batch)} ({max(costs[task] for task in batch):.3g} hours predicted)")
        begun = time.monotonic()
        part = Study(replace(placing.study.spec, runs=tuple(placing.specs[task] for task in batch)))
        run_study(part, workers=len(batch), ray=None, retry_failed=flags.retry_failed)
        measured += (time.monotonic() - begun) / 3600
        predicted += max(placing.prices[task].hours for task in batch)
        slowness = measured / predicted
        placing.read_results()
        show_position(placing, model)
    return reason
