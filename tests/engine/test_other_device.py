"""The engine creates its tensors on the device of the model. A simulated device that refuses CPU tensors replaces a GPU."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fork_server import forked_python

FOLDER = Path(__file__).parents[1]


@cache
def far_results(architecture: str) -> dict[str, Any]:
    """Run ``far.py`` in a new process and return its results."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [forked_python(environment), "-m", "far", architecture]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_a_model_on_another_device_scores_and_trains_the_same(architecture: str) -> None:
    found = far_results(architecture)
    assert found["device"] == "far" and found["mixed is refused"], (
        "the simulated device accepts CPU tensors, so the test shows nothing"
    )
    here, there = found["here"], found["there"]
    assert here.keys() == there.keys() and here["packed"]
    for name, value in here.items():
        expected = pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, list) and isinstance(value[0], float) else value
        assert there[name] == expected, name


def test_a_model_that_is_split_between_two_devices_scores_and_trains_the_same() -> None:
    """accelerate moves the activations. Packed rows, dropout masks and the output layer follow them from device to device."""
    found = far_results("llama")
    here, split = found["here"], found["split"]
    assert split.pop("devices") == ["cpu", "far:0"] and split["packed"] and split["writes"]
    assert split.keys() == here.keys() - {"joint losses"}
    for name, value in split.items():
        expected = here[name]
        if isinstance(expected, list) and isinstance(expected[0], float):
            expected = pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert value == expected, name


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_a_training_step_does_not_wait_for_the_device(architecture: str, backend: str) -> None:
    """One copy moves the batch to the device. Losses and norms are copied back together, every few steps."""
    waits = far_results(architecture)["waits"]
    *steps, reading, after = waits[backend]
    # Without packed attention, transformers itself checks for each kind of mask whether the rows are packed.
    masks = {"llama": 1, "gpt_neox": 1, "gemma3_text": 2}[architecture]
    mask_checks = {"_local_scalar_dense": masks} if backend == "padded" else {}
    assert all(step == {"to far": 1} | mask_checks for step in (*steps, after))
    assert reading == {"to far": 1, "from far": 1} | mask_checks
    assert all(step["_local_scalar_dense"] > 1 for step in waits["disturbed"])  # negative control


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_generation_waits_once_in_several_tokens(architecture: str) -> None:
    """One copy moves the contexts to the device, one brings four tokens of each row back, and one drops the rows that ended."""
    waits = far_results(architecture)["waits"]
    assert waits["generation"] == [{"to far": 1, "from far": 1}, {"from far": 1}, {"from far": 1, "to far": 1}]
    assert len(waits["generation, one step a read"]) == 1 + 8  # negative control


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_grouped_heads_are_repeated_where_no_fused_kernel_supports_them(architecture: str) -> None:
    """Both architectures have grouped heads. On a GPU only the flash kernel supports them, in half precision without mask."""
    grouped = far_results(architecture)["grouped"]
    assert all(grouped["here"]["masked"]) and all(grouped["here"]["causal"])  # negative control: a CPU supports them
    for device in ("far", "far, half precision"):
        assert grouped[device]["masked"] and not any(grouped[device]["masked"])
    if architecture == "llama":  # in gemma3 the sliding window decides whether a text of this length has a mask
        assert grouped["far"]["causal"] and not any(grouped["far"]["causal"])
        assert all(grouped["far, half precision"]["causal"])
