"""ScoreMatrix: layouts, gaps, subsets, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from boards import matrix_of, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lm_harmony.analysis.cells import Cell, Found
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.errors import UsageError

PAPER = {
    "train_before_test": {"arc_easy": {"gpt2": 0.44, "google/gemma-2b": 0.7}, "wiki_2025": {"gpt2": 1.3}},
    "direct_eval": {"arc_easy": {"gpt2": 0.4}},
    "train_before_test_stderr": {"arc_easy": {"gpt2": 0.01}, "wiki_2025": {"gpt2": "N/A"}},
}


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
    assert matrix.models[1].family == "Gemma" and matrix.models[0].family is None  # "gpt2" alone is no hub name of the board


def test_a_wide_table_is_in_percent_and_keeps_its_gaps(tmp_path: Path) -> None:
    table = "model,rank,pc1,arc_easy,corpus:mine.txt\na,1,3.0,50,1.25\nb,2,-3.0,,1.5\n"
    matrix = ScoreMatrix.read(_write(tmp_path / "board.csv", table))
    assert matrix.trained.values.loc["a", "arc_easy"] == 0.5 and np.isnan(matrix.trained.values.loc["b", "arc_easy"])
    assert matrix.trained.values.loc["b", "corpus:mine.txt"] == 1.5
    assert matrix.benchmark_names == ("arc_easy", "corpus:mine.txt") and not matrix.has("direct")


def test_a_long_table_names_what_is_not_catalogued(tmp_path: Path) -> None:
    table = "model,benchmark,preparation,score,stderr,count,metric,higher_is_better\na,mine,direct,3.5,0.5,10,error,false\n"
    matrix = ScoreMatrix.read(_write(tmp_path / "long.csv", table))
    assert matrix.direct.values.loc["a", "mine"] == 3.5 and matrix.direct.counts.loc["a", "mine"] == 10
    assert not matrix.benchmarks[0].higher_is_better and matrix.benchmarks[0].category == "Other"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "name,arc_easy\na,50\n", "needs the column 'model'"),
        ("x.csv", "model,arc_easy\n", "at least one line"),
        ("x.csv", "model,arc_eazy\na,50\n", "Did you mean 'arc_easy'"),
        ("x.csv", "model,arc_easy\na,fifty\n", "'fifty' is no number"),
        ("x.csv", "model,arc_easy\na,inf\n", "not finite"),
        ("x.csv", "model,arc_easy\na,0.5\n", "Multiply the scores by 100"),
        ("x.csv", "model,arc_easy\na,50\na,51\n", "has two trained scores"),
        ("x.csv", "model,benchmark,score\na,arc_easy,0.5\n", "lacks the columns preparation"),
        ("x.csv", "model,benchmark,preparation,score\na,arc_easy,tuned,0.5\n", "direct or trained, got 'tuned'"),
        ("x.csv", "model,benchmark,preparation,score\na,mine,direct,0.5\n", "which direction is better"),
        ("x.csv", "model,benchmark,preparation,score,higher_is_better\na,mine,direct,0.5,up\n", "true or false, got 'up'"),
        ("x.json", "{", "is not JSON"),
        ("x.json", "[]", "train_before_test or direct_eval"),
        ("x.json", '{"direct_eval": {"mine": {"a": 1}}}', "which direction is better"),
        ("x.json", '{"direct_eval": {"arc_easy": {"a": "x"}}}', "'x' is no number"),
        ("x.txt", "", "neither a folder nor a .csv or .json file"),
    ],
)
def test_bad_tables_are_refused_with_a_remedy(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        ScoreMatrix.read(_write(tmp_path / name, text))


def test_unknown_names_get_the_nearest_match() -> None:
    matrix = matrix_of(random_table(3, 3))
    with pytest.raises(UsageError, match="model 'm9' is not in a small matrix"):
        matrix.subset(models=["m9"])
    with pytest.raises(UsageError, match="Did you mean"):
        ScoreMatrix.published().subset(models=["google/gemma-2-9b-instruct"])


def test_a_benchmark_of_two_metrics_is_refused() -> None:
    cells = tuple(
        Cell(model=m, benchmark="arc_easy", preparation="trained", value=0.5, metric=m, higher_is_better=True) for m in "ab"
    )
    with pytest.raises(UsageError, match="of several metrics"):
        ScoreMatrix.from_cells(Found(source="here", cells=cells))


def test_the_complete_part_says_what_it_left_out() -> None:
    table = random_table(4, 3)
    table.loc["m1", "b2"] = np.nan
    table["b0"] = np.nan
    part, basis = matrix_of(table).complete()
    # b2 lacks one of four, m1 one of two: m1 goes.
    assert basis.dropped_benchmarks == ("b0",) and basis.dropped_models == ("m1",)
    assert part.benchmark_names == ("b1", "b2") and "left out for their gaps: m1, b0" in str(basis)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([0.0, 1.0, np.nan])),
    st.randoms(use_true_random=False),
)
def test_the_complete_part_has_no_gaps_whatever_the_order(values: np.ndarray, random: object) -> None:
    table = pd.DataFrame(values, index=[f"m{i}" for i in range(len(values))], columns=[f"b{i}" for i in range(values.shape[1])])
    rows, columns = list(table.index), list(table.columns)
    part, basis = matrix_of(table).complete()
    assert not part.trained.values.isna().any(axis=None)
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    _, other = matrix_of(table.loc[rows, columns]).complete()
    assert set(other.models) == set(basis.models) and set(other.benchmarks) == set(basis.benchmarks)


def test_a_model_in_a_folder_is_known_by_the_end_of_its_path() -> None:
    names = ["/home/me/my/model", "/home/you/your/model", "org/model-7b"]
    matrix = matrix_of(pd.DataFrame({"arc_easy": [0.5, 0.6, 0.7], "sciq": [0.4, 0.8, 0.7]}, index=names))
    assert matrix.model_called("my/model") == "/home/me/my/model"
    assert matrix.model_called("org/model-7b") == "org/model-7b"
    with pytest.raises(UsageError, match=r"/home/me/my/model' or '/home/you/your/model"):
        matrix.model_called("model")
    with pytest.raises(UsageError, match="It has 3 models: /home"):
        matrix.model_called("theirs")
