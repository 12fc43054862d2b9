"""The files for contributors agree: GitHub workflows, issue templates, Makefile, pre-commit and pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
INPUTS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
"""Types of form elements that GitHub supports."""


def load(path: Path) -> dict[Any, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict), path
    return content


def triggers(workflow: dict[Any, Any]) -> dict[str, Any]:
    """Return the key `on`, which YAML 1.1 reads as the boolean true."""
    return workflow[True]


def make_targets(text: str) -> list[str]:
    """Return the targets of all calls of make in ``text``, in their order."""
    calls = re.findall(r"^\s*(?:- run: )?make (.+)", text, flags=re.MULTILINE)
    return [word for call in calls for word in call.split() if re.fullmatch(r"\w[\w-]*", word)]


def python_versions(workflow: dict[Any, Any]) -> list[str]:
    """Return the Python versions of the workflow's matrix of tests."""
    return workflow["jobs"]["tests"]["strategy"]["matrix"]["python-version"]


def classified_versions(classifiers: list[str]) -> list[str]:
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier) for classifier in classifiers)
    return [match[1] for match in found if match]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_triggers_and_jobs_with_known_steps(path: Path) -> None:
    workflow = load(path)
    assert workflow["name"] and triggers(workflow)
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] == "ubuntu-latest", name
        assert all(("uses" in step) != ("run" in step) for step in job["steps"]), name
        assert all("@" in step["uses"] for step in job["steps"] if "uses" in step), name


def test_the_tests_run_on_the_python_versions_of_the_classifiers() -> None:
    versions = python_versions(load(ROOT / ".github" / "workflows" / "ci.yml"))
    assert versions == classified_versions(PROJECT["classifiers"])
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert versions != classified_versions([*PROJECT["classifiers"], "Programming Language :: Python :: 3.99"])


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_jobs_call_only_targets_of_the_makefile(path: Path) -> None:
    targets = make_targets(path.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        arguments = ["make", "--dry-run", "--no-print-directory", target, "PYTHON=python3"]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_job_of_continuous_integration_calls_make() -> None:
    for name, job in load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"].items():
        assert [step for step in job["steps"] if step.get("run", "").startswith("make ")], name


def test_the_local_check_covers_lint_types_and_tests() -> None:
    local = make_targets((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    remote = make_targets((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert {"lint", "types", "test"} <= set(local) <= {"env", *remote}  # every other target creates the environment itself


def test_every_target_of_the_makefile_has_an_explanation() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: help (.*)$", text, flags=re.MULTILINE)
    assert re.findall(r"^#   make ([\w-]+)", text, flags=re.MULTILINE) == phony.split()


def test_publishing_requires_a_tag_and_no_secret() -> None:
    path = ROOT / ".github" / "workflows" / "publish.yml"
    text, workflow = path.read_text(encoding="utf-8"), load(path)
    assert triggers(workflow) == {"push": {"tags": ["v*"]}}
    job = workflow["jobs"]["publish"]
    assert job["permissions"] == {"id-token": "write"} and job["needs"] == "build"
    assert job["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "secrets." not in text and "://" not in text and "password" not in job["steps"][-1].get("with", {})


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_an_issue_template_is_a_valid_github_form(path: Path) -> None:
    form = load(path)
    assert form["name"] and form["description"] and form["body"]
    identifiers = [item["id"] for item in form["body"] if item["type"] != "markdown"]
    assert len(set(identifiers)) == len(identifiers)
    for item in form["body"]:
        assert item["type"] in INPUTS and item["attributes"]["label"], item
        assert item["type"] != "dropdown" or item["attributes"]["options"], item


def test_pre_commit_runs_the_pinned_ruff_without_the_environment() -> None:
    config = load(ROOT / ".pre-commit-config.yaml")
    (pinned,) = re.findall(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (ruff,) = [repo for repo in config["repos"] if repo["repo"].endswith("/ruff-pre-commit")]
    assert ruff["rev"] == f"v{pinned}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
    assert all(repo["repo"].startswith("https://github.com/") for repo in config["repos"])


def test_the_license_file_is_the_declared_license() -> None:
    license_name = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[0]
    assert license_name == f"{PROJECT['license']} License"
    # An SPDX expression replaces the classifier. setuptools refuses both together.
    assert not [classifier for classifier in PROJECT["classifiers"] if classifier.startswith("License")]
