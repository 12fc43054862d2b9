"""What the command line prints: usage errors in one line, short help, and tables that fit the terminal without cutting ids."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from golden_study import COMMANDS
from rich.console import Console
from rich.table import Table

from lm_harmony.benchmarks.catalogue import BENCHMARKS
from lm_harmony.cli import console
from lm_harmony.cli.main import main
from lm_harmony.cli.run_flags import BUILT_IN, TrainParam
from lm_harmony.models.catalogue import MODELS


def printed(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command line in this process; return its exit status and what it printed to stdout and stderr."""
    try:
        status = main(words.split())
    except SystemExit as end:
        status = int(end.code or 0)
    found = capsys.readouterr()
    return status, found.out, found.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stuy x.yaml", "there is no command 'stuy'. Did you mean 'study' or 'status'? Commands: run, place,"),
        ("run", "missing: --base_model, --task_name."),
        ("run --base_modl x --task_name y", "missing: --base_model. Unknown: --base_modl. Did you mean '--base_model'?"),
        ("run --base_model", "missing value for argument '--base_model'."),
        ("run --base_model a --task_name b --train_param.learning_rat 3", "Did you mean --train_param.learning_rate?"),
        (
            "run --base_model a --task_name b --train_param.learning_rate x",
            "--train_param.learning_rate must be a number, got 'x'.",
        ),
        ("run --base_model a --task_name b --split_protocol x", "Expected one of ('clean', 'published')."),
        ("plan x.yaml --worker 3", "unrecognized options: --worker, 3. Did you mean --workers?"),
        ("page --format x", "unrecognized or misplaced options: --format x."),  # another command has this flag
        ("study", "missing: PATH (the study's YAML file)."),
        ("compare results", "STR (name of another model)."),
    ],
)
def test_a_usage_error_is_one_line_and_a_pointer_to_the_help(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = printed(words, capsys)
    first, second = error.splitlines()
    assert status == 2 and out == "" and first.startswith("lm-harmony: ") and message in first
    assert second == ("See lm-harmony --help." if words.startswith("stuy") else f"See lm-harmony {words.split()[0]} --help.")


def test_underscores_and_dashes_both_work(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("run --base-model m --task-name nowhere", "run --base_model m --task_name nowhere"):
        status, _, error = printed(words, capsys)
        assert status == 1 and "lm_eval has no task 'nowhere'" in error


def test_the_short_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = printed("-h", capsys)
    assert status == 0 and len(out.splitlines()) == 25 and "  study        Carry out the runs" in out
    status, out, _ = printed("run -h", capsys)
    assert status == 0 and len(out.splitlines()) == 3 and "Example: lm-harmony run --base_model" in out
    status, long, _ = printed("run --help", capsys)
    assert status == 0 and len(long.splitlines()) > 100
    assert "--version" in printed("--help", capsys)[1]


def test_the_help_has_groups_of_commands_each_with_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = on_terminal("--help", 80, capsys, monkeypatch)
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    heads = [line for line in out.splitlines() if line.endswith(":")]
    assert heads == ["One model:", "Studies of several models and benchmarks:", "Results:", "Exchange with others:", "Catalogue:"]
    words = " ".join(out.split())
    for command in COMMANDS:
        assert f" {command} " in words and f" $ lm-harmony {command}" in words, f"{command} has no line or no example"
    assert on_terminal("", 80, capsys, monkeypatch) == out


def test_the_help_of_a_word_after_the_command_has_that_word(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = printed("board add --help", capsys)
    assert status == 0 and "usage: lm-harmony board [-h] [BOARD OPTIONS] {add} " in " ".join(out.split())


def test_flags_without_effect_come_last_in_the_help() -> None:
    names = list(TrainParam.__dataclass_fields__)
    assert {f"train_param.{name}" for name in names[-len(BUILT_IN) :]} == set(BUILT_IN)


def on_terminal(words: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    status, out, _ = printed(words, capsys)
    assert status == 0
    return out


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("words", "ids"),
    [("benchmarks", BENCHMARKS), ("models", MODELS), ("leaderboard --published", MODELS)],
)
def test_ids_are_never_cut(
    words: str, ids: dict[str, object], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less important columns are left out, and a line names them."""
    out = on_terminal(words, columns, capsys, monkeypatch)
    table = [line for line in out.splitlines() if line.startswith("│")]
    assert all(len(line) <= columns for line in table) and "…" not in out
    cells = {cell.strip() for line in table for cell in line.split("│")}
    assert set(ids) <= cells
    assert ("columns left out: " in out) == (columns == 80 or words == "benchmarks")


def test_a_column_that_must_stay_is_folded() -> None:
    """Negative control of the test above: rich alone cuts the same cells."""
    table = Table("id", "about")
    table.add_row("a" * 30, "b" * 30)
    narrow = Console(width=40, file=io.StringIO(), force_terminal=True)
    for column in table.columns:
        column.no_wrap = True
    narrow.print(table)
    assert "…" in narrow.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", ["benchmarks", "models", "compare published google/gemma-7b Qwen/Qwen2-7B"])
def test_other_formats_have_every_column_and_nothing_else(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(f"{words} --format json", capsys)[1])
    text = printed(f"{words} --format csv", capsys)[1]
    assert list(csv.DictReader(io.StringIO(text))) == rows and len(rows) > 20
    lines = printed(f"{words} --format markdown", capsys)[1].splitlines()
    assert len(lines) == len(rows) + 2 and all(line.startswith("| ") for line in lines)


def test_cells_with_markup_and_bars_are_written_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = Table("a", "b")
    table.add_row(r"\[x]", "c|d")
    console.show_table(table, format="csv")
    console.show_table(table, format="markdown")
    assert capsys.readouterr().out == "a,b\n[x],c|d\n| a | b |\n| --- | --- |\n| [x] | c\\|d |\n"
