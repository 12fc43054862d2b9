"""Score rows of run records: seeds are averaged, mixed settings are refused, failures become gaps."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import write_failure, write_run

from lm_harmony import ScoreMatrix
from lm_harmony.analysis.leaderboard import own_board
from lm_harmony.analysis.load_records import MAX_NAMED, find_runs
from lm_harmony.analysis.near_duplicate_scores import mean_over_seeds
from lm_harmony.analysis.provenance import provenance_notes
from lm_harmony.errors import UsageError
from lm_harmony.models import catalogue as model_catalogue
from lm_harmony.recipe import PUBLISHED
from lm_harmony.runs.file_hashes import _cache_in, sha256_of
from lm_harmony.runs.file_values import without_check
from lm_harmony.runs.record import Failure
from lm_harmony.runs.sources import Source
from lm_harmony.runs.spec import ModelSpec
from lm_harmony.runs.store import RunStore


def test_seeds_are_averaged_and_their_variance_is_part_of_the_error(tmp_path: Path) -> None:
    for seed, score in ((0, 0.5), (1, 0.6)):
        write_run(tmp_path, model="a", trained=score, direct=0.3, seed=seed, stderr=0.05)
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.seeds == (0, 1)
    assert matrix.trained.values.loc["a", "arc_easy"] == pytest.approx(0.55)
    assert matrix.trained.stderrs.loc["a", "arc_easy"] == pytest.approx(math.sqrt(0.05**2 + 0.005 / 2))
    assert matrix.direct.stderrs.loc["a", "arc_easy"] == pytest.approx(0.05)  # one direct score, shared by both seeds
    assert matrix.trained.counts.loc["a", "arc_easy"] == 100
    assert ScoreMatrix.from_records(tmp_path, seed=1).trained.values.loc["a", "arc_easy"] == 0.6


def test_recorded_parameters_and_names_tell_size_and_kind_of_uncatalogued_models(tmp_path: Path) -> None:
    write_run(tmp_path, model="a/small-Instruct", parameters=134_515_008)
    write_run(tmp_path, model="a/small")
    write_run(tmp_path, model="EleutherAI/pythia-70m-deduped", parameters=1)
    models = {model.name: (model.params_b, model.kind) for model in ScoreMatrix.from_records(tmp_path).models}
    published = model_catalogue.MODELS["EleutherAI/pythia-70m-deduped"]
    assert models == {
        "a/small-Instruct": (0.134515008, "instruct"),
        "a/small": (None, None),
        published.model: (published.params_b or 1e-9, "base"),
    }


def test_models_with_as_many_right_answers_are_tied_whatever_their_seeds(tmp_path: Path) -> None:
    answers = {"a": (56, 58, 60), "b": (58, 58, 58), "c": (59, 57, 58), "d": (58,)}  # of 100 questions
    for model, counts in answers.items():
        for seed, right in enumerate(counts):
            write_run(tmp_path, model=model, trained=right / 100, seed=seed)
    assert set(ScoreMatrix.from_records(tmp_path).trained.values["arc_easy"]) == {0.58}


def test_an_unknown_standard_error_stays_unknown() -> None:
    assert mean_over_seeds([(0.5, 0.1), (0.7, None)]) == (pytest.approx(0.6), None)
    assert mean_over_seeds([]) == (None, None)


def test_several_recipes_for_one_score_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    write_run(tmp_path, model="a", seed=1, recipe=replace(PUBLISHED, epochs=PUBLISHED.epochs + 1))
    with pytest.raises(UsageError, match=r"recipe.epochs 5 and 6 .* Name a folder that has only one of them"):
        ScoreMatrix.from_records(tmp_path)


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", name="one")
    write_run(tmp_path, model="a", name="two")
    with pytest.raises(UsageError, match="are the same run"):
        ScoreMatrix.from_records(tmp_path)


def test_models_trained_with_different_recipes_are_ranked_with_a_note(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    assert ScoreMatrix.from_records(tmp_path).notes == ()
    write_run(tmp_path, model="b", recipe=replace(PUBLISHED, epochs=1))
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.model_names == ("a", "b") and matrix.notes == ("arc_easy: its models were trained by 2 recipes",)
    assert matrix.notes[0] in own_board(matrix).notes


def test_failed_runs_are_gaps_with_their_cause(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", direct=0.2)
    write_failure(tmp_path, model="b")
    gaps = ScoreMatrix.from_records(tmp_path).gaps()
    assert [(gap.model, gap.preparation, gap.cause) for gap in gaps] == [
        ("b", "direct", "ModelError: no weights"),
        ("b", "trained", "ModelError: no weights"),
    ]


def test_a_direct_score_that_was_not_requested_is_a_gap(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    [gap] = ScoreMatrix.from_records(tmp_path).gaps()
    assert gap.preparation == "direct" and gap.cause.startswith("not requested in ")


def test_recorded_metrics_and_directions_are_used(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", task="mine", metric="error,none", higher=False, trained=0.2)
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.oriented("trained").loc["a", "mine"] == -0.2
    write_run(tmp_path, model="b", task="mine", metric="acc,none")
    with pytest.raises(UsageError, match="several metrics"):
        ScoreMatrix.from_records(tmp_path)


def test_corpora_are_in_bits_per_byte_where_lower_is_better(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", task="corpus:wiki.txt", metric="bits_per_byte,none", higher=False, trained=0.9)
    [fact] = ScoreMatrix.from_records(tmp_path).benchmarks
    assert fact.is_perplexity and not fact.higher_is_better


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="results:"):
        ScoreMatrix.from_records(tmp_path / name)


def test_a_model_is_averaged_only_over_its_own_seeds(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", seed=0, trained=0.4)
    write_run(tmp_path, model="b", seed=1, trained=0.6)
    values = ScoreMatrix.from_records(tmp_path).trained.values["arc_easy"]
    assert np.allclose(values, [0.4, 0.6])


def rewritten(**changes: Any) -> Callable[[str], bytes]:
    """Return a function that changes values in the text of a record. Double underscores separate nested keys."""

    def rewrite(text: str) -> bytes:
        record = without_check(json.loads(text))
        for key, value in changes.items():
            *path, last = key.split("__")
            part = record
            for name in path:
                part = part[name]
            part[last] = value
        return json.dumps(record).encode()

    return rewrite


DAMAGES: dict[str, tuple[Callable[[str], bytes], str]] = {
    "cut off": (lambda text: text[: len(text) // 2].encode(), "it is not JSON"),
    "of a newer version": (rewritten(format=2), "format = 2 is not the record format 1"),
    "without a field": (lambda text: text.replace('"chosen_epoch"', '"chosen"').encode(), "check differs from the checksum"),
    "another score": (lambda text: text.replace("0.9", "0.8").encode(), "check differs from the checksum of the other fields"),
    "without a metric": (rewritten(trained__metrics=None), "field trained.metrics = None"),
    "a score in words": (rewritten(trained__metrics={"acc_norm,none": "high"}), "field trained.metrics.acc_norm,none = 'high'"),
    "a score that is NaN": (rewritten(trained__metrics={"acc_norm,none": math.nan}), "it must be a finite number"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_cannot_be_read_hides_no_other(tmp_path: Path, damage: str) -> None:
    """It becomes a gap with its file and cause. The other models keep their scores and are ranked."""
    write_run(tmp_path, model="a", trained=0.4)
    write_run(tmp_path, model="b", trained=0.6)
    store = write_run(tmp_path, model="c", trained=0.9)
    before = ScoreMatrix.from_records(tmp_path)
    assert before.notes == () and len(before.gaps("trained")) == 0  # negative control
    change, cause = DAMAGES[damage]
    file = store.folder / "record.json"
    file.write_bytes(change(file.read_text(encoding="utf-8")))
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.trained.values["arc_easy"].dropna().to_dict() == {"a": 0.4, "b": 0.6}
    (gap,) = matrix.gaps("trained")
    assert gap.model == "c" and gap.cause.startswith(f"{file} cannot be read: ") and cause in gap.cause
    assert f"Restore the file, or remove {store.folder}" in gap.cause and "\n" not in gap.cause
    assert matrix.notes == (f"left out: {gap.cause}",)
    board = own_board(matrix)
    assert matrix.notes[0] in board.notes and {row.model for row in board.rows} == {"a", "b", "c"}


def test_a_foreign_record_in_a_parent_folder_hides_no_run(tmp_path: Path) -> None:
    """A record.json in the results folder, and one beside a model's runs, are named. The runs in subfolders are read."""
    write_run(tmp_path, model="a", name="arc_easy/a")
    for folder in (tmp_path, tmp_path / "arc_easy"):
        (folder / "record.json").write_text('{"track": 1}', encoding="utf-8")
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.trained.values.loc["a", "arc_easy"] == 0.5
    assert [note.split(" cannot")[0] for note in matrix.notes] == [
        f"left out: {tmp_path / 'record.json'}",
        f"left out: {tmp_path / 'arc_easy' / 'record.json'}",
    ]


def test_a_damaged_seed_is_named_and_the_others_are_averaged(tmp_path: Path) -> None:
    stores = [write_run(tmp_path, model="a", seed=seed, trained=score) for seed, score in enumerate((0.4, 0.6, 0.9))]
    (stores[2].folder / "record.json").write_text("{", encoding="utf-8")
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.seeds == (0, 1) and matrix.trained.values.loc["a", "arc_easy"] == pytest.approx(0.5)
    assert matrix.gaps("trained") == () and len(matrix.notes) == 1 and str(stores[2].folder) in matrix.notes[0]


def test_a_damaged_failure_and_a_damaged_config_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    write_failure(tmp_path, model="b")
    write_failure(tmp_path, model="c")
    (tmp_path / "arc_easy/b/seed0/failure.json").write_text("{", encoding="utf-8")
    (tmp_path / "arc_easy/c/seed0/config.yaml").write_text("a: [", encoding="utf-8")
    matrix = ScoreMatrix.from_records(tmp_path)
    (gap,) = matrix.gaps("trained")
    assert gap.model == "b" and "failure.json cannot be read" in gap.cause and matrix.notes == (f"left out: {gap.cause}",)


def test_if_no_record_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    for model in ("a", "b"):
        (write_run(tmp_path, model=model).folder / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"no finished run lies below .* 2 cannot be read: .*/a/seed0/record\.json cannot be read"
    ):
        ScoreMatrix.from_records(tmp_path)


def test_many_damaged_records_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    for number in range(MAX_NAMED + 3):
        (write_run(tmp_path, model=f"b{number}").folder / "record.json").write_text("{", encoding="utf-8")
    notes = ScoreMatrix.from_records(tmp_path).notes
    assert len(notes) == MAX_NAMED + 1 and notes[-1] == "left out: 3 more records that cannot be read"


def test_a_failed_run_is_a_gap_of_the_benchmark_that_others_finished(tmp_path: Path) -> None:
    """A task file and a corpus are requested by path and recorded by name."""
    for task, name in (("rows/mine.yaml", "own_task"), ("corpus:texts/wiki.txt", "corpus-wiki")):
        store = write_run(tmp_path, model="a", task=task, metric="bits_per_byte,none", higher=False, name=f"{name}/a")
        record = store.record()
        store.write_record(replace(record, benchmark=name))
        failed = RunStore.at(tmp_path, f"{name}/b")
        failed.begin(replace(record.spec, model=ModelSpec(name="b")), data="f", overwrite=False)
        failed.write_failure(Failure(kind="ModelError", cause="no weights", attempts=1))
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.benchmark_names == ("corpus-wiki", "own_task")
    assert [(gap.model, gap.benchmark) for gap in matrix.gaps("trained")] == [("b", "corpus-wiki"), ("b", "own_task")]


def test_records_accepted_by_earlier_checks_stay_readable(tmp_path: Path) -> None:
    """Earlier versions accepted lora_alpha: 16.0 and logging_steps: 0, and such runs are correct."""
    file = write_run(tmp_path, model="a").folder / "record.json"
    change = rewritten(spec__recipe__lora__lora_alpha=16.0, spec__execution__logging_steps=0)
    file.write_bytes(change(file.read_text(encoding="utf-8")))
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.notes == () and matrix.trained.values.loc["a", "arc_easy"] == 0.5


def test_a_board_says_which_models_have_derived_lora_targets(tmp_path: Path) -> None:
    for model, targets in (("phi", ("qkv_proj",)), ("olmo", ("q_proj", "v_proj"))):
        store = write_run(tmp_path, model=model)
        record = store.record()
        store.write_record(replace(record, environment={**record.environment, "lora_targets": targets}))
        if model == "phi":
            assert ScoreMatrix.from_records(tmp_path).notes == ()  # one kind of targets is no mixture
    write_run(tmp_path, model="llama")
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.notes == (
        "adapters change different modules, because PEFT has no default for some models: q_proj v_proj in olmo; qkv_proj in phi; "
        "PEFT's default in 1 model",
    )
    assert matrix.notes[0] in own_board(matrix).notes


def test_scores_of_several_versions_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", versions={"lm_eval": "0.4.13", "lm-harmony": "0.1.0", "torch": "2.11"})
    write_run(tmp_path, model="b", versions={"lm_eval": "0.4.13", "lm-harmony": "0.1.0", "torch": "2.12"})
    assert ScoreMatrix.from_records(tmp_path).notes == ()
    write_run(tmp_path, model="c", versions={"lm_eval": "0.4.12", "lm-harmony": "0.1.0"})
    matrix = ScoreMatrix.from_records(tmp_path)
    assert matrix.notes == ("arc_easy: its scores mix versions of lm_eval: 0.4.12 in 1 run, 0.4.13 in 2 runs",)
    assert matrix.notes[0] in own_board(matrix).notes


def test_runs_that_are_not_or_may_not_be_current_are_noted(tmp_path: Path) -> None:
    """Files are checked at the recorded path. Missing files, as on another machine, are skipped."""
    task = tmp_path / "own.yaml"
    task.write_text("task: own\n")
    source = Source(kind="task", name="own.yaml", path=str(task), size=10, sha256=sha256_of(task))
    gone = Source(kind="rows", name="train.jsonl", path=str(tmp_path / "gone"), size=1, sha256="0")
    write_run(tmp_path / "results", model="a", sources=(source, gone))
    assert ScoreMatrix.from_records(tmp_path / "results").notes == ()
    task.write_text("task: owl\n")
    write_run(tmp_path / "results", model="b", sources=None)
    assert ScoreMatrix.from_records(tmp_path / "results").notes == (
        "arc_easy: 1 run is not current: own.yaml changed since",
        "1 run was made before sources were recorded, so it is not known whether it is current",
    )


def test_files_that_were_added_or_removed_are_noted(tmp_path: Path) -> None:
    """If other files of the model are there, a missing file is not one of another machine."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "chat_template.jinja"):
        (model / name).write_text("{}")
    digest = sha256_of(model / "config.json")
    sources = [
        Source(kind="model", name=name, path=str(model / name), size=2, sha256=digest)
        for name in ("config.json", "chat_template.jinja")
    ]
    write_run(tmp_path / "results", model="a", sources=tuple(sources))
    assert ScoreMatrix.from_records(tmp_path / "results").notes == ()
    (model / "chat_template.jinja").rename(model / "generation_config.json")
    stale = "chat_template.jinja no longer there; generation_config.json added since"
    assert ScoreMatrix.from_records(tmp_path / "results").notes == (f"arc_easy: 1 run is not current: {stale}",)
    model.rename(tmp_path / "on another machine")
    assert ScoreMatrix.from_records(tmp_path / "results").notes == ()


def test_runs_that_were_made_from_different_files_are_noted(tmp_path: Path) -> None:
    """The files are not here, as on a laptop: the hashes in the records differ."""

    def sources(weights: str, rows: str, revision: str | None = None) -> tuple[Source, ...]:
        model = Source(kind="model", name="model.safetensors", path="/elsewhere/model.safetensors", size=1, sha256=weights)
        if revision is not None:
            model = Source(kind="model", name="org/a", revision="main", commit=revision)
        return model, Source(kind="rows", name="own/test.jsonl", path="/elsewhere/test.jsonl", size=1, sha256=rows)

    same = tmp_path / "same"
    write_run(same, model="a", sources=sources("1", "1"))
    write_run(same, model="a", seed=1, sources=sources("1", "1"))
    write_run(same, model="b", sources=sources("2", "1"))  # files of two models may have one name
    assert ScoreMatrix.from_records(same).notes == ()
    said = "were not made from the same files, so their scores are not comparable"
    write_run(same, model="a", seed=2, sources=sources("3", "1"))
    assert ScoreMatrix.from_records(same).notes == (f"arc_easy: the runs of a {said}: model.safetensors",)
    rows = tmp_path / "rows"
    write_run(rows, model="a", sources=sources("1", "1"))
    write_run(rows, model="b", sources=sources("2", "2"))
    assert ScoreMatrix.from_records(rows).notes == (f"arc_easy: its runs {said}: own/test.jsonl",)
    commits = tmp_path / "commits"
    for seed in (0, 1):
        write_run(commits, model="org/a", seed=seed, sources=sources("1", "1", revision=str(seed)))
    assert ScoreMatrix.from_records(commits).notes == (f"arc_easy: the runs of org/a {said}: org/a",)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/mem")
def test_files_without_permission_are_skipped(tmp_path: Path) -> None:
    """Files that cannot be read, and files below a folder without permission, are skipped. Other files are checked."""
    private = tmp_path / "private"
    private.mkdir()
    rows, task = private / "train.jsonl", tmp_path / "own.yaml"
    rows.write_text("{}\n")
    task.write_text("task: own\n")
    unreadable = tmp_path / "utils.py"
    unreadable.symlink_to("/proc/self/mem")  # even root cannot read its first byte
    sources = [Source(kind="task", name=path.name, path=str(path), size=0, sha256="0") for path in (unreadable, task)]
    sources.append(Source(kind="rows", name=rows.name, path=str(rows), size=1, sha256="0"))
    write_run(tmp_path / "results", model="a", sources=tuple(sources))
    (record,) = (store.record() for store in find_runs(tmp_path / "results"))
    notes = list(provenance_notes([record]))
    assert notes == ["arc_easy: 1 run is not current: own.yaml, train.jsonl changed since"]  # negative control
    private.chmod(0)
    was_root = os.geteuid() == 0
    tmp_path.chmod(0o755)
    try:
        if was_root:
            os.seteuid(65534)  # root may open every folder
        notes = list(provenance_notes([record]))
    finally:
        if was_root:
            os.seteuid(0)
        private.chmod(0o755)
    assert "train.jsonl" not in "".join(notes)


def test_a_file_that_many_runs_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_HARMONY_CACHE_DIR", str(tmp_path / "cache"))
    task = tmp_path / "own.yaml"
    task.write_text("task: own\n")
    source = Source(kind="task", name="own.yaml", path=str(task), size=10, sha256=sha256_of(task))
    for model in "abcde":
        write_run(tmp_path / "results", model=model, sources=(source,))
    cache = _cache_in(tmp_path / "cache")
    before = cache.reads
    assert ScoreMatrix.from_records(tmp_path / "results").notes == ()
    assert cache.reads == before + 1
    task.write_text("task: owl\n")
    assert ScoreMatrix.from_records(tmp_path / "results").notes == ("arc_easy: 5 runs are not current: own.yaml changed since",)
    assert cache.reads == before + 2
