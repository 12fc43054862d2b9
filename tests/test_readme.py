"""Every command of the README runs, as it stands there, where the names in it mean something small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub import LoopbackHub, write_arc_dataset
from rows import ROWS
from tiny import write_tiny_model

from lm_harmony.studies.study import Study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDY = {
    "models": ["./my/model", "./models/SmolLM2-135M-Instruct", "./models/third"],
    "benchmarks": ["arc_easy", "sciq", "openbookqa"],
    "recipe": {"epochs": 1},
    "direct": True,
    "data_dir": "data",
    "execution": {"device": "cpu"},
}
"""In the place of the README's study, which takes days."""
NAMES = {"results A B": "results my/model models/third", " --watch": "", "make ": ": make "}
"""What stands for something of the reader's own, what would wait, and what these tests are run by themselves."""


def blocks(language: str) -> list[str]:
    """Return the README's blocks of code in ``language``."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Return every command of the README; one with a part in brackets with and without it."""
    found = []
    for line in (line for block in blocks("bash") for line in block.splitlines()):
        command = re.sub(r"\s+#.*", "", line)
        for name, stand_in in NAMES.items():
            command = command.replace(name, stand_in)
        found += [re.sub(r" \[.*?\]", "", command), command.replace("[", "").replace("]", "")] if "[" in command else [command]
    return found


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    folder = tmp_path_factory.mktemp("hub")
    write_arc_dataset(folder / "arc", ROWS["arc_easy"])
    write_tiny_model(folder / "pythia", "gpt_neox")
    models = {"EleutherAI/pythia-70m-deduped": folder / "pythia"}
    with LoopbackHub(models=models, datasets={"allenai/ai2_arc": folder / "arc"}) as running:
        yield running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that holds what the README takes for granted."""
    folder = tmp_path_factory.mktemp("reader")
    for number, model in enumerate(STUDY["models"]):
        write_tiny_model(folder / str(model), "llama", seed=number)
    for task in STUDY["benchmarks"]:
        rows = folder / "data" / str(task)
        rows.mkdir(parents=True)
        for split, lines in ROWS[str(task)].items():
            (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "texts").mkdir()
    texts = [
        {"text": f"The {number}th text says little, but it says it {'again and ' * (number % 5)}well."} for number in range(20)
    ]
    (folder / "texts" / "wiki.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return folder


def environment(hub: LoopbackHub, world: Path) -> dict[str, str]:
    return {
        **hub.environment(world / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


def test_every_command_runs_in_the_order_of_reading(hub: LoopbackHub, world: Path) -> None:
    assert len(commands()) >= 14
    for command in commands():
        done = subprocess.run(["bash", "-c", command], cwd=world, env=environment(hub, world), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
    assert (world / "board.html").is_file() and list((world / "analysis").rglob("*.pdf"))


def test_the_python_runs(hub: LoopbackHub, world: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=world, env=environment(hub, world), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "acc_norm,none" in done.stdout


def test_the_study_file_is_one(world: Path) -> None:
    (block,) = blocks("yaml")
    (world / "theirs.yaml").write_text(block, encoding="utf-8")
    assert len(Study.read(world / "theirs.yaml").assignments) > 100


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target
