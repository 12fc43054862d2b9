"""Runs with several learning rates: each is the plain run of that rate, validation chooses, and the test is scored once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony import fine_tune
from lm_harmony.engine.joint_training import JointRuns
from lm_harmony.errors import StoreError, TrainingDiverged, UsageError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs import protocol
from lm_harmony.runs.caches import RunCaches
from lm_harmony.runs.choice import best_by_rate, choose_epoch, chosen_rate, epochs_by_rate
from lm_harmony.runs.fingerprint import run_id
from lm_harmony.runs.protocol import run_by_epochs, train_before_test
from lm_harmony.runs.record import EpochRecord, RunRecord
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

RATES = (1e-4, 3e-2, 1e-2)
LORA = Lora(target_modules=("all-linear",))
SEVERAL = Recipe(epochs=2, learning_rate=RATES, lora=LORA)
ADAPTER = "adapter/adapter_model.safetensors"


def write_labels(folder: Path, labels: Mapping[str, int]) -> Path:
    """Write the micro benchmark with one label for all rows of a split, and return the path of its YAML file."""
    task = write_micro(folder, sizes={"train": 96, "validation": 12, "test": 12})
    for place, (split, label) in enumerate(labels.items()):
        file = folder / "micro" / f"{split}.jsonl"
        rows = [{"number": 3 * row + place, "label": label} for row, _ in enumerate(file.read_text().splitlines())]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task


def spec_of(model: Path, task: Path, recipe: Recipe = SEVERAL) -> RunSpec:
    benchmark = BenchmarkSpec(task=str(task), data_dir=task.parent)
    return RunSpec(model=ModelSpec(name=str(model)), benchmark=benchmark, recipe=recipe, execution=Execution(device="cpu"))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = tmp_path_factory.mktemp("inputs")
    return spec_of(write_tiny_model(folder / "model", bos=True), write_micro(folder))


@pytest.fixture(scope="module")
def finished(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, RunStore]:
    store = RunStore(tmp_path_factory.mktemp("finished") / "run")
    return train_before_test(spec, store), store


@pytest.fixture(scope="module")
def plain(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Mapping[float, tuple[RunRecord, RunStore]]:
    """Return a run of each rate alone."""
    found = {}
    for rate in RATES:
        store = RunStore(tmp_path_factory.mktemp("plain") / "run")
        found[rate] = train_before_test(replace(spec, recipe=SEVERAL.at_rate(rate)), store), store
    return found


def curve(epochs: Any) -> list[tuple[float, Mapping[str, float], int]]:
    return [(epoch.loss, epoch.validation, epoch.tokens) for epoch in epochs]


def test_each_learning_rate_is_the_plain_run_of_that_rate(
    finished: tuple[RunRecord, RunStore], plain: Mapping[float, tuple[RunRecord, RunStore]]
) -> None:
    record, store = finished
    assert store.record() == record and [epoch.epoch for epoch in record.epochs] == [1, 2, 3, 4, 5, 6]
    assert {rate: curve(epochs) for rate, epochs in epochs_by_rate(record).items()} == {
        rate: curve(alone.epochs) for rate, (alone, _) in plain.items()
    }
    assert len({epochs[0][0] for epochs in map(curve, epochs_by_rate(record).values())}) == len(RATES)  # the rates differ
    alone, folder = plain[chosen_rate(record)]
    assert record.trained == alone.trained
    assert (store.folder / ADAPTER).read_bytes() == (folder.folder / ADAPTER).read_bytes()
    assert best_by_rate(record) == {
        rate: max(epoch.validation[record.metric] for epoch in one.epochs) for rate, (one, _) in plain.items()
    }
    assert best_by_rate(record)[chosen_rate(record)] == max(best_by_rate(record).values())
    assert not (store.folder / "checkpoints").exists()


def test_a_plain_run_is_written_and_identified_as_before(
    spec: RunSpec, finished: tuple[RunRecord, RunStore], plain: Mapping[float, tuple[RunRecord, RunStore]]
) -> None:
    record, store = plain[RATES[0]]
    lines = [json.loads(line) for line in (store.folder / "epochs.jsonl").read_text().splitlines()]
    written = json.loads((store.folder / "record.json").read_text())
    assert all("learning_rate" not in line for line in (*lines, *written["epochs"]))
    assert all("learning_rate" in epoch for epoch in finished[0].to_dict()["epochs"])  # type: ignore[attr-defined]
    assert Recipe().fingerprint() == "a680f9f349b0f457"
    assert chosen_rate(record) == RATES[0] and epochs_by_rate(record) == {RATES[0]: record.epochs}
    ids = {run_id(replace(spec, recipe=recipe)) for recipe in (SEVERAL, *map(SEVERAL.at_rate, RATES))}
    assert len(ids) == 1 + len(RATES) and run_id(RunSpec.from_dict(spec.to_dict())) == run_id(spec)


@pytest.mark.parametrize("learned", [True, False])
def test_validation_chooses_whatever_the_test_prefers(tmp_path: Path, learned: bool) -> None:
    """Validation rows have the label of the training rows or the other one, and test rows always the opposite of validation."""
    labels = {"train": 1, "validation": int(learned), "test": int(not learned)}
    low, high = 1e-7, 3e-2
    better, worse = (high, low) if learned else (low, high)
    recipe = Recipe(epochs=1, learning_rate=(worse, better), lora=LORA, completion_only=True)
    spec = spec_of(write_tiny_model(tmp_path / "model", bos=True), write_labels(tmp_path, labels), recipe)
    record = train_before_test(spec, RunStore(tmp_path / "run"))
    other = train_before_test(replace(spec, recipe=recipe.at_rate(worse)), RunStore(tmp_path / "other"))
    assert best_by_rate(record)[better] > 0.5 > best_by_rate(record)[worse] and chosen_rate(record) == better
    assert record.trained is not None and other.trained is not None
    assert record.trained.metrics[record.metric] < 0.5 < other.trained.metrics[record.metric]  # the test prefers the other rate


def test_the_test_rows_are_scored_once_after_all_epochs(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = protocol.score_test_rows, list[int]()
    store = RunStore(tmp_path / "run")

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(len(store.epochs()))
        return original(*arguments, **options)

    monkeypatch.setattr(protocol, "score_test_rows", noted)
    train_before_test(spec, store)
    assert seen == [6]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Return a function that interrupts a run, as by Ctrl-C, after n calls of a function of the protocol."""

    def interrupt(function: str, calls: int) -> None:
        original, count = getattr(protocol, function), 0

        def interrupted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > calls:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr(protocol, function, interrupted)

    return interrupt


@pytest.mark.parametrize(("function", "calls"), [*(("save_checkpoint", calls) for calls in range(6)), ("save_weights", 0)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    spec: RunSpec,
    finished: tuple[RunRecord, RunStore],
    tmp_path: Path,
    stop_after: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    calls: int,
) -> None:
    """No finished epoch is trained again, and never more than the initial, the best and the last weights are kept."""
    store, done = RunStore(tmp_path / "run"), 6 if function == "save_weights" else calls
    stop_after(function, calls)
    with pytest.raises(KeyboardInterrupt):
        train_before_test(spec, store)
    monkeypatch.undo()
    assert len(store.epochs()) == done
    assert len(list((store.folder / "checkpoints").iterdir())) <= 3
    before = (store.folder / "epochs.jsonl").read_bytes() if done else b""
    assert train_before_test(spec, store, resume=True) == finished[0]
    assert (store.folder / "epochs.jsonl").read_bytes().startswith(before)
    assert (store.folder / ADAPTER).read_bytes() == (finished[1].folder / ADAPTER).read_bytes()
    assert not (store.folder / "checkpoints").exists()


def test_a_rate_that_diverges_ends_and_the_others_are_trained(
    spec: RunSpec,
    plain: Mapping[float, tuple[RunRecord, RunStore]],
    tmp_path: Path,
    stop_after: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, recipe = RunStore(tmp_path / "run"), replace(SEVERAL, learning_rate=(1e30, RATES[1]))
    stop_after("save_checkpoint", 1)
    with pytest.raises(KeyboardInterrupt):
        train_before_test(replace(spec, recipe=recipe), store)
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        record = train_before_test(replace(spec, recipe=recipe), store, resume=True)
    alone = plain[RATES[1]][0]
    assert curve(epochs_by_rate(record)[RATES[1]]) == curve(alone.epochs) and record.trained == alone.trained
    assert chosen_rate(record) == RATES[1] and 1e30 not in best_by_rate(record)
    whole = train_before_test(replace(spec, recipe=recipe), RunStore(tmp_path / "whole"))
    assert "learning rate 1e+30: the " in caplog.text and whole == record


def test_if_every_rate_diverges_the_run_fails(spec: RunSpec, tmp_path: Path) -> None:
    recipe = replace(SEVERAL, learning_rate=(1e30, 2e30))
    with pytest.raises(TrainingDiverged, match=r"now 2e\+30"):
        train_before_test(replace(spec, recipe=recipe), RunStore(tmp_path / "run"))


def test_all_weights_begin_anew_with_each_rate(spec: RunSpec, tmp_path: Path) -> None:
    recipe = Recipe(lora=None, epochs=1, learning_rate=(1e-3, 1e-4))
    record = train_before_test(replace(spec, recipe=recipe), RunStore(tmp_path / "run"))
    for rate, epochs in epochs_by_rate(record).items():
        alone = train_before_test(replace(spec, recipe=recipe.at_rate(rate)), RunStore(tmp_path / f"{rate}"))
        assert curve(epochs) == curve(alone.epochs)


def test_runs_in_common_passes_have_the_records_of_separate_runs(
    spec: RunSpec, finished: tuple[RunRecord, RunStore], tmp_path: Path
) -> None:
    """With --joint the trainings of several runs share passes, whatever learning rates they are at."""
    runs, caches = JointRuns[int, RunRecord](), RunCaches()
    for seed in (0, 1):
        runs.add(seed, run_by_epochs(replace(spec, seed=seed), RunStore(tmp_path / f"{seed}"), caches=caches))
    found = dict(runs.advance() for _ in range(2))
    for record, same in (
        (found[0], finished[0]),
        (found[1], train_before_test(replace(spec, seed=1), RunStore(tmp_path / "1b"))),
    ):
        assert [epoch.loss for epoch in record.epochs] == pytest.approx([epoch.loss for epoch in same.epochs], abs=1e-4)
        assert [epoch.learning_rate for epoch in record.epochs] == [epoch.learning_rate for epoch in same.epochs]
        assert chosen_rate(record) == chosen_rate(same) and record.trained is not None and same.trained is not None
        assert record.trained.metrics == pytest.approx(same.trained.metrics)


def test_of_equal_scores_the_first_rate_and_its_earliest_epoch_is_chosen() -> None:
    def epochs(*values: float) -> list[EpochRecord]:
        made = {"loss": 1.0, "tokens": 1, "seconds": 1.0, "validation_seconds": 1.0}
        rates = (2e-5, 2e-5, 1e-5, 1e-5)
        return [
            EpochRecord(epoch=place, validation={"m": value}, learning_rate=rates[place - 1], **made)  # type: ignore[arg-type]
            for place, value in enumerate(values, 1)
        ]

    assert choose_epoch(epochs(0.5, 0.7, 0.7, 0.7), "m", higher_is_better=True).epoch == 2
    assert choose_epoch(epochs(0.5, 0.7, 0.8, 0.8), "m", higher_is_better=True).epoch == 3
    assert choose_epoch(epochs(0.5, 0.5, 0.4, 0.6), "m", higher_is_better=False).epoch == 3


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((), r"learning_rate = \[\] must have at least two rates to choose from\. Add rates, or give one number"),
        ((1e-4,), r"learning_rate = \[0\.0001\] must have at least two rates"),
        ((1e-4, 0.0001), r"learning_rate = \[0\.0001, 0\.0001\] has a rate twice\. Remove one"),
        ((1e-4, -1.0), r"learning_rate\[1\] must be a positive number, got -1\.0"),
        ((0, 1e-4), r"learning_rate\[0\] must be a positive number, got 0"),
        ((1e-4, float("nan")), r"learning_rate\[1\] must be a positive number, got nan"),
        ((1e-4, float("inf")), r"learning_rate\[1\] must be a positive number, got inf"),
        ((1e-4, "2e-5"), r"learning_rate\[1\] must be a number, got '2e-5'"),
        ((1e-4, True), r"learning_rate\[1\] must be a number, got True"),
        ([1e-4, 2e-5], r"learning_rate must be a number or a tuple, got \[0\.0001, 2e-05\]"),
    ],
)
def test_wrong_rates_are_refused(rates: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(learning_rate=rates)


def test_what_contradicts_a_choice_by_validation_is_refused(spec: RunSpec) -> None:
    for changes, message in (
        ({"test_curve": True}, r"eval_every_epoch contradicts learning_rate = \[0\.0001, 0\.03, 0\.01\], of which validation"),
        ({"choose_best": False}, r"train_param\.no-load_best_model_at_end contradicts learning_rate"),
    ):
        with pytest.raises(UsageError, match=message):
            replace(spec, **changes)  # type: ignore[arg-type]
        replace(spec, recipe=SEVERAL.at_rate(1e-4), **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"learning_rate = .* has several values, and one training has one"):
        SEVERAL.peak_rate  # noqa: B018


def test_fine_tune_takes_one_rate(spec: RunSpec) -> None:
    from lm_harmony import load_model

    with pytest.raises(UsageError, match="has several values, and one training has one"):
        next(fine_tune(load_model(spec.model.name, device="cpu"), [("number 1 is", " odd")], SEVERAL))


def test_a_record_whose_chosen_epoch_has_no_rate_is_refused(finished: tuple[RunRecord, RunStore]) -> None:
    values = finished[0].to_dict()
    assert RunRecord.from_dict(values) == finished[0]
    with pytest.raises(StoreError, match="chosen_epoch = 9 is no epoch of a learning rate of the recipe"):
        RunRecord.from_dict({**values, "chosen_epoch": 9})
