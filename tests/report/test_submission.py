"""A run as one file: what a receiver checks before it is on a board, and what each damage and each lie is answered with."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from boards import write_failure, write_run
from micro import write_micro
from tiny import write_tiny_model

from lm_harmony.analysis.load_records import record_rows
from lm_harmony.cli.main import main
from lm_harmony.runs.file_hashes import sha256_of
from lm_harmony.runs.file_values import with_check
from lm_harmony.runs.sources import Source
from lm_harmony.runs.store import RunStore

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a benchmark, a finished run of 40 test rows, and its submission."""
    folder = tmp_path_factory.mktemp("sender")
    write_tiny_model(folder / "model")
    write_micro(folder, sizes={"train": 24, "validation": 8, "test": 40})
    command = (
        f"run --base_model {folder}/model --task_name {folder}/micro.yaml --data_dir {folder} --results_dir {folder}/results"
    )
    command += " --direct_fewshot 0 2"
    assert main([*command.split(), "--train_param.num_train_epochs", "1", "--train_param.learning_rate", "1e-2"]) == 0
    assert main(["submit", str(folder / "results"), "--output", str(folder / "out"), "--name", "lab/tiny"]) == 0
    return folder


@pytest.fixture
def submission(world: Path) -> Path:
    (found,) = (world / "out").iterdir()
    return found


def contents(submission: Path) -> Files:
    with zipfile.ZipFile(submission) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(submission: Path, path: Path, change: Callable[[Files], object], *, consistent: bool = True) -> Path:
    """Write a submission with changed files; ``consistent``: its manifest has their SHA-256."""
    files = contents(submission)
    change(files)
    if consistent:
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {name: hashlib.sha256(text).hexdigest() for name, text in files.items() if name != "manifest.json"}
        files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def changed_record(files: Files, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(files["record.json"])
    del record["check"]
    change(record)
    files["record.json"] = json.dumps(with_check(record)).encode()


def changed_sample(files: Files, name: str, change: Mapping[str, Any]) -> None:
    first, rest = files[name].split(b"\n", 1)
    files[name] = json.dumps({**json.loads(first), **change}).encode() + b"\n" + rest


def named(submission: Path, path: Path, name: str) -> Path:
    """Write a submission with another name of its model."""
    return rewritten(
        submission, path, lambda files: changed_record(files, lambda record: record["spec"]["model"].update(name=name))
    )


def add(*words: object) -> int:
    return main(["board", "add", *map(str, words)])


def rescoring(world: Path) -> tuple[object, ...]:
    return "--rescore", "--model", world / "model", "--data_dir", world, "--include_path", world


def test_an_added_run_gives_the_scores_of_the_sender_and_no_path_of_the_sender(
    world: Path, submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(submission, "--results", tmp_path / "board", "--sha256", sha256_of(submission)) == 0
    said = capsys.readouterr().out
    assert "lab/tiny on micro, seed 0" in said and "follow from the outcomes: direct acc,none" in said
    mine, theirs = record_rows(world / "results"), record_rows(tmp_path / "board")
    assert [(row.value, row.stderr, row.metric) for row in mine.rows] == [
        (row.value, row.stderr, row.metric) for row in theirs.rows
    ]
    assert {row.model for row in theirs.rows} == {"lab/tiny"}
    text = "".join(path.read_text() for path in (tmp_path / "board").rglob("*") if path.is_file())
    assert str(world) in (next((world / "results").rglob("record.json"))).read_text()  # negative control
    assert str(world) not in text and str(world).encode() not in b"".join(contents(submission).values())
    assert main(["leaderboard", str(tmp_path / "board")]) == 0
    assert "lab/tiny" in capsys.readouterr().out


def test_equal_runs_give_equal_files(world: Path, submission: Path, tmp_path: Path) -> None:
    assert main(["submit", str(world / "results"), "--output", str(tmp_path), "--name", "lab/tiny"]) == 0
    assert (tmp_path / submission.name).read_bytes() == submission.read_bytes()
    assert main(["submit", str(world / "results"), "--output", str(tmp_path / "other"), "--name", "lab/other"]) == 0
    assert sha256_of(next((tmp_path / "other").iterdir())) != sha256_of(submission)


def test_a_tenth_of_the_rows_is_scored_again(
    world: Path, submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = next((world / "results").rglob("adapter"))
    assert add(submission, "--results", tmp_path / "board", *rescoring(world), "--adapter", adapter) == 0
    said = capsys.readouterr().out
    for name in ("direct", "direct_2shot", "trained"):
        assert f"{name}: 4 test rows scored again" in said
    # Fewer rows are in other passes, which round differently.
    differences = re.findall(r" 0 with another outcome, log-likelihoods differ by at most (\S+)", said)
    assert len(differences) == 3 and max(map(float, differences)) < 1e-4


@pytest.mark.parametrize("preparation", ["direct", "trained"])
def test_invented_outcomes_are_refused_when_rows_are_scored_again(
    preparation: str, world: Path, submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sender reports that every answer was right, in samples and record alike."""
    name = "samples_direct.jsonl" if preparation == "direct" else "samples_test.jsonl"

    def lie(files: Files) -> None:
        samples = [json.loads(line) for line in files[name].splitlines()]
        turned = [{**sample, "acc": 1.0 - sample["acc"], "acc_norm": 1.0 - sample["acc_norm"]} for sample in samples]
        files[name] = "".join(json.dumps(sample) + "\n" for sample in turned).encode()
        means = {key: sum(one[key] for one in turned) / len(turned) for key in ("acc", "acc_norm")}
        metrics = {f"{key},none": value for key, value in means.items()}
        changed_record(files, lambda record: record[preparation].update(metrics=metrics))

    lying = rewritten(submission, tmp_path / "lie.zip", lie)
    adapter = next((world / "results").rglob("adapter"))
    assert add(lying, "--results", tmp_path / "board", *rescoring(world), "--adapter", adapter) == 1
    assert f"{preparation}: 4 test rows scored again" in (said := capsys.readouterr().err) and "The run is refused." in said
    assert not (tmp_path / "board").exists()
    assert add(lying, "--results", tmp_path / "unchecked") == 0  # negative control: without scoring nobody can tell


def test_rows_are_scored_again_only_with_the_files_of_the_run(
    world: Path, submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "model", seed=1)
    other = ("--rescore", "--model", tmp_path / "model", "--data_dir", world, "--include_path", world)
    assert add(submission, "--results", tmp_path / "board", *other) == 1
    here, there = (sha256_of(folder / "model" / "model.safetensors")[:12] for folder in (tmp_path, world))
    said = capsys.readouterr().err
    assert f"model: this is not the model of the submitted run: model.safetensors has the SHA-256 {here}..." in said
    assert f"{there}... there" in said and "--overwrite" not in said
    for flags, message in {
        ("--model", world / "model", "--data_dir", world): "include_path: the task of the run is the file micro.yaml. Give",
        ("--data_dir", world, "--include_path", world): "model is missing: tiny was a folder of the sender.",
    }.items():
        given = submission if "--model" in flags else named(submission, tmp_path / "tiny.zip", "tiny")
        assert add(given, "--results", tmp_path / "board", "--rescore", *flags) == 1
        said = capsys.readouterr().err
        assert message in said and "task_name" not in said
    shutil.copytree(world / "micro", tmp_path / "rows" / "micro")
    (tmp_path / "rows" / "micro" / "test.jsonl").write_text((world / "micro" / "test.jsonl").read_text() + "\n")
    rows = ("--rescore", "--model", world / "model", "--data_dir", tmp_path / "rows", "--include_path", world)
    assert add(submission, "--results", tmp_path / "board", *rows) == 1
    assert "data_dir: these are not the rows of the submitted run: micro/test.jsonl" in capsys.readouterr().err
    shutil.copytree(next((world / "results").rglob("adapter")), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert add(submission, "--results", tmp_path / "board", *rescoring(world), "--adapter", tmp_path / "adapter") == 1
    assert "adapter: the files in" in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


def longer(files: Files) -> None:
    files["samples_test.jsonl"] += files["samples_test.jsonl"].splitlines()[0] + b"\n"


DAMAGES: dict[str, tuple[Callable[[Files], object], bool, str]] = {
    "another byte": (
        lambda files: files.update({"samples_test.jsonl": files["samples_test.jsonl"] + b" "}),
        False,
        "differs from",
    ),
    "a missing file": (lambda files: files.pop("samples_direct.jsonl"), False, "samples_direct.jsonl is not in both"),
    "samples without their score": (
        lambda files: files.pop("samples_direct.jsonl"),
        True,
        "its score in record.json are not both",
    ),
    "another file": (lambda files: files.update({"../evil.py": b""}), True, "it holds '../evil.py'"),
    "no manifest": (lambda files: files.pop("manifest.json"), False, "manifest.json cannot be read"),
    "another format of the file": (
        lambda files: files.update({"manifest.json": files["manifest.json"].replace(b'"format": 1', b'"format": 2')}),
        False,
        "format = 2 is not the format 1 that LM-Harmony",
    ),
    "another format": (lambda files: changed_record(files, lambda record: record.update(format=99)), True, "format = 99"),
    "a record that was edited": (
        lambda files: files.update({"record.json": files["record.json"].replace(b'"chosen_epoch": 1', b'"chosen_epoch": 2')}),
        True,
        "check differs",
    ),
    "an outcome that was edited": (
        lambda files: changed_sample(files, "samples_test.jsonl", {"acc": 7}),
        True,
        "the trained acc,none of record.json is",
    ),
    "one document more": (longer, True, "on 41"),
    "no samples": (lambda files: files.update({"samples_test.jsonl": b"[1]\n"}), True, "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_submission_is_refused_in_one_line(
    damage: str, submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, consistent, message = DAMAGES[damage]
    path = rewritten(submission, tmp_path / "damaged.zip", change, consistent=consistent)
    assert add(path, "--results", tmp_path / "board") == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "/tmp/tmp" not in said
    assert not (tmp_path / "board").exists()


def test_files_that_are_no_submissions_are_refused(submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "cut.zip").write_bytes(submission.read_bytes()[:-40])
    cases: dict[str, tuple[tuple[object, ...], str]] = {
        "absent": ((tmp_path / "absent.zip",), "absent.zip is not a file"),
        "a text": ((tmp_path / "text.zip",), "text.zip is no valid submission: File is not a zip file"),
        "a part": ((tmp_path / "cut.zip",), "cut.zip is no valid submission"),
        "another hash": ((submission, "--sha256", "0" * 64), f"has {sha256_of(submission)}, not 000"),
        "one hash for two": ((submission, submission, "--sha256", "0" * 64), "sha256 is that of one file, and 2 are given"),
        "nothing": ((), "submissions is missing"),
        "a file as results": ((submission, "--results", tmp_path / "text.zip"), "is a file"),
    }
    for words, message in cases.values():
        assert add(*words, *(() if "--results" in words else ("--results", tmp_path / "board"))) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


def test_only_finished_and_current_runs_are_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_failure(tmp_path / "failed", model="m")
    write_run(tmp_path / "bare", model="m", trained=0.5)
    task = tmp_path / "own.yaml"
    task.write_text("task: own\n")
    source = Source(kind="task", name="own.yaml", path=str(task), size=task.stat().st_size, sha256=sha256_of(task))
    write_run(tmp_path / "stale", model="m", trained=0.5, sources=(source,))
    task.write_text("task: own\nchanged: 1\n")
    for results, message in {
        "failed": "the run is not finished",
        "bare": "samples_test.jsonl does not exist, so that a score cannot be checked. Restore the file, or remove",
        "stale": "the run is not current: own.yaml changed since",
        "absent": "absent does not exist. Give the folder of a run",
    }.items():
        assert main(["submit", str(tmp_path / results), "--output", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_with_other_weights_than_those_that_were_tested_is_not_submitted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = shutil.copytree(world / "results", tmp_path / "results")
    (weights,) = results.rglob("adapter/adapter_model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    words = ["submit", str(results), "--output", str(tmp_path / "out"), "--name", "lab/tiny"]
    assert main(words) == 1
    assert "adapter_model.safetensors differs from its checksum in epochs.jsonl" in capsys.readouterr().err
    weights.write_bytes(content)
    assert main(words) == 0  # negative control


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Results of two models in folders that have one name, of another one, and of two revisions of one on the hub."""
    for number, model in enumerate(("/x/one", "/y/one", "/x/two", "lab/hub", "lab/hub")):
        store = write_run(tmp_path / "all", model=model, outcomes=[1, 0], name=f"sst2/{number}")
        record = json.loads((store.folder / "record.json").read_text())
        del record["check"]
        record["spec"]["model"]["revision"] = f"step{number}" if model == "lab/hub" else "main"
        (store.folder / "record.json").write_text(json.dumps(with_check(record)))
    return tmp_path / "all" / "sst2"


def submit(*words: object) -> int:
    return main(["submit", *map(str, words)])


def test_no_submission_takes_the_name_or_the_file_of_another(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for words, message in {
        (several, "--name", "lab/x"): "name = lab/x is for one model, and the runs are of 4.",
        (several,): "/x/one and /y/one would both be one. Submit each run with a --name.",
    }.items():
        assert submit(*words, "-o", out) == 1
        assert message in (said := capsys.readouterr().err) and said.count("\n") == 1 and not out.exists()
    shutil.rmtree(several / "1")
    shutil.copytree(several / "0", several / "5")
    assert submit(several, "-o", out) == 1
    assert "would both be" in capsys.readouterr().err and not out.exists()
    shutil.rmtree(several / "5")
    assert submit(several, "-o", out) == 0  # negative control: three models, one of them with two revisions
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 4
    assert submit(several, "-o", out) == 0  # the same runs
    again = json.loads((several / "0" / "record.json").read_text())
    del again["check"]
    (several / "0" / "record.json").write_text(json.dumps(with_check({**again, "costs": {"seconds": 1}})))
    assert submit(several, "-o", out) == 1
    assert "holds another run. Choose another --output, or remove the file." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("name", ["../evil", "..", ".", "a/b/c", "/x/y", "a b", "ä", "x" * 97, "a\n"])
def test_a_name_that_is_none_of_the_hub_is_refused_where_it_is_given_and_read(
    name: str, submission: Path, several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(several / "0", "--name", name, "-o", tmp_path / "out") == 1
    assert "is no name for a board" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert add(named(submission, tmp_path / "named.zip", name), "--results", tmp_path / "board") == 1
    said = capsys.readouterr().err
    assert "is no name of a model, MODEL or ORG/MODEL" in said and said.count("\n") == 1 and not (tmp_path / "board").exists()


def test_weights_that_are_not_recorded_take_no_name_of_the_board(
    submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def forget(files: Files) -> None:
        def change(record: dict[str, Any]) -> None:
            record["spec"].update(seed=1)
            record["sources"] = [source for source in record["sources"] if source["kind"] != "model"]

        changed_record(files, change)

    def other_case(files: Files) -> None:
        def change(record: dict[str, Any]) -> None:
            record["spec"]["model"].update(name="Lab/TINY")
            for source in record["sources"]:
                source["sha256"] = "0" * 64 if source["kind"] == "model" else source["sha256"]

        changed_record(files, change)

    def seed(files: Files) -> None:
        changed_record(files, lambda record: record["spec"].update(seed=1))

    board = tmp_path / "board"
    assert add(submission, "--results", board) == 0
    assert add(rewritten(submission, tmp_path / "bare.zip", forget), "--results", board) == 1
    assert "it is not known to be the model of this name" in capsys.readouterr().err
    assert add(rewritten(submission, tmp_path / "case.zip", other_case), "--results", board) == 1
    assert "the results have another model of this name" in capsys.readouterr().err
    assert add(rewritten(submission, tmp_path / "seed.zip", seed), "--results", board) == 0  # negative control


def test_a_run_that_does_not_fit_the_board_is_not_added(
    world: Path, submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board"
    assert add(submission, "--results", board) == 0
    before = {path: path.read_bytes() for path in board.rglob("*") if path.is_file()}
    assert add(submission, "--results", board) == 1
    assert "holds this run already. Nothing was added." in capsys.readouterr().err
    weights = Source(kind="model", name="model.safetensors", path="/x/model.safetensors", size=1, sha256="0" * 64)
    store = write_run(tmp_path / "other", model="lab/tiny", task="sst2", outcomes=[1, 0], trained=0.5, sources=(weights,))
    record = store.record()
    assert record.trained is not None
    (store.folder / "record.json").write_text(
        json.dumps(with_check({**record.to_dict(), "trained": {"metrics": {record.metric: 0.5}, "stderrs": {}, "documents": 2}}))
    )
    assert main(["submit", str(tmp_path / "other"), "--output", str(tmp_path / "out")]) == 0
    other = next((tmp_path / "out").iterdir())
    assert add(other, "--results", board) == 1
    assert "the results have another model of this name" in capsys.readouterr().err

    again = rewritten(  # the same weights and benchmark with another recipe, which no board shows as one score
        submission,
        tmp_path / "again.zip",
        lambda files: changed_record(files, lambda one: one["spec"]["recipe"].update(learning_rate=0.5)),
    )
    assert add(again, "--results", board) == 1
    assert {path: path.read_bytes() for path in board.rglob("*") if path.is_file()} == before
    assert add(other, "--results", tmp_path / "empty") == 0  # negative control
    assert RunStore(next((tmp_path / "empty").rglob("record.json")).parent).record().benchmark == "sst2"


def test_another_revision_of_a_model_is_added_beside_the_first(submission: Path, tmp_path: Path) -> None:
    def later(files: Files) -> None:
        def change(record: dict[str, Any]) -> None:
            record["spec"]["model"]["revision"] = "step2"
            for source in record["sources"]:
                source["sha256"] = "0" * 64 if source["kind"] == "model" else source["sha256"]

        changed_record(files, change)

    second = rewritten(submission, tmp_path / "second.zip", later)
    assert add(submission, second, "--results", tmp_path / "board") == 0
    assert {row.model for row in record_rows(tmp_path / "board").rows} == {"lab/tiny@main", "lab/tiny@step2"}
