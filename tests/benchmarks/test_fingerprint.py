"""The fingerprint of a run's data changes with every character that is learned, asked or counted, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import ROWS
from task_files import PARITY, Row, numbers, own_task, write_rows

from lm_harmony.benchmarks.harness import HarnessTask
from lm_harmony.benchmarks.splits import make_splits
from lm_harmony.benchmarks.task_index import find_task_file
from lm_harmony.benchmarks.types import Caps, SplitProtocol

FIRSTS = {"train": 0, "validation": 10, "test": 20}


def fingerprint(folder: Path, rows: dict[str, list[Row]], protocol: SplitProtocol = "clean", **fields: Any) -> str:
    task = own_task(folder, rows, **{**PARITY, **fields})
    return make_splits(task, caps=Caps(), seed=0, protocol=protocol, chat=None).fingerprint()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fingerprint_changes_with_any_letter_of_any_row(data: st.DataObject, tmp_path: Path) -> None:
    """One other character in one question of one split, or one other label, is other data."""
    rows = {"train": numbers(6), "validation": numbers(3, 10), "test": numbers(3, 20)}
    before = fingerprint(tmp_path, rows)
    role = data.draw(st.sampled_from(sorted(rows)))
    row = data.draw(st.sampled_from(rows[role]))
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(row["question"]) - 1))
        row["question"] = row["question"][:place] + "#" + row["question"][place + 1 :]
    else:
        row["label"] = 1 - row["label"]
    assert fingerprint(tmp_path, rows) != before


def test_fingerprint_stays_where_no_text_changes(tmp_path: Path) -> None:
    """Layout of the files, columns that the task does not read, and the protocol where nothing recurs change nothing."""
    rows = {"train": numbers(6), "validation": numbers(3, 10), "test": numbers(3, 20)}
    before = fingerprint(tmp_path, rows)
    turned = {role: [dict(reversed({**row, "note": "other", "new": 1}.items())) for row in some] for role, some in rows.items()}
    assert fingerprint(tmp_path, turned) == before
    assert fingerprint(tmp_path, rows, "published") == before
    assert len(before) == 16
    assert int(before, 16) >= 0


def test_fingerprint_tells_order_splits_and_template(tmp_path: Path) -> None:
    """Rows in another order, in another split, or under another template are other data."""
    rows = {"train": numbers(6), "validation": numbers(3, 10), "test": numbers(3, 20)}
    moved = {**rows, "train": numbers(5), "validation": [*numbers(1, 5), *numbers(3, 10)]}
    swapped = {**rows, "train": [*numbers(4), *reversed(numbers(2, 4))]}
    found = [fingerprint(tmp_path, some) for some in (rows, moved, swapped)]
    found += [
        fingerprint(tmp_path, rows, doc_to_text="{{question}}\n"),
        fingerprint(tmp_path, rows, doc_to_choice=["odd", "Even"]),
    ]
    assert len(set(found)) == 5


def test_fingerprint_tells_wrong_choices(tmp_path: Path) -> None:
    """A wrong choice is not learned, and still decides what is scored."""
    found = []
    for wrong in ("even", "Even"):
        rows = {
            role: [{**row, "label": 0, "choices": ["odd", wrong]} for row in numbers(3, first)] for role, first in FIRSTS.items()
        }
        found.append(fingerprint(tmp_path, rows, doc_to_choice="choices"))
    assert found[0] != found[1]


def test_fingerprint_tells_how_an_answer_is_written(tmp_path: Path) -> None:
    """The delimiter of a written answer is learned, and stands in no request."""
    rows = {role: [{**row, "label": "odd"} for row in numbers(3, first)] for role, first in FIRSTS.items()}
    written = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": [{"metric": "exact_match"}]}
    assert fingerprint(tmp_path, rows, **written) != fingerprint(tmp_path, rows, target_delimiter="\n", **written)


def test_fingerprint_tells_what_counts_as_right(tmp_path: Path) -> None:
    """A second right answer of a test row is not learned, and still decides the score: the data is other data."""
    rows = {role: [dict(row) for row in some] for role, some in ROWS["nq_open"].items()}
    rows["train"] = [{**rows["train"][0], "question": f"question {number}"} for number in range(5)]
    found = []
    for answer in (["1954", "in 1954"], ["1954", "May 1954"]):
        rows["validation"][0]["answer"] = answer
        write_rows(tmp_path / "nq_open", rows)
        task = HarnessTask(find_task_file("nq_open"), tmp_path)
        found.append(make_splits(task, caps=Caps(), seed=0, protocol="clean", chat=None).fingerprint())
    assert found[0] != found[1]
