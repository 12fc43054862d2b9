"""Direct scores with examples before each question: lm_eval's numbers, and files and records of their own."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval_alone import lm_eval_task
from micro import TASK, write_micro
from tiny import write_tiny_model

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.benchmarks.types import Caps, Score
from lm_harmony.cli.main import main
from lm_harmony.errors import BenchmarkError, UsageError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.report.export import export
from lm_harmony.runs import protocol
from lm_harmony.runs.caches import DirectScoreCache, RunCaches
from lm_harmony.runs.environment import Meter
from lm_harmony.runs.fingerprint import run_id
from lm_harmony.runs.protocol import add_direct_score, train_before_test
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore
from lm_harmony.studies.config import study_spec
from lm_harmony.studies.study import Study

SHOTS = (0, 2, 20)
"""The last number of examples is too long for the tiny model."""


def asked(folder: Path, *, chat: bool = False, shots: Sequence[Any] = SHOTS, more: str = "", **fields: Any) -> RunSpec:
    write_micro(folder).write_text(TASK + more, encoding="utf-8")
    model = folder / "model"
    if not model.is_dir():
        write_tiny_model(model, bos=True, chat=True)
    return RunSpec(
        model=ModelSpec(name=str(model), apply_chat_template=chat),
        benchmark=BenchmarkSpec(task=str(folder / "micro.yaml"), data_dir=folder),
        recipe=Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        direct=True,
        direct_fewshot=tuple(shots),
        execution=Execution(device="cpu", use_git=False),
        **fields,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chat"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    folder = tmp_path_factory.mktemp("run")
    store = RunStore(folder / "run")
    train_before_test(asked(folder, chat=request.param), store)
    return store


def lm_evals(folder: Path, shots: int, *, chat: bool) -> dict[str, Any]:
    """Return the results file of ``lm_eval --num_fewshot`` on the same model and rows, with the run's seed."""
    rows = {
        role: [json.loads(line) for line in (folder / "micro" / f"{role}.jsonl").read_text().splitlines()]
        for role in ("train", "validation", "test")
    }
    tracker = EvaluationTracker(output_path=str(folder / f"lm_eval-{shots}"))
    results: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "model"), "dtype": "float32"},
        device="cpu",
        batch_size=1,
        tasks=[lm_eval_task(folder / "micro.yaml", rows, num_fewshot=None)],
        task_manager=TaskManager(include_defaults=False),
        num_fewshot=shots,
        fewshot_random_seed=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        evaluation_tracker=tracker,
        bootstrap_iters=1,
    )
    tracker.save_results_aggregated(results, results.pop("samples"))
    (written,) = (folder / f"lm_eval-{shots}").rglob("results_*.json")
    return json.loads(written.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shots", [0, 2, pytest.param(20, id="too long")])
def test_texts_and_numbers_are_lm_evals(run: RunStore, shots: int) -> None:
    """The hash of all prompts and every metric are those of lm_eval with HFLM, also where contexts are truncated."""
    chat = run.record().spec.model.apply_chat_template
    theirs = lm_evals(run.folder.parent, shots, chat=chat)
    (file,) = (run.folder / (f"direct_{shots}shot" if shots else "direct")).glob("results_*.json")
    ours = json.loads(file.read_text(encoding="utf-8"))
    assert ours["task_hashes"] == theirs["task_hashes"]
    scores = {key: value for key, value in theirs["results"]["micro"].items() if "," in key}
    assert {key: ours["results"]["micro"][key] for key in scores} == pytest.approx(scores)
    assert ours["n-shot"] == theirs["n-shot"] == {"micro": shots}
    assert ours["configs"]["micro"]["num_fewshot"] == shots
    assert ours["fewshot_as_multiturn"] == (theirs["fewshot_as_multiturn"] if shots else False)
    samples = [json.loads(line) for line in (run.folder / f"samples_{file.parent.name}.jsonl").read_text().splitlines()]
    assert {sample["arguments"][0][0].count("number ") for sample in samples} == {shots + 1}


def test_each_number_of_examples_is_a_score_of_its_own(run: RunStore) -> None:
    record = run.record()
    assert record.direct == run.direct_score() and record.direct_fewshot.keys() == {2, 20}
    few = record.direct_fewshot[2]
    assert (few.split, few.replaced, few.truncated, few.documents) == ("train", 0, 0, 12)
    assert record.direct_fewshot[20].truncated == 12
    assert len({few.requests, record.direct_fewshot[20].requests}) == 2
    known = run.direct_score("direct_2shot", few.requests)
    assert known is not None and known.metrics == few.metrics and len(known.samples) == 12
    assert run.direct_score("direct_2shot", "other") is None and run.direct_score("direct_2shot") is None


def test_a_plain_run_is_as_before_and_few_shot_scores_change_nothing_else(run: RunStore, tmp_path: Path) -> None:
    spec = run.record().spec
    plain = dataclasses.replace(spec, direct_fewshot=(0,))
    assert "direct_fewshot" not in plain.to_dict() and spec.to_dict()["direct_fewshot"] == [0, 2, 20]
    assert run_id(plain) == run_id(spec)
    record = train_before_test(plain, RunStore(tmp_path / "run"))
    assert "direct_fewshot" not in record.to_dict()
    written = json.loads((tmp_path / "run" / "direct.json").read_text())
    assert written.keys() == {"metrics", "stderrs", "documents", "samples_sha256", "run", "check"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in run.folder.iterdir() if "shot" not in path.name and not path.name.startswith("results_")
    } | {path.name for path in (tmp_path / "run").glob("results_*.json")}
    few = run.record()
    assert dataclasses.replace(few, spec=plain, direct_fewshot={}) == record
    assert RunRecord.from_dict(few.to_dict()) == few


def test_a_finished_run_gets_the_scores_that_it_lacks(run: RunStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = run.record()
    spec = dataclasses.replace(record.spec, direct_fewshot=(0,))
    store = RunStore(tmp_path / "run")
    train_before_test(spec, store)
    first = (store.folder / "direct.json").read_bytes()
    again = add_direct_score(store, dataclasses.replace(spec, direct_fewshot=(2,)))
    assert again.direct_fewshot == {2: record.direct_fewshot[2]} and again.direct == record.direct
    assert again.spec.direct_fewshot == (0, 2) and store.record() == again
    assert (store.folder / "direct.json").read_bytes() == first and list((store.folder / "direct_2shot").glob("results_*"))


def test_a_stopped_run_continues_with_the_scores_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, store = asked(tmp_path, shots=(0, 2)), RunStore(tmp_path / "run")
    whole = train_before_test(spec, RunStore(tmp_path / "whole"))
    original = protocol.score_test_rows

    def stopping(*arguments: Any) -> Score:
        if arguments[2:] == ():
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(protocol, "score_test_rows", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_before_test(spec, store)
    scored: list[int] = []

    def noting(*arguments: Any) -> Score:
        scored.append(arguments[3] if len(arguments) > 3 else -1)
        return original(*arguments)

    monkeypatch.setattr(protocol, "score_test_rows", noting)
    (store.folder / "direct_2shot.json").write_bytes(b"damaged")
    assert train_before_test(spec, store, resume=True) == whole
    assert scored == [2, -1] and (store.folder / "direct_2shot.json.damaged").is_file()
    train_before_test(spec, store, overwrite=True)
    assert not list(store.folder.glob("*.damaged"))


def test_scores_are_shared_where_the_examples_are_the_same(tmp_path: Path) -> None:
    """Another seed draws other examples and is another score; examples in their order are the same for every seed."""
    for name, more, shared in (("drawn", "", 1), ("first", "fewshot_config: {sampler: first_n}\n", 2)):
        folder = tmp_path / name
        folder.mkdir()
        caches = RunCaches(direct_scores=DirectScoreCache(folder / "direct"))
        ids = [[set_up_run(asked(folder, more=more, seed=seed), caches).direct_score_id(k) for k in (0, 2)] for seed in (0, 1)]
        assert len({*ids[0]} & {*ids[1]}) == shared and len({*ids[0]}) == 2


def test_a_common_prefix_is_computed_once(tmp_path: Path) -> None:
    """With the same examples for all rows, the model computes them once; with examples drawn for each row, it does not."""
    computed = {}
    for name, more in (("drawn", ""), ("first", "fewshot_config: {sampler: first_n}\n")):
        (tmp_path / name).mkdir()
        setup = set_up_run(asked(tmp_path / name, more=more, shots=(6,)))
        found: list[int] = []

        def note(_: object, arguments: tuple[torch.Tensor], found: list[int] = found) -> None:
            found.append(arguments[0].numel())

        handle = setup.model.module.get_input_embeddings().register_forward_pre_hook(note)
        protocol.score_test_rows(setup, Meter(), "direct", 6)
        handle.remove()
        computed[name] = sum(found)
        asked_tokens = setup.scorer.counter.tokens
    assert 0 < computed["first"] < computed["drawn"] / 5 and computed["drawn"] < asked_tokens


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ((-1,), "direct_fewshot must be at least 0, got -1"),
        ((2.5,), "direct_fewshot must be a whole number, at least 0, got 2.5"),
        (("five",), "direct_fewshot must be whole numbers from 0, or task, got 'five'"),
        ((), r"direct_fewshot must be a list of numbers of examples, got \(\)"),
        ((5, 5), "direct_fewshot = 5 is given twice"),
    ],
)
def test_wrong_numbers_are_refused_by_the_specification(shots: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        asked(tmp_path, shots=shots)


def test_examples_without_a_direct_score_are_refused_by_the_specification(tmp_path: Path) -> None:
    spec = asked(tmp_path, shots=(0, 5))
    with pytest.raises(UsageError, match=r"direct_fewshot = \[0, 5\] contradicts direct = False"):
        dataclasses.replace(spec, direct=False)
    assert not dataclasses.replace(spec, direct=False, direct_fewshot=(0,)).shots


def test_more_examples_than_rows_are_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    spec = asked(tmp_path, shots=(25,))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BenchmarkError, match="direct_fewshot = 25: benchmark micro has 24 rows for examples"):
        train_before_test(spec, RunStore(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_tasks_own_number_is_resolved_in_the_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = asked(tmp_path, shots=("task",), more="num_fewshot: 3\n")
    spec = dataclasses.replace(spec, benchmark=dataclasses.replace(spec.benchmark, caps=Caps(test=4)))
    with caplog.at_level(logging.INFO):
        record = train_before_test(spec, RunStore(tmp_path / "run"))
    assert record.direct is None and record.direct_fewshot.keys() == {3} and record.spec.direct_fewshot == ("task",)
    assert "direct_3shot score: acc_norm,none" in caplog.text and "num_fewshot" not in caplog.text


def test_the_command_shows_every_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = asked(tmp_path)
    flags = {
        "base_model": spec.model.name,
        "task_name": spec.benchmark.task,
        "data_dir": tmp_path,
        "results_dir": tmp_path / "out",
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    run = ["run", *words, "--device", "cpu", "--train_param.num_train_epochs", "1"]
    assert main([*run, "--direct_fewshot", "0", "2", "20"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"metric +.? *direct +.? *direct 2-shot +.? *direct 20-shot +.? *train-before-test", shown), shown
    assert "direct 20-shot: examples from the split train; 12 of 12 rows were too long" in " ".join(shown.split())
    assert main([*run, "--exp_name", "csv", "--direct_fewshot", "2", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split(",")[:4] == ["metric", "direct", "direct_stderr", "trained"]
    for given, message in (
        (["--direct_fewshot", "-1"], "direct_fewshot must be at least 0, got -1"),
        (["--direct_fewshot", "five"], "direct_fewshot must be whole numbers from 0, or task, got 'five'"),
        (["--direct_fewshot", "2", "--no-eval_before_train"], "direct_fewshot contradicts no-eval_before_train"),
    ):
        assert main([*run, "--exp_name", "wrong", *given]) != 0
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "wrong").exists()


@pytest.mark.usefixtures("forked_workers")
def test_a_study_adds_scores_to_finished_runs_without_training(tmp_path: Path) -> None:
    spec = asked(tmp_path)
    values = {
        "models": [spec.model.name],
        "benchmarks": [spec.benchmark.task],
        "data_dir": str(tmp_path),
        "seeds": [0, 1],
        "recipe": {"epochs": 1},
        "execution": {"device": "cpu"},
    }
    first = Study(study_spec(values, tmp_path))
    assert first.run().failed == {}
    records = [run.store.record() for run in first.runs]
    assert [record.direct_fewshot for record in records] == [{}, {}]
    more = Study(study_spec({**values, "direct_fewshot": [0, 2]}, tmp_path))
    assert [run.name for run in more.runs] == [run.name for run in first.runs]
    assert not any(run.state().finished for run in more.runs) and all(run.state().finished for run in first.runs)
    assert more.run().failed == {}
    for run, record in zip(more.runs, records, strict=True):
        again = run.store.record()
        assert again.direct_fewshot.keys() == {2} and run.state().finished
        assert dataclasses.replace(again, spec=record.spec, direct_fewshot={}) == record
    assert len(list((tmp_path / "results" / "direct").glob("*/direct.json"))) == 3  # without examples both seeds share one
    with pytest.raises(UsageError, match=r"direct_fewshot must be at least 0, got -2"):
        study_spec({**values, "direct_fewshot": [-2]}, tmp_path)


def test_boards_and_exports_keep_them_apart(run: RunStore, tmp_path: Path) -> None:
    """The matrix, the table, the folder of lm_eval and the records of Every Eval Ever have each score once."""
    record, matrix = run.record(), ScoreMatrix.from_records(run.folder.parent)
    assert matrix.preparations == ("direct", "direct_2shot", "direct_20shot", "trained")
    for name, score in record.scores.items():
        assert matrix.scores(name).values.iloc[0, 0] == score.metrics[record.metric]
        assert [path.name for path in matrix.samples[record.spec.model.name, "micro", name]] == [
            f"samples_{'test' if name == 'trained' else name}.jsonl"
        ]
    table = pd.read_csv(export(run.folder.parent, tmp_path / "csv", "csv").files[0])
    main_rows = table[table["is_main_metric"]]
    assert list(main_rows["preparation"]) == list(record.scores)
    assert [note.split(", ")[1] for note in main_rows["notes"]][:3] == ["zero-shot", "2-shot", "20-shot"]
    files = export(run.folder.parent, tmp_path / "lm_eval", "lm_eval").files
    shots = sorted(json.loads(path.read_text())["n-shot"]["micro"] for path in files if path.suffix == ".json")
    assert shots == [0, 0, 2, 20] and len(files) == 8
    records = export(run.folder.parent, tmp_path / "eee", "every-eval-ever", organization="a test").files
    identities = {json.loads(path.read_text())["evaluation_id"].split("/")[0] for path in records}
    assert len({*records}) == 4 and identities == {"micro", "micro-2shot", "micro-20shot"}
