"""Secrets of the environment are in no file and in no message, and files have the permissions of the user's umask."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.redaction import HIDDEN, SafeFormatter, without_secrets
from lm_harmony.studies.messages import result_of

SECRETS = {
    name: f"s3cr3t-{number}-of-the-environment"
    for number, name in enumerate(
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
    )
}
PASSWORD = "pa55word-of-a-proxy"


def harmony(folder: Path, *words: object, umask: int = 0o027, **more: str) -> str:
    """Run a command in ``folder`` with secrets in its environment; return its status and everything that it printed."""
    homes = {name: str(folder / "home") for name in ("HOME", "HF_HOME", "LM_HARMONY_CACHE_DIR", "TMPDIR")}
    (folder / "home").mkdir(exist_ok=True)
    environment = {**os.environ, **SECRETS, **homes, "OMP_NUM_THREADS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1", **more}
    done = subprocess.run(
        [sys.executable, "-m", "lm_harmony.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
        umask=umask,
    )
    return f"{done.returncode}\n{done.stdout}"


def leaks(folder: Path, said: str) -> list[str]:
    """Return where a secret is: the names of files, and "output"."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = [*((str(path.relative_to(folder)), path.read_bytes()) for path in files), ("output", said.encode())]
    return [name for name, content in found if any(one.encode() in content for one in (*SECRETS.values(), PASSWORD))]


def study_file(folder: Path, **changes: object) -> Path:
    write_micro(folder)
    study = {"models": ["model"], "benchmarks": ["micro.yaml"], "data_dir": ".", "recipe": {"epochs": 1}, **changes}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def test_a_study_writes_no_secret_and_files_have_the_umask(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    inputs = {*tmp_path.rglob("*")}
    said = harmony(tmp_path, "study", study_file(tmp_path, direct=True), HF_HUB_OFFLINE="1")
    assert said.startswith("0\n"), said
    assert leaks(tmp_path, said) == []
    (tmp_path / "results" / "token.txt").write_text(SECRETS["HF_TOKEN"])
    assert leaks(tmp_path, said) == ["results/token.txt"]  # negative control
    (tmp_path / "results" / "token.txt").unlink()
    made = [path for path in (tmp_path / "results").rglob("*") if path not in inputs]
    assert any(path.suffix == ".safetensors" for path in made)
    modes = {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in made}
    assert modes == {(True, "0o750"), (False, "0o640")}


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"results_dir": f"ftp://user:{PASSWORD}@127.0.0.1:9/results"}, {}),
        ({"results_dir": "s3://bucket/results"}, {"AWS_ENDPOINT_URL": f"http://user:{PASSWORD}@127.0.0.1:9"}),
        ({"models": ["nobody/nothing"]}, {"HF_ENDPOINT": f"http://user:{PASSWORD}@127.0.0.1:9"}),
    ],
    ids=["ftp", "S3", "hub"],
)
def test_a_study_that_fails_shows_no_secret(tmp_path: Path, changes: dict[str, object], more: dict[str, str]) -> None:
    write_tiny_model(tmp_path / "model")
    file = study_file(tmp_path, **changes)
    said = harmony(tmp_path, "study", file, **more)
    file.unlink()  # the user's own file has the password of the ftp server
    assert said.startswith("1\n"), said
    assert leaks(tmp_path, said) == []


def test_a_traceback_shows_no_secret(tmp_path: Path) -> None:
    words = ["run", "--base_model", "model", "--task_name", f"http://user:{PASSWORD}@host/{SECRETS['HF_TOKEN']}.yaml", "--debug"]
    said = harmony(tmp_path, *words)
    assert said.startswith("1\n") and "Traceback" in said and f"http://{HIDDEN}@host/{HIDDEN}.yaml" in said, said
    assert leaks(tmp_path, said) == []


def test_handlers_of_other_libraries_show_no_secret() -> None:
    """They keep the standard error that there was when they were imported."""
    code = "import logging, sys; early = logging.StreamHandler(); logging.getLogger().addHandler(early)\n{}\n"
    code += f"url = 'http://user:{PASSWORD}@host'\nlogging.warning('at %s', url)\n"
    code += "try:\n    raise ValueError(url)\nexcept ValueError:\n    logging.exception('failed')\nlogging.warning('%d', url)"
    said = {}
    for start in ("from lm_harmony.redaction import hide_secrets; hide_secrets()", ""):
        done = subprocess.run([sys.executable, "-c", code.format(start)], capture_output=True, text=True)
        said[start] = done.stderr
        assert done.returncode == 0 and "failed\nTraceback" in done.stderr
    shown, plain = said.values()
    assert f"at http://{HIDDEN}@host" in shown and f"ValueError: http://{HIDDEN}@host" in shown
    assert PASSWORD not in shown and PASSWORD in plain  # negative control


def test_secrets_of_the_environment_and_passwords_in_urls_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "HF_TOKEN_PATH": "/home/someone", "TOKENIZERS_PARALLELISM": "false"}.items():
        monkeypatch.setenv(name, value)
    text = f"401 for {SECRETS['HF_TOKEN']} at https://user:{PASSWORD}@host:80/path@2, /home/someone, false"
    hidden = f"401 for {HIDDEN} at https://{HIDDEN}@host:80/path@2, /home/someone, false"
    assert without_secrets(text) == hidden
    assert result_of(RuntimeError(text)).cause == hidden
    record = logging.LogRecord("lm_harmony", logging.INFO, "", 0, "%s", (text,), None)
    assert SafeFormatter("%(message)s").format(record) == hidden
    assert logging.Formatter("%(message)s").format(record) == text  # negative control
