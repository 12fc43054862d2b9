"""Rows of JSONL files are read unchanged, or refused with file, line and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ROWS
from task_files import write_rows

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.local_data import line_of, read_splits
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.errors import BenchmarkError


def read(path: Path) -> list[dict[str, Any]]:
    return read_splits({"train": path})["train"].to_list()


def refusal(path: Path) -> str:
    with pytest.raises(BenchmarkError) as caught:
        read(path)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "train.jsonl"


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"q": TEXT, "n": st.integers(-(2**63), 2**63 - 1), "t": st.lists(TEXT)}), min_size=1))
def test_every_text_is_read_as_written(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any Unicode text, number and list in a JSONL file is read unchanged, with one row per line."""
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read(path) == rows


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_inside_a_string_split_no_line(file: Path, separator: str) -> None:
    """U+2028 and similar separators are text of a row, although Python's splitlines() splits at them."""
    rows = [{"q": f"one{separator}two"}, {"q": "three"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert len(text.splitlines()) == 3
    file.write_text(text, encoding="utf-8")
    assert read(file) == rows


def test_blank_lines_and_windows_line_ends_add_no_rows(file: Path) -> None:
    """Empty lines, lines of spaces and CR LF line ends do not change the rows."""
    file.write_bytes(b'\n{"q": "a"}\r\n   \r\n\n{"q": "b"}\n\n')
    assert read(file) == [{"q": "a"}, {"q": "b"}]


def test_line_numbers_count_blank_lines(file: Path) -> None:
    """The line number in a message is the one that an editor shows."""
    file.write_text('\n{"q": "a"}\n\n{"q": \n', encoding="utf-8")
    assert f"{file} line 4, column 7: not JSON" in refusal(file)


def test_a_missing_file_is_refused_by_name(file: Path) -> None:
    """The message names the missing file and its expected content."""
    assert f"{file} does not exist. Put the split's rows there" in refusal(file)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_file_without_rows_is_refused(file: Path, text: str) -> None:
    """An empty or blank file is not a valid split."""
    file.write_text(text, encoding="utf-8")
    assert f"{file} has no rows" in refusal(file)


def test_folder_in_place_of_a_file_is_refused(file: Path) -> None:
    """If a folder has the name of the file, the message names it. There is no traceback."""
    file.mkdir()
    assert f"{file} cannot be read" in refusal(file)


def test_bytes_that_are_not_utf8_are_refused(file: Path) -> None:
    """Latin-1 bytes are reported as invalid UTF-8."""
    file.write_bytes('{"q": "café"}'.encode("latin-1"))
    message = refusal(file)
    assert f"{file} cannot be read" in message
    assert "UTF-8" in message


def test_broken_json_names_line_and_column(file: Path) -> None:
    """The column is the position at which the JSON parser failed."""
    file.write_text('{"q": "a"}\n{"q": "b" "n": 1}\n', encoding="utf-8")
    assert f"{file} line 2, column 11: not JSON (Expecting ',' delimiter)" in refusal(file)


@pytest.mark.parametrize(("text", "kind"), [('["a"]', "list"), ('"a"', "str"), ("3", "int"), ("null", "NoneType")])
def test_a_line_must_be_an_object(file: Path, text: str, kind: str) -> None:
    """A line that is an array, a text or a number is refused."""
    file.write_text('{"q": "a"}\n' + text, encoding="utf-8")
    assert f"{file} line 2: a {kind}, not an object" in refusal(file)


@pytest.mark.parametrize(
    ("second", "state"),
    [({"q": "b"}, "lacks column 'n'"), ({"q": "b", "n": 1, "x": 0}, "has column 'x'"), ({"q": "b", "N": 1}, "has column 'N'")],
)
def test_rows_need_the_same_columns(file: Path, second: dict[str, Any], state: str) -> None:
    """If a row has a column fewer or more, the message names it and the line it differs from."""
    file.write_text(f"{json.dumps({'q': 'a', 'n': 1})}\n\n{json.dumps(second)}\n", encoding="utf-8")
    assert f"{file} line 3: {state}, unlike line 1" in refusal(file)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 2, "3"], "line 3, column 'n': str where line 1 has int"),
        ([None, "a", 1], "line 3, column 'n': int where line 2 has str"),
        ([[1], 2], "line 2, column 'n': int where line 1 has list"),
        ([True, "yes"], "line 2, column 'n': str where line 1 has bool"),
        ([1, 2.5, "3"], "line 2, column 'n': float where line 1 has int"),
        ([2.5, None, 1], "line 3, column 'n': int where line 1 has float"),
        ([{"a": 1}, "a"], "line 2, column 'n': str where line 1 has dict"),
        ([["a"], [None, 2]], "line 2, column 'n[]': int where line 1 has str"),
        ([[1], [1, 2.5]], "line 2, column 'n[]': float where line 1 has int"),
        ([{"a": [1]}, {"a": [True]}], "line 2, column 'n.a[]': bool where line 1 has int"),
    ],
)
def test_mixed_types_name_line_column_and_types(file: Path, values: list[Any], names: str) -> None:
    """For a column with two types, the message names both lines and both types."""
    file.write_text("\n".join(json.dumps({"q": "a", "n": value}) for value in values), encoding="utf-8")
    assert f"{file} {names}. Give the column one type in all splits." in refusal(file)


@pytest.mark.parametrize("values", [[["a"], ["b", 2]], [{"a": 1}, {"a": "b"}], [1, 2**70]])
def test_mixed_types_in_nested_values_name_the_file(file: Path, values: list[Any]) -> None:
    """Mixed types inside a list or an object, and numbers beyond 64 bits, are refused with the file's name."""
    file.write_text("\n".join(json.dumps({"n": value}) for value in values), encoding="utf-8")
    assert str(file) in refusal(file)


@pytest.mark.parametrize(
    "values", [[1, 2], [2.5, 1.0], [None, 1.0, 2.5], ["a", None], [None, [1]], [True, None, False], [[None], [1]]]
)
def test_null_is_valid_in_a_column_of_any_type(file: Path, values: list[Any]) -> None:
    """A column may hold null and values of one type. The values that are read print as in the file."""
    file.write_text("\n".join(json.dumps({"n": value}) for value in values), encoding="utf-8")
    assert [repr(row["n"]) for row in read(file)] == [repr(value) for value in values]


@pytest.mark.parametrize(("train", "test"), [([3, 2.5], [3]), ([3.0, 2.5], [3]), ([3], [2.5]), (["3"], [3])])
def test_a_column_has_one_type_in_all_splits(tmp_path: Path, train: list[Any], test: list[Any]) -> None:
    """An integer column with one 2.5 is refused with both lines. It would be trained on as 3.0 and tested as 3."""
    write_rows(tmp_path, {"train": [{"n": value} for value in train], "test": [{"n": value} for value in test]})
    files = {role: tmp_path / f"{role}.jsonl" for role in ("train", "test")}
    with pytest.raises(
        BenchmarkError, match=r"jsonl line \d, column 'n': \w+ where .* has \w+\. Give the column one type in all"
    ):
        read_splits(files)
    write_rows(tmp_path, {"train": [{"n": 3}, {"n": 2}], "test": [{"n": 3}]})
    read_back = read_splits(files)
    assert [repr(row["n"]) for role in files for row in read_back[role]] == ["3", "2", "3"]


def test_a_type_conflict_between_splits_names_both_files(tmp_path: Path) -> None:
    """If the types differ between files, the message names the line in each file."""
    write_rows(tmp_path, {"train": [{"n": None}, {"n": 3}], "test": [{"n": 2}, {"n": 2.5}]})
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    with pytest.raises(BenchmarkError) as caught:
        read_splits({"train": train, "test": test})
    assert str(caught.value).startswith(f"{test} line 2, column 'n': float where {train} line 2 has int. ")


def test_a_column_that_is_null_in_one_split_has_the_type_of_the_others(tmp_path: Path) -> None:
    """All splits have one schema. A column that a split lacks stays absent in that split."""
    write_rows(
        tmp_path, {"train": [{"q": "a", "n": 3}, {"q": "b", "n": 4}], "test": [{"q": "c", "n": None}], "more": [{"q": "d"}]}
    )
    read_back = read_splits({role: tmp_path / f"{role}.jsonl" for role in ("train", "test", "more")})
    assert read_back["train"].features == read_back["test"].features
    assert {role: rows.to_list() for role, rows in read_back.items()} == {
        "train": [{"q": "a", "n": 3}, {"q": "b", "n": 4}],
        "test": [{"q": "c", "n": None}],
        "more": [{"q": "d"}],
    }


def test_a_number_beyond_64_bits_is_refused_with_its_line(file: Path) -> None:
    """The table holds 64-bit integers. The largest number that fits is read."""
    file.write_text(json.dumps({"n": 2**63 - 1}) + "\n" + json.dumps({"n": 2**63}), encoding="utf-8")
    assert f"{file} line 2, column 'n': {2**63} does not fit into 64 bits" in refusal(file)
    file.write_text(json.dumps({"n": 2**63 - 1}), encoding="utf-8")
    assert read(file) == [{"n": 2**63 - 1}]


def test_a_byte_order_mark_is_not_part_of_the_text(file: Path) -> None:
    """Files of some Windows editors begin with a byte order mark and have CR LF line ends. Both are skipped."""
    rows = [{"q": "a"}, {"q": "b"}]
    file.write_bytes("".join(json.dumps(row) + "\r\n" for row in rows).encode("utf-8-sig"))
    assert file.read_bytes().startswith(b"\xef\xbb\xbf") and b"\r\n" in file.read_bytes()
    assert read(file) == rows
    file.write_bytes(json.dumps(rows[0]).encode("utf-16"))
    assert f"{file} cannot be read" in refusal(file)


def test_line_numbers_of_rows_are_those_of_an_editor(file: Path) -> None:
    """A row's line number counts blank lines. U+2028 inside a string does not end a line."""
    text = "\n\n" + json.dumps({"q": "a\u2028b"}, ensure_ascii=False) + "\r\n \r\n" + json.dumps({"q": "c"}) + "\n"
    file.write_text(text, encoding="utf-8-sig", newline="")
    assert [line_of(file, row) for row in range(3)] == [3, 5, None]
    assert len(read(file)) == 2


@pytest.mark.parametrize(
    ("name", "unread"), [("gsm8k", "validation"), ("medmcqa", "test"), ("mnli", "test"), ("arc_easy", "extra")]
)
def test_only_files_that_the_task_needs_are_read(tmp_path: Path, name: str, unread: str) -> None:
    """Files of roles that the task does not use may be missing or damaged. medmcqa's test role uses its validation file."""
    write_rows(tmp_path / name, ROWS[name])
    HarnessTask(find_task_file(name), tmp_path)
    (tmp_path / name / f"{unread}.jsonl").write_text("no JSON", encoding="utf-8")
    task = HarnessTask(find_task_file(name), tmp_path)
    assert {role: len(task.documents(role)) for role in ROWS[name] if role in task.split_names} == {
        role: len(rows) for role, rows in ROWS[name].items()
    }
    needed = tmp_path / name / "train.jsonl"
    needed.write_text("no JSON", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"train\.jsonl line 1, column 1: not JSON"):
        HarnessTask(find_task_file(name), tmp_path)


def test_test_documents_of_medmcqa_are_its_validation_rows(tmp_path: Path) -> None:
    """If two roles share a split, they share one file."""
    write_rows(tmp_path / "medmcqa", ROWS["medmcqa"])
    task = HarnessTask(find_task_file("medmcqa"), tmp_path)
    assert task.documents("test").to_list() == task.documents("validation").to_list() == ROWS["medmcqa"]["validation"]


def test_a_missing_split_of_a_task_names_the_file(tmp_path: Path) -> None:
    """If the test rows are missing, the message names the file to write."""
    write_rows(tmp_path / "gsm8k", {"train": ROWS["gsm8k"]["train"]})
    with pytest.raises(BenchmarkError) as caught:
        HarnessTask(find_task_file("gsm8k"), tmp_path)
    assert str(tmp_path / "gsm8k" / "test.jsonl") in str(caught.value)
