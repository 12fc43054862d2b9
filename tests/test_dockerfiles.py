"""The Dockerfiles agree with the project. They are only read here; `make images` builds them and runs the demo in one."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from lm_harmony.cli.main import main

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")


def read(name: str) -> str:
    """Return the text of a Dockerfile in which each instruction and each command in a comment is one line."""
    return re.sub(r"\\\n#?\s*", "", (ROOT / name).read_text(encoding="utf-8"))


def copied(text: str) -> list[str]:
    """Return the files and folders that a Dockerfile copies into the image."""
    return [source for line in re.findall(r"^COPY (.+)$", text, flags=re.MULTILINE) for source in line.split()[:-1]]


def unknown_extras(text: str) -> set[str]:
    """Return the extras that a Dockerfile installs and pyproject.toml does not have."""
    named = {extra for group in re.findall(r'"\.\[(.+?)\]"', text) for extra in group.split(",")}
    assert named
    return named - set(PROJECT["optional-dependencies"])


def reinstalls_after_a_change(text: str) -> bool:
    """Tell whether dependencies are installed after a file was copied that is neither a list nor a pin of them."""
    before = text[: text.index("pip install --no-cache-dir -c constraints.txt")]
    return not set(copied(before)) <= {"pyproject.toml", "constraints.txt"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_a_supported_python_and_known_extras(name: str) -> None:
    text = read(name)
    [python] = re.findall(r"^FROM python:([\d.]+)-slim$", text, flags=re.MULTILINE)
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert not unknown_extras(text)
    assert unknown_extras(text.replace("figures", "figure")) == {"figure"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_an_image_copies_exists_and_is_sent_to_the_builder(name: str) -> None:
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(copied(read(name))) == set(sent)
    assert all((ROOT / one).exists() for one in sent)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_change_of_the_sources_does_not_install_the_dependencies_again(name: str) -> None:
    text = read(name)
    assert not reinstalls_after_a_change(text)
    assert reinstalls_after_a_change("COPY src src\n" + text)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_command_at_the_top_of_a_dockerfile_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the tag built above it, mounts a folder as the user who starts it, and its flags are in the command's help."""
    text = read(name)
    [tag] = re.findall(r"^#\s+docker build .*-t (\S+) \.$", text, flags=re.MULTILINE)
    [shown] = re.findall(r"^#\s+docker run (.+)$", text, flags=re.MULTILINE)
    options, words = shown.split(f" {tag} ")
    assert '--user "$(id -u):$(id -g)"' in options
    assert '-v "$PWD:/work"' in options
    assert "\nWORKDIR /work\nENTRYPOINT" in text
    command, *flags = shlex.split(words)
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text_of_help = capsys.readouterr().out.replace("-", "_")
    assert all(flag.replace("-", "_") in text_of_help for flag in flags if flag.startswith("--"))
    assert "__no_such_flag" not in text_of_help


def test_both_images_write_to_the_same_places() -> None:
    places = [re.findall(r"^(?:ENV HOME|WORKDIR).*$", read(name), flags=re.MULTILINE) for name in DOCKERFILES]
    assert places[0] == places[1]
