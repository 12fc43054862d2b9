"""Two models on the same questions: McNemar's test, the paired bootstrap, and the notes if neither is possible."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from boards import write_run
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.outcomes import Outcomes, read_outcomes, score_of
from lm_harmony.analysis.paired import Comparison, PairedTest, compare, mcnemar, paired_bootstrap
from lm_harmony.errors import StoreError, UsageError


def _compare_on(results: Path) -> PairedTest:
    [test] = compare(ScoreMatrix.from_records(results), "a", "b").tests
    return test


def test_mcnemar_is_a_binomial_test() -> None:
    # Only the first model is right on 8 questions, only the second on 2: 2 P(X <= 2 | 10, 1/2) = 112 / 1024.
    assert mcnemar(8, 2) == pytest.approx(112 / 1024)
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0


def test_right_and_wrong_answers_get_mcnemars_test(tmp_path: Path) -> None:
    first, second = [1.0] * 18 + [0.0] * 2, [1.0] * 10 + [0.0] * 8 + [1.0] * 2
    write_run(tmp_path, model="a", trained=0.9, outcomes=first)
    write_run(tmp_path, model="b", trained=0.6, outcomes=second)
    test = _compare_on(tmp_path)
    assert (test.test, test.questions) == ("mcnemar", 20) and test.p == pytest.approx(112 / 1024) and test.holm == test.p
    assert test.difference == pytest.approx(0.3)
    assert test.stderr == pytest.approx(np.std(np.subtract(first, second), ddof=1) / math.sqrt(20))


def test_graded_outcomes_get_a_paired_bootstrap(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shared = random.normal(size=200)
    for model, shift in (("a", 0.15), ("b", 0.0)):
        outcomes = list(shared + shift + 0.3 * random.normal(size=200))
        write_run(tmp_path, model=model, trained=float(np.mean(outcomes)), stderr=0.07, outcomes=outcomes, metric="f1,none")
    test = _compare_on(tmp_path)
    assert test.test == "paired bootstrap" and test.p is not None and test.p < 0.01
    unpaired = 2 * stats.norm.sf(abs(test.difference) / math.hypot(0.07, 0.07))
    assert unpaired > 0.05  # pairing reduces the standard error


def test_the_standard_error_of_the_bootstrap_is_close_to_the_analytic_one() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=300), random.normal(size=300)
    first, second = (
        Outcomes(questions=tuple("q" * 300), columns=np.column_stack([v, np.ones(300)]), kind="mean") for v in (x, y)
    )
    drawn = paired_bootstrap(first, second, draws=4000)
    assert drawn.std() == pytest.approx(np.std(x - y) / math.sqrt(300), rel=0.05)
    assert drawn.mean() == pytest.approx((x - y).mean(), abs=0.02)


def test_matthews_correlation_equals_scikit_learns(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(2, size=80)
    pairs = {}
    for model in "ab":
        answers = np.where(random.random(80) < 0.8, truth, 1 - truth)
        pairs[model] = [[int(t), int(a)] for t, a in zip(truth, answers, strict=True)]
        score = float(matthews_corrcoef(truth, answers))
        write_run(tmp_path, model=model, task="cola", trained=score, outcomes=pairs[model], metric="mcc,none")
        outcomes = read_outcomes([tmp_path / f"cola/{model}/seed0/samples_test.jsonl"], "mcc,none")
        assert outcomes is not None and float(outcomes.score(outcomes.columns.sum(axis=0))) == pytest.approx(score)
    assert _compare_on(tmp_path).test == "paired bootstrap"
    assert score_of("mcc", np.array([10.0, 0, 0, 0])) == 0  # one class only: scikit-learn's convention


def test_bits_per_byte_are_a_ratio_of_sums_and_lower_is_better(tmp_path: Path) -> None:
    texts = {"a": [[-70.0, 100], [-20.0, 40], [-30.0, 50]], "b": [[-90.0, 100], [-30.0, 40], [-45.0, 50]]}
    for model, outcomes in texts.items():
        nats, size = (sum(column) for column in zip(*outcomes, strict=True))
        score = -nats / size / math.log(2)
        write_run(
            tmp_path, model=model, task="corpus:w", trained=score, outcomes=outcomes, metric="bits_per_byte,none", higher=False
        )
        found = read_outcomes([tmp_path / f"corpus:w/{model}/seed0/samples_test.jsonl"], "bits_per_byte,none")
        assert found is not None and float(found.score(found.columns.sum(axis=0))) == pytest.approx(score)
    test = _compare_on(tmp_path)
    assert test.test == "paired bootstrap" and test.difference > 0  # a needs fewer bits


def test_without_outcomes_a_z_test_is_used(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", trained=0.9, stderr=0.03)
    write_run(tmp_path, model="b", trained=0.8, stderr=0.04)
    test = _compare_on(tmp_path)
    assert test.test == "z" and test.p == pytest.approx(2 * stats.norm.sf(2.0)) and test.stderr == pytest.approx(0.05)


def test_different_questions_are_not_paired(tmp_path: Path) -> None:
    write_run(tmp_path, model="a", outcomes=[1.0] * 5)
    write_run(tmp_path, model="b", outcomes=[1.0] * 6)
    test = _compare_on(tmp_path)
    assert test.test == "z" and test.note == "the two models have different test questions"


def test_recurring_questions_are_kept_separate(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps({"doc_hash": "h", "filter": "none", "acc": v}) + "\n" for v in (1.0, 0.0)))
    found = read_outcomes([file], "acc,none")
    assert found is not None and found.questions == ("h/1", "h/2") and found.is_binary


def test_seeds_are_averaged_by_question(tmp_path: Path) -> None:
    for seed, outcomes in ((0, [1.0, 0.0]), (1, [1.0, 1.0])):
        write_run(tmp_path, model="a", seed=seed, outcomes=outcomes)
    files = ScoreMatrix.from_records(tmp_path).samples["a", "arc_easy", "trained"]
    found = read_outcomes(files, "acc_norm,none")
    assert found is not None and list(found.columns[:, 0]) == [1.0, 0.5] and not found.is_binary


def test_the_paired_bootstrap_contains_the_variance_between_trainings(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    questions, seeds, ability = 1000, 3, {"a": [0.48, 0.52, 0.56], "b": [0.46, 0.49, 0.52]}
    scores: dict[str, list[float]] = {}
    for model, shares in ability.items():
        for seed, share in enumerate(shares):
            outcomes = list((random.random(questions) < share).astype(float))
            scores.setdefault(model, []).append(float(np.mean(outcomes)))
            write_run(tmp_path, model=model, seed=seed, trained=scores[model][-1], outcomes=outcomes)
    test = _compare_on(tmp_path)
    between = math.sqrt(sum(np.var(values, ddof=1) / seeds for values in scores.values()))
    assert test.test == "paired bootstrap" and test.difference == pytest.approx(np.mean(scores["a"]) - np.mean(scores["b"]))
    assert test.stderr is not None and between < test.stderr < 1.2 * between
    # With so few trainings, the p-value is larger than that of a normal distribution.
    assert test.p is not None and test.p > 2 * stats.norm.sf(test.difference / test.stderr)


def test_the_matthews_correlation_of_seeds_is_the_mean_of_theirs(tmp_path: Path) -> None:
    truth = np.array([0, 1] * 40)
    answers = [truth, 1 - truth, np.zeros(80, dtype=int)]  # 1, -1 and 0
    for seed, given in enumerate(answers):
        pairs = [[int(t), int(a)] for t, a in zip(truth, given, strict=True)]
        score = float(matthews_corrcoef(truth, given))
        write_run(tmp_path, model="a", task="cola", seed=seed, trained=score, outcomes=pairs, metric="mcc,none")
    files = ScoreMatrix.from_records(tmp_path).samples["a", "cola", "trained"]
    found = read_outcomes(files, "mcc,none")
    assert found is not None and found.seed_scores == pytest.approx([1, -1, 0])
    assert paired_bootstrap(found, found, draws=10) == pytest.approx(np.zeros(10))
    half = Outcomes(questions=found.questions, columns=found.seeds[2], kind="mcc")  # always 0
    assert abs(paired_bootstrap(found, half, draws=10)).max() == pytest.approx(0)  # the mean of 1, -1 and 0


@pytest.mark.parametrize("texts", [1, 2, 3, 5])
def test_a_few_questions_are_not_significant(tmp_path: Path, texts: int) -> None:
    for model, nats in (("a", -70.0), ("b", -90.0)):
        outcomes = [[nats - number / 10, 100] for number in range(texts)]
        score = -sum(one[0] for one in outcomes) / (100 * texts) / math.log(2)
        write_run(
            tmp_path, model=model, task="corpus:w", trained=score, outcomes=outcomes, metric="bits_per_byte,none", higher=False
        )
    test = _compare_on(tmp_path)
    assert (test.test, test.questions) == ("paired bootstrap", texts) and test.difference > 0
    assert test.p == 2.0 ** (1 - texts)  # all questions favour the first model: that of a sign test
    assert (test.stderr is None) == (texts == 1)


def test_five_questions_have_the_p_value_of_students_t(tmp_path: Path) -> None:
    first, second = [0.5, 0.9, 0.4, 0.7, 0.3], [0.3, 0.4, 0.5, 0.3, 0.2]
    for model, outcomes in (("a", first), ("b", second)):
        write_run(tmp_path, model=model, trained=float(np.mean(outcomes)), outcomes=outcomes, metric="f1,none")
    test, expected = _compare_on(tmp_path), stats.ttest_rel(first, second)
    assert test.p == pytest.approx(expected.pvalue, abs=0.01)
    assert test.stderr == pytest.approx(np.std(np.subtract(first, second), ddof=1) / math.sqrt(5), rel=0.05)


def test_a_score_that_is_no_mean_of_its_outcomes_is_not_paired(tmp_path: Path) -> None:
    for model, nats in (("a", [-2.0, -3.0, -2.5]), ("b", [-4.0, -3.5, -3.0])):  # lm_eval's perplexity: exp of minus the mean
        score = math.exp(-np.mean(nats))
        write_run(tmp_path, model=model, trained=score, outcomes=nats, stderr=2.0, metric="perplexity,none", higher=False)
    test = _compare_on(tmp_path)
    assert (test.test, test.stderr) == ("z", pytest.approx(math.hypot(2, 2))) and test.difference > 0
    assert test.note == "the score of arc_easy does not follow from its questions alone"


@pytest.mark.parametrize("text", ['{"doc_hash": ', "[]\n", "\udcff"], ids=["cut off", "a list", "no text"])
def test_damaged_samples_are_named_and_the_test_is_unpaired(tmp_path: Path, text: str) -> None:
    for model in "ab":
        store = write_run(tmp_path, model=model, outcomes=[1.0, 0.0])
    file = store.folder / "samples_test.jsonl"
    assert _compare_on(tmp_path).test == "mcnemar" and _compare_on(tmp_path).note == ""  # negative control
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(StoreError, match=r"samples_test\.jsonl cannot be read"):
        read_outcomes([file], "acc_norm,none")
    test = _compare_on(tmp_path)
    assert test.test == "z" and test.p is not None and f"{file} cannot be read" in test.note


def test_holm_corrects_over_the_benchmarks_of_one_preparation() -> None:
    found: Comparison = compare(ScoreMatrix.published(), "google/gemma-2-9b", "google/gemma-7b")
    tested = [test for test in found.tests if test.p is not None and test.holm is not None]
    assert len(tested) == 23 and all(test.preparation == "trained" for test in found.tests)
    least = min(tested, key=lambda test: test.p or 0)
    assert least.holm == pytest.approx(23 * (least.p or 0))
    [cola] = [test for test in found.tests if test.benchmark == "cola"]
    assert (cola.test, cola.p, cola.holm) == ("none", None, None)


def test_bad_pairs_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, model="a")
    write_run(tmp_path, model="b", task="rte", metric="acc,none")
    matrix = ScoreMatrix.from_records(tmp_path)
    with pytest.raises(UsageError, match="have no benchmark in common"):
        compare(matrix, "a", "b")
    with pytest.raises(UsageError, match="the two models must differ"):
        compare(matrix, "a", "a")
    with pytest.raises(UsageError, match="model 'c' is not in"):
        compare(matrix, "a", "c")
