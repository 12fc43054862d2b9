"""Between the command and the forward pass, at most 6 of our own functions are called in training and 8 in scoring."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from task_files import PARITY, numbers, write_task
from tiny import write_tiny_model
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

from lm_harmony.cli import run as run_command
from lm_harmony.cli.main import main
from lm_harmony.engine import backends
from lm_harmony.engine.forward import packed_logprobs
from lm_harmony.engine.scoring import Scorer

WRITTEN: Mapping[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{note}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def own_frames() -> list[str]:
    """Return the functions of the package on the stack, the innermost first, up to and including ``cli.run.run``."""
    frame, names = sys._getframe(1), []
    while frame is not None:
        if str(frame.f_globals.get("__name__")).split(".")[0] == "lm_harmony":
            names.append(frame.f_code.co_qualname)
            if frame.f_code is run_command.run.__code__:
                return names
        frame = frame.f_back
    return []


def deepest(folder: Path, fields: Mapping[str, Any], *more: str) -> dict[str, list[str]]:
    """Run a benchmark on a tiny model. Return the deepest stacks of our functions in training and in scoring."""
    model = write_tiny_model(folder / "model")
    task = write_task(folder, {"train": numbers(8), "validation": numbers(4, 20), "test": numbers(4, 40)}, **fields)
    found: dict[str, list[str]] = {"training": [], "scoring": []}

    def note(module: torch.nn.Module, _: object) -> None:
        if isinstance(module, PreTrainedModel):
            names = own_frames()
            scoring = Scorer.reply.__qualname__ in names
            if scoring or (module.training and torch.is_grad_enabled()):
                kind = "scoring" if scoring else "training"
                found[kind] = max(found[kind], names, key=len)

    hook = register_module_forward_pre_hook(note)
    try:
        flags = {"base_model": model, "task_name": task, "data_dir": folder, "device": "cpu", "results_dir": folder / "results"}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        assert main(["run", *words, "--train_param.num_train_epochs", "1", *more]) == 0
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("fields", [PARITY, WRITTEN], ids=["log-likelihoods", "generated answers"])
def test_few_functions_are_called_between_the_command_and_the_forward_pass(
    engine: str, fields: Mapping[str, Any], tmp_path: Path
) -> None:
    found = deepest(tmp_path, fields, "--engine", engine)
    assert 2 < len(found["training"]) <= 6, found["training"]
    assert 2 < len(found["scoring"]) <= 8, found["scoring"]


def test_one_more_function_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a wrapper of the package around the forward pass of training."""
    before = deepest(tmp_path / "before", PARITY)["training"]
    scope = {"__name__": "lm_harmony.engine.wrapper", "packed_logprobs": packed_logprobs}
    exec("def wrapper(*inputs, **options):\n    return packed_logprobs(*inputs, **options)", scope)
    monkeypatch.setattr(backends, "packed_logprobs", scope["wrapper"])
    after = deepest(tmp_path / "after", PARITY)["training"]
    assert after == [before[0], "wrapper", *before[1:]]
