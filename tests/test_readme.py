"""Every command of the README and the guides runs unchanged, on small models and data with the names used there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from fork_server import INTERPRETER, forked_python
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
"""A study file that replaces those of the guides, because these take days."""
NAMES = {
    "results A B": "results my/model models/third",
    "results/ A B": "results my/model models/third",
    "paper_results.json": "published",
    " --watch": "",
    "make ": ": make ",
    "lm-harmony fetch": ": lm-harmony fetch",
    "python -m bench.coverage": ": python -m bench.coverage",
    "--until 10 --results_dir placed": "--until 9 --hardware h100 --results_dir placed",
    "--until 10 --hardware h100 --data_dir data": "--until 58 --hardware h100 --data_dir data --results_dir small",
    "--until 10": "--until 58 --hardware h100",
    "--until 3 ": "--until 58 --hardware h100 --results_dir tonight ",
}
"""Replacements for names of the reader's own files, a flag that waits, a width that one benchmark reaches without measuring the
machine, and commands with other tests."""
GUIDES = {
    "README.md": 5,
    "docs/guide.md": 12,
    "docs/quickstart.md": 6,
    "docs/studies.md": 6,
    "docs/page.md": 3,
    "docs/analysis.md": 7,
    "docs/own_benchmark.md": 4,
    "docs/api.md": 0,
    "docs/read_a_board.md": 2,
    "docs/public_board.md": 4,
}
"""Pages whose commands are run -> the smallest number of commands that must be found there."""
MEASURED = {"docs/runs.md": 4, "docs/performance.md": 7}
"""Pages of measurements -> the smallest number of blocks of commands. Each block is run on a tiny model."""
AFTER_A_STUDY = ("docs/page.md", "docs/analysis.md", "docs/read_a_board.md", "docs/public_board.md")
"""Pages that start with the results of a study."""
LONG = ("bench.board", "bench.demo", "bench.full_study", "time lm-harmony demo")
"""Commands that are not run: they need a browser, half an hour, or all 24 benchmarks. Demo and board have other tests."""
SMALL = {
    "--data DATA --runs 5": "--data data --runs 1 --rows 8",
    "--data DATA": "--data data",
    "_tokens 128": "_tokens 16",
    "models/gemma-3-270m --qwen --tokens 512": "models/third --tokens 64",
    "models/gemma-3-270m --data": "models/third --data",
    "bench.generation": "bench.generation --rows 4",
    "--tasks nq_open gsm8k": "--tasks nq_open",
    "bench.study": "bench.study --seeds 4 --records 100",
    "bench.lm_head": "bench.lm_head --vocabularies 1000 --widths 16 --rows 8 --runs 1",
    "bench.gpu_day --out": "bench.gpu_day --tiny --steps 0,8 --out",
}
"""Replacements that shorten a measurement."""
VARIED = {"gsm8k": "question", "nq_open": "question", "mnli": "premise", "sst2": "sentence", "cola": "sentence"}
"""Tasks of the measurements -> the column that is changed to make more rows."""
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page that are in ``language``."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: str) -> list[str]:
    """Return every command of a page. A command with an optional part in brackets is returned with and without it."""
    found = []
    for line in (line for block in blocks(page, "bash") for line in block.splitlines() if not line.startswith("pip install")):
        command = re.sub(r"\s+#.*", "", line)
        for name, stand_in in NAMES.items():
            command = command.replace(name, stand_in)
        found += [re.sub(r" \[.*?\]", "", command), command.replace("[", "").replace("]", "")] if "[" in command else [command]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the models, rows, texts and study file that the guides use."""
    folder = tmp_path_factory.mktemp("reader")
    for number, model in enumerate(MODELS):
        write_tiny_model(folder / model, "llama", seed=number, chat=True)
        config = folder / model / "config.json"
        longer = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 1024}
        config.write_text(json.dumps(longer), encoding="utf-8")
    for task, splits in ROWS.items():
        rows = folder / "data" / task
        rows.mkdir(parents=True)
        for split, lines in splits.items():
            if split == "train" and task in VARIED:  # otherwise too few rows for a validation split
                field = VARIED[task]
                lines = [{**line, field: f"{number}. {line[field]}"} for number in range(4) for line in lines]
            (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "my_tasks").mkdir()
    for name, block in zip(("reviews", "exams"), blocks("docs/own_benchmark.md", "yaml"), strict=True):
        (folder / "my_tasks" / f"{name}.yaml").write_text(block, encoding="utf-8")
    (folder / "data" / "reviews").mkdir()
    for split, size in (("train", 16), ("validation", 4), ("test", 8)):
        lines = [json.dumps({"review": f"a {split} story {row}", "label": row % 2}) + "\n" for row in range(size)]
        (folder / "data" / "reviews" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "texts").mkdir()
    texts = [{"text": f"Text {number} says little, but it says it {'again and ' * (number % 5)}well."} for number in range(20)]
    (folder / "texts" / "wiki.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    (folder / "bench").symlink_to(ROOT / "bench")
    return folder


def environment(hub: LoopbackHub, world: Path) -> dict[str, str]:
    names = {"MODEL": "my/model", "DATA": "data", "TASK": "arc_easy"}
    return {**hub.environment(world / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **names}


def in_shell(script: str, environment: Mapping[str, str], folder: Path, *, forked: bool) -> subprocess.CompletedProcess[str]:
    """Run a script until a command fails. The programs ``lm-harmony`` and ``python`` are the installed ones unless ``forked``."""
    variables = dict(environment)
    if forked:
        python = forked_python(variables)
        script = f'python() {{ {python} "$@"; }}\nlm-harmony() {{ {python} -m lm_harmony.cli "$@"; }}\n{script}'
    else:
        variables["PATH"] = f"{Path(INTERPRETER).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["bash", "-ec", script], cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("page", GUIDES)
def test_every_command_runs_in_the_order_of_reading(page: str, hub: LoopbackHub, world: Path) -> None:
    assert len(commands(page)) >= GUIDES[page]
    shutil.rmtree(world / "results", ignore_errors=True)
    if page in AFTER_A_STUDY:
        assert Study.read(world / "study.yaml").run().failed == {}
    variables, printed = environment(hub, world), ""
    for number, command in enumerate(commands(page)):
        # Of one command the installed program is started. Those of the others are forked, which is faster.
        done = in_shell(command, variables, world, forked=page != "README.md" or number > 0)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
        assert "Traceback" not in done.stderr, command
    for block in blocks(page, "python") if page != "docs/analysis.md" else ():  # its code reads a file that is not included
        done = subprocess.run([forked_python(variables), "-c", block], cwd=world, env=variables, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done.stderr
    if page == "README.md":  # three commands from nothing to the place of a model, with rows from the hub, and its page
        assert re.search(r"^model is \d+(st|nd|rd|th) of 62, \d+\w\w to \d+\w\w \(95% interval\)", printed, flags=re.MULTILINE)
        assert "next: arc_easy" in printed and (world / "board.html").stat().st_size > 1e6


@pytest.mark.parametrize("page", MEASURED)
def test_measured_values_can_be_measured_again(page: str, hub: LoopbackHub, world: Path) -> None:
    scripts = [block for block in blocks(page, "bash") if not any(one in block for one in LONG)]
    assert len(scripts) >= MEASURED[page]
    for script in scripts:
        for large, small in SMALL.items():
            script = script.replace(large, small)
        shutil.rmtree(world / "results", ignore_errors=True)
        done = in_shell(script, environment(hub, world), world, forked=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", ["docs/guide.md", "docs/studies.md"])
def test_the_study_file_in_the_page_is_valid(page: str, world: Path) -> None:
    (block,) = blocks(page, "yaml")
    (world / "theirs.yaml").write_text(block, encoding="utf-8")
    assert len(Study.read(world / "theirs.yaml").runs) > 100


@pytest.mark.parametrize("page", PAGES)
def test_links_have_existing_targets(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target


def missing_paths(text: str) -> list[str]:
    """Return the paths of files and the names of our modules in ``text`` that do not exist."""
    paths = set(re.findall(r"\b(?:[\w-]+/)+[\w-]+\.(?:py|csv)\b", text))
    folders = (ROOT, ROOT / "src" / "lm_harmony")
    missing = [path for path in sorted(paths) if not any((folder / path).exists() for folder in folders)]
    for name in sorted(set(re.findall(r"\blm_harmony(?:\.\w+)+|\bbench\.\w+(?= --| *\n)", text))):
        parts = [*(("src",) if name.startswith("lm_harmony") else ()), *name.split(".")]
        # The last part can be a name inside the module, and the one before it a class.
        places = [ROOT.joinpath(*parts[:count]) for count in range(len(parts), max(1, len(parts) - 3), -1)]
        if not any(place.is_dir() or place.with_suffix(".py").is_file() for place in places if place != ROOT / "src"):
            missing.append(name)
    return missing


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_a_page_names_exist(page: str) -> None:
    assert missing_paths((ROOT / page).read_text(encoding="utf-8")) == []


def test_a_missing_file_or_module_is_detected() -> None:
    text = "See engine/training.py, engine/none.py and `lm_harmony.engine.training.fine_tune`.\npython -m bench.none --runs 1\n"
    assert missing_paths(text) == ["engine/none.py", "bench.none"]
