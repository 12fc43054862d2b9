"""With equal replies, scores, samples and standard errors equal lm_eval's."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.evaluator import evaluate
from lm_eval_alone import RepliesLM, lm_eval_task
from rows import ROWS
from task_files import Row, write_rows, write_task
from tiny import tiny_model

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.harness.scoring import score_without
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Reply, Request, Score
from lm_harmony.engine.scoring import Scorer
from lm_harmony.runs.file_values import from_plain, to_plain

Answer = Callable[[Sequence[Request]], list[Reply]]
WIKI: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{page|trim}}",
    "metric_list": [{"metric": metric} for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}
LAST_WORD: dict[str, Any] = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
    "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}
EVERY_CHOICE_METRIC: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{label}}",
    "doc_to_choice": ["no", "maybe, maybe not", "yes"],
    "metric_list": [
        {"metric": metric} for metric in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score", "exact_match")
    ],
}
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Q: who?\nA: the city by the river ", "né à Zürich, naïve", "wood " * 60]
OWN_TASKS = {"wiki": WIKI, "last_word": LAST_WORD, "every_choice_metric": EVERY_CHOICE_METRIC}


def scored_rows(name: str) -> list[Row]:
    """Return the scored rows: those of ROWS, more if a metric needs them, or those of a task defined in this file."""
    if name in OWN_TASKS:
        column = "page" if name == "wiki" else "text"
        return [{column: text, "label": place % 3} for place, text in enumerate(TEXTS)]
    rows = [row for role in ROWS[name].values() for row in role]
    if name in ("cola", "mrpc"):
        field = "sentence" if name == "cola" else "sentence1"
        return [{**row, field: f"{place} {row[field]}", "label": place % 2} for place, row in enumerate(rows * 5)]
    return rows


def scored_task(folder: Path, name: str) -> tuple[HarnessTask, Any]:
    """Return our task and lm_eval's own on the same scored rows."""
    rows = {role: scored_rows(name) for role in ROWS.get(name, ("train", "test"))}
    if name in OWN_TASKS:
        path = write_task(folder, rows, name=name, **OWN_TASKS[name])
    else:
        path = find_task_file(name)
        write_rows(folder / name, rows)
    return HarnessTask(path, folder), lm_eval_task(path, rows)


def our_score(task: HarnessTask, answer: Answer, chat: Any = None, *, errors: bool = False) -> Score:
    role = "test" if "test" in task.split_names else "validation"
    examples = [task.example(row, document, chat=chat, aliases="first") for row, document in enumerate(task.documents(role))]
    replies = iter(answer([request for example in examples for request in example.requests]))
    grouped = [list(itertools.islice(replies, len(example.requests))) for example in examples]
    return task.score(examples, grouped, errors=errors, samples=True)


def assert_equal_to_lm_eval(task: HarnessTask, lm_evals: Any, answer: Answer, chat: Any = None) -> Score:
    score = our_score(task, answer, chat)
    results = evaluate(
        lm=RepliesLM(answer, chat),
        task_dict={task.name: lm_evals},
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat is not None,
    )
    numbers = {key: value for key, value in results["results"][task.name].items() if "," in key and "_stderr," not in key}
    assert score.metrics == numbers
    assert score.metrics.keys() == task.metrics.keys()
    assert task.metrics.keys() == {f"{key},{ens.name}" for key in lm_evals.higher_is_better() for ens in lm_evals._filters}
    assert results["higher_is_better"][task.name] == {key.split(",")[0]: higher for key, higher in task.metrics.items()}
    assert score.documents == results["results"][task.name]["sample_len"] == len(scored_rows(task.name))
    assert len(score.samples) == len(results["samples"][task.name]) > 0
    for ours, theirs in zip(score.samples, results["samples"][task.name], strict=True):
        assert list(ours) == list(theirs)
        for key in ours:
            np.testing.assert_equal(ours[key], theirs[key], err_msg=key)
    return score


@pytest.mark.parametrize("name", [*ROWS, *OWN_TASKS])
def test_scores_and_samples_equal_lm_evals(name: str, tmp_path: Path) -> None:
    """On a tiny model's replies, metrics equal lm_eval's to the last digit, and so do the sample dicts with their hashes."""
    answer = Scorer(model=tiny_model(), max_new_tokens=8).reply
    score = assert_equal_to_lm_eval(*scored_task(tmp_path, name), answer)
    assert all(isinstance(value, float) for value in score.metrics.values())


@pytest.mark.parametrize("name", ["nq_open", "winogrande", "arc_easy", "wiki"])
def test_scores_with_a_chat_template_equal_lm_evals(name: str, tmp_path: Path) -> None:
    """The scores equal those of lm_eval with apply_chat_template."""
    model = tiny_model(chat=True)
    answer = Scorer(model=model, max_new_tokens=8).reply
    assert_equal_to_lm_eval(*scored_task(tmp_path, name), answer, model.text.render_chat)


def test_another_model_gets_other_scores(tmp_path: Path) -> None:
    """Negative control of the tests above: another model's replies give other metrics and samples."""
    task, _ = scored_task(tmp_path, "wiki")
    scores = [our_score(task, Scorer(model=tiny_model(seed=seed)).reply) for seed in (0, 1)]
    assert scores[0].metrics.keys() == scores[1].metrics.keys()
    assert all(scores[0].metrics[key] != scores[1].metrics[key] for key in scores[0].metrics)
    assert scores[0].samples != scores[1].samples


@pytest.mark.parametrize(
    ("name", "written", "metrics"),
    [
        (
            "gsm8k",
            ["It is 7.\n#### 7", "#### 1250", "I say $3.", "12 miles", "#### 20\n19 eggs"],
            {"exact_match,strict-match": 2 / 5, "exact_match,flexible-extract": 5 / 5},
        ),
        (
            "nq_open",
            [" ada thorne", "A dozen!", "the Grey  Hills", " 1954 ", "Ingrid ODell"],
            {"exact_match,remove_whitespace": 4 / 5},
        ),
    ],
)
def test_generated_answers_are_filtered_and_scored_as_in_lm_eval(
    name: str, written: list[str], metrics: dict[str, float], tmp_path: Path
) -> None:
    """With filters and several right answers, known replies give the known score, here and in lm_eval."""
    score = assert_equal_to_lm_eval(*scored_task(tmp_path, name), lambda requests: list(written[: len(requests)]))
    assert score.metrics == metrics


@pytest.mark.parametrize("name", ["cola", "mrpc", "openbookqa", "every_choice_metric"])
def test_ties_and_extremes_are_scored_as_in_lm_eval(name: str, tmp_path: Path) -> None:
    """Equal log-likelihoods, zeros and minus infinity give the same scores as in lm_eval."""

    def answer(requests: Sequence[Request]) -> list[Reply]:
        draw = random.Random(1)
        return [(draw.choice([-1.0, -1.0, -2.5, 0.0, -1e30]), draw.random() < 0.5) for _ in requests]

    assert_equal_to_lm_eval(*scored_task(tmp_path, name), answer)


def random_choices(requests: Sequence[Request]) -> list[Reply]:
    """Return random replies in which " no" is slightly less likely."""
    draw = random.Random(2)
    return [(-draw.random() - (0.3 if request.continuation == " no" else 0.0), False) for request in requests]


def test_standard_error_of_a_mean_equals_lm_evals(tmp_path: Path) -> None:
    """The standard errors of acc and acc_norm are lm_eval's closed form."""
    task, lm_evals = scored_task(tmp_path, "openbookqa")
    score = our_score(task, random_choices, errors=True)
    results = evaluate(lm=RepliesLM(random_choices), task_dict={"openbookqa": lm_evals}, bootstrap_iters=1)["results"]
    assert score.stderrs == {f"{key},none": results["openbookqa"][f"{key}_stderr,none"] for key in ("acc", "acc_norm")}
    assert all(error is not None and error > 0 for error in score.stderrs.values())


def matthews(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation of each row of draws, computed from its definition."""
    numerator = (gold * predicted).mean(1) - gold.mean(1) * predicted.mean(1)
    spread = gold.std(1) * predicted.std(1)
    return np.where(spread == 0, 0.0, numerator / np.where(spread == 0, 1.0, spread))


def test_standard_error_of_a_correlation_is_a_bootstrap(tmp_path: Path) -> None:
    """mcc's standard error is the same at every call, and close to that of another bootstrap with another generator."""
    task, _ = scored_task(tmp_path, "cola")
    score, again = (our_score(task, random_choices, errors=True) for _ in range(2))
    assert score == again
    pairs = np.array([sample["mcc"] for sample in score.samples])
    assert score.metrics["mcc,none"] == pytest.approx(matthews(pairs[None, :, 0], pairs[None, :, 1])[0])
    draws = pairs[np.random.default_rng(7).integers(0, len(pairs), size=(4000, len(pairs)))]
    expected = matthews(draws[:, :, 0], draws[:, :, 1]).std(ddof=1)
    assert expected > 0.05
    assert score.stderrs["mcc,none"] == pytest.approx(expected, rel=0.2)
    assert score.stderrs["mcc,none"] != pytest.approx(expected / np.sqrt(2), rel=0.2)


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn, of one document
def test_standard_errors_and_samples_are_computed_on_request(tmp_path: Path) -> None:
    """Validation requests neither of them: no bootstrap, no samples, the same metrics."""
    task, _ = scored_task(tmp_path, "cola")
    example = task.example(0, task.documents("train")[0], chat=None, aliases="first")
    replies: list[Reply] = [(-1.0, False), (-2.0, False)]
    bare = task.score([example, example], [replies, replies], errors=False, samples=False)
    assert bare.stderrs == {"mcc,none": None}
    assert bare.samples == ()
    alone = task.score([example], [replies], errors=True, samples=False)
    assert alone.stderrs == {"mcc,none": None}  # the standard deviation of one document is undefined
    assert from_plain(Score, to_plain(bare)) == bare


def test_every_request_needs_a_reply(tmp_path: Path) -> None:
    """A missing reply is an error in our own code, so it raises an exception."""
    task, _ = scored_task(tmp_path, "cola")
    example = task.example(0, task.documents("train")[0], chat=None, aliases="first")
    with pytest.raises(ValueError, match="zip"):
        task.score([example], [[(-1.0, False)]], errors=False, samples=False)


def test_the_description_of_a_task_has_its_version_and_fields(tmp_path: Path) -> None:
    """A record holds the version and fields of the scored task, as plain values and without data."""
    task, lm_evals = scored_task(tmp_path, "cola")
    described, config = task.lm_eval_config(), lm_evals.dump_config()
    assert described["version"] == lm_evals.VERSION
    for key in ("task", "doc_to_text", "doc_to_target", "doc_to_choice", "output_type", "num_fewshot"):
        assert described["config"][key] == config[key]
    assert "custom_dataset" not in described["config"]
    assert "kettle" not in str(described)


def made_up(requests: Sequence[Request]) -> list[Reply]:
    draw = random.Random(0)
    return [(-draw.random(), True) for _ in requests]


@pytest.mark.parametrize("name", [*ROWS, *OWN_TASKS])
def test_a_score_without_some_documents_is_that_of_the_others_alone(name: str, tmp_path: Path) -> None:
    """From samples as they are in memory and as a file holds them. Negative control: the score on all documents is another."""
    task, _ = scored_task(tmp_path, name)
    role = "test" if "test" in task.split_names else "validation"
    every = [task.example(row, document, chat=None, aliases="first") for row, document in enumerate(task.documents(role))] * 2
    examples = [replace(example, row=row) for row, example in enumerate(every)]
    scorer = Scorer(model=tiny_model(), max_new_tokens=8)
    replies = [scorer.reply(example.requests) for example in examples]
    whole = task.score(examples, replies, errors=True, samples=True)
    left_out = {0, len(examples) - 1}
    alone = task.score(examples[1:-1], replies[1:-1], errors=True, samples=False)
    written = replace(whole, samples=tuple(json.loads(json.dumps(sample, default=str)) for sample in whole.samples))
    assert score_without(task.lm_eval_task, whole, left_out) == alone == score_without(task.lm_eval_task, written, left_out)
    assert score_without(task.lm_eval_task, written, ()) == whole and alone.documents == len(examples) - 2


@pytest.mark.parametrize(("name", "metric"), [("cola", "mcc"), ("every_choice_metric", "brier_score")])
def test_a_metric_that_does_not_follow_from_the_samples_is_left_out(name: str, metric: str, tmp_path: Path) -> None:
    """Older versions wrote values of NumPy as text, with which other scores would be computed, or none."""
    task, _ = scored_task(tmp_path, name)
    score = our_score(task, made_up)
    old = tuple({**sample, metric: [sample[metric][0], str(sample[metric][1])]} for sample in score.samples)
    found, of_old = (score_without(task.lm_eval_task, one, {0}).metrics for one in (score, replace(score, samples=old)))
    assert score.metrics[f"{metric},none"] != 0 and found.keys() == score.metrics.keys()
    assert of_old == {key: value for key, value in found.items() if key != f"{metric},none"}
