"""Out of memory ends a run with a one-line error. A study records it after one attempt and continues with the other runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from micro import write_micro
from safetensors.torch import save_file
from tiny import tiny_module, tiny_tokenizer, write_tiny_model

from lm_harmony.cli.main import main
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import ModelError
from lm_harmony.models.loading import load_model
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.caches import RunCaches
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.messages import Outcome
from lm_harmony.studies.run_location import RunLocation
from lm_harmony.studies.study import Study
from lm_harmony.studies.worker import RunExecutor

RECIPE = Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model"))),
        benchmark=BenchmarkSpec(task=str(write_micro(tmp_path)), data_dir=tmp_path),
        recipe=RECIPE,
        execution=Execution(device="cpu", engine="plain"),
    )


def write_giant(folder: Path) -> Path:
    """Write the configuration and tokenizer of a model with 700 billion weights, and a file without weights."""
    config = tiny_module().config
    config.update({"hidden_size": 65_536, "intermediate_size": 262_144, "num_hidden_layers": 12})
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    return folder


def fail_forward_passes(caches: RunCaches, spec: RunSpec, *, training: bool) -> None:
    """Let the forward passes of the model fail, because each one requests a petabyte from the real allocator."""
    module = caches.model.get(spec).model.module

    def allocate(forwarded: torch.nn.Module, *_: Any) -> None:
        if forwarded.training is training and torch.is_grad_enabled() is training:
            torch.empty(1 << 50, dtype=torch.uint8)

    module.register_forward_pre_hook(allocate)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = write_giant(tmp_path / "giant")
    with pytest.raises(ModelError) as found:
        load_model(str(folder), device="cpu")
    message = str(found.value)
    assert message.startswith(f"model {folder}: out of memory on cpu while loading it: ") and "\n" not in message
    assert "GiB for its weights in float32 needed, " in message and "B free. Ways out: --dtype bfloat16" in message
    with pytest.raises(ModelError) as half:
        load_model(str(folder), device="cpu", dtype="bfloat16")
    assert "in bfloat16 needed" in str(half.value) and "--dtype" not in str(half.value)


def test_the_command_prints_one_line_and_writes_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base_model", str(write_giant(tmp_path / "giant")), "--task_name", str(write_micro(tmp_path))]
    words += ["--data_dir", str(tmp_path), "--device", "cpu", "--results_dir", str(tmp_path / "results")]
    assert main(["run", *words]) == 1
    shown = capsys.readouterr().err
    assert "out of memory on cpu while loading it" in shown and "Traceback" not in shown
    assert len([line for line in shown.splitlines() if line.startswith("lm-harmony: ")]) == 1
    assert not list((tmp_path / "results").rglob("*"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [RECIPE.lora, None], ids=["lora", "full"])
def test_out_of_memory_in_the_first_training_pass_names_the_ways_out(
    spec: RunSpec, tmp_path: Path, lora: Lora | None, checkpointing: bool
) -> None:
    spec = replace(spec, recipe=replace(RECIPE, lora=lora))
    spec = replace(spec, execution=replace(spec.execution, gradient_checkpointing=checkpointing))
    caches = RunCaches()
    fail_forward_passes(caches, spec, training=True)
    with pytest.raises(ModelError) as found:
        train_before_test(spec, RunStore(tmp_path / "run"), caches=caches)
    message = str(found.value)
    assert "out of memory on cpu while training on one sequence at a time: 1048576.0 GiB more needed, " in message
    assert ("--train_param.gradient_checkpointing" in message) is not checkpointing
    assert ("a LoRA adapter" in message) is (lora is None)
    assert ("--dtype bfloat16" in message) is (lora is not None)
    assert not RunStore(tmp_path / "run").is_finished()


@pytest.mark.parametrize("successful_passes", [0, 2])
def test_the_cached_model_holds_no_gradients_after_out_of_memory(spec: RunSpec, successful_passes: int) -> None:
    """If the third pass of a step fails, the first two have left gradients. The next run on this model must not keep them."""
    recipe = replace(RECIPE, lora=None)
    model, calls = RunCaches().model.get(replace(spec, recipe=recipe)).model, list[int]()

    def allocate(forwarded: torch.nn.Module, *_: Any) -> None:
        calls.append(1)
        if len(calls) > successful_passes:
            torch.empty(1 << 50, dtype=torch.uint8)

    model.module.register_forward_pre_hook(allocate)
    sequences = [TokenSequence(ids=(5, 6, 7, 8 + row), first_label=1) for row in range(4)]
    with trainable(model, recipe, seed=0) as trainee:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            list(fine_tune(trainee, sequences, recipe, seed=0, micro_batch=1))
        assert any(weight.grad is not None for weight in model.module.parameters()) is (successful_passes > 0)
    assert all(weight.grad is None for weight in model.module.parameters())


def test_out_of_memory_in_the_direct_score_names_the_ways_out(spec: RunSpec, tmp_path: Path) -> None:
    spec, caches = replace(spec, direct=True), RunCaches()
    fail_forward_passes(caches, spec, training=False)
    with pytest.raises(ModelError, match=r"out of memory on cpu while scoring it: 1048576.0 GiB more needed, .*max_new_tokens"):
        train_before_test(spec, RunStore(tmp_path / "run"), caches=caches)


def test_out_of_memory_while_choosing_a_backend_is_raised(spec: RunSpec, tmp_path: Path) -> None:
    """Out of memory must not select the padded backend. Other errors do select it (negative control)."""
    for error, expected in ((torch.OutOfMemoryError("CUDA out of memory."), None), (RuntimeError("unknown shape"), False)):
        model = load_model(spec.model.name, device="cpu")

        def refuse(_: torch.nn.Module, args: Any, options: dict[str, Any], error: Exception = error) -> None:
            if "packed_row" in options:
                raise error

        model.module.model.register_forward_pre_hook(refuse, with_kwargs=True)
        if expected is None:
            with pytest.raises(torch.OutOfMemoryError):
                choose_backend(model)
        else:
            assert choose_backend(model).packed is expected


def test_a_worker_records_out_of_memory_as_a_failure_after_one_attempt(spec: RunSpec, tmp_path: Path) -> None:
    caches, run = RunCaches(), RunLocation(spec=spec, results_dir=tmp_path / "results")
    fail_forward_passes(caches, spec, training=True)
    result = RunExecutor(caches).execute(run)
    failure = run.store.failure()
    assert result.outcome == Outcome.FAILED and result.kind == "ModelError"
    assert failure is not None and failure.attempts == 1 and "Ways out" in failure.cause


@pytest.mark.usefixtures("forked_workers")
def test_a_study_records_out_of_memory_once_and_finishes_the_other_runs(tmp_path: Path) -> None:
    write_giant(tmp_path / "giant")
    write_tiny_model(tmp_path / "small")
    write_micro(tmp_path)
    study = {
        "models": ["giant", "small"],
        "benchmarks": ["micro.yaml"],
        "data_dir": ".",
        "recipe": {"epochs": 1, "lora": {"target_modules": ["all-linear"]}},
        "execution": {"device": "cpu"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    status = Study.read(tmp_path / "study.yaml").run()
    assert len(status.finished) == 1
    [failure] = status.failed.values()
    assert (failure.kind, failure.attempts) == ("ModelError", 1)
    assert "out of memory on cpu while loading it" in failure.cause
