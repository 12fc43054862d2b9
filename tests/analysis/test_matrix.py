"""ScoreMatrix: layouts, gaps, subsets and error messages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.metadata import METRICS
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.errors import UsageError

PAPER = {
    "train_before_test": {"arc_easy": {"gpt2": 0.44, "google/gemma-2b": 0.7}, "wiki_2025": {"gpt2": 1.3}},
    "direct_eval": {"arc_easy": {"gpt2": 0.4}},
    "train_before_test_stderr": {"arc_easy": {"gpt2": 0.01}, "wiki_2025": {"gpt2": "N/A"}},
}

LONG = "model,benchmark,preparation,score,stderr,count,metric,higher_is_better\n"


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_papers_layout_is_read_with_its_gaps(tmp_path: Path) -> None:
    matrix = ScoreMatrix.read(_write(tmp_path / "paper.json", json.dumps(PAPER)))
    assert matrix.trained.values.loc["gpt2", "arc_easy"] == 0.44 and matrix.trained.stderrs.loc["gpt2", "arc_easy"] == 0.01
    assert [(gap.model, gap.benchmark) for gap in matrix.gaps("trained")] == [("google/gemma-2b", "wiki_2025")]
    assert len(matrix.gaps("direct")) == 3 and len(matrix.gaps()) == 4
    [corpus] = matrix.perplexities().benchmarks
    assert corpus.task == "wiki_2025" and not corpus.higher_is_better
    assert matrix.oriented("trained").loc["gpt2", "wiki_2025"] == -1.3
    assert matrix.models[1].family == "Gemma" and matrix.models[0].family is None  # "gpt2" is not a hub name on the board


def test_a_wide_table_is_in_percent_and_keeps_its_gaps(tmp_path: Path) -> None:
    table = "model,rank,pc1,arc_easy,corpus:mine.txt\na,1,3.0,50,1.25\nb,2,-3.0,,1.5\n"
    matrix = ScoreMatrix.read(_write(tmp_path / "board.csv", table))
    assert matrix.trained.values.loc["a", "arc_easy"] == 0.5 and np.isnan(matrix.trained.values.loc["b", "arc_easy"])
    assert matrix.trained.values.loc["b", "corpus:mine.txt"] == 1.5
    assert matrix.benchmark_names == ("arc_easy", "corpus:mine.txt") and not matrix.has("direct")


def test_a_long_table_can_have_uncatalogued_benchmarks(tmp_path: Path) -> None:
    table = "model,benchmark,preparation,score,stderr,count,metric,higher_is_better\na,mine,direct,3.5,0.5,10,error,false\n"
    matrix = ScoreMatrix.read(_write(tmp_path / "long.csv", table))
    assert matrix.direct.values.loc["a", "mine"] == 3.5 and matrix.direct.counts.loc["a", "mine"] == 10
    assert not matrix.benchmarks[0].higher_is_better and matrix.benchmarks[0].category == "Other"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "name,arc_easy\na,50\n", "needs the column 'model'"),
        ("x.csv", "model,arc_easy\n", "at least one line"),
        ("x.csv", "model,arc_eazy\na,50\n", "Did you mean 'arc_easy'"),
        ("x.csv", "model,arc_easy\na,fifty\n", "'fifty' is not a number"),
        ("x.csv", "model,arc_easy\na,inf\n", "not finite"),
        ("x.csv", "model,arc_easy\na,0.5\n", "Multiply the scores by 100"),
        ("x.csv", "model,arc_easy\na,50\na,51\n", "has two trained scores"),
        ("x.csv", "model,benchmark,score\na,arc_easy,0.5\n", "lacks the column preparation"),
        ("x.csv", "model,benchmark,preparation,score\na,arc_easy,tuned,0.5\n", "or trained (got 'tuned')"),
        ("x.csv", "model,benchmark,preparation,score\na,mine,direct,0.5\n", "its direction is not known"),
        ("x.csv", "model,benchmark,preparation,score,higher_is_better\na,mine,direct,0.5,up\n", "true or false (got 'up')"),
        (
            "x.csv",
            "model,arc_easy\na,150\n",
            "x.csv, line 2, column arc_easy: a score of acc_norm,none is from 0 to 100 percent (got 150)",
        ),
        ("x.csv", "model,arc_easy,sst2\na,50,60\nb,50,-30\n", "x.csv, line 3, column sst2: a score of acc,none is from 0 to 100"),
        ("x.csv", "model,cola\na,-101\n", "a score of mcc,none is from -100 to 100 percent (got -101)"),
        ("x.csv", "model,arc_easy,wiki_2025\na,50,-0.9\n", "a score of bits_per_byte,none is at least 0 (got -0.9)"),
        ("x.csv", LONG + "a,arc_easy,direct,55,,,,\n", "line 2, column score: a score of acc_norm,none is from 0 to 1 (got 55)"),
        ("x.csv", LONG + 'a,mine,direct,1.01,,,"exact_match,none",\n', "a score of exact_match,none is from 0 to 1 (got 1.01)"),
        ("x.csv", LONG + 'a,mine,direct,0.5,,,"word_perplexity,none",\n', "word_perplexity,none is at least 1 (got 0.5)"),
        ("x.csv", LONG + "a,arc_easy,direct,0.5,-0.1,,,\n", "a standard error must not be negative (got -0.1)"),
        ("x.csv", LONG + "a,arc_easy,direct,0.5,2.5,,,\n", "a standard error of acc_norm,none is at most 0.5 (got 2.5)"),
        ("x.csv", LONG + "a,arc_easy,direct,0.5,,2.5,,\n", "column count: it must be a whole number of at least 1 (got 2.5)"),
        ("x.csv", LONG + "a,arc_easy,direct,0.5,,,,false\n", "column higher_is_better: it is True for acc_norm,none (got False)"),
        ("x.csv", LONG + 'a,arc_easy,direct,0.5,,,"loss,none",\n', "its direction is not known"),
        ("x.csv", "model,arc_easy\na,50,5\n", "line 2: it has more cells than the table has columns"),
        ("x.csv", "model,arc_easy,arc_easy\na,50,60\n", "the column 'arc_easy' occurs twice"),
        ("x.csv", "model,arc_easy\n,50\n", "line 2, column model: it is empty"),
        (
            "x.json",
            '{"direct_eval": {"arc_easy": {"a": 1.5}}}',
            "direct_eval: arc_easy: a: a score of acc_norm,none is from 0 to 1",
        ),
        ("x.json", "{", "is not JSON"),
        ("x.json", "[]", "train_before_test or direct_eval"),
        ("x.json", '{"direct_eval": {"mine": {"a": 1}}}', "its direction is not known"),
        ("x.json", '{"direct_eval": {"arc_easy": {"a": "x"}}}', "'x' is not a number"),
        ("x.txt", "", "neither a folder nor a .csv or .json file"),
    ],
)
def test_bad_tables_are_refused_with_a_remedy(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        ScoreMatrix.read(_write(tmp_path / name, text))


def test_unknown_names_get_the_nearest_match() -> None:
    matrix = matrix_of(random_table(3, 3))
    with pytest.raises(UsageError, match="model 'm9' is not in a small matrix"):
        matrix.subset(models=["m9"])
    with pytest.raises(UsageError, match="Did you mean"):
        ScoreMatrix.published().subset(models=["google/gemma-2-9b-instruct"])


def test_a_benchmark_with_two_metrics_is_refused() -> None:
    rows = tuple(
        ScoreRow(model=m, benchmark="arc_easy", preparation="trained", value=0.5, metric=m, higher_is_better=True) for m in "ab"
    )
    with pytest.raises(UsageError, match="scores of several metrics"):
        ScoreMatrix.from_rows(ScoreRows(source="here", rows=rows))


def test_the_complete_part_reports_what_it_leaves_out() -> None:
    table = random_table(4, 3)
    table.loc["m1", "b2"] = np.nan
    table["b0"] = np.nan
    part, basis = matrix_of(table).complete()
    # b2 lacks one of four scores and m1 one of two, so m1 is dropped.
    assert basis.dropped_benchmarks == ("b0",) and basis.dropped_models == ("m1",)
    assert part.benchmark_names == ("b1", "b2") and "left out because of gaps: m1, b0" in str(basis)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([0.0, 1.0, np.nan])),
    st.randoms(use_true_random=False),
)
def test_the_complete_part_has_no_gaps_for_any_order(values: np.ndarray, random: object) -> None:
    table = pd.DataFrame(values, index=[f"m{i}" for i in range(len(values))], columns=[f"b{i}" for i in range(values.shape[1])])
    rows, columns = list(table.index), list(table.columns)
    part, basis = matrix_of(table).complete()
    assert not part.trained.values.isna().any(axis=None)
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    _, other = matrix_of(table.loc[rows, columns]).complete()
    assert set(other.models) == set(basis.models) and set(other.benchmarks) == set(basis.benchmarks)


def test_a_model_in_a_folder_is_identified_by_the_end_of_its_path() -> None:
    names = ["/home/me/my/model", "/home/you/your/model", "org/model-7b"]
    matrix = matrix_of(pd.DataFrame({"arc_easy": [0.5, 0.6, 0.7], "sciq": [0.4, 0.8, 0.7]}, index=names))
    assert matrix.find_model("my/model") == "/home/me/my/model"
    assert matrix.find_model("org/model-7b") == "org/model-7b"
    with pytest.raises(UsageError, match=r"/home/me/my/model' or '/home/you/your/model"):
        matrix.find_model("model")
    with pytest.raises(UsageError, match="It has 3 models: /home"):
        matrix.find_model("theirs")


@pytest.mark.parametrize(
    ("table", "value"),
    [
        ("model,arc_easy\na,100\n", 1.0),
        ("model,arc_easy\na,0\nb,50\n", 0.0),
        ("model,cola\na,-30\n", -0.3),
        (LONG + "a,arc_easy,trained,0.5,0.5,1,,\n", 0.5),
        (LONG + "a,mine,trained,150,,,score,true\n", 150.0),
        (LONG + 'a,mine,trained,31.5,,,"bleu,none",\n', 31.5),
        ("model,wiki_2025\na,1.7\n", 1.7),
        ('model,arc_easy\n"a\nb",50\n', 0.5),
    ],
)
def test_scores_at_the_ends_of_their_range_and_of_unknown_metrics_are_read(tmp_path: Path, table: str, value: float) -> None:
    """Negative control of the ranges: 0%, 100%, a negative correlation, and a metric whose range is not known."""
    assert ScoreMatrix.read(_write(tmp_path / "x.csv", table)).trained.values.iloc[0, 0] == pytest.approx(value)


def test_the_catalogued_direction_is_not_used_for_another_metric(tmp_path: Path) -> None:
    """arc_easy is catalogued with an accuracy, where higher is better. A perplexity on it is better if it is lower."""
    found = {}
    for metric in ("acc_norm,none", "word_perplexity,none"):
        matrix = ScoreMatrix.read(_write(tmp_path / "x.csv", LONG + f'a,arc_easy,trained,1,,,"{metric}",\n'))
        found[metric] = matrix.benchmarks[0].higher_is_better
    assert found == {"acc_norm,none": True, "word_perplexity,none": False}


def test_known_directions_equal_lm_evals() -> None:
    from lm_eval.api.registry import is_higher_better

    assert {name: facts.higher_is_better for name, facts in METRICS.items()} == {name: is_higher_better(name) for name in METRICS}
