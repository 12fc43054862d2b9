"""Runs that a study trains jointly have the records of separate runs, whatever happens to the other runs of their worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_lease import write_holder
from torch.optim.optimizer import register_optimizer_step_post_hook
from world import let_task_kill_workers, write_world

from lm_harmony.errors import UsageError
from lm_harmony.recipe import Lora
from lm_harmony.runs.folder_lease import FolderLeases
from lm_harmony.runs.record import RunRecord
from lm_harmony.studies.messages import Outcome, RunRequest, RunResult
from lm_harmony.studies.pool import RunQueue
from lm_harmony.studies.run_location import RunLocation
from lm_harmony.studies.study import Study
from lm_harmony.studies.worker import RunExecutor

pytestmark = pytest.mark.usefixtures("forked_workers")
LONG = {"recipe": {"epochs": 4}}
DIVERGING = {"task": "fives.yaml", "recipe": {"learning_rate": 1e30}}
BENCHMARKS = [{"task": "parity.yaml", "max_num_train": 9}, {"task": "threes.yaml", **LONG}, "fives.yaml", "tens.yaml"]


def study_in(folder: Path, **changes: object) -> Study:
    return Study.read(write_world(folder, **{"models": ["models/llama"], "seeds": [0], "benchmarks": BENCHMARKS, **changes}))


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, RunRecord]:
    """Return the records of runs that are trained one after another, by benchmark."""
    study = study_in(tmp_path_factory.mktemp("separate"))
    study.run()
    return {record.benchmark: record for record in study.records()}


def check_equal(records: Sequence[RunRecord], separate: Mapping[str, RunRecord]) -> None:
    """Compare losses, validation scores, the chosen epoch and both test scores."""
    for record in records:
        same = separate[record.benchmark]
        assert [epoch.loss for epoch in record.epochs] == pytest.approx([epoch.loss for epoch in same.epochs], abs=1e-4)
        assert [epoch.tokens for epoch in record.epochs] == [epoch.tokens for epoch in same.epochs]
        assert [epoch.validation for epoch in record.epochs] == [pytest.approx(epoch.validation) for epoch in same.epochs]
        assert record.chosen_epoch == same.chosen_epoch
        assert record.direct == same.direct
        assert record.trained is not None and same.trained is not None
        assert record.trained.metrics == pytest.approx(same.trained.metrics)


def test_runs_of_one_worker_have_the_records_of_separate_runs_and_a_held_run_is_not_waited_for(
    separate: Mapping[str, RunRecord], tmp_path: Path
) -> None:
    """Three runs at once of different rows and epochs enter and leave. One diverges, and another process holds one at first."""
    study = study_in(tmp_path, benchmarks=[*BENCHMARKS[:2], DIVERGING, "tens.yaml"], joint=3)
    held = next(run for run in study.runs if "threes" in run.name)
    ended: list[int] = []
    with FolderLeases(study.spec.results_dir).hold(held.name, lost=lambda: None):
        advancing = study.advance()
        for _ in advancing:
            status = study.status()
            ended.append(len(status.finished) + len(status.failed))
            if ended[-1] == 3:
                break
        assert status.running == (held,)
    for _ in advancing:
        pass
    status = study.status()
    ((failed, failure),) = status.failed.items()
    assert failed.spec.benchmark.task.endswith("fives.yaml")
    assert failure.kind == "TrainingDiverged" and "training rows" in failure.cause
    assert len(status.finished) == 3
    check_equal(study.records(), separate)
    (worker,) = (study.spec.results_dir / "workers").iterdir()
    assert "3 runs train jointly" in worker.read_text()


def test_a_worker_that_is_killed_fails_only_the_run_that_kills_it(separate: Mapping[str, RunRecord], tmp_path: Path) -> None:
    """The third run kills its worker when it enters, in the middle of the second one. That one continues after its epochs."""
    study = study_in(tmp_path)
    let_task_kill_workers(tmp_path / "fives.yaml")
    threes = next(run for run in study.runs if "threes" in run.name)
    kept = [len(threes.store.epochs()) for _ in study.advance(joint=2) if not threes.store.is_finished()]
    assert 1 <= kept[-1] < 4
    status = study.status()
    ((failed, failure),) = status.failed.items()
    assert failed.spec.benchmark.task.endswith("fives.yaml")
    assert failure.kind == "worker died" and failure.attempts == 3
    assert len(status.finished) == 3
    check_equal(study.records(), separate)


def advance(executor: RunExecutor, runs: Sequence[RunLocation]) -> tuple[RunLocation, RunResult]:
    result = RunResult.model_validate_json(executor.answer(RunRequest.of(runs, [None] * len(runs)).model_dump_json()))
    return runs[result.place], result


def test_a_run_that_loses_its_lease_ends_alone_and_does_not_write_any_more(
    separate: Mapping[str, RunRecord], tmp_path: Path
) -> None:
    study = study_in(tmp_path, benchmarks=["fives.yaml", "tens.yaml"])
    taken, other = study.runs
    lease = taken.store.folder.with_name(f".{taken.store.folder.name}.lease")
    steps = list[int]()

    def take_over(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 4:
            write_holder(lease)

    executor, handle = RunExecutor(), register_optimizer_step_post_hook(take_over)
    first, result = advance(executor, [taken, other])
    handle.remove()
    assert (first, result.outcome, result.kind) == (taken, Outcome.HELD, "LeaseLost")
    assert not taken.store.is_finished() and taken.store.epochs() == () and lease.exists()
    second, result = advance(executor, [other])
    assert (second, result.outcome) == (other, Outcome.FINISHED)
    check_equal([other.store.record()], separate)


def test_a_worker_that_is_stopped_releases_the_leases_of_all_its_runs_and_another_one_continues(
    separate: Mapping[str, RunRecord], tmp_path: Path
) -> None:
    study = study_in(tmp_path, benchmarks=["fives.yaml", "tens.yaml"])
    epoch_ends = list[int]()

    def stop(*_: Any) -> None:
        epoch_ends.append(1)
        if len(epoch_ends) == 9:  # the second epoch of both runs
            raise KeyboardInterrupt

    executor, handle = RunExecutor(), register_optimizer_step_post_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        advance(executor, study.runs)
    handle.remove()
    assert len(list(study.spec.results_dir.rglob(".*.lease"))) == 2
    executor.close()
    assert not list(study.spec.results_dir.rglob(".*.lease"))
    assert [len(run.store.epochs()) for run in study.runs] == [1, 1]
    again, left = RunExecutor(), list(study.runs)
    while left:
        run, result = advance(again, left)
        assert result.outcome == Outcome.FINISHED
        left.remove(run)
    check_equal(study.records(), separate)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunLocation]:
    """Return six runs of a llama, one of which trains all weights, and four of a gpt2."""
    whole = {"task": "tens.yaml", "recipe": {"lora": None}}
    study = study_in(
        tmp_path, models=["models/llama", "models/gpt2"], benchmarks=["parity.yaml", "threes.yaml", whole], seeds=[0, 1]
    )
    return list(study.runs)


def test_the_queue_groups_waiting_runs_of_one_model_and_adapter(runs: list[RunLocation]) -> None:
    llama, gpt2 = runs[:6], runs[6:]
    queue = RunQueue(runs, joint=3)
    first = queue.take(0, [], lambda: None)
    assert first == llama[:3]
    assert queue.take(0, llama[:2], lambda: None) == [llama[3]]
    assert queue.take(0, [llama[3]], lambda: None) == []  # only runs that train all weights are left
    assert queue.take(1, [], lambda: None) == gpt2[:3]
    for run in llama[4:]:
        assert queue.take(0, [], lambda: None) == [run]
        assert queue.take(0, [run], lambda: None) == []


def test_the_queue_divides_few_runs_among_workers_and_takes_a_suspect_run_alone(runs: list[RunLocation]) -> None:
    queue = RunQueue(runs[:4], joint=3)
    queue.workers = 2
    assert queue.take(0, [], lambda: None) == runs[:2]
    queue.put_back(runs[0], alone=True)
    assert queue.take(1, [], lambda: None) == [runs[0]]
    assert queue.take(1, [runs[0]], lambda: None) == []
    assert queue.take(0, [runs[1]], lambda: None) == runs[2:4]
    other = replace(runs[4].spec.recipe, lora=Lora(r=2))
    one, two = (
        RunLocation(spec=replace(runs[0].spec, recipe=recipe), results_dir=Path("x")) for recipe in (runs[0].spec.recipe, other)
    )
    assert RunQueue([one, two], joint=2).take(0, [], lambda: None) == [one]  # adapters of other shapes


def test_joint_is_read_from_the_study_and_from_the_command(tmp_path: Path) -> None:
    path = write_world(tmp_path, models=["models/llama"], joint=4)
    assert Study.read(path).spec.joint == 4
    values = yaml.safe_load(path.read_text())
    del values["joint"]
    path.write_text(yaml.safe_dump(values))
    assert Study.read(path).spec.joint == 1
    for wrong in (0, True, "2"):
        path.write_text(yaml.safe_dump({**values, "joint": wrong}))
        with pytest.raises(UsageError, match="joint must be"):
            Study.read(path)
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match="joint must be at least 1, got 0"):
        Study.read(path).run(joint=0)
