"""The command line: ``lm-harmony COMMAND``."""
# Each command parses its arguments and calls one function. Heavy imports are inside functions: --help must not wait for torch.

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lm_harmony.cli import board as board_command
from lm_harmony.cli import submit as submit_command
from lm_harmony.cli.catalogues import benchmarks, models
from lm_harmony.cli.console import Format, say
from lm_harmony.cli.export import export
from lm_harmony.cli.parsing import parse
from lm_harmony.cli.place import place_command
from lm_harmony.cli.rows import rows
from lm_harmony.cli.run_flags import RunFlags
from lm_harmony.errors import HarmonyError, check_integer
from lm_harmony.fast_imports import fast_imports
from lm_harmony.redaction import hide_secrets
from lm_harmony.stop_signals import exit_status, stop_caught, stop_on_signals, stopped_by

DESCRIPTION = "LM-Harmony: fine-tune every model on a benchmark's training split before it is tested."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 an error, 2 a wrong flag, 128 + n stopped by signal n."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:
        stop_on_signals()
        hide_secrets()
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # such as ± in the locale C
    try:
        try:
            return _carry_out(words)
        finally:
            sys.stdout.flush()  # here, because an error at the end of the process could not be caught
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # where the reader of our output has left, as `| head` does, there is nothing to say
            say(f"lm-harmony: the output cannot be written: {error.strerror}. Write it to another place.", stderr=True)
        return 1


def _carry_out(words: list[str]) -> int:
    """Carry out the command that ``words`` name and return the exit status, as ``main`` does."""
    if words[:1] == ["--version"]:
        from lm_harmony import __version__

        print(__version__)
        return 0

    def run(flags: Annotated[RunFlags, tyro.conf.arg(name="")]) -> None:
        """Fine-tune one model on one benchmark, choose the epoch on validation, test it, and write a record.

        Example: `lm-harmony run --base_model EleutherAI/pythia-70m-deduped --task_name arc_easy`
        """
        from lm_harmony.cli import run as run_command

        run_command.run(flags, words)

    groups = {
        "One model": (run, place_command(words)),
        "Studies of several models and benchmarks": (demo, plan, fetch, study, status),
        "Results": (*board_command.COMMANDS, rows),
        "Exchange with others": (export, *submit_command.COMMANDS),
        "Catalogue": (benchmarks, models),
    }
    try:
        said = parse(words, groups, description=DESCRIPTION)()
    except HarmonyError as error:
        if "--debug" in words:
            raise
        say(f"lm-harmony: {error}", stderr=True)
        return 1
    except OSError as error:  # a file where a folder must be, a folder without permission, a full disk
        if "--debug" in words or error.filename is None:
            raise
        say(f"lm-harmony: {error.filename}: {error.strerror}. Give another path, or check its permissions.", stderr=True)
        return 1
    except KeyboardInterrupt:
        stop_caught()
        say(f"lm-harmony: interrupted by {stopped_by()}.", stderr=True)
        return exit_status()
    return 1 if said is False else 0


def plan(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    hardware: str = "here",
    workers: int = 1,
    ray: str | None = None,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    joint: int | None = None,
    format: Format = "table",
) -> bool:
    """Estimate what a study takes before anything runs: tokens, FLOPs, memory, disk space and hours.

    Example: `lm-harmony plan study.yaml --hardware h100 --workers 8`

    Args:
        file: the study's YAML file.
        hardware: h200, h100, a100, a100-40, l40s, rtx4090, or here (this machine, measured for up to 30 seconds).
        workers: processes or GPUs that share the work.
        ray: address of a Ray cluster, or auto; models that fit on none of its nodes are named before anything is counted.
        only: texts or glob patterns (* and ?); only runs whose name contains one of them are counted.
        skip: texts or glob patterns; runs whose name contains one of them are left out.
        joint: most runs of one model that train jointly; default: the study's joint, or 1.
        format: table is for people; csv, json and markdown have a row for each model, without the constants.
    """
    from lm_harmony.cli.console import quiet_libraries
    from lm_harmony.runs.preflight import check_hardware
    from lm_harmony.studies.study import Study

    for name, value in (("workers", workers), ("joint", 1 if joint is None else joint)):
        check_integer(name, value, 1)
    if hardware != "here":
        check_hardware(hardware)
    asked = Study.read(file, only=only, skip=skip)
    specs = [run.spec for run in asked.runs]
    with fast_imports():
        from lm_harmony.cli import plan as plan_command
        from lm_harmony.studies.plan import make_plan

    quiet_libraries()
    if ray is not None:
        plan_command.check_cluster(ray, asked.runs)
    planned = make_plan(specs, plan_command.machine_of(hardware, specs), joint or asked.spec.joint)
    plan_command.show_plan(planned, workers, format)
    return not planned.missing


def fetch(file: Annotated[Path, tyro.conf.Positional], /, data_dir: Path | None = None, models_dir: Path | None = None) -> bool:
    """Download a study's rows and models into folders, at fixed commits, so that its runs need no network.

    Example: `lm-harmony fetch study.yaml --data_dir data --models_dir models`

    Args:
        file: the study's YAML file.
        data_dir: folder for rows; default: the study's data_dir.
        models_dir: folder for models; default: the study's models_dir. Without either, runs download models into the hub's cache.
    """
    from lm_harmony.cli.study import fetch_study
    from lm_harmony.studies.config import read_study

    return fetch_study(read_study(file), data_dir=data_dir, models_dir=models_dir)


def study(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    workers: int | None = None,
    ray: str | None = None,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    retry_failed: bool = False,
    joint: int | None = None,
    dry_run: bool = False,
    format: Format = "table",
) -> bool:
    """Carry out the runs of a study that are not finished. Repeat the command to continue. The exit status is 1 if a run failed.

    Example: `lm-harmony study study.yaml --workers 2`

    Args:
        file: the study's YAML file.
        workers: number of worker processes; default: one for each GPU, or one.
        ray: address of a Ray cluster, or auto; default: worker processes on this machine.
        only: texts or glob patterns (* and ?); only runs whose name contains one of them are carried out.
        skip: texts or glob patterns; runs whose name contains one of them are left out.
        retry_failed: carry out failed runs again.
        joint: most runs of one model that a worker trains jointly, in common passes; default: the study's joint, or 1.
        dry_run: only list the runs with their states, and check models, tasks, rows and the results folder.
        format: table is for people; csv, json and markdown have a row for each run, with its state at the end and the reason.
    """
    from lm_harmony.cli.study import list_runs, run_study
    from lm_harmony.studies.study import Study

    check_integer("workers", 1 if workers is None else workers, 1)
    asked = Study.read(file, only=only, skip=skip)
    if dry_run:
        return list_runs(asked, format)
    return run_study(asked, workers=workers, ray=ray, retry_failed=retry_failed, joint=joint, format=format)


def status(file: Annotated[Path, tyro.conf.Positional], /, watch: bool = False, format: Format = "table") -> bool:
    """Show the state of a study: finished, running, failed (with causes) and waiting runs. The exit status is 1 if a run failed.

    Example: `lm-harmony status study.yaml --watch`

    Args:
        file: the study's YAML file.
        watch: update the display until no run is running or waiting.
        format: table is for people; csv, json and markdown have a row for each run, with its state and the reason.
    """
    from lm_harmony.cli import study as study_command
    from lm_harmony.studies.study import Study

    asked = Study.read(file)
    if watch:
        study_command.watch(asked)
    now = study_command.status_of(asked)
    study_command.show_status(asked, now, format)
    return not now.failed


def demo(
    fast: bool = False,
    results_dir: Path = Path("results/demo"),
    build_dir: Path | None = None,
    direct_fewshot: tuple[int, ...] = (0,),
    format: Format = "table",
) -> bool:
    """Run the demo study in minutes: eight tiny models of the package on six small benchmarks, before and after training.

    Example: `lm-harmony demo --fast`

    Args:
        fast: only three models and three benchmarks, in under a minute.
        results_dir: folder for records and the page. Repeat the command to continue an interrupted study.
        build_dir: folder that `python -m lm_harmony.demo.build` wrote; default: the models of the package.
        direct_fewshot: numbers of examples before each question of direct scores; 0 has to be one of them.
        format: table has a table of direct and one of trained scores; the other formats have both in one.
    """
    from lm_harmony.cli.demo import run_demo
    from lm_harmony.demo.study import SHIPPED

    return run_demo(results_dir, build_dir or SHIPPED, fast=fast, format=format, shots=direct_fewshot)


if __name__ == "__main__":
    sys.exit(main())
