"""Only files that a run wrote are removed, no symbolic link is followed, and runs are never inside each other."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import write_run
from shared import without_permissions

from lm_harmony.benchmarks.types import Score
from lm_harmony.errors import StoreError, UsageError
from lm_harmony.runs.spec import BenchmarkSpec, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

SPEC = RunSpec(model=ModelSpec(name="a"), benchmark=BenchmarkSpec(task="arc_easy"))


def write_all(results: Path, name: str = "run") -> RunStore:
    """Write a run with a file of every kind."""
    store = RunStore.at(results, name)
    store.begin(SPEC, data="f", overwrite=False)
    write_run(results, model="a", name=name)
    store.write_direct_score(Score(metrics={"acc,none": 0.5}, stderrs={"acc,none": None}, documents=3, samples=({"doc_id": 0},)))
    store.write_results({}, time="1")
    for file in ("adapter/adapter_model.safetensors", "checkpoints/epoch-2/weights/adapter_config.json", "direct/results_1.json"):
        (store.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / file).touch()
    for file in ("log.txt", "failure.json", "checkpoints/epoch-2/optimizer.safetensors", ".record.json.7-0.part", "epochs.jsonl"):
        (store.folder / file).touch()
    (store.folder / "trackers" / "run").mkdir(parents=True)
    (store.folder / "trackers" / "run" / "events.out").touch()
    return store


def all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def overwrite(store: RunStore) -> None:
    store.refuse_conflict(SPEC, resume=False, overwrite=True)
    store.begin(SPEC, data="f", overwrite=True)


def test_overwrite_removes_every_file_of_a_run(tmp_path: Path) -> None:
    store = write_all(tmp_path)
    assert len(all_files(store.folder)) >= 14
    overwrite(store)
    assert all_files(tmp_path) == {"run/config.yaml"}


@pytest.mark.parametrize("place", ["thesis.tex", "notes/thesis.tex", "adapter/thesis.tex", "checkpoints/epoch-2/thesis.tex"])
def test_a_folder_that_holds_another_file_is_left_as_it_is(tmp_path: Path, place: str) -> None:
    store = write_all(tmp_path)
    (store.folder / place).parent.mkdir(exist_ok=True)
    (store.folder / place).write_text("years of work")
    before = all_files(tmp_path)
    with pytest.raises(UsageError, match=rf"holds files that no run writes: {place}"):
        overwrite(store)
    with pytest.raises(UsageError, match="holds files that no run writes"):
        store.begin(SPEC, data="f", overwrite=True)
    assert all_files(tmp_path) == before


def test_a_folder_of_files_with_a_runs_names_but_without_its_config_is_left_as_it_is(tmp_path: Path) -> None:
    """lm_eval writes results_<time>.json and samples files too."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results_1.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has no config\.yaml"):
        overwrite(RunStore(tmp_path / "run"))
    assert all_files(tmp_path) == {"run/results_1.json"}


def test_removing_checkpoints_keeps_other_files(tmp_path: Path) -> None:
    store = write_all(tmp_path)
    (store.folder / "checkpoints" / "thesis.tex").write_text("years of work")
    store.remove_other_checkpoints(())
    assert all_files(store.folder / "checkpoints") == {"thesis.tex"}


def link_run(store: RunStore, outside: Path) -> None:
    store.folder.rename(outside / "run")
    store.folder.symlink_to(outside / "run")


def link_adapter(store: RunStore, outside: Path) -> None:
    (store.folder / "adapter").rename(outside / "adapter")
    (store.folder / "adapter").symlink_to(outside / "adapter")


def link_checkpoint(store: RunStore, outside: Path) -> None:
    (store.folder / "checkpoints").rename(outside / "checkpoints")
    (store.folder / "checkpoints").symlink_to(outside / "checkpoints")


def link_record(store: RunStore, outside: Path) -> None:
    (store.folder / "record.json").rename(outside / "record.json")
    (store.folder / "record.json").symlink_to(outside / "record.json")


@pytest.mark.parametrize("link", [link_run, link_adapter, link_checkpoint, link_record])
def test_a_symbolic_link_is_never_followed_for_removal(tmp_path: Path, link: Callable[[RunStore, Path], None]) -> None:
    store, outside = write_all(tmp_path / "results"), tmp_path / "outside"
    outside.mkdir()
    link(store, outside)
    before = all_files(tmp_path)
    assert any(name.startswith("outside/") for name in before)
    with pytest.raises(UsageError, match=r"symbolic link|no run writes"):
        overwrite(store)
    assert all_files(tmp_path) == before
    if link is link_checkpoint:
        store.remove_other_checkpoints(())
        assert all_files(tmp_path) == before


def test_a_link_between_the_results_and_the_run_is_not_followed_for_removal(tmp_path: Path) -> None:
    outside, results = tmp_path / "outside", tmp_path / "results"
    write_all(outside / "task", "model/run")
    results.mkdir()
    (results / "task").symlink_to(outside / "task")
    before = all_files(tmp_path)
    with pytest.raises(UsageError, match=f"{results / 'task'} is a symbolic link to {outside / 'task'}"):
        overwrite(RunStore.at(results, "task/model/run"))
    assert all_files(tmp_path) == before
    (tmp_path / "link").symlink_to(outside)  # negative control: the results folder itself may be a link
    overwrite(RunStore.at(tmp_path / "link", "task/model/run"))
    assert all_files(outside) == {"task/model/run/config.yaml"}


def test_a_link_of_a_tracker_is_removed_without_what_it_points_to(tmp_path: Path) -> None:
    """W&B writes a link to its latest run."""
    store, thesis = write_all(tmp_path), tmp_path / "thesis.tex"
    thesis.touch()
    (store.folder / "trackers" / "latest").symlink_to(thesis)
    (store.folder / "trackers" / "latest-run").symlink_to(store.folder / "trackers" / "run")
    overwrite(store)
    assert all_files(tmp_path) == {"run/config.yaml", "thesis.tex"}


def test_a_run_inside_or_above_another_run_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, "a/b")
    for name, where in (("a", "above"), ("a/b/c", "inside"), ("a/b/c/d", "inside")):
        store = RunStore.at(tmp_path, name)
        with pytest.raises(UsageError, match=f"would be {where} the folder of another run"):
            store.refuse_conflict(SPEC, resume=False, overwrite=False)
        with pytest.raises(UsageError, match=f"would be {where}|holds files that no run writes"):
            store.refuse_conflict(SPEC, resume=False, overwrite=True)
    RunStore.at(tmp_path, "a/c").refuse_conflict(SPEC, resume=False, overwrite=False)  # negative control


@pytest.mark.parametrize("mode", [0o555, 0o111, 0])
def test_a_removal_that_fails_is_an_error_and_nothing_is_continued(tmp_path: Path, mode: int) -> None:
    """Before, the error was ignored, and the epochs of the old run were continued with the new recipe."""
    store = write_all(tmp_path)
    before = all_files(store.folder)
    for above in (tmp_path, *tmp_path.parents):  # pytest's folders are closed to the other user that root becomes
        if above.stat().st_uid == os.geteuid() and not above.stat().st_mode & stat.S_ISVTX:
            above.chmod(0o755)
    with without_permissions(store.folder, mode), pytest.raises((StoreError, UsageError), match="run"):
        store.begin(SPEC, data="f", overwrite=True)
    assert all_files(store.folder) == before
