"""Without network, models and rows come from the hub's cache at once, and what is not in it is an error in one line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fork_server import forked_python
from hub import LoopbackHub, write_arc_dataset
from rows import ROWS
from tiny import write_tiny_model

from lm_harmony.hub_connection import is_connection_error

ASK = """
import logging, sys
logging.basicConfig(format="log: %(message)s", stream=sys.stdout)
from lm_harmony.benchmarks.harness.group import open_task
from lm_harmony.errors import HarmonyError
from lm_harmony.models.loading import load_model

for line in sys.stdin:
    kind, name = line.split()
    try:
        if kind == "model":
            model = load_model(name, device="cpu")
            said = (model.name, model.revision, float(sum(weight.sum() for weight in model.module.parameters())))
        else:
            said = (name, [len(open_task(name).documents(role)) for role in ("train", "validation", "test")])
    except HarmonyError as error:
        said = error
    print("answer:", said, flush=True)
"""


@contextmanager
def process(environment: dict[str, str]) -> Iterator[Callable[[str], list[str]]]:
    """Start a process, and yield a function that asks it for a model or task. It returns warnings and the answer."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([forked_python(environment), "-c", ASK], env=environment, text=True, bufsize=1, **pipes) as running:

        def ask(question: str) -> list[str]:
            running.stdin.write(f"{question}\n")
            lines = []
            while not (lines and lines[-1].startswith("answer: ")):
                lines.append(running.stdout.readline())
                assert lines[-1], running.stderr.read()
            return [line.strip() for line in lines if line.startswith(("answer: ", "log: http"))]

        yield ask
        running.stdin.close()
        assert "Retrying" not in running.stderr.read()


def test_a_process_without_network_reads_the_cache_at_once_and_asks_again_later(tmp_path: Path) -> None:
    write_arc_dataset(tmp_path / "arc", ROWS["arc_easy"])
    models = {"a/model": write_tiny_model(tmp_path / "model"), "a/second": write_tiny_model(tmp_path / "second", "gpt_neox")}
    served = {"models": models, "datasets": {"allenai/ai2_arc": tmp_path / "arc"}}
    with LoopbackHub(**served) as hub, process(hub.environment(tmp_path / "cache")) as ask:
        model, rows, (nothing,) = ask("model a/model"), ask("task arc_easy"), ask("model a/nothing")
    assert model[0].startswith("answer: ('a/model', '") and rows == ["answer: ('arc_easy', [3, 2, 2])"]
    assert "'a/nothing' cannot be loaded" in nothing and "cannot be reached" not in nothing  # negative control

    reason = f"{hub.endpoint} cannot be reached ([Errno 111] Connection refused)"
    with process(hub.environment(tmp_path / "cache")) as ask:
        warning, again = ask("model a/model")
        assert warning == f"log: {reason}. Models and rows of the hub are read from its cache on this machine."
        assert [again] == model and ask("task arc_easy") == rows  # the same commit, weights and rows
        (unknown,) = ask("model a/second")
        assert unknown.startswith(f"answer: model 'a/second' cannot be loaded: {reason}, and the hub's cache on this machine ")
        assert unknown.endswith("Connect to the hub, or give an existing model folder.")
        with LoopbackHub(**served, port=int(hub.endpoint.rpartition(":")[2])):
            assert ask("model a/second")[0].startswith("answer: ('a/second', '")


def test_rows_are_asked_for_once_without_network(tmp_path: Path) -> None:
    """No model has been loaded before, which would have noticed that the hub does not answer."""
    with LoopbackHub(models={}, datasets={}) as hub:
        environment = hub.environment(tmp_path / "cache")
    with process(environment) as ask:  # it checks that no request was repeated
        warning, (*_, answer) = ask("task arc_easy")[0], ask("task arc_easy")
    assert warning.startswith(f"log: {hub.endpoint} cannot be reached (") and "cannot be loaded: " in answer


def test_a_slow_answer_is_no_missing_connection() -> None:
    assert is_connection_error(ConnectionRefusedError()) and not is_connection_error(TimeoutError())
