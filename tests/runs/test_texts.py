"""The texts of a run: tokens that the tokenizer appends, dates in chat templates, and answers that are too long to train on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import transformers.utils.chat_template_utils as transformers_templates
import yaml
from micro import write_micro
from task_files import write_task
from tiny import tiny_module, tiny_tokenizer, write_tiny_model
from tokenizers import processors

from lm_harmony.errors import ModelError, UsageError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.fingerprint import run_id
from lm_harmony.runs.protocol import score_again, train_before_test
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

RECIPE = Recipe(epochs=2, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",)))
DATED_TEMPLATE = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
)


def spec_of(folder: Path, model: Path) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(model)),
        benchmark=BenchmarkSpec(task=str(write_micro(folder)), data_dir=folder),
        recipe=RECIPE,
        execution=Execution(device="cpu"),
    )


def model_with(folder: Path, *, template: str | None = None, appends: bool = False) -> Path:
    """Write the tiny model with a chat template, or with a tokenizer that appends an end-of-text token to every text."""
    tiny_module().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    if appends:
        single = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
        tokenizer._tokenizer.post_processor = single
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_that_appends_end_of_text_gives_the_same_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Losses and scores do not change. The removed token is logged once and is in the record."""
    caplog.set_level(logging.INFO, logger="lm_harmony")
    reference = train_before_test(spec_of(tmp_path, write_tiny_model(tmp_path / "reference")), RunStore(tmp_path / "first"))
    assert reference.data.appended_tokens == () and "appends" not in caplog.text
    store = RunStore(tmp_path / "second")
    record = train_before_test(spec_of(tmp_path, model_with(tmp_path / "ends", appends=True)), store)
    assert record.data.appended_tokens == ("<|end|>",)
    assert (record.epochs, record.trained) == (reference.epochs, reference.trained)
    messages = [record.getMessage() for record in caplog.records if "appends" in record.getMessage()]
    assert messages == [f"model {tmp_path / 'ends'}: its tokenizer appends <|end|> to every text; texts are encoded without."]
    assert store.record() == record
    assert score_again(store).trained == reference.trained


def test_training_rows_with_an_answer_that_is_too_long_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The record has the number of dropped rows. Training on the other rows is the same as without the dropped row."""
    rows = {
        role: [{"question": f"Which number is {number}?", "answer": f" {number}"} for number in range(first, first + 6)]
        for role, first in (("train", 0), ("validation", 10), ("test", 20))
    }
    fields = {"output_type": "loglikelihood", "doc_to_text": "{{question}}", "doc_to_target": "answer"}
    metric = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    model = write_tiny_model(tmp_path / "model")
    records = []
    for name, more in (("short", []), ("long", [{"question": "Which one is long?", "answer": " 7" * 200}])):
        task = write_task(tmp_path / name, {**rows, "train": [*rows["train"], *more]}, **fields, metric_list=metric)
        spec = replace(spec_of(tmp_path, model), benchmark=BenchmarkSpec(task=str(task), data_dir=tmp_path / name))
        records.append(train_before_test(spec, RunStore(tmp_path / name / "run")))
    short, long = records
    assert (short.data.train, short.data.answer_too_long) == (6, 0)
    assert (long.data.train, long.data.answer_too_long) == (6, 1)
    assert (long.epochs, long.trained) == (short.epochs, short.trained)
    assert "own: 1 training row dropped, whose answer is longer than a training text." in caplog.text


class Clock(datetime):
    """Replacement for the clock that transformers reads for ``strftime_now``."""

    day = 5

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return datetime(2026, 1, cls.day)


@contextmanager
def ctrl_c_after_epoch_1() -> Iterator[None]:
    """Interrupt a run when it logs the end of its first epoch."""

    class Stop(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("epoch 1:"):
                raise KeyboardInterrupt

    logger, stop = logging.getLogger("lm_harmony"), Stop()
    level = logger.level
    logger.addHandler(stop)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        logger.removeHandler(stop)
        logger.setLevel(level)


def test_a_run_with_a_date_in_its_chat_template_can_be_resumed_on_the_next_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The date is part of the request and does not depend on the clock. A request with another date is refused."""
    monkeypatch.setattr(transformers_templates, "datetime", Clock)
    spec = spec_of(tmp_path, model_with(tmp_path / "model", template=DATED_TEMPLATE))
    spec = replace(spec, model=replace(spec.model, apply_chat_template=True))
    store = RunStore(tmp_path / "run")
    with ctrl_c_after_epoch_1():
        train_before_test(spec, store)
    config = store.config()
    assert config is not None and config.model.chat_template_date == "2024-07-26"
    Clock.day = 6
    other = replace(spec, model=replace(spec.model, chat_template_date="2026-01-06"))
    with pytest.raises(UsageError, match=r"was begun with another request: model was .*2024-07-26.*is .*2026-01-06"):
        train_before_test(other, store, resume=True)
    record = train_before_test(spec, store, resume=True)
    assert record == train_before_test(spec, RunStore(tmp_path / "uninterrupted"))
    assert record.spec.model.chat_template_date == "2024-07-26"
    dated = train_before_test(other, RunStore(tmp_path / "other"))
    assert dated.data.fingerprint != record.data.fingerprint
    for folder, text in (("run", "26 Jul 2024<|user|>number"), ("other", "06 Jan 2026<|user|>number")):
        sample = json.loads((tmp_path / folder / "samples_test.jsonl").read_text().splitlines()[0])
        assert sample["arguments"][0][0].startswith(text)


def test_the_date_changes_the_run_id_only_with_a_chat_template(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, write_tiny_model(tmp_path / "model"))
    later = replace(spec.model, chat_template_date="2026-01-06")
    assert run_id(spec) == run_id(replace(spec, model=later))
    chats = [replace(spec, model=replace(model, apply_chat_template=True)) for model in (spec.model, later)]
    assert run_id(chats[0]) != run_id(chats[1])


def test_a_chat_template_that_fails_creates_no_run_folder(tmp_path: Path) -> None:
    """The error names the template and no row. No file is written."""
    spec = spec_of(
        tmp_path, model_with(tmp_path / "model", template="a\n{% for m in messages %}\n{{ nothing.here }}{% endfor %}")
    )
    store = RunStore(tmp_path / "run")
    with pytest.raises(ModelError) as caught:
        train_before_test(replace(spec, model=replace(spec.model, apply_chat_template=True)), store)
    assert "chat_template.jinja, line 3 of the template)" in str(caught.value) and "row" not in str(caught.value)
    assert not store.folder.exists()


def test_records_and_requests_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They lack newer fields. A run that an earlier version began can be resumed."""
    spec, store = spec_of(tmp_path, write_tiny_model(tmp_path / "model", chat=True)), RunStore(tmp_path / "run")
    with ctrl_c_after_epoch_1():
        train_before_test(spec, store)
    config = yaml.safe_load((store.folder / "config.yaml").read_text())
    del config["model"]["chat_template_date"]
    (store.folder / "config.yaml").write_text(yaml.safe_dump(config))
    record = train_before_test(spec, store, resume=True)
    values = record.to_dict()
    for name in ("answer_too_long", "appended_tokens"):
        del values["data"][name]
    del values["spec"]["model"]["chat_template_date"]
    assert RunRecord.from_dict(values) == record
    values["spec"]["model"]["apply_chat_template"] = True
    assert RunRecord.from_dict(values).spec.model.chat_template_date is None  # that version did not record the date
