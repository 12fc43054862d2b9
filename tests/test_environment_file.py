"""The files that list dependencies agree: pyproject.toml, environment.yml (conda) and constraints.txt (pins)."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def pinned_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_conda_environment_has_the_core_dependencies_of_pyproject() -> None:
    [from_pip] = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert from_pip == PROJECT["dependencies"]


def test_the_recipe_for_conda_forge_has_the_core_dependencies_of_pyproject() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    python, *others = [entry.replace(" ", "") for entry in recipe["requirements"]["run"]]
    names = {"pytorch": "torch"}  # the name on conda-forge -> that of the Python package
    found = [
        Requirement(entry.replace(*next(iter(names.items())), 1) if entry.startswith("pytorch") else entry) for entry in others
    ]
    wanted = [Requirement(entry) for entry in PROJECT["dependencies"]]
    assert [(canonicalize_name(one.name), one.specifier) for one in found] == [
        (canonicalize_name(one.name), one.specifier) for one in wanted
    ]
    assert python == f"python{PROJECT['requires-python']}"
    assert recipe["context"]["version"] == PROJECT["version"]


def test_the_conda_environment_has_the_name_of_the_project_and_a_supported_python() -> None:
    assert CONDA["name"] == PROJECT["name"]
    [python] = [entry for entry in CONDA["dependencies"] if isinstance(entry, str) and entry.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))


@pytest.mark.parametrize("dependency", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_the_pinned_version_satisfies_pyproject(dependency: str) -> None:
    requirement = Requirement(dependency)
    assert requirement.specifier.contains(pinned_versions()[canonicalize_name(requirement.name)])
