"""The rules of docs/architecture.md: layers, sizes, words, the public API's types, and no side effects at import.

Each rule is applied to the package, and to a small source that violates it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import source_rules as rules

import lm_harmony

PACKAGE = rules.read_package(Path(lm_harmony.__file__).parent)
MAP = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "recipe": {"errors"},
    "redaction": set(),
    "hub_connection": set(),
    "stop_signals": set(),
    "fast_imports": set(),
    "progress": {"stop_signals"},
    "benchmarks": {"recipe", "errors", "progress", "hub_connection"},
    "models": {"recipe", "errors", "hub_connection"},
    "engine": {"models", "benchmarks", "recipe", "errors", "progress"},
    "runs": {"engine", "models", "benchmarks", "recipe", "errors", "progress"},
    "analysis": {"runs", "models", "benchmarks", "errors"},
    "report": {"analysis", "runs", "errors"},
    "studies": {
        *("runs", "engine", "models", "benchmarks", "recipe", "redaction", "stop_signals", "hub_connection", "fast_imports"),
        "errors",
    },
    "lm_eval_model": {"engine", "models", "benchmarks", "errors"},
    "demo": {"studies", "engine", "benchmarks", "errors"},
    "in_memory": {"runs", "engine", "models", "errors"},
    "api": {"in_memory", "studies", "runs", "engine", "models", "benchmarks", "recipe", "errors"},
    "cli": {
        *("demo", "studies", "report", "analysis", "runs", "models", "benchmarks", "recipe", "progress", "redaction"),
        *("stop_signals", "fast_imports", "errors"),
    },
}
"""Layer -> the layers that it may import, from the lowest layer to the highest."""
COMMANDS = {
    "lm_harmony.cli.main",
    "lm_harmony.cli.__main__",
    "lm_harmony.demo.build",
    "lm_harmony.lm_eval_model",
    "lm_harmony.studies.__main__",
}
"""Modules without an importer: the console script, and those for ``python -m``."""
HARNESS = ("lm_harmony.benchmarks.harness", "lm_harmony.lm_eval_model")
"""Modules that may import lm_eval."""
LAZY_LAYERS = {"", "cli"}
"""Layers that may import inside functions, so that ``import lm_harmony`` and commands start fast."""
OPTIONAL = {"matplotlib", "seaborn", "plotly", "itables", "ray", "s3fs", "lm_harmony.studies.ray_pool"}
"""Libraries of the extras, and the module that only ``--ray`` needs. They are imported where they are used."""
PUBLIC = {
    name: value.__module__
    for name in lm_harmony.__all__
    if isinstance(value := getattr(lm_harmony, name), type) or hasattr(value, "__code__")
}
"""Public classes and functions -> the module that defines them."""

Rule = Callable[[rules.Package], list[str]]
LONG_FUNCTION = "def train():\n" + "    step = 1\n" * 50
RULES: dict[str, tuple[Rule, dict[str, str], str]] = {
    "layers": (
        partial(rules.upward_imports, layers=LAYERS),
        {"engine/training.py": "from lm_harmony.runs import store\n", "runs/store.py": ""},
        "lm_harmony.engine.training:1: imports lm_harmony.runs.store",
    ),
    "every layer is listed": (
        partial(rules.upward_imports, layers=LAYERS),
        {"utils/things.py": ""},
        "lm_harmony.utils.things: not in the list of layers",
    ),
    "no cycles": (
        rules.cycles,
        {"runs/a.py": "from lm_harmony.runs import b\n", "runs/b.py": "def f():\n    from lm_harmony.runs.a import g\n"},
        "lm_harmony.runs.a: is in an import cycle",
    ),
    "importers": (partial(rules.orphans, commands=COMMANDS), {"runs/a.py": ""}, "lm_harmony.runs.a: has no importer"),
    "imports inside functions": (
        partial(rules.lazy_imports, allowed_layers=LAZY_LAYERS, optional=OPTIONAL),
        {"runs/a.py": "def f():\n    import ray\n    import torch\n"},
        "lm_harmony.runs.a:3: imports torch inside a function",
    ),
    "lm_eval": (
        partial(rules.importers, library="lm_eval", allowed=HARNESS),
        {"runs/a.py": "from lm_eval.tasks import TaskManager\n"},
        "lm_harmony.runs.a:1: imports lm_eval.tasks.TaskManager",
    ),
    "lines of a file": (rules.long_files, {"a.py": "x = 1\n" * 251}, "lm_harmony.a: has 251 lines (at most 250)"),
    "lines of a function": (
        rules.long_functions,
        {"a.py": LONG_FUNCTION},
        "lm_harmony.a:1: train has 51 lines (at most 50)",
    ),
    "parameters": (
        rules.many_parameters,
        {"a.py": "class A:\n    def f(self, a, b, c, d, e, f, g, h, *, i, **j): ...\n"},
        "lm_harmony.a:2: f has 10 parameters (at most 9)",
    ),
    "docstrings of fields": (
        rules.short_field_docstrings,
        {"a.py": 'class A:\n    model: str\n    """Which model."""\n'},
        "lm_harmony.a:3: A: docstring 'Which model.' is too short",
    ),
    "words": (rules.avoided_words, {"a.py": "# Who learns is drawn anew.\n"}, "lm_harmony.a:1: says 'anew'"),
    "words in names": (rules.avoided_words, {"a.py": "crew_size = 1\n"}, "lm_harmony.a:1: says 'crew'"),
    "map": (
        partial(rules.unmapped_modules, page=MAP),
        {"engine/new.py": ""},
        "engine/new.py: has 0 lines in the map",
    ),
}
"""Rule -> (function, sources that violate it, the violation that must be found)."""


def written(folder: Path, sources: dict[str, str]) -> rules.Package:
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return rules.read_package(folder)


@pytest.mark.parametrize("name", RULES)
def test_the_package_follows_the_rule(name: str) -> None:
    assert RULES[name][0](PACKAGE) == []


@pytest.mark.parametrize("name", RULES)
def test_a_source_that_violates_the_rule_is_found(name: str, tmp_path: Path) -> None:
    rule, sources, violation = RULES[name]
    assert violation in rule(written(tmp_path, sources))


def test_the_layers_are_listed_from_the_lowest_to_the_highest() -> None:
    order = list(LAYERS)
    for layer, below in LAYERS.items():
        assert all(order.index(other) < order.index(layer) for other in below), layer


def test_no_type_of_the_public_api_is_any(tmp_path: Path) -> None:
    assert rules.public_any(PACKAGE, PUBLIC) == []
    source = "class Store:\n    root: Any\n    def read(self, key: dict[str, Any]) -> str: ...\n    def _raw(self) -> Any: ...\n"
    found = rules.public_any(written(tmp_path, {"a.py": source}), {"Store": "lm_harmony.a"})
    assert [line.split(" has ")[0] for line in found] == ["lm_harmony.a:2: Store.root", "lm_harmony.a:3: Store.read"]


HEAVY = ("torch", "transformers", "lm_eval", "datasets")
LIGHT_MODULES: dict[str, tuple[str, ...]] = {
    "lm_harmony": (*HEAVY, "numpy", "pandas"),
    "lm_harmony.runs.record": (*HEAVY, "pandas"),
    "lm_harmony.runs.spec": (*HEAVY, "pandas"),
    "lm_harmony.runs.store": HEAVY,
    "lm_harmony.studies.study": HEAVY,
    "lm_harmony.benchmarks.catalogue": ("torch", "lm_eval", "datasets", "numpy"),
    "lm_harmony.models.catalogue": ("torch", "transformers", "numpy"),
    "lm_harmony.benchmarks.harness": ("torch",),
    "lm_harmony.cli.main": (*HEAVY, "numpy"),
}
"""Module -> libraries that importing it must not load."""
BOARD = sorted(name for name, module in PACKAGE.items() if module.layer in ("analysis", "report"))
"""Modules that build a board from a folder of records. They need no torch, transformers or lm_eval."""


def loaded(modules: list[str], libraries: tuple[str, ...]) -> str:
    """Import ``modules`` in a separate process. Return those of ``libraries`` that were loaded, as the text of a list."""
    code = f"import sys, {', '.join(modules)}; print([name for name in {libraries!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_loads_no_heavy_library(module: str) -> None:
    assert loaded([module], LIGHT_MODULES[module]) == "[]"


def test_analysis_and_report_load_no_heavy_library() -> None:
    assert loaded(BOARD, HEAVY) == "[]"
    assert loaded(["json", "pandas"], ("pandas", "torch")) == "['pandas']"


SIDE_EFFECTS = """
import importlib, os, sys, types
import accelerate, datasets, lm_eval.api.task, lm_eval.tasks, peft, ray, torch, transformers

def callables():
    libraries = ("datasets", "lm_eval", "transformers")
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in libraries]
    owners = [(module.__name__, module) for module in modules if isinstance(module, types.ModuleType)]
    owners += [(f"{cls.__module__}.{cls.__qualname__}", cls) for _, module in owners
               for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
    return {(owner, name): value for owner, place in owners for name, value in list(vars(place).items()) if callable(value)}

for names in sys.argv[1:]:
    environment, before = dict(os.environ), callables()
    for name in names.split():
        importlib.import_module(name)
    after = callables()
    changed = set(environment.items()) ^ set(os.environ.items())
    print(sorted(changed), [key for key in before if after.get(key) is not before[key]])
"""
"""Import the libraries, then the modules of each argument. Print all changes of the environment and the libraries by each."""


def test_no_import_changes_the_environment_or_another_library(tmp_path: Path) -> None:
    source = "import datasets, os\ndatasets.load_dataset = print\nos.environ['OMP_NUM_THREADS_SET_HERE'] = '1'\n"
    (tmp_path / "meddling.py").write_text(source, encoding="utf-8")
    names = " ".join(name for name in PACKAGE if not name.endswith("__main__"))
    command = [sys.executable, "-c", SIDE_EFFECTS, names, "meddling"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    ours, meddling = done.stdout.splitlines()
    assert ours == "[] []"
    assert meddling == "[('OMP_NUM_THREADS_SET_HERE', '1')] [('datasets', 'load_dataset')]"  # negative control


def test_the_test_split_is_scored_in_one_function() -> None:
    using = [
        f"{module.name.rsplit('.', 1)[1]}.{function.name}"
        for module in PACKAGE.values()
        for function in module.functions
        if re.search(r"\bsplits\.test\b|\bdirect\[shots\]", ast.unparse(function))
    ]
    # set_up_run puts examples before its questions; near_duplicates and drop_near_duplicates compare them with the training rows;
    # request_fingerprints hashes its texts; data_record, phases, few_shot_score and workload count its rows, texts or tokens.
    # Only score_test_rows scores them.
    assert sorted(using) == [
        "fingerprint.request_fingerprints",
        "near_duplicates.drop_near_duplicates",
        "protocol.score_test_rows",
        "run_setup.data_record",
        "run_setup.few_shot_score",
        "run_setup.near_duplicates",
        "run_setup.phases",
        "setup._logged",
        "setup.set_up_run",
        "workload.workload",
    ]
