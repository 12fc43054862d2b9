"""The header of every test session, and the loopback hub and forked workers that several test files share.

The process that distributes the tests reads this file before it starts the test processes. So torch is not imported here.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from fork_server import forked_python
from rows import ROWS
from shared import DATA

if TYPE_CHECKING:
    from hub import LoopbackHub

gc.disable()  # until the tests are imported: a collection of what the libraries hold takes a quarter of a second
_CACHE = tempfile.TemporaryDirectory(prefix="lm-harmony-tests-")
os.environ["LM_HARMONY_CACHE_DIR"] = _CACHE.name  # the user's own cache is not changed

# Children inherit ignored signals. nohup ignores SIGHUP, and a shell ignores SIGINT for what it starts in the background.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


LONGEST = (
    *("test_cluster.py", "test_readme.py", "test_cluster_faults.py", "test_demo_command.py", "test_study.py", "test_plan.py"),
    *("test_gpu_day.py", "test_board_cli.py", "test_cli.py", "test_golden.py", "test_architecture.py", "test_public_types.py"),
)
"""Long files that start first, so that no test process waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Prepare what was imported for the tests."""
    from torch.utils import collect_env

    # lm_eval describes the machine in each result. The processes that are started for this take most of a second.
    collect_env.get_pretty_env_info = cache(collect_env.get_pretty_env_info)
    # Later collections leave out everything that was imported. With it, they took a fifth of the time of many test files.
    gc.freeze()
    gc.enable()


def pytest_report_header() -> list[str]:
    """Return the version of the tested lm_eval, and whether the tests on real rows run or are skipped."""
    rows = "present, their tests run" if DATA.is_dir() else "absent, their tests skip"
    return [f"lm_eval {version('lm_eval')}", f"real benchmark rows in ../shared/data: {rows}"]


@pytest.fixture(autouse=True)
def hub_clients_ask_again() -> Iterator[None]:
    """Undo after each test that a missing network switched the hub's clients in this process to their cache."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    yield
    constants.HF_HUB_OFFLINE = offline


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """Let the studies of a test file start forked workers, except where a test changes their environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", forked_python())
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Serve a tiny pythia and ARC-Easy as the hub does."""
    from hub import LoopbackHub, write_arc_dataset
    from tiny import write_tiny_model

    folder = tmp_path_factory.mktemp("hub")
    write_arc_dataset(folder / "arc", ROWS["arc_easy"])
    write_tiny_model(folder / "pythia", "gpt_neox")
    models = {"EleutherAI/pythia-70m-deduped": folder / "pythia"}
    with LoopbackHub(models=models, datasets={"allenai/ai2_arc": folder / "arc"}) as running:
        yield running
