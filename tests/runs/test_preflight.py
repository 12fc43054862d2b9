"""Wrong input is refused before torch is imported: models, tasks, rows and the results folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.benchmarks.types import Caps
from lm_harmony.cli.main import main
from lm_harmony.errors import HarmonyError, UsageError
from lm_harmony.runs.preflight import check_request, check_results_folder
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec

WITHOUT_TORCH = """
import sys
from lm_harmony.cli.main import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules and "transformers" not in sys.modules and "datasets" not in sys.modules
sys.exit(status)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_micro(folder)
    write_tiny_model(folder / "models" / "SmolLM2-135M")
    (folder / "a_file").write_text("", encoding="utf-8")
    return folder


def request(world: Path, model: str = "models/SmolLM2-135M", task: str = "micro.yaml", data_dir: str = ".") -> RunSpec:
    benchmark = BenchmarkSpec(task=task, data_dir=world / data_dir, caps=Caps())
    return RunSpec(model=ModelSpec(name=model), benchmark=benchmark)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ""}, "base_model is empty"),
        ({"model": "a b"}, "base_model = 'a b' is no model"),
        ({"model": "a_file"}, "base_model = a_file is a file"),
        ({"model": "./models/SmolLM2"}, "does not exist. Did you mean 'SmolLM2-135M'?"),
        ({"model": "models/SmolLM2-135"}, "does not exist. Did you mean 'SmolLM2-135M'?"),
        ({"model": "nowhere/to/be/found"}, "the folder nowhere/to/be/found does not exist."),
        ({"model": "models"}, "the folder models holds no config.json"),
        ({"task": ""}, "task_name is empty"),
        ({"task": "arc_*"}, "stands for several tasks"),
        ({"task": "arc_easy,sst2"}, "stands for several tasks"),
        ({"task": "mmlu"}, "'mmlu' is a group of lm_eval tasks"),
        ({"task": "arc_eazy"}, "Did you mean 'arc_easy'"),
        ({"task": "nowhere.yaml"}, "the file nowhere.yaml does not exist"),
        ({"task": "corpus:nowhere.jsonl"}, "corpus:nowhere.jsonl does not exist"),
        ({"data_dir": "nowhere"}, "train.jsonl does not exist"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused(
    changed: dict[str, str], message: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    check_request(request(world))  # negative control
    with pytest.raises(HarmonyError) as found:
        check_request(request(world, **changed))
    assert message in str(found.value) and "\n" not in str(found.value)


def test_a_hub_id_is_left_to_the_hub(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    for name in ("EleutherAI/pythia-70m-deduped", "gpt2", "org/model.v1_2"):
        check_request(request(world, model=name))


def test_the_results_folder_is_checked(tmp_path: Path) -> None:
    check_results_folder(tmp_path / "new" / "results", "task/model")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(UsageError, match="file is a file, so"):
            check_results_folder(folder)
    with pytest.raises(UsageError, match="has 300 bytes, and file systems allow 255"):
        check_results_folder(tmp_path, "é" * 150)
    check_results_folder(tmp_path, "é" * 120)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written by this user"):
        check_results_folder(tmp_path / "results")
    tmp_path.chmod(0o700)


def test_the_command_refuses_without_torch(world: Path) -> None:
    wrong = (("--task_name", "arc_eazy"), ("--base_model", "./nowhere"), ("--results_dir", "a_file"), ("--data_dir", "nowhere"))
    for flag, value in wrong:
        flags = {"--base_model": "models/SmolLM2-135M", "--task_name": "micro.yaml", "--data_dir": ".", flag: value}
        command = [sys.executable, "-c", WITHOUT_TORCH, "run", *(word for pair in flags.items() for word in pair)]
        done = subprocess.run(command, cwd=world, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("lm-harmony: ")


def test_a_dry_run_names_what_cannot_start(world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = f"models: [models/SmolLM2-135M]\nbenchmarks: [micro.yaml]\nresults_dir: {tmp_path / 'results'}\ndata_dir: DATA\n"
    for data_dir, status in ((".", 0), ("nowhere", 1)):
        (world / "study.yaml").write_text(text.replace("DATA", data_dir), encoding="utf-8")
        assert main(["study", str(world / "study.yaml"), "--dry_run"]) == status
        out = capsys.readouterr().out
        assert "waiting   micro/SmolLM2-135M/seed0-" in out
        assert ("1 run cannot start: " in out and "train.jsonl does not exist" in out) == bool(status)
    (world / "study.yaml").write_text(
        f"{text}\n".replace("DATA", ".").replace(f"{tmp_path / 'results'}", "a_file"), encoding="utf-8"
    )
    for more in (["--dry_run"], []):
        assert main(["study", str(world / "study.yaml"), *more]) == 1
        assert "a_file is a file, so" in capsys.readouterr().err
