"""``lm-harmony demo --fast`` as a user runs it: interrupted, continued, and shown."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from fork_server import forked_python
from live_results import is_written

from lm_harmony.cli.main import main
from lm_harmony.demo.study import FAST_BENCHMARKS, FAST_MODELS, demo_study

COMMAND = ["-m", "lm_harmony.cli", "demo", "--fast"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "160"}


def interrupted(folder: Path) -> str:
    """Start the demo in ``folder``, press Ctrl-C after a run is finished, and return its output."""
    command = [forked_python(ENVIRONMENT), *COMMAND]
    process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    results = folder / "results" / "demo"
    deadline = time.monotonic() + 300
    while not is_written(results, "record.json") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    return output


def test_the_fast_demo_is_interrupted_continued_and_shown(tmp_path: Path) -> None:
    output = interrupted(tmp_path)
    assert "stopped by Ctrl-C" in output and "Repeat the command" in output and "Traceback" not in output
    results = tmp_path / "results" / "demo"
    kept = {path: path.read_bytes() for path in results.rglob("record.json")}
    runs = len(FAST_MODELS) * len(FAST_BENCHMARKS)
    assert 0 < len(kept) < runs
    command = [forked_python(ENVIRONMENT), *COMMAND]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{runs} of {runs} runs finished, 0 failed\n" in done.stderr  # no time is left after the last run
    assert all(path.read_bytes() == record for path, record in kept.items())
    assert len(list(results.rglob("record.json"))) == runs
    assert "Direct evaluation" in done.stdout and "Train-before-test" in done.stdout
    assert all(done.stdout.count(model) == 2 for model in FAST_MODELS)
    assert len(re.findall(r"mean Kendall's tau between benchmarks -?\d\.\d\d", done.stdout)) == 2
    page = Path(done.stdout.split("The board as a page: ")[1].strip())
    assert page.is_relative_to(tmp_path) and all(model in page.read_text() for model in FAST_MODELS)
    scored = [record for record in demo_study(results, fast=True).records() if record.direct and record.trained]
    gains = [record.trained.metrics[record.metric] - record.direct.metrics[record.metric] for record in scored]  # type: ignore[union-attr]
    assert len(gains) == runs and sum(gains) / runs > 0.1


def test_a_missing_build_is_refused_by_name(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["demo", "--build_dir", str(tmp_path / "nowhere"), "--results_dir", str(tmp_path / "results")]) == 1
    output = capsys.readouterr().err
    assert "nowhere" in output and "python -m lm_harmony.demo.build" in output and "Traceback" not in output


def test_the_demo_needs_scores_without_examples(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["demo", "--direct_fewshot", "3", "--results_dir", str(tmp_path / "results")]) != 0
    assert "direct_fewshot = (3,): the demo compares with scores without examples. Add 0." in capsys.readouterr().err
    specs = [run.spec for run in demo_study(tmp_path, fast=True, shots=(0, 3)).runs]
    assert all(spec.direct_fewshot == (0, 3) for spec in specs) and not (tmp_path / "results").exists()
