"""A model that does not fit ends its run with one line, and a study records it at once and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from micro import write_micro
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
    """Write the configuration and tokenizer of a model of 700 billion weights; the weights are not needed to refuse it."""
    config = tiny_module().config
    config.update({"hidden_size": 65_536, "intermediate_size": 262_144, "num_hidden_layers": 12})
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def full_when(caches: RunCaches, spec: RunSpec, *, training: bool) -> None:
    """Let the model's passes fail as on a full device: a petabyte is asked of the real allocator."""
    module = caches.model.get(spec).model.module

    def fill(part: torch.nn.Module, *_: Any) -> None:
        if part.training is training and torch.is_grad_enabled() is training:
            torch.empty(1 << 50, dtype=torch.uint8)

    module.register_forward_pre_hook(fill)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = write_giant(tmp_path / "giant")
    with pytest.raises(ModelError) as found:
        load_model(str(folder), device="cpu")
    told = str(found.value)
    assert told.startswith(f"model {folder}: out of memory on cpu while loading it: ") and "\n" not in told
    assert "GiB for its weights in float32 needed, " in told and "B free. Ways out: --dtype bfloat16" in told
    with pytest.raises(ModelError) as half:
        load_model(str(folder), device="cpu", dtype="bfloat16")
    assert "in bfloat16 needed" in str(half.value) and "--dtype" not in str(half.value)


def test_the_command_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base_model", str(write_giant(tmp_path / "giant")), "--task_name", str(write_micro(tmp_path))]
    words += ["--data_dir", str(tmp_path), "--device", "cpu", "--results_dir", str(tmp_path / "results")]
    assert main(["run", *words]) == 1
    shown = capsys.readouterr().err
    assert "out of memory on cpu while loading it" in shown and "Traceback" not in shown
    assert len([line for line in shown.splitlines() if line.startswith("lm-harmony: ")]) == 1
    assert not list((tmp_path / "results").rglob("*"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [RECIPE.lora, None], ids=["lora", "full"])
def test_the_first_pass_of_training(spec: RunSpec, tmp_path: Path, lora: Lora | None, checkpointing: bool) -> None:
    spec = replace(spec, recipe=replace(RECIPE, lora=lora))
    spec = replace(spec, execution=replace(spec.execution, gradient_checkpointing=checkpointing))
    caches = RunCaches()
    full_when(caches, spec, training=True)
    with pytest.raises(ModelError) as found:
        train_before_test(spec, RunStore(tmp_path / "run"), caches=caches)
    told = str(found.value)
    assert "out of memory on cpu while training on one sequence at a time: 1048576.0 GiB more needed, " in told
    assert ("--train_param.gradient_checkpointing" in told) is not checkpointing
    assert ("a LoRA adapter" in told) is (lora is None)
    assert ("--dtype bfloat16" in told) is (lora is not None)
    assert not RunStore(tmp_path / "run").is_finished()


@pytest.mark.parametrize("spare", [0, 2])
def test_the_kept_model_keeps_no_gradients(spec: RunSpec, spare: int) -> None:
    """Two passes of a step left gradients when the third failed; the next run on this model must not carry their memory."""
    recipe = replace(RECIPE, lora=None)
    model, calls = RunCaches().model.get(replace(spec, recipe=recipe)).model, list[int]()

    def fill(part: torch.nn.Module, *_: Any) -> None:
        calls.append(1)
        if len(calls) > spare:
            torch.empty(1 << 50, dtype=torch.uint8)

    model.module.register_forward_pre_hook(fill)
    sequences = [TokenSequence(ids=(5, 6, 7, 8 + row), first_label=1) for row in range(4)]
    with trainable(model, recipe, seed=0) as trainee:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            list(fine_tune(trainee, sequences, recipe, seed=0, micro_batch=1))
        assert any(weight.grad is not None for weight in model.module.parameters()) is (spare > 0)
    assert all(weight.grad is None for weight in model.module.parameters())


def test_scoring_the_untouched_model(spec: RunSpec, tmp_path: Path) -> None:
    spec, caches = replace(spec, direct=True), RunCaches()
    full_when(caches, spec, training=False)
    with pytest.raises(ModelError, match=r"out of memory on cpu while scoring it: 1048576.0 GiB more needed, .*max_new_tokens"):
        train_before_test(spec, RunStore(tmp_path / "run"), caches=caches)


def test_the_probe_of_the_fast_paths_does_not_hide_it(spec: RunSpec, tmp_path: Path) -> None:
    """Too little memory is no sign that an architecture needs the plain path; other errors are (negative control)."""
    for error, expected in ((torch.OutOfMemoryError("CUDA out of memory."), None), (RuntimeError("unknown shape"), False)):
        model = load_model(spec.model.name, device="cpu")

        def refuse(_: torch.nn.Module, args: Any, options: dict[str, Any], error: Exception = error) -> None:
            if "attention_blocks" in options:
                raise error

        model.module.model.register_forward_pre_hook(refuse, with_kwargs=True)
        if expected is None:
            with pytest.raises(torch.OutOfMemoryError):
                choose_backend(model)
        else:
            assert choose_backend(model).packed is expected


def test_a_worker_records_it_at_the_first_attempt(spec: RunSpec, tmp_path: Path) -> None:
    caches, run = RunCaches(), RunLocation(spec=spec, results_dir=tmp_path / "results")
    full_when(caches, spec, training=True)
    result = RunExecutor(caches).execute(run)
    failure = run.store.failure()
    assert result.outcome == Outcome.FAILED and result.kind == "ModelError"
    assert failure is not None and failure.attempts == 1 and "Ways out" in failure.cause


def test_a_study_records_it_once_and_finishes_the_rest(tmp_path: Path) -> None:
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
