"""The house's floors: imports go down only, and the rooms that a laptop needs import nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lm_harmony

PACKAGE = Path(lm_harmony.__file__).parent
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "recipe": {"errors"},
    "progress": set(),
    "benchmarks": {"errors", "progress"},
    "models": {"recipe", "errors"},
    "engine": {"models", "benchmarks", "recipe", "errors", "progress"},
    "runs": {"engine", "models", "benchmarks", "recipe", "errors", "progress"},
    "analysis": {"runs", "models", "benchmarks", "errors"},
    "report": {"analysis", "runs", "errors"},
    "studies": {"runs", "engine", "models", "benchmarks", "recipe", "errors"},
    "demo": {"studies", "engine", "benchmarks", "errors"},
    "cli": {"demo", "studies", "report", "analysis", "runs", "models", "benchmarks", "recipe", "progress", "errors"},
}
"""Room -> the rooms that it may import."""


def _imports(file: Path) -> list[tuple[str, bool]]:
    """Return (module, whether at the top of the file) of every import of ``file``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    # What stands under `if TYPE_CHECKING:` is read by no interpreter: it delays nothing.
    unread = [
        node
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    ]
    top = {id(node) for node in (*tree.body, *unread)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from lm_harmony import x` imports the room x.
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "lm_harmony" else [node.module]
            found += [(name, id(node) in top) for name in names]
    return found


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for module, _ in _imports(file):
        if module.startswith("lm_harmony.") and _room(module) not in (room, "__version__"):
            assert _room(module) in FLOORS[room], f"{file} imports {module}"


def test_the_floors_themselves_have_no_cycle() -> None:
    order = list(FLOORS)
    for room, below in FLOORS.items():
        assert all(order.index(other) < order.index(room) for other in below), room


def test_only_the_harness_imports_lm_eval() -> None:
    for file in FILES:
        if "harness" not in file.parts:
            assert not [module for module, _ in _imports(file) if module.split(".")[0] == "lm_eval"], file


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("lm_harmony.runs.record", ("torch", "transformers", "lm_eval", "datasets", "pandas")),
        ("lm_harmony.runs.spec", ("torch", "transformers", "lm_eval", "datasets", "pandas")),
        ("lm_harmony.runs.store", ("torch", "transformers", "lm_eval", "datasets")),
        ("lm_harmony.studies.study", ("torch", "transformers", "lm_eval", "datasets")),
        ("lm_harmony.benchmarks.catalogue", ("torch", "lm_eval", "datasets", "numpy")),
        ("lm_harmony.models.catalogue", ("torch", "transformers", "numpy")),
        ("lm_harmony.benchmarks.harness", ("torch",)),
        ("lm_harmony.analysis.matrix", ("torch", "transformers", "lm_eval", "datasets", "matplotlib", "plotly")),
        ("lm_harmony.cli.main", ("torch", "transformers", "lm_eval", "datasets", "numpy")),
    ],
)
def test_light_rooms_stay_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout


def test_no_import_changes_the_environment() -> None:
    """Libraries may; ours may not, for whoever imports it has chosen his own settings."""
    code = (
        "import os, torch, transformers, peft, accelerate, datasets, lm_eval; before = dict(os.environ); "
        "import lm_harmony.cli, lm_harmony.engine.backends, lm_harmony.runs.protocol, lm_harmony.benchmarks.harness; "
        "assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_test_split_is_scored_in_one_function() -> None:
    touching = [
        f"{file.name}:{node.name}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and re.search(r"\bsplits\.test\b", ast.unparse(node))
    ]
    # request_fingerprints fingerprints its texts, _data counts its rows, a plan their tokens; _test scores them.
    assert sorted(touching) == [
        "fingerprint.py:request_fingerprints",
        "protocol.py:_data",
        "protocol.py:_test",
        "workload.py:workload",
    ]


def test_function_level_imports_stand_only_where_they_save_a_start() -> None:
    lazy = {
        file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES for _, at_top in _imports(file) if not at_top
    }
    assert lazy <= {"__init__", "cli", "studies", "demo"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_and_no_function_outgrows_a_page(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{file}:{node.name}"
