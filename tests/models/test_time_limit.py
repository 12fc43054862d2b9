"""Code of others is stopped after a number of CPU seconds: a chat template with an endless loop ends in one line."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from micro import write_micro
from tiny import CHAT_TEMPLATE, write_tiny_model

from lm_harmony.cli.main import main
from lm_harmony.models import chat_template
from lm_harmony.models.time_limit import cpu_limit

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
ESCAPE = "{{ messages.__class__.__mro__[1].__subclasses__() }}"


def loop_for_ever() -> None:
    while True:
        try:
            int("1")
        except Exception:  # noqa: BLE001 - as a filter of a template does
            continue


def busy(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() < start + seconds:
        int("1")


def test_an_endless_loop_is_stopped_and_a_short_block_is_not() -> None:
    with pytest.raises(TimeoutError, match=r"it takes more than 0.1 seconds of CPU time"), cpu_limit(0.1):
        loop_for_ever()
    with cpu_limit(60.0):  # negative control
        busy(0.3)
    busy(0.5)  # nothing is raised after the block
    for _ in range(10_000):
        with cpu_limit(60.0):
            pass


def test_a_block_of_another_thread_is_stopped() -> None:
    found: list[str] = []

    def work() -> None:
        try:
            with cpu_limit(0.1):
                loop_for_ever()
        except TimeoutError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["it takes more than 0.1 seconds of CPU time"]


@pytest.mark.parametrize(("bad", "cause"), [(ENDLESS, "it takes more than 0.5 seconds"), (ESCAPE, "SecurityError")])
def test_a_hostile_chat_template_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bad: str, cause: str
) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    write_micro(tmp_path)
    model = write_tiny_model(tmp_path / "model", chat=True)
    file = model / "chat_template.jinja"
    assert file.read_text() == CHAT_TEMPLATE
    words = ["run", "--base_model", str(model), "--task_name", str(tmp_path / "micro.yaml"), "--data_dir", str(tmp_path)]
    words += ["--results_dir", str(tmp_path / "results"), "--device", "cpu", "--dataset_param.apply_chat_template"]
    words += ["--train_param.num_train_epochs", "1"]
    file.write_text(bad + CHAT_TEMPLATE)
    assert main(words) == 1
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("lm-harmony: ")]
    assert "its chat template fails: " in line and cause in line and str(file) in line and "Traceback" not in said
    file.write_text(CHAT_TEMPLATE)
    assert main(words) == 0  # negative control
