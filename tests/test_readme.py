"""Every command of the README and the guides runs, as it stands there, where the names in it mean something small."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub import LoopbackHub
from rows import ROWS
from tiny import write_tiny_model

from lm_harmony.studies.study import Study

ROOT = Path(__file__).parents[1]
MODELS = ("my/model", "models/SmolLM2-135M-Instruct", "models/third")
TASKS = ("arc_easy", "sciq", "openbookqa")
STUDY = {
    "models": [f"./{model}" for model in MODELS],
    "benchmarks": list(TASKS),
    "recipe": {"epochs": 1},
    "direct": True,
    "data_dir": "data",
    "execution": {"device": "cpu"},
}
"""In the place of the guides' studies, which take days."""
NAMES = {
    "results A B": "results my/model models/third",
    "results/ A B": "results my/model models/third",
    "paper_results.json": "published",
    " --watch": "",
    "make ": ": make ",
    "lm-harmony fetch": ": lm-harmony fetch",
}
"""What stands for something of the reader's own, what would wait, and what has tests of its own."""
GUIDES = {
    "README.md": 14,
    "docs/quickstart.md": 5,
    "docs/studies.md": 6,
    "docs/page.md": 3,
    "docs/analysis.md": 5,
    "docs/api.md": 0,
}
"""Pages whose commands are run, and the fewest commands that are found there."""
MEASURED = {"docs/runs.md": 3, "docs/performance.md": 7}
"""Pages of measurements, and the fewest blocks of commands that are run whole, on a tiny model."""
LONG = ("bench.board", "bench.demo", "bench.full_study", "time lm-harmony demo")
"""What takes a browser, half an hour, or the rows of all 24 benchmarks; the demo and the board have tests of their own."""
SMALL = {
    "--data DATA --runs 5": "--data data --runs 1 --rows 8",
    "--data DATA": "--data data",
    "_tokens 128": "_tokens 16",
    "bench.gpu_day --out": "bench.gpu_day --tiny --steps 0,8 --out",
}
"""What stands for something large."""
VARIED = {"gsm8k": "question", "nq_open": "question", "mnli": "premise", "sst2": "sentence", "cola": "sentence"}
"""Tasks of the measurements, and the field that is varied to have more rows of them."""
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """Return a page's blocks of code in ``language``."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: str) -> list[str]:
    """Return every command of a page; one with a part in brackets with and without it."""
    found = []
    for line in (line for block in blocks(page, "bash") for line in block.splitlines() if not line.startswith("pip install")):
        command = re.sub(r"\s+#.*", "", line)
        for name, stand_in in NAMES.items():
            command = command.replace(name, stand_in)
        found += [re.sub(r" \[.*?\]", "", command), command.replace("[", "").replace("]", "")] if "[" in command else [command]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that holds what the guides take for granted."""
    folder = tmp_path_factory.mktemp("reader")
    for number, model in enumerate(MODELS):
        write_tiny_model(folder / model, "llama", seed=number)
        config = folder / model / "config.json"
        longer = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 1024}
        config.write_text(json.dumps(longer), encoding="utf-8")
    for task, splits in ROWS.items():
        rows = folder / "data" / task
        rows.mkdir(parents=True)
        for split, lines in splits.items():
            if split == "train" and task in VARIED:  # else too few to cut a validation from
                field = VARIED[task]
                lines = [{**line, field: f"{number}. {line[field]}"} for number in range(4) for line in lines]
            (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "texts").mkdir()
    texts = [{"text": f"Text {number} says little, but it says it {'again and ' * (number % 5)}well."} for number in range(20)]
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


@pytest.mark.parametrize("page", GUIDES)
def test_every_command_runs_in_the_order_of_reading(page: str, hub: LoopbackHub, world: Path) -> None:
    assert len(commands(page)) >= GUIDES[page]
    shutil.rmtree(world / "results", ignore_errors=True)
    if page in ("docs/page.md", "docs/analysis.md"):  # which begin where a study has ended
        assert Study.read(world / "study.yaml").run().failed == {}
    for command in commands(page):
        done = subprocess.run(["bash", "-c", command], cwd=world, env=environment(hub, world), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
    for block in blocks(page, "python") if page != "docs/analysis.md" else ():  # which speaks of the paper's own file
        python = [sys.executable, "-c", block]
        done = subprocess.run(python, cwd=world, env=environment(hub, world), capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("page", MEASURED)
def test_what_was_measured_can_be_measured_again(page: str, hub: LoopbackHub, world: Path) -> None:
    names = {"MODEL": "my/model", "DATA": "data", "TASK": "arc_easy", "PYTHONPATH": str(ROOT)}
    scripts = [block for block in blocks(page, "bash") if not any(one in block for one in LONG)]
    assert len(scripts) >= MEASURED[page]
    for script in scripts:
        for large, small in SMALL.items():
            script = script.replace(large, small)
        shutil.rmtree(world / "results", ignore_errors=True)
        options = {"cwd": world, "env": {**environment(hub, world), **names}, "capture_output": True, "text": True}
        done = subprocess.run(["bash", "-ec", script], **options)
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "docs/studies.md"])
def test_the_study_file_is_one(page: str, world: Path) -> None:
    (block,) = blocks(page, "yaml")
    (world / "theirs.yaml").write_text(block, encoding="utf-8")
    assert len(Study.read(world / "theirs.yaml").runs) > 100


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target
