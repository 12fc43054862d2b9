"""A corpus is scored with lm_eval's rolling log-likelihood. No document is in both the train and the test split."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval_alone import lm_eval_task
from rich.console import Console
from tiny import MAX_LENGTH, tiny_model, write_tiny_model

from lm_harmony.benchmarks.corpus import read_corpus
from lm_harmony.benchmarks.harness import open_task
from lm_harmony.benchmarks.splits import make_splits
from lm_harmony.benchmarks.task_files import CORPUS_FILE
from lm_harmony.benchmarks.types import Caps
from lm_harmony.cli.run import result_table
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.scoring import Scorer
from lm_harmony.errors import BenchmarkError, ModelError, ScoreNotFinite
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

TEXTS = [
    f"The river number {number} flows past näive cafés — {'and on it goes, ' * (number % 7 * 6)}until the sea."
    for number in range(40)
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "rivers.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "id": n}) for n, text in enumerate(TEXTS)), encoding="utf-8")
    return path


@pytest.mark.parametrize("bos", [False, True])
def test_bits_per_byte_equal_lm_evals(corpus: Path, bos: bool) -> None:
    """Long texts need several windows of the tiny model. Letters of several bytes distinguish bytes from characters."""
    model = tiny_model(bos=bos)
    task = open_task(f"corpus:{corpus}")
    splits = make_splits(task, caps=Caps(), seed=0, protocol="clean", chat=None)
    scorer = Scorer(model=model, backend=choose_backend(model))
    replies = [[reply] for reply in scorer.reply([example.requests[0] for example in splits.test])]
    ours = task.score(splits.test, replies, errors=True, samples=False)
    rows = {role: [{"text": text} for text in read_corpus(corpus)[role]] for role in ("train", "validation", "test")}
    alone = lm_eval_task(CORPUS_FILE, rows)
    harness = HFLM(pretrained=model.module, tokenizer=model.text.tokenizer, max_length=MAX_LENGTH, device="cpu", batch_size=2)
    theirs = lm_eval.evaluate(harness, {"corpus": alone}, bootstrap_iters=0)["results"]["corpus"]
    assert max(len(ids) for ids in model.text.encode([row["text"] for row in rows["test"]])) > MAX_LENGTH
    for metric in ("bits_per_byte", "byte_perplexity", "word_perplexity"):
        assert ours.metrics[f"{metric},none"] == pytest.approx(theirs[f"{metric},none"], rel=1e-4)
    characters = sum(map(len, (row["text"] for row in rows["test"])))
    assert characters < sum(len(row["text"].encode()) for row in rows["test"])


WITHOUT_SPACES = {
    "japanese": "川は古い橋の下を流れて、静かに海へ向かう。春になると子どもたちが岸辺で遊び、夕方まで帰らない。",
    "chinese": "河水从古老的桥下流过，慢慢流向大海。春天来了，孩子们在岸边玩耍，直到傍晚才回家。",
    "thai": "แม่น้ำไหลผ่านใต้สะพานเก่าแก่และค่อยๆไหลไปสู่ทะเลเมื่อฤดูใบไม้ผลิมาถึงเด็กๆเล่นอยู่ริมฝั่งจนถึงเย็น",
}


@pytest.mark.parametrize("language", WITHOUT_SPACES)
def test_texts_without_spaces_have_bits_per_byte(language: str, tmp_path: Path) -> None:
    """Each document is one "word", so its word perplexity overflows a float. lm_eval fails there. Bits per byte are finite."""
    texts = [WITHOUT_SPACES[language] * 2 + str(number) for number in range(12)]
    path = tmp_path / f"{language}.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    model, task = tiny_model(), open_task(f"corpus:{path}")
    splits = make_splits(task, caps=Caps(), seed=0, protocol="clean", chat=None)
    nats = Scorer(model=model).reply([example.requests[0] for example in splits.train])
    ours = task.score(splits.train, [[value] for value in nats], errors=True, samples=False)
    size = sum(len(text.encode("utf-8")) for text in read_corpus(path)["train"])
    assert ours.metrics["bits_per_byte,none"] == pytest.approx(-sum(nats) / math.log(2) / size)
    assert ours.metrics["byte_perplexity,none"] == pytest.approx(math.exp(-sum(nats) / size))
    assert ours.metrics.keys() == ours.stderrs.keys() == {"bits_per_byte,none", "byte_perplexity,none"}
    harness = HFLM(pretrained=model.module, tokenizer=model.text.tokenizer, max_length=MAX_LENGTH, device="cpu", batch_size=2)
    rows = {role: [{"text": text} for text in read_corpus(path)["train"]] for role in ("train", "validation", "test")}
    with pytest.raises(OverflowError):  # negative control
        lm_eval.evaluate(harness, {"corpus": lm_eval_task(CORPUS_FILE, rows)}, bootstrap_iters=0)
    metrics = [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}]
    theirs = lm_eval.evaluate(harness, {"corpus": lm_eval_task(CORPUS_FILE, rows, metric_list=metrics)}, bootstrap_iters=0)
    for metric in ours.metrics:
        assert ours.metrics[metric] == pytest.approx(theirs["results"]["corpus"][metric], rel=1e-4)


def test_a_run_on_texts_without_spaces_writes_a_record(tmp_path: Path) -> None:
    path = tmp_path / "river.jsonl"
    texts = [WITHOUT_SPACES["japanese"] + str(number) for number in range(12)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    spec = RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model"))),
        benchmark=BenchmarkSpec(task=f"corpus:{path}"),
        recipe=Recipe(epochs=1),
        direct=True,
        execution=Execution(device="cpu"),
    )
    record = train_before_test(spec, RunStore(tmp_path / "run"))
    assert record.direct is not None and record.direct.metrics.keys() == {"bits_per_byte,none", "byte_perplexity,none"}
    table = Console(width=200)
    with table.capture() as captured:
        table.print(result_table(record))
    assert "bits_per_byte" in captured.get() and "word_perplexity" not in captured.get()
    requested = replace(spec, metric="word_perplexity,none")
    with pytest.raises(ScoreNotFinite, match=r"word_perplexity,none of corpus-river has no finite value .* bits_per_byte,none"):
        train_before_test(requested, RunStore(tmp_path / "other"))


def test_a_complete_run_trains_on_the_corpus(corpus: Path, tmp_path: Path) -> None:
    spec = RunSpec(
        model=ModelSpec(name=str(write_tiny_model(tmp_path / "model"))),
        benchmark=BenchmarkSpec(task=f"corpus:{corpus}"),
        recipe=Recipe(epochs=3, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        direct=True,
        execution=Execution(device="cpu"),
    )
    record = train_before_test(spec, RunStore(tmp_path / "run"))
    assert record.metric == "bits_per_byte,none" and record.higher_is_better is False and record.benchmark == "corpus-rivers"
    assert record.direct is not None and record.trained is not None
    assert record.trained.metrics[record.metric] < 0.8 * record.direct.metrics[record.metric]
    assert (record.data.train, record.data.validation, record.data.test) == (32, 4, 4)


def test_no_document_is_in_two_splits_and_the_order_of_the_file_does_not_matter(corpus: Path, tmp_path: Path) -> None:
    first = read_corpus(corpus)
    assert sorted(text for texts in first.values() for text in texts) == sorted(TEXTS)
    turned = tmp_path / "turned.txt"
    turned.write_text("\n\n".join(reversed(TEXTS)) + "\n\n\n", encoding="utf-8")
    assert read_corpus(turned) == first
    doubled = tmp_path / "doubled.txt"
    doubled.write_text("\n\n".join([*TEXTS[:9], *[TEXTS[0]] * 30]), encoding="utf-8")
    splits = make_splits(open_task(f"corpus:{doubled}"), caps=Caps(), seed=0, protocol="clean", chat=None)
    trained_on, tested = ({example.continuation for example in part} for part in (splits.train, splits.test))
    assert not trained_on & tested


def test_a_folder_defines_its_own_splits(tmp_path: Path) -> None:
    for role, texts in (("train", TEXTS[:5]), ("validation", TEXTS[5:7]), ("test", TEXTS[7:9])):
        (tmp_path / f"{role}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    assert read_corpus(tmp_path)["validation"] == TEXTS[5:7]
    (tmp_path / "test.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"test\.txt has no documents"):
        read_corpus(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(BenchmarkError, match="test must be one file"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt does not exist. Give a .jsonl or .txt file"),
        ("a.csv", b"x", "must be .jsonl or .txt, got .csv"),
        ("a.txt", b"one\n\ntwo", "2 different documents"),
        ("a.txt", b"", "0 different documents"),
        ("a.txt", b"\xff\xfe", "Give a UTF-8 file"),
        ("a.jsonl", b'{"page": "x"}', "line 1: the row lacks the column 'text', it has page"),
        ("a.jsonl", b'{"text": 3}', "line 1, column 'text': int, not a string"),
        ("a.jsonl", b'{"text": "x"', "line 1"),
    ],
)
def test_invalid_corpora_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchmarkError) as raised:
        open_task(f"corpus:{tmp_path / name}")
    assert message in str(raised.value)


def test_a_missing_corpus_is_refused_before_any_work(tmp_path: Path) -> None:
    """The model does not exist either. It is not looked up, and the run's folder is not created."""
    spec = RunSpec(
        model=ModelSpec(name=str(tmp_path / "no-model")), benchmark=BenchmarkSpec(task=f"corpus:{tmp_path / 'none.txt'}")
    )
    with pytest.raises(BenchmarkError, match=r"^corpus:.*none.txt does not exist\. Give a .jsonl or .txt file"):
        train_before_test(spec, RunStore(tmp_path / "run"))
    assert not (tmp_path / "run" / "epochs.jsonl").exists()
    (tmp_path / "none.txt").write_text("one\n\ntwo\n\nthree", encoding="utf-8")
    with pytest.raises(ModelError, match="no-model"):  # negative control
        train_before_test(spec, RunStore(tmp_path / "run"))


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_windows_files_are_read_like_other_files(ending: str, tmp_path: Path) -> None:
    """A byte order mark and CR LF line ends change no document."""
    texts = [f"text {number}\nof two lines" for number in range(5)]
    content = "\n\n".join(texts) if ending == ".txt" else "\n".join(json.dumps({"text": text}) for text in texts)
    plain, windows = tmp_path / f"plain{ending}", tmp_path / f"windows{ending}"
    plain.write_bytes(content.encode())
    windows.write_bytes(content.replace("\n", "\r\n").encode("utf-8-sig"))
    found = read_corpus(windows)
    assert found == read_corpus(plain)
    assert sorted(text for role in found for text in found[role]) == texts


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (3, "int")])
def test_a_text_that_is_not_a_string_is_refused_with_its_line(value: object, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"text": value}, {"text": None}] if kind == "int" else [{"text": "a"}, {"text": value}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    line = 1 if kind == "int" else 2
    with pytest.raises(BenchmarkError, match=f"own.jsonl line {line}, column 'text': {kind}, not a string"):
        read_corpus(path)
