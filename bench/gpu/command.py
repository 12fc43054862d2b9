"""The command of ``bench/gpu_day.py``. It runs each step in a separate process, and kills it at its time limit.

This process imports torch only to look for a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import platform
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.connection import Connection
from os import _exit
from pathlib import Path
from typing import Any, NoReturn

from bench.gpu.report import tables
from bench.gpu.rows import FULL, TINY, Bench, Rows, one_line

PACKAGES = ("torch", "transformers", "peft", "accelerate", "triton", "numpy")
START_SECONDS = 180
"""Time limit in seconds for the imports of a process. The time limit of a step does not include them."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the benchmark."""

    title: str
    """Description of what is measured."""
    seconds: float
    """Time limit in seconds."""
    function: str
    """module:function that takes a ``Bench``."""


STEPS = {
    0: Step(title="the machine", seconds=20, function="kernels:machine"),
    1: Step(title="exactness", seconds=60, function="exactness:exactness"),
    2: Step(title="attention calls at new shapes", seconds=60, function="kernels:attention"),
    3: Step(title="LoRA steps", seconds=150, function="training:lora_steps"),
    4: Step(title="joint training", seconds=90, function="training:joint_training"),
    5: Step(title="scoring", seconds=90, function="scoring:scoring"),
    6: Step(title="writing", seconds=75, function="scoring:writing"),
    7: Step(title="memory of training", seconds=60, function="training:memory"),
    8: Step(title="new backends", seconds=160, function="exactness:new_backends"),
}
"""Steps by number. Each step starts with its largest shape, so that a time limit cuts off the smaller ones."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print the error in one line and exit."""
        self.exit(2, f"gpu_day: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, or print the tables of earlier runs; return 0, or 1 if a step failed."""
    parser = _Parser(prog="gpu_day", description="Everything about a GPU in twelve minutes: exactness, speed and memory.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines are appended here")
    parser.add_argument("--steps", type=_steps, default=list(STEPS), metavar="1,3", help="default: all, 0 to 8")
    parser.add_argument("--minutes", type=_positive, default=12.0, help="time limit of all steps (default: %(default)s)")
    parser.add_argument("--limits", type=_limits, default={}, metavar="3=200,5=90", help="time limits of steps in seconds")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU unless --device says otherwise")
    parser.add_argument("--device", help="cpu or cuda (default: cuda, with --tiny cpu)")
    parser.add_argument("--report", type=Path, nargs="+", metavar="FILE", help="print the tables of these files, run nothing")
    flags = parser.parse_args(arguments)
    if flags.report:
        for path in flags.report:
            if not path.is_file():
                parser.error(f"--report: {path} is not a file. Give the files that --out wrote.")
        print(tables(flags.report))
        return 0
    if flags.out is None or not flags.out.resolve().parent.is_dir():
        parser.error(f"--out = {flags.out}: give a file in an existing folder, to which JSON lines are appended.")
    device = flags.device or ("cpu" if flags.tiny else "cuda")
    if not flags.tiny and not _has_gpu(device):
        parser.error(f"--device = {device}: no GPU can be used here. Use a machine with one, or --tiny for a CPU.")
    return _run(flags, device)


def _steps(text: str) -> list[int]:
    steps = [part.strip() for part in text.split(",")]
    for step in steps:
        if not step.isdecimal() or int(step) not in STEPS:
            raise argparse.ArgumentTypeError(f"{step!r} is no step. Steps are 0 to {max(STEPS)}, separated by commas.")
    return sorted({int(step) for step in steps})


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0.")
    return value


def _limits(text: str) -> dict[int, float]:
    limits = {}
    for part in text.split(","):
        step, _, seconds = part.partition("=")
        limits[_steps(step)[0]] = _positive(seconds)
    return limits


def _has_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") and torch.cuda.is_available()


@dataclass
class _Child:
    """A process that imports the libraries of a step, sends "ready", waits for "go" and runs the step."""

    step: int
    arguments: tuple[Any, ...]
    connection: Connection = field(init=False)
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        context = _context(self.arguments[-1])
        self.connection, child_connection = context.Pipe()
        self.process = context.Process(target=_run_step, args=(child_connection, self.step, *self.arguments), daemon=True)
        self.process.start()
        child_connection.close()

    def receive(self, seconds: float) -> str | dict[str, str]:
        """Return the next message of the process, or an error if none comes within ``seconds`` or the process has ended."""
        try:
            if not self.connection.poll(max(0.0, seconds)):
                return {"error": f"over its time limit of {seconds:.4g} s"}
            message: str | dict[str, str] = self.connection.recv()
            return message
        except (EOFError, ConnectionResetError):
            self.process.join(10)
            return {"error": f"the process died (exit code {self.process.exitcode})"}

    def end(self) -> None:
        """Wait until the process has ended. Kill it if it does not end within five seconds."""
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(20)


def _context(device: str) -> Any:
    """Return how processes are started. On a CPU they are forked from one process that has imported the libraries."""
    if device != "cpu":
        return multiprocessing.get_context("spawn")  # a fork could inherit a half-initialised CUDA
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted({"bench.gpu." + step.function.partition(":")[0] for step in STEPS.values()}))
    return context


def _run(flags: argparse.Namespace, device: str) -> int:
    started = time.monotonic()
    run = datetime.now(UTC).isoformat(timespec="milliseconds")
    rows = Rows(path=flags.out, run=run)
    versions = {name: _version(name) for name in PACKAGES}
    machine = {"python": platform.python_version(), "system": platform.platform(), "versions": versions}
    rows.write("run", steps=flags.steps, minutes=flags.minutes, tiny=flags.tiny, device=device, **machine)
    arguments = (flags.out, run, flags.tiny, device)
    failed, following = False, None
    for place, number in enumerate(flags.steps):
        step_rows = Rows(path=flags.out, run=run, step=number)
        left = flags.minutes * 60 - (time.monotonic() - started)
        if left <= 0:
            step_rows.write("error", error=f"not started: the {flags.minutes:g} minutes are over")
            failed = True
            continue
        child = following or _Child(number, arguments)
        message = child.receive(min(left, START_SECONDS))
        # The libraries of the next step are imported while this step runs. This takes about ten seconds.
        following = _Child(flags.steps[place + 1], arguments) if place + 1 < len(flags.steps) else None
        step_started = time.monotonic()
        if message == "ready":
            child.connection.send("go")
            left = flags.minutes * 60 - (step_started - started)
            message = child.receive(min(flags.limits.get(number, STEPS[number].seconds), left))
        if isinstance(message, dict):
            step_rows.write("error", title=STEPS[number].title, seconds=time.monotonic() - step_started, **message)
            failed = True
            child.process.kill()
        else:
            step_rows.write("done", title=STEPS[number].title, seconds=time.monotonic() - step_started)
        child.end()
    if following is not None:
        following.process.kill()
        following.end()
    return int(failed)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run_step(connection: Connection, step: int, out: Path, run: str, tiny: bool, device: str) -> None:
    """Run one step in this process. Send "ready" after the imports, wait for "go", and send "done" or an error at the end."""
    try:
        module, _, name = STEPS[step].function.partition(":")
        function = getattr(importlib.import_module(f"bench.gpu.{module}"), name)
        connection.send("ready")
        if connection.recv() != "go":
            return
        threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
        import torch

        place = torch.device(device)
        chip = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine()
        function(Bench(device=place, sizes=TINY if tiny else FULL, rows=Rows(path=out, run=run, step=step, chip=chip)))
        connection.send("done")
    except EOFError:  # the parent process has ended
        return
    except Exception as error:  # noqa: BLE001 - it is written as a row, and the next step runs
        trace = "".join(traceback.format_exception(error))[-2000:]
        connection.send({"error": one_line(error), "trace": trace})
        sys.exit(1)


def _end_with_parent(connection: Connection) -> None:
    try:
        connection.recv()
    except (EOFError, OSError):
        _exit(1)
