"""A run from start to end: its files, its fingerprints, resuming after an interruption, and errors."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from micro import write_micro
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tiny import write_tiny_model

from lm_harmony import recipe as recipes
from lm_harmony.errors import BenchmarkError, DamagedFile, ModelError, NotCurrent, StoreError, TrainingDiverged, UsageError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs import protocol
from lm_harmony.runs.protocol import choose_epoch, score_again, train_before_test
from lm_harmony.runs.record import EpochRecord, RunRecord
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

RECIPE = Recipe(epochs=3, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = tmp_path_factory.mktemp("inputs")
    task = write_micro(folder)
    model = write_tiny_model(folder / "model", bos=True, chat=True)
    return RunSpec(
        model=ModelSpec(name=str(model)),
        benchmark=BenchmarkSpec(task=str(task), data_dir=folder),
        recipe=RECIPE,
        direct=True,
        execution=Execution(device="cpu"),
    )


@pytest.fixture(scope="module")
def finished(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, RunStore]:
    store = RunStore(tmp_path_factory.mktemp("finished") / "run")
    return train_before_test(spec, store), store


def test_the_record_on_disk_is_the_record_returned(finished: tuple[RunRecord, RunStore]) -> None:
    record, store = finished
    assert store.record() == record
    assert store.is_finished()
    assert len(record.epochs) == 3 and record.data.train == 24 and record.data.test == 12
    assert record.direct is not None and record.trained is not None
    assert record.costs["peak_memory_bytes"] > 1e8 and record.costs["training_tokens"] > 0
    weights = load_file(Path(record.spec.model.name) / "model.safetensors")
    assert record.parameters == sum(weight.numel() for weight in weights.values())  # without the adapter
    assert record.environment["versions"]["lm_eval"] == "0.4.13"
    assert record.environment["engine"] == {"fast": True, "writes": True, "onednn": "none", "recompute": False}


def test_the_run_folder_holds_exactly_the_documented_files(finished: tuple[RunRecord, RunStore]) -> None:
    record, store = finished
    names = {path.name for path in store.folder.iterdir()}
    results = next(name for name in names if name.startswith("results_"))
    expected = {"config.yaml", "record.json", "epochs.jsonl", "direct.json", "direct", "adapter", results}
    assert names == expected | {"samples_test.jsonl", "samples_direct.jsonl"}
    config = yaml.safe_load((store.folder / "config.yaml").read_text())
    assert config["recipe_fingerprint"] == RECIPE.fingerprint()
    assert config["data_fingerprint"] == record.data.fingerprint
    assert not [path for path in store.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".part")]


def test_results_are_in_lm_evals_schema(finished: tuple[RunRecord, RunStore]) -> None:
    record, store = finished
    results = json.loads(next(store.folder.glob("results_*.json")).read_text())
    assert record.trained is not None
    assert results["results"]["micro"]["acc,none"] == record.trained.metrics["acc,none"]
    assert results["results"]["micro"]["acc_stderr,none"] == record.trained.stderrs["acc,none"]
    assert {"group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"} <= results.keys()
    assert RunRecord.from_dict(results["train_before_test"]) == record
    samples = [json.loads(line) for line in (store.folder / "samples_test.jsonl").read_text().splitlines()]
    assert len(samples) == 12
    assert sum(sample["acc"] for sample in samples) / 12 == record.trained.metrics["acc,none"]


def test_peft_loads_the_saved_adapter(finished: tuple[RunRecord, RunStore], spec: RunSpec) -> None:
    _, store = finished
    module = AutoPeftModelForCausalLM.from_pretrained(store.folder / "adapter")
    changed = [weight for name, weight in module.named_parameters() if "lora_B" in name]
    assert changed and all(weight.abs().max() > 0 for weight in changed)


def test_the_same_request_gives_the_same_record(spec: RunSpec, finished: tuple[RunRecord, RunStore], tmp_path: Path) -> None:
    assert train_before_test(spec, RunStore(tmp_path / "again")) == finished[0]


def test_another_seed_gives_another_record(spec: RunSpec, finished: tuple[RunRecord, RunStore], tmp_path: Path) -> None:
    other = train_before_test(dataclasses.replace(spec, seed=1), RunStore(tmp_path / "other"))
    assert [epoch.loss for epoch in other.epochs] != [epoch.loss for epoch in finished[0].epochs]


def test_direct_evaluation_and_curves_change_nothing_in_training(
    spec: RunSpec, finished: tuple[RunRecord, RunStore], tmp_path: Path
) -> None:
    changed = dataclasses.replace(spec, direct=False, test_curve=True)
    record = train_before_test(changed, RunStore(tmp_path / "other"))
    assert record.direct is None
    assert record.epochs == finished[0].epochs
    assert record.trained == finished[0].trained
    assert record.trained is not None
    assert record.test_curve.keys() == {1, 2, 3}
    assert record.test_curve[record.chosen_epoch] == record.trained.metrics


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """Return a function that interrupts a run, as by Ctrl-C, after n calls of a function of the protocol."""

    def interrupt(function: str, calls: int) -> None:
        original, count = getattr(protocol, function), 0

        def interrupted(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count > calls:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(protocol, function, interrupted)

    return interrupt


@pytest.mark.parametrize(
    ("function", "calls"), [("save_checkpoint", 0), ("save_checkpoint", 1), ("save_checkpoint", 2), ("save_weights", 0)]
)
def test_a_resumed_run_equals_an_uninterrupted_run(
    spec: RunSpec,
    finished: tuple[RunRecord, RunStore],
    tmp_path: Path,
    stop_after: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    calls: int,
) -> None:
    store = RunStore(tmp_path / "run")
    stop_after(function, calls)
    with pytest.raises(KeyboardInterrupt):
        train_before_test(spec, store)
    monkeypatch.undo()
    assert not store.is_finished()
    assert len(store.epochs()) == (calls if function == "save_checkpoint" else 3)
    with pytest.raises(UsageError, match="resume_from_checkpoint"):
        train_before_test(spec, store)
    record = train_before_test(spec, store, resume=True)
    assert record == finished[0]
    for file in ("adapter/adapter_model.safetensors", "samples_test.jsonl", "samples_direct.jsonl"):
        assert (store.folder / file).read_bytes() == (finished[1].folder / file).read_bytes()


def test_a_truncated_line_in_epochs_jsonl_is_ignored(
    spec: RunSpec,
    finished: tuple[RunRecord, RunStore],
    tmp_path: Path,
    stop_after: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = RunStore(tmp_path / "run")
    stop_after("save_checkpoint", 2)
    with pytest.raises(KeyboardInterrupt):
        train_before_test(spec, store)
    monkeypatch.undo()
    with (store.folder / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 3, "loss": 1.')
    assert len(store.epochs()) == 2
    assert train_before_test(spec, store, resume=True) == finished[0]


def test_a_resumed_run_must_be_the_same_request(
    spec: RunSpec, tmp_path: Path, stop_after: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it continued by a version that trains other weights, which would mix both. A study then starts it again."""
    store = RunStore(tmp_path / "run")
    stop_after("save_checkpoint", 1)
    with pytest.raises(KeyboardInterrupt):
        train_before_test(spec, store)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="seed was 0, is 1"):
        train_before_test(dataclasses.replace(spec, seed=1), store, resume=True)
    monkeypatch.setattr(recipes, "TRAINING_VERSION", recipes.TRAINING_VERSION + 1)
    with pytest.raises(NotCurrent, match="recipe_fingerprint was "):
        train_before_test(spec, store, resume=True)
    monkeypatch.undo()
    other_batch_size = dataclasses.replace(spec, execution=Execution(device="cpu", eval_batch_size=2))
    assert train_before_test(other_batch_size, store, resume=True).chosen_epoch in (1, 2, 3)


def test_a_finished_run_is_overwritten_only_with_overwrite(spec: RunSpec, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    quick = dataclasses.replace(spec, recipe=dataclasses.replace(RECIPE, epochs=1), direct=False)
    first = train_before_test(quick, store)
    with pytest.raises(UsageError, match="finished run"):
        train_before_test(quick, store, resume=True)
    assert train_before_test(quick, store, overwrite=True) == first


def test_scoring_a_finished_run_again_gives_the_same_score(finished: tuple[RunRecord, RunStore]) -> None:
    record, store = finished
    before = (store.folder / "record.json").read_bytes()
    assert score_again(store).trained == record.trained
    assert (store.folder / "record.json").read_bytes() == before


@pytest.mark.parametrize("lora", [True, False])
def test_only_the_weights_that_were_tested_are_scored_again(lora: bool, spec: RunSpec, tmp_path: Path) -> None:
    """Those of another run, or edited ones, fit the model just as well."""
    recipe = spec.recipe if lora else Recipe(lora=None, epochs=2, learning_rate=1e-3)
    stores = [RunStore(tmp_path / str(seed)) for seed in (0, 1)]
    for seed, store in enumerate(stores):
        train_before_test(dataclasses.replace(spec, seed=seed, recipe=recipe, direct=False), store)
    store, other = stores
    (weights,) = (store.folder / "adapter").glob("*.safetensors")
    before = weights.read_bytes()
    for content in ((other.folder / "adapter" / weights.name).read_bytes(), before[:-1] + bytes([before[-1] ^ 1])):
        weights.write_bytes(content)
        with pytest.raises(DamagedFile, match=f"{weights.name} differs from its checksum in epochs.jsonl, so these are not"):
            score_again(store)
    assert len(list(store.folder.glob("results_*.json"))) == 1
    epochs = (store.folder / "epochs.jsonl").read_bytes()
    (store.folder / "epochs.jsonl").write_bytes((other.folder / "epochs.jsonl").read_bytes())
    with pytest.raises(DamagedFile, match="it is of a run with another request"):
        score_again(store)
    (store.folder / "epochs.jsonl").write_bytes(epochs)
    weights.write_bytes(before)
    assert score_again(store).trained == store.record().trained


def test_scoring_an_unfinished_run_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not finished"):
        score_again(RunStore(tmp_path / "nothing"))


def test_without_lora_all_weights_are_trained_and_saved(spec: RunSpec, tmp_path: Path) -> None:
    full = dataclasses.replace(spec, recipe=Recipe(lora=None, epochs=2, learning_rate=1e-3))
    store = RunStore(tmp_path / "run")
    record = train_before_test(full, store)
    assert score_again(store).trained == record.trained
    assert (store.folder / "adapter" / "config.json").is_file()


def test_a_chat_template_is_used_in_training_and_scoring(spec: RunSpec, tmp_path: Path) -> None:
    chat = dataclasses.replace(spec, model=dataclasses.replace(spec.model, apply_chat_template=True), direct=False)
    store = RunStore(tmp_path / "run")
    train_before_test(chat, store)
    sample = json.loads((store.folder / "samples_test.jsonl").read_text().splitlines()[0])
    assert sample["arguments"][0][0].startswith("<|user|>number") and sample["arguments"][0][0].endswith("<|assistant|>")


@pytest.mark.parametrize(
    ("values", "higher", "chosen"),
    [((0.5, 0.7, 0.7), True, 2), ((0.5, 0.5, 0.5), True, 1), ((0.9, 0.4, 0.4), False, 2), ((0.2, 0.1, 0.3), True, 3)],
)
def test_a_later_epoch_is_chosen_only_if_it_is_strictly_better(values: tuple[float, ...], higher: bool, chosen: int) -> None:
    epochs = [
        EpochRecord(epoch=number, loss=1.0, validation={"m": value}, tokens=1, seconds=1.0, validation_seconds=1.0)
        for number, value in enumerate(values, start=1)
    ]
    assert choose_epoch(epochs, "m", higher_is_better=higher).epoch == chosen


def test_invalid_input_creates_no_folder(spec: RunSpec, tmp_path: Path) -> None:
    for broken, error in (
        (dataclasses.replace(spec, metric="acc_nrm,none"), UsageError),
        (dataclasses.replace(spec, greater_is_better=False), UsageError),
        (dataclasses.replace(spec, model=ModelSpec(name=str(tmp_path / "none"))), ModelError),
        (dataclasses.replace(spec, benchmark=dataclasses.replace(spec.benchmark, data_dir=tmp_path)), BenchmarkError),
    ):
        store = RunStore(tmp_path / "run")
        with pytest.raises(error):
            train_before_test(broken, store)
        assert not store.folder.exists()


def test_diverged_training_raises_with_step_and_rows_and_writes_no_record(spec: RunSpec, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    broken = dataclasses.replace(spec, recipe=dataclasses.replace(RECIPE, learning_rate=1e30, max_grad_norm=0))
    with pytest.raises(TrainingDiverged, match=r"step \d+ is nan on training rows \[\d+"):
        train_before_test(broken, store)
    assert not store.is_finished()
    assert math.isfinite(torch.rand(1).item())


def test_losses_and_scores_are_logged_to_tensorboard(spec: RunSpec, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    store = RunStore(tmp_path / "run")
    execution = Execution(device="cpu", trackers=("tensorboard",), logging_steps=1)
    record = train_before_test(dataclasses.replace(spec, execution=execution), store)
    events = event_accumulator.EventAccumulator(str(store.folder / "trackers" / "micro"))
    events.Reload()
    assert len(events.Scalars("train/loss")) == 9
    logged = [event.value for event in events.Scalars("validation/acc,none")]
    assert logged == pytest.approx([epoch.validation["acc,none"] for epoch in record.epochs])
    assert record.trained is not None
    assert events.Scalars("test/acc,none")[0].value == pytest.approx(record.trained.metrics["acc,none"])


def test_the_packed_and_the_padded_engine_give_the_same_scores(spec: RunSpec, tmp_path: Path) -> None:
    """Dropout is off, because its mask depends on the batch layout. Losses may differ by rounding."""
    recipe = dataclasses.replace(RECIPE, lora=Lora(target_modules=("all-linear",), lora_dropout=0.0))
    without_dropout = dataclasses.replace(spec, recipe=recipe)
    packed, padded = (
        train_before_test(
            dataclasses.replace(without_dropout, execution=Execution(device="cpu", engine=engine)), RunStore(tmp_path / engine)
        )
        for engine in ("auto", "plain")
    )
    assert packed.direct == padded.direct
    assert packed.trained == padded.trained
    assert [epoch.loss for epoch in packed.epochs] == pytest.approx([epoch.loss for epoch in padded.epochs], rel=1e-4)


def test_an_adapter_on_bfloat16_weights_is_saved_in_float32(spec: RunSpec, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    record = train_before_test(dataclasses.replace(spec, recipe=dataclasses.replace(RECIPE, dtype="bfloat16")), store)
    weights = load_file(store.folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(math.isfinite(epoch.loss) for epoch in record.epochs)
