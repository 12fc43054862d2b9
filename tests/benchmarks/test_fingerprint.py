"""The fingerprint of a run's data changes with every trained, requested or scored character, and with nothing else."""

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
def test_fingerprint_changes_with_any_character_of_any_row(data: st.DataObject, tmp_path: Path) -> None:
    """Changing one character of a question, or one label, in any split changes the fingerprint."""
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


def test_fingerprint_is_unchanged_if_no_text_changes(tmp_path: Path) -> None:
    """File layout and unused columns have no effect. Neither has the protocol, if no question recurs."""
    rows = {"train": numbers(6), "validation": numbers(3, 10), "test": numbers(3, 20)}
    before = fingerprint(tmp_path, rows)
    turned = {role: [dict(reversed({**row, "note": "other", "new": 1}.items())) for row in some] for role, some in rows.items()}
    assert fingerprint(tmp_path, turned) == before
    assert fingerprint(tmp_path, rows, "published") == before
    assert len(before) == 16
    assert int(before, 16) >= 0


def test_fingerprint_depends_on_row_order_splits_and_template(tmp_path: Path) -> None:
    """The fingerprint changes if rows are in another order or split, or are rendered with another template."""
    rows = {"train": numbers(6), "validation": numbers(3, 10), "test": numbers(3, 20)}
    moved = {**rows, "train": numbers(5), "validation": [*numbers(1, 5), *numbers(3, 10)]}
    swapped = {**rows, "train": [*numbers(4), *reversed(numbers(2, 4))]}
    found = [fingerprint(tmp_path, some) for some in (rows, moved, swapped)]
    found += [
        fingerprint(tmp_path, rows, doc_to_text="{{question}}\n"),
        fingerprint(tmp_path, rows, doc_to_choice=["odd", "Even"]),
    ]
    assert len(set(found)) == 5


def test_fingerprint_depends_on_wrong_choices(tmp_path: Path) -> None:
    """A wrong choice is not trained on, but it is scored."""
    found = []
    for wrong in ("even", "Even"):
        rows = {
            role: [{**row, "label": 0, "choices": ["odd", wrong]} for row in numbers(3, first)] for role, first in FIRSTS.items()
        }
        found.append(fingerprint(tmp_path, rows, doc_to_choice="choices"))
    assert found[0] != found[1]


def test_fingerprint_depends_on_the_delimiter_of_a_generated_answer(tmp_path: Path) -> None:
    """The delimiter before a generated answer is trained on, but it is in no request."""
    rows = {role: [{**row, "label": "odd"} for row in numbers(3, first)] for role, first in FIRSTS.items()}
    written = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": [{"metric": "exact_match"}]}
    assert fingerprint(tmp_path, rows, **written) != fingerprint(tmp_path, rows, target_delimiter="\n", **written)


def test_fingerprint_depends_on_the_right_answers(tmp_path: Path) -> None:
    """A second right answer of a test row is not trained on, but it changes the score."""
    rows = {role: [dict(row) for row in some] for role, some in ROWS["nq_open"].items()}
    rows["train"] = [{**rows["train"][0], "question": f"question {number}"} for number in range(5)]
    found = []
    for answer in (["1954", "in 1954"], ["1954", "May 1954"]):
        rows["validation"][0]["answer"] = answer
        write_rows(tmp_path / "nq_open", rows)
        task = HarnessTask(find_task_file("nq_open"), tmp_path)
        found.append(make_splits(task, caps=Caps(), seed=0, protocol="clean", chat=None).fingerprint())
    assert found[0] != found[1]
