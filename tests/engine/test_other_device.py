"""What the engine makes lies where the model lies: shown without a GPU, on a device that refuses the processor's tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "far.py"


@cache
def found_by_far(architecture: str) -> dict[str, Any]:
    """Return what ``far.py`` finds, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), architecture], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_a_model_elsewhere_answers_and_learns_alike(architecture: str) -> None:
    found = found_by_far(architecture)
    assert found["device"] == "far" and found["mixed is refused"], (
        "the device lets the processor's tensors pass: it shows nothing"
    )
    here, there = found["here"], found["there"]
    assert here.keys() == there.keys() and here["fast"]
    for what, value in here.items():
        expected = pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, list) and isinstance(value[0], float) else value
        assert there[what] == expected, what


@pytest.mark.parametrize("paths", ["fast", "plain"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_a_training_step_waits_for_nothing(architecture: str, paths: str) -> None:
    """One copy brings the batch to the device; losses and norms come back together, every few steps."""
    waits = found_by_far(architecture)["waits"]
    *steps, reading, after = waits[paths]
    # Without our attention transformers itself looks, for each kind of mask, whether the rows are packed.
    masks = {"llama": 1, "gpt_neox": 1, "gemma3_text": 2}[architecture]
    looks = {"_local_scalar_dense": masks} if paths == "plain" else {}
    assert all(step == {"to far": 1} | looks for step in (*steps, after))
    assert reading == {"to far": 1, "from far": 1} | looks
    assert all(step["_local_scalar_dense"] > 1 for step in waits["disturbed"])  # the negative control


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_grouped_heads_are_repeated_where_no_fused_kernel_takes_them(architecture: str) -> None:
    """Both architectures have grouped heads. On a GPU only the flash kernel takes them: without a mask, in half precision."""
    grouped = found_by_far(architecture)["grouped"]
    assert all(grouped["here"]["masked"]) and all(grouped["here"]["causal"])  # the negative control: a CPU takes them
    for device in ("far", "far, half precision"):
        assert grouped[device]["masked"] and not any(grouped[device]["masked"])
    if architecture == "llama":  # gemma3's windows put a mask on every text of this length or not at all
        assert grouped["far"]["causal"] and not any(grouped["far"]["causal"])
        assert all(grouped["far, half precision"]["causal"])
