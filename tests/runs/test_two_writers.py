"""Two processes that carry out one run or need one direct score: one works, and the other says who, or waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from fork_server import forked_python
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.benchmarks.types import Score
from lm_harmony.runs.caches import DirectScoreCache
from lm_harmony.runs.folder_lease import FolderLeases


def command(folder: Path, *words: str) -> list[str]:
    write_micro(folder)
    write_tiny_model(folder / "model")
    flags = ["--base_model", "model", "--task_name", "micro.yaml", "--data_dir", ".", "--device", "cpu", "--exp_name", "deep/one"]
    return [sys.executable, "-m", "lm_harmony.cli", "run", *flags, "--peft_config.target_modules", "all-linear", *words]


def test_a_second_run_names_the_process_that_carries_it_out(tmp_path: Path) -> None:
    words = command(tmp_path, "--train_param.num_train_epochs", "5000")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        epochs = tmp_path / "results" / "deep" / "one" / "epochs.jsonl"
        while not epochs.exists():
            assert first.poll() is None
            time.sleep(0.02)
        words[-1] = "1"
        words[0] = forked_python(environment)
        second = subprocess.run([*words, "--overwrite"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert first.poll() is None
        assert second.returncode == 1 and "Traceback" not in second.stderr
        assert f"deep/one is executed by process {first.pid} on {os.uname().nodename}. Wait until" in second.stderr
    finally:
        first.kill()
        first.wait()
    third = subprocess.run([*words, "--overwrite"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert third.returncode == 0, third.stderr  # negative control: the lease of a killed process is free
    assert [json.loads(line)["epoch"] for line in epochs.read_text().splitlines()] == [1]
    assert not list((tmp_path / "results").rglob(".*.lease"))


def test_bad_input_leaves_no_folder_behind(tmp_path: Path) -> None:
    words = command(tmp_path)
    words[words.index("micro.yaml")] = "unknown.yaml"
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 1
    assert not (tmp_path / "results").exists()


def test_a_direct_score_is_computed_once_and_the_others_wait_for_it(tmp_path: Path) -> None:
    computed, found = list[float](), list[Score]()
    score = Score(metrics={"acc,none": 0.5}, stderrs={"acc,none": None}, documents=1, samples=({"doc_id": 0},))

    def compute() -> Score:
        computed.append(time.monotonic())
        time.sleep(0.3)
        return score

    threads = [
        threading.Thread(target=lambda: found.append(DirectScoreCache(tmp_path / "direct").get_or_compute("0123", compute)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1 and found == [score] * 4
    assert sorted(path.name for path in (tmp_path / "direct").rglob("*")) == ["0123", "direct.json", "samples_direct.jsonl"]


def test_a_direct_score_whose_computation_was_killed_is_computed_again(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from lm_harmony.runs.folder_lease import FolderLeases\n"
        f"FolderLeases(Path({str(tmp_path)!r})).acquire('direct/0123'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "direct" / ".0123.lease").is_file()
    score = Score(metrics={"acc,none": 0.5}, stderrs={"acc,none": None}, documents=1)
    assert DirectScoreCache(tmp_path / "direct").get_or_compute("0123", lambda: score) == score
    assert not FolderLeases(tmp_path).working(["direct/0123"])
