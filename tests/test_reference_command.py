"""The reference command line works unchanged, with the real clients and a hub on loopback."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from fork_server import forked_python
from hub import LoopbackHub

from lm_harmony.recipe import PUBLISHED
from lm_harmony.runs.store import RunStore

ROOT = Path(__file__).parents[1]
COMMAND = (
    "python main.py --exp_name arc_easy/EleutherAI/pythia-70m-deduped --base_model EleutherAI/pythia-70m-deduped "
    "--task_name arc_easy --train_param.num_train_epochs 5 --eval_before_train --eval_every_epoch --eval_after_train "
    "--train_param.greater_is_better --train_param.metric_for_best_model eval_acc_norm,none "
    "--dataset_param.max_num_train 50000 --dataset_param.max_num_valid 1000 --dataset_param.max_num_test 10000 --no-use_git"
)

SCRIPT = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
"""Executes the file that is its first argument, as the interpreter does."""


def run(command: str, environment: dict[str, str], folder: Path, *, forked: bool) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that imports all libraries itself, or one that is ``forked``."""
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    variables = {**environment, "OMP_NUM_THREADS": "1"}
    start = [forked_python(variables), "-c", SCRIPT] if forked else [sys.executable]
    words = [*start, str(ROOT / script), *arguments]
    return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_the_reference_command_works_unchanged(hub: LoopbackHub, tmp_path: Path) -> None:
    done = run(COMMAND, hub.environment(tmp_path / "cache"), tmp_path, forked=False)
    assert done.returncode == 0, done.stderr
    record = RunStore(tmp_path / "results/arc_easy/EleutherAI/pythia-70m-deduped").record()
    assert record.benchmark == "arc_easy" and record.metric == "acc_norm,none"
    assert record.spec.recipe == PUBLISHED
    assert len(record.epochs) == 5 and record.test_curve.keys() == {1, 2, 3, 4, 5}
    assert record.direct is not None and record.trained is not None
    assert (record.data.train, record.data.validation, record.data.test) == (3, 2, 2)
    assert record.model_revision is not None and len(record.model_revision) == 40
    assert record.environment["git_revision"] is None
    assert any("/datasets/allenai/ai2_arc/resolve/" in request for request in hub.requests)


def test_a_model_that_is_not_on_the_hub_is_refused_in_one_line(hub: LoopbackHub, tmp_path: Path) -> None:
    command = "python main.py --base_model nobody/nothing --task_name arc_easy"
    done = run(command, hub.environment(tmp_path / "cache"), tmp_path, forked=True)
    assert done.returncode == 1
    assert "nobody/nothing" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_without_a_hub_the_error_gives_a_remedy(hub: LoopbackHub, tmp_path: Path) -> None:
    closed = {**hub.environment(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = run("python main.py --base_model EleutherAI/pythia-70m-deduped --task_name arc_easy", closed, tmp_path, forked=True)
    assert done.returncode == 1
    assert "--data_dir" in done.stderr and "Traceback" not in done.stderr
