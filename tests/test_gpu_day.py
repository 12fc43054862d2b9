"""bench/gpu_day.py runs every step with tiny shapes on a CPU. After a failed step the other steps run. The report shows both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fork_server import forked_python

ROOT = Path(__file__).parents[1]
ABSENT = ("lm_eval", "datasets", "ray", "tyro", "docstring_parser", "typeguard", "pandas", "matplotlib")
"""Packages that bench/gpu_day.py does not need."""
EXPECTED = {
    0: {"versions": 1, "product": 1, "copy": 3, "launch": 1},
    1: {"exactness": 6, "exactness of a model": 3},
    2: {"attention": 16},
    3: {"model": 1, "backend": 1, "training": 2, "profiled steps": 2, "shape": 1},
    4: {"model": 1, "backend": 1, "joint training": 2, "shape": 1},
    5: {"model": 1, "backend": 1, "scoring": 3, "shape": 1},
    6: {"model": 1, "backend": 1, "writing": 3, "shape": 1},
    7: {"model": 1, "backend": 1, "memory": 4, "shape": 1},
    8: {"new backends": 1},
}
"""Step -> number of rows of each kind in a tiny run, without the last row of the step."""


@dataclass(frozen=True)
class Machine:
    """A machine on which ``ABSENT`` are not installed."""

    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)


def forked(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that has all packages and is forked, which is faster."""
    return subprocess.run([forked_python(), *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("bare")
    # Python imports sitecustomize at every start. If sys.modules has None for a module, its import raises ModuleNotFoundError.
    code = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return Machine({**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="module")
def out(bare: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all steps and return the file of rows."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.jsonl"
    # The default limits are for a GPU, and this machine may be busy.
    limits = ",".join(f"{step}=300" for step in EXPECTED)
    done = bare.run("bench/gpu_day.py", "--tiny", "--limits", limits, "--minutes", "30", "--out", str(path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["lm_eval", "datasets", "tyro"])
def test_the_bare_machine_cannot_import_the_absent_packages(bare: Machine, name: str) -> None:
    done = bare.run("-c", f"import {name}")
    assert done.returncode != 0 and "ModuleNotFoundError" in done.stderr


def test_every_step_writes_all_its_rows(out: Path) -> None:
    rows = rows_of(out)
    assert [row for row in rows if "error" in row] == []
    for step, expected in EXPECTED.items():
        assert Counter(row["what"] for row in rows if row["step"] == step) == {**expected, "done": 1}
    run = rows[0]
    assert run["what"] == "run" and run["tiny"] and run["versions"]["torch"]
    assert len({row["run"] for row in rows}) == 1


def test_the_figures_are_plausible(out: Path) -> None:
    rows = rows_of(out)
    exact = [row for row in rows if row["what"] == "exactness"]
    assert all(row["exact"] and row["packed"] for row in exact)
    assert {row["written_equal"] for row in exact if row["dtype"] == "float32"} == {1.0}
    # Results in bfloat16 must differ from float32. Otherwise the comparison would be without effect.
    assert all(row["learned"] > 1e-4 for row in exact if row["dtype"] == "bfloat16")
    auto, plain = (row for row in rows if row["what"] == "training")
    assert (auto["backend"], plain["backend"]) == ("auto", "plain")
    assert auto["tokens_per_step"] == plain["tokens_per_step"] > 10
    assert all(row["tokens_per_s"] > 0 and row["samples"] == 4 for row in (auto, plain))
    assert all("share_of_peak" not in row for row in rows)  # the peak of a CPU is not known
    one, two = (row for row in rows if row["what"] == "joint training")
    assert 1.5 < two["tokens_per_step"] / one["tokens_per_step"] < 2.5
    small, large, padded = (row for row in rows if row["what"] == "scoring")
    assert small["passes"] > large["passes"] and small["layout_s"] > 0
    assert large["tokens"] < padded["tokens"]  # shared contexts are computed once
    assert [row["tokens"] for row in rows if row["what"] == "writing"] == [16, 16, 16]
    long_one, long_two = [row for row in rows if row["what"] == "memory" and row["backend"] == "auto"]
    assert long_two["expected_bytes"] == 2 * long_one["expected_bytes"] > 0


def test_the_report_shows_tables_errors_and_steps_that_are_not_measured(bare: Machine, out: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial.jsonl"
    lines = [line for line in out.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] in (None, 0, 3)]
    failed = {"run": rows_of(out)[0]["run"], "step": 4, "what": "error", "chip": None, "error": "over its time limit of 90 s"}
    partial.write_text("\n".join([*lines, json.dumps(failed), '{"run": "2026', ""]), encoding="utf-8")
    done = bare.run("bench/gpu_day.py", "--report", str(out), str(partial))
    assert done.returncode == 0, done.stderr
    complete, _, rest = done.stdout.partition("## partial.jsonl")
    assert "| 4 | done |" in complete and "not measured" not in complete and "### Errors" not in complete
    assert "torch 2." in complete and "date 20" in complete
    assert complete.count("| tiny | auto |") >= 5
    assert "| 4 | over its time limit of 90 s |" in rest and "| 5 | not measured |" in rest
    assert "### Errors" in rest and "1 lines of partial.jsonl are no rows" in rest
    assert "### Scoring\n\nnot measured" in rest


def test_a_step_over_its_time_limit_writes_an_error_row_and_the_next_step_runs(bare: Machine, tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    path.write_text('{"broken": ', encoding="utf-8")  # a killed process may leave an incomplete line
    done = bare.run("bench/gpu_day.py", "--tiny", "--steps", "0,1,8", "--limits", "0=300,1=0.01,8=300", "--out", str(path))
    assert done.returncode == 1
    broken, *lines = path.read_text(encoding="utf-8").splitlines()
    assert broken == '{"broken": '
    ends = {row["step"]: row for row in map(json.loads, lines) if row["what"] in ("done", "error")}
    assert {step: row["what"] for step, row in ends.items()} == {0: "done", 1: "error", 8: "done"}
    assert ends[1]["error"] == "over its time limit of 0.01 s"


def test_an_error_of_a_step_and_the_total_time_limit_write_error_rows(bare: Machine, tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    done = bare.run("bench/gpu_day.py", "--tiny", "--device", "no_such", "--steps", "8", "--out", str(path))
    assert done.returncode == 1 and "RuntimeError" in rows_of(path)[-1]["error"]
    done = bare.run("bench/gpu_day.py", "--tiny", "--minutes", "0.0001", "--steps", "0,8", "--out", str(path))
    assert done.returncode == 1
    last_rows = rows_of(path)[-2:]
    assert [row["step"] for row in last_rows] == [0, 8] and all(row["what"] == "error" for row in last_rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "1,9"), "'9' is no step"),
        (("--minutes", "0"), "'0' is not a number above 0"),
        (("--limits", "3"), "'' is not a number above 0"),
        ((), "--out = None"),
        (("--out", "no/such/folder/gpu.jsonl"), "existing folder"),
        (("--report", "no_such.jsonl"), "no_such.jsonl is not a file"),
        (("--out", "gpu.jsonl", "--device", "cpu"), "no GPU"),
    ],
)
def test_wrong_arguments_give_a_message_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = forked("-m", "bench.gpu_day", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_the_shapes_have_the_published_numbers_of_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import torch

    from bench.gpu.models import linear_weights, random_module

    # Millions of parameters. The model cards have 7.62, 1.24 and 0.49 billion.
    published = {"qwen2.5-7b": 7_616, "llama-3.2-1b": 1_236, "qwen2.5-0.5b": 494}
    for shape, millions in published.items():
        module = random_module(shape, torch.device("meta"))
        assert round(module.num_parameters() / 1e6) == millions
        body, head = linear_weights(module)
        assert head == module.config.vocab_size * module.config.hidden_size
        assert 0.7 < (body + head) / module.num_parameters() <= 1


def test_a_profile_counts_overlapping_kernels_only_once_in_gpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import torch
    from torch.autograd import DeviceType

    from bench.gpu.measure import Profile

    def event(name: str, start: float, end: float, *, on_gpu: bool = True, note: bool = False, inner: Any = ()) -> Any:
        span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        device = DeviceType.CUDA if on_gpu else DeviceType.CPU
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=note, cpu_children=inner)

    copy = event("aten::copy_", 0, 1, on_gpu=False)
    recorded = [
        event("gemm", 0, 10),
        event("attention", 5, 12),
        event("Memcpy HtoD", 20, 21),
        event("Optimizer.step#AdamW.step", 0, 100),
        event("mark", 0, 100, note=True),
        event("aten::to", 0, 2, on_gpu=False, inner=(copy,)),
        copy,
    ]
    profile = Profile(torch.device("cpu"))
    profile._profiler = SimpleNamespace(stop=lambda: None, events=lambda: recorded)
    found = profile.stop(parts=2)
    assert (found["launches"], found["gpu_ms"], found["operations"]) == (1.5, 13 / 2 / 1e3, 0.5)
    assert found["kernels"] == {"gemm": 10 / 18, "attention": 7 / 18, "Memcpy HtoD": 1 / 18}


def test_a_share_of_the_peak_is_given_only_for_known_chips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import torch

    from bench.gpu.models import share_of_peak
    from bench.gpu.rows import TINY, Bench, Rows

    for chip, expected in (("NVIDIA H100 80GB HBM3", 0.5), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None)):
        rows = Rows(path=tmp_path / "none", run="now", chip=chip)
        bench = Bench(device=torch.device("cuda"), sizes=TINY, rows=rows)
        assert share_of_peak(bench, 989.4e12, 2.0).get("share_of_peak") == expected


def test_the_absent_packages_are_not_imported_even_if_installed() -> None:
    code = f"""
import sys
import bench.gpu_day
import bench.gpu.exactness, bench.gpu.kernels, bench.gpu.scoring, bench.gpu.training
print([name for name in {ABSENT[:4]!r} if name in sys.modules], "lm_harmony.engine.training" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_a_new_backend_is_compared_and_timed_and_after_a_failure_the_step_continues(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    code = f"""
from dataclasses import replace
from pathlib import Path
import torch
from bench.gpu.exactness import choose_backend, new_backends
from bench.gpu.rows import TINY, Bench, Rows
from bench.gpu.scoring import scoring

rows = Rows(path=Path({str(path)!r}), run="now", step=8)
sizes = replace(TINY, demo_models=("llama-1",), training=("tiny",), other=("no such shape", "tiny"))
step_bench = Bench(device=torch.device("cpu"), sizes=sizes, rows=rows)
new_backends(step_bench, {{"another": choose_backend}})
scoring(step_bench)
"""
    done = forked("-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(path)
    exact = [row for row in rows if row["what"] == "exactness"]
    assert len(exact) == 4 and all(row["backend"] == "another" and row["exact"] for row in exact)
    assert [row["backend"] for row in rows if row["what"] == "training"] == ["another"]
    (failed,) = [row for row in rows if "error" in row]
    assert failed["what"] == "shape" and failed["error"] == "KeyError: 'no such shape'"
    assert [row["backend"] for row in rows if row["what"] == "scoring"] == ["auto", "auto", "plain"]
