"""The wheel and the sdist hold all files that the program needs, and the wheel works outside this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from lm_harmony import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both from the files that git tracks, so that they contain no untracked file of this checkout."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = "from setuptools import build_meta as b; b.build_sdist('..'); b.build_wheel('..')"
    subprocess.run([sys.executable, "-c", command], cwd=source, check=True, capture_output=True)
    return folder


def test_the_wheel_and_the_sdist_hold_everything(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert __version__ in wheel.name and __version__ in sdist.name
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.removeprefix("src/") for name in tracked} <= names
    with tarfile.open(sdist) as archive:
        inside = {member.name.split("/", 1)[-1] for member in archive}
    assert {*tracked, "pyproject.toml", "LICENSE", "README.md"} <= inside


def test_the_wheel_works_in_a_new_virtual_environment(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "fresh", with_pip=True)
    fresh = tmp_path / "fresh" / "bin"
    subprocess.run([fresh / "pip", "install", "--quiet", "--no-deps", *built.glob("*.whl")], check=True)
    # The dependencies take gigabytes, so they are imported from this environment, after the packages of the new one.
    lent = next(path for path in sys.path if path.endswith("site-packages"))
    (site,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(f"import sys; sys.path.append({lent!r})\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}

    def output_of(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = output_of(fresh / "python", "-c", "import lm_harmony; print(lm_harmony.__file__)")
    assert Path(where.strip()).is_relative_to(site)
    assert output_of(fresh / "lm-harmony", "--version").strip() == __version__
    assert "Qwen/Qwen2.5-14B" in output_of(fresh / "lm-harmony", "leaderboard", "--published", "--format", "csv")
    folder = "import pathlib, lm_harmony.demo as demo; print(pathlib.Path(demo.__file__).parent)"
    demo = Path(output_of(fresh / "python", "-c", folder).strip())
    rows, task = demo / "shipped" / "rows", demo / "tasks" / "micro_sums.yaml"
    caps = ("--dataset_param.max_num_train", "8", "--dataset_param.max_num_valid", "4", "--dataset_param.max_num_test", "4")
    model = ("--base_model", demo / "shipped" / "models" / "llama-1", "--train_param.num_train_epochs", "1")
    output_of(fresh / "lm-harmony", "run", *model, "--task_name", task, "--data_dir", rows, *caps, "--device", "cpu")
    assert list((tmp_path / "results").rglob("record.json"))


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["title"] == "Train-before-Test Harmonizes Language Model Rankings"
    assert "2507.05195" in citation["preferred-citation"]["url"]


def test_the_changelog_has_an_entry_for_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
