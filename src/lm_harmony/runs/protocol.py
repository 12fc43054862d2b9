"""The method, train-before-test: fine-tune on the training split, choose the epoch on validation, and only then test.

With several learning rates, each is trained from the same weights, and validation chooses among the epochs of all.
Source: Zhang, Dominguez-Olmedo, Hardt, "Train-before-Test Harmonizes Language Model Rankings" (arXiv 2507.05195).
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial

from lm_harmony.benchmarks.catalogue import trained_name
from lm_harmony.benchmarks.types import Score, requests_of
from lm_harmony.engine.adapters import Trainee, trainable
from lm_harmony.engine.train_state import Epoch
from lm_harmony.engine.training import ByEpochs, Training, alone
from lm_harmony.errors import ScoreNotFinite, TrainingDiverged, counted
from lm_harmony.progress import phase, show_phases
from lm_harmony.runs.caches import RunCaches
from lm_harmony.runs.checkpoints import INITIAL, save_checkpoint, save_weights, trainings
from lm_harmony.runs.choice import choose_epoch, shown_epoch
from lm_harmony.runs.conflicts import refuse_not_current, refuse_other_answer
from lm_harmony.runs.environment import Meter, training_costs
from lm_harmony.runs.lm_eval_results import write_direct, write_trained
from lm_harmony.runs.memory_errors import memory_errors
from lm_harmony.runs.record import EpochRecord, RunRecord
from lm_harmony.runs.recovery import recover_direct_score, recover_epochs, recover_request
from lm_harmony.runs.run_setup import RunSetup
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.shots import direct_name
from lm_harmony.runs.spec import RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.runs.tested_weights import refuse_other_weights
from lm_harmony.runs.tracking import Tracker, open_trackers

log = logging.getLogger(__name__)


def run_by_epochs(
    spec: RunSpec, store: RunStore, *, resume: bool = False, overwrite: bool = False, caches: RunCaches | None = None
) -> ByEpochs[RunRecord]:
    """Execute a run: yield its training before each epoch and receive the epoch; return the record, the last file written.

    Args:
        spec: the model, the benchmark, the recipe and the seed.
        store: the run's folder.
        resume: continue an unfinished run after its last good epoch. The record is that of an uninterrupted run.
        overwrite: replace a run that is already in the folder.
        caches: the loaded model and the direct scores that runs of one process share.

    Raises:
        HarmonyError: the input is invalid, or the training diverged. What was finished before stays readable.
    """
    recover_request(store, resume=resume)
    store.refuse_conflict(spec, resume=resume, overwrite=overwrite)
    with (meter := Meter()).phase("preparation"):
        run = set_up_run(spec, caches)
    store.begin(spec, data=run.splits.fingerprint(), overwrite=overwrite, asked=run.fingerprints.run, sources=run.sources)
    show_phases(run.phases())
    with open_trackers(spec.execution, folder=store.folder / "trackers", run=run.task.name) as tracker:
        direct = dict(zip(run.direct, map(partial(_direct_score, run, store, meter, caches), run.direct), strict=True))
        with memory_errors(spec, "training"), trainable(run.model, spec.recipe, seed=spec.seed) as trainee:
            epochs = yield from _train_and_validate(run, trainee, store, tracker)
            chosen = choose_epoch(epochs, run.metric, higher_is_better=run.higher_is_better) if spec.choose_best else epochs[-1]
            tested = {number: score_test_rows(run, meter) for number in _load_tested_epochs(run, trainee, store, epochs, chosen)}
            trained = tested[chosen.epoch] if spec.test else None
            save_weights(store, trainee, store.folder / "adapter")
        tracker.tested({direct_name(shots): score for shots, score in direct.items()} | {"test": trained}, step=chosen.epoch)
    record = RunRecord(
        spec=spec,
        benchmark=trained_name(run.task.name, spec.benchmark.train_on),
        model_revision=run.model.revision,
        metric=run.metric,
        higher_is_better=run.higher_is_better,
        direct=direct.pop(0, None),
        epochs=epochs,
        chosen_epoch=chosen.epoch,
        trained=trained,
        test_curve={number: score.metrics for number, score in tested.items() if spec.test_curve},
        environment=run.environment(),
        costs={**meter.summary(), **training_costs(epochs), "scoring_tokens": run.scorer.counter.tokens},
        data=run.data_record(),
        sources=run.sources,
        request_fingerprint=run.fingerprints.run,
        parameters=int(run.model.module.num_parameters()),
        direct_fewshot=direct,  # type: ignore[arg-type]
    )
    return _finish(store, run, record)


train_before_test = alone(run_by_epochs, "train_before_test")
"""Execute one run whose epochs are trained alone, and return its record; arguments and errors are those of ``run_by_epochs``."""


def _finish(store: RunStore, run: RunSetup, record: RunRecord) -> RunRecord:
    """Write the record, after every other file, and remove the checkpoints."""
    record = run.with_scores_without_near_duplicates(record)
    write_trained(store, run, record)
    write_direct(store, run, record)
    store.write_record(record)
    store.remove_other_checkpoints(())
    return record


def _train_and_validate(
    run: RunSetup, trainee: Trainee, store: RunStore, tracker: Tracker
) -> Generator[Training, Epoch, tuple[EpochRecord, ...]]:
    """Train, score each epoch on validation, and save what resuming and the choice of the epoch need; return all epochs.

    Of several learning rates, one whose training diverges ends there, and its finished epochs count.
    """
    spec, records = run.spec, recover_epochs(store, partial(_needed_epochs, run))
    for number, training in trainings(run, trainee, store, records):
        try:
            while not training.finished:
                name = f"epoch {len(records) + 1}/{spec.recipe.total_epochs}"
                with phase(name, counted(len(run.splits.train), "training row")):
                    epoch = replace((yield training), number=len(records) + 1)  # counted over all learning rates
                saved = save_checkpoint(store, trainee, epoch, resumable=spec.execution.save_checkpoints)
                validating = Meter()
                with (
                    phase(f"validation of {name}", counted(len(run.splits.validation), "document")),
                    validating.phase("validation"),
                ):
                    validation = run.score(run.splits.validation, final=False)
                record = EpochRecord(
                    epoch=epoch.number,
                    loss=epoch.loss,
                    validation=validation.metrics,
                    tokens=epoch.tokens,
                    seconds=epoch.seconds,
                    validation_seconds=validating.costs["validation_seconds"],
                    learning_rate=spec.recipe.rates[number] if len(spec.recipe.rates) > 1 else None,
                )
                store.add_epoch(record, saved)
                records = (*records, record)
                shown = shown_epoch(record), epoch.loss, run.metric, validation.metrics[run.metric]
                log.info("%s: loss %.4f, validation %s %.4f", *shown)
                tracker.epoch(epoch, validation.metrics, steps_before=number * training.state.total)
                kept = {one.epoch for one in _needed_epochs(run, records)}
                store.remove_other_checkpoints({INITIAL, epoch.number, *kept})
        except (TrainingDiverged, ScoreNotFinite) as error:
            if len(spec.recipe.rates) == 1 or (number == len(spec.recipe.rates) - 1 and not records):
                raise
            log.warning("learning rate %g: %s It is not trained further.", spec.recipe.rates[number], error)
    return records


def _needed_epochs(run: RunSetup, epochs: Sequence[EpochRecord]) -> Sequence[EpochRecord]:
    """Return the epochs whose weights are needed after a training of ``epochs``."""
    if run.spec.test_curve:
        return epochs
    return [choose_epoch(epochs, run.metric, higher_is_better=run.higher_is_better) if run.spec.choose_best else epochs[-1]]


def _load_tested_epochs(
    run: RunSetup, trainee: Trainee, store: RunStore, epochs: Sequence[EpochRecord], chosen: EpochRecord
) -> Iterator[int]:
    """Load and yield each epoch to test: the chosen one, or all with ``spec.test_curve``. At the end, load the chosen one."""
    log.info("%s of %d chosen by validation %s", shown_epoch(chosen), len(epochs), run.metric)
    for epoch in epochs:
        if run.spec.test_curve or (run.spec.test and epoch == chosen):
            trainee.load(store.checkpoint(epoch.epoch) / "weights")
            yield epoch.epoch
    trainee.load(store.checkpoint(chosen.epoch) / "weights")


def score_test_rows(run: RunSetup, meter: Meter, name: str = "test", shots: int = 0, chosen: Sequence[int] = ()) -> Score:
    """Score the current weights on the test split, or on ``chosen`` rows. No other function of the package scores test rows."""
    every = run.direct[shots].examples if shots else run.splits.test
    rows = [every[number] for number in chosen] or every
    with phase(name, counted(len(rows), "document")), meter.phase("test"), memory_errors(run.spec, "scoring"):
        return run.grade(rows, iter(run.scorer.reply(requests_of(rows))), final=True)


def _direct_score(run: RunSetup, store: RunStore, meter: Meter, caches: RunCaches | None, shots: int) -> Score:
    """Return a test score of the untouched model: from this run's folder, from the shared cache, or computed now."""
    name, requests = direct_name(shots), run.fingerprints.few_shot.get(shots)
    known = recover_direct_score(store, name, requests)
    if known is None:
        shared = caches.direct_scores if caches else None
        compute = partial(score_test_rows, run, meter, f"{name} test", shots)
        known = shared.get_or_compute(run.direct_score_id(shots), compute) if shared else compute()
        store.write_direct_score(known, name, requests)
    log.info("%s score: %s %s", name, run.metric, known.shown(run.metric))
    return run.few_shot_score(shots, known) if shots else known


def add_direct_score(store: RunStore, spec: RunSpec, caches: RunCaches | None = None) -> RunRecord:
    """Add the direct scores that the record of a finished run lacks, and return the record.

    Args:
        store: the run's folder.
        spec: the run's specification with ``direct=True``; it may name files at other paths.
        caches: the loaded model and the direct scores that runs of one process share.

    Raises:
        StoreError: the run is not finished.
        NotCurrent: a file, a library or a request differs from the recorded one.
    """
    record = store.record()
    run = _set_up_again(store, record, spec, caches)
    direct = {shots: _direct_score(run, store, Meter(), caches, shots) for shots in run.direct}
    asked = replace(record.spec, direct=True, direct_fewshot=tuple(dict.fromkeys((*record.spec.shots, *spec.shots))))
    again = replace(record, spec=asked, direct=direct.pop(0, record.direct))
    again = replace(again, direct_fewshot={**record.direct_fewshot, **direct})  # type: ignore[dict-item]
    again = run.with_scores_without_near_duplicates(again)
    write_direct(store, run, again)
    store.write_record(again)
    return again


def score_again(store: RunStore, *, allow_task_code: bool = True) -> RunRecord:
    """Score the saved weights of a finished run on its test split again; record.json is not changed.

    Args:
        store: the run's folder.
        allow_task_code: whether Python code of the task may run that lm_eval does not ship.

    Raises:
        UsageError: the task runs code that is not allowed.
        StoreError: the run is not finished, or its weights are missing or others than those that were tested.
        NotCurrent: a file, a library or a request differs from the recorded one.
    """
    record = store.record()
    refuse_other_weights(store, record)
    execution = replace(record.spec.execution, allow_task_code=allow_task_code)
    run = _set_up_again(store, record, replace(record.spec, execution=execution), None)
    with trainable(run.model, record.spec.recipe, seed=record.spec.seed) as trainee:
        trainee.load(store.folder / "adapter")
        again = run.with_scores_without_near_duplicates(replace(record, trained=score_test_rows(run, Meter())))
    write_trained(store, run, again)
    return again


def _set_up_again(store: RunStore, record: RunRecord, spec: RunSpec, caches: RunCaches | None) -> RunSetup:
    """Set up a finished run for another scoring; ``spec`` may name its files at other paths.

    Raises:
        NotCurrent: a file, a library or a request differs from the recorded one.
    """
    refuse_not_current(store.folder, record, spec)
    run = set_up_run(spec, caches)
    refuse_other_answer(store.folder, record, asked=run.fingerprints.run, sources=run.sources)
    return run
