"""The page as a file: self-contained, small, and safe for any name. Also the command that writes it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_boards import CAUSE, GAP, MODELS, small_board

from lm_harmony.analysis.leaderboard import own_board
from lm_harmony.analysis.matrix import ScoreMatrix
from lm_harmony.analysis.score_rows import ScoreRow, ScoreRows
from lm_harmony.cli.main import main
from lm_harmony.errors import UsageError
from lm_harmony.report.page import json_for_html, page_text, write_page
from lm_harmony.report.page_data import page_data

DATA = page_data(small_board())


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_keeps_its_values_and_cannot_close_its_element(values: Any) -> None:
    text = json_for_html(values)
    assert json.loads(text) == values
    assert text.isascii() and not set(text) & set("<>&")


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_for_html([float("nan")])


def parts(text: str) -> dict[str, str]:
    return dict(re.findall(r'<script type="[^"]*" id="(\w+)">([^<]*)</script>', text))


def test_the_page_is_self_contained_and_small() -> None:
    text = page_text(page_data(None, published=True))
    assert len(text.encode()) < 6_000_000
    # Outside the bundled libraries, the page contains two URLs, links for readers, and loads nothing.
    own = re.sub(r'<script type="text/plain"[^<]*</script>', "", text)
    for link in ("https://arxiv.org/abs/2507.05195", "https://github.com/socialfoundations/lm-harmony"):
        assert own.count(f'<a href="{link}"') == 1
        own = own.replace(link, "")
    assert not re.search(r"https?://|<link[^>]+href=\"(?!data:)|\bsrc=|@import|url\(", own)
    assert "{{" not in own.replace("${{", "")


def test_policy_names_exactly_the_scripts_that_run() -> None:
    text = page_text(DATA)
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    [own] = re.findall(r"<script>(.*?)</script>", text, re.S)
    libraries = [gzip.decompress(base64.b64decode(parts(text)[name])).decode() for name in ("datatables", "plotly")]
    digests = {f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" for code in (own, *libraries)}
    assert policy.startswith("default-src 'none'; ")
    [allowed] = re.findall(r"script-src ([^;]*)", policy)
    assert set(allowed.split()) == digests
    assert "connect-src" not in policy and "unsafe-eval" not in policy


def test_equal_boards_give_equal_pages_but_for_their_date() -> None:
    day = date(2026, 1, 2)
    assert page_text(page_data(small_board()), day) == page_text(DATA, day)
    assert '<time datetime="2026-01-02">' in page_text(DATA, day)


def test_placeholders_in_names_are_not_replaced() -> None:
    data = page_data(small_board(("{{plotly}}", "{{data}}", "b")))
    assert [model["name"] for model in json.loads(parts(page_text(data))["data"])["models"]] == ["{{plotly}}", "{{data}}", "b"]


def test_data_agrees_with_analysis() -> None:
    matrix, board = small_board(), own_board(small_board())
    assert DATA["reference"] == board.reference
    view = DATA["views"]["trained"]
    rows = {row.model: row for row in board.rows}
    for at, name in enumerate(MODELS):
        assert view["components"]["rank"][at] == rows[name].rank
        for key in ("pc1", "low", "high"):
            expected = getattr(rows[name], key)
            assert view["components"][key][at] == (None if expected is None else pytest.approx(expected, rel=1e-9))
    at = (MODELS.index(GAP[0]), matrix.benchmark_names.index(GAP[1]))
    assert view["scores"][at[0]][at[1]] is None
    assert view["causes"][f"{at[0]} {at[1]}"] == CAUSE
    assert [facts["counts"] for facts in DATA["benchmarks"]] == [True, True, True, True, False]
    assert DATA["sizes"] == ["0 to 1 B", "1 to 3 B", "3 to 8 B", "8 B and more", "unknown"]


@pytest.mark.parametrize("models", [1, 2])
def test_very_small_boards_have_a_page(models: int) -> None:
    data = page_data(small_board(MODELS[:models], ("mnli",)))
    assert data["views"]["trained"]["components"] is None
    assert "no PC1" in data["reference"]


def test_a_matrix_without_scores_is_refused() -> None:
    nothing = ScoreRow(model="a", benchmark="mnli", preparation="trained", value=None)
    with pytest.raises(UsageError, match="has no scores"):
        page_data(ScoreMatrix.from_rows(ScoreRows(source="here", rows=(nothing,))))


def test_page_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "board.html"
    path.write_text("the old one")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_page({**DATA, "source": float("nan")}, path)
    assert path.read_text() == "the old one"
    write_page(DATA, path)
    assert path.read_text() == page_text(DATA)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["missing/board.html", "."])
def test_paths_that_cannot_be_written_are_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match="Name a file in an existing folder"):
        write_page(DATA, tmp_path / place)


def test_command_writes_the_published_board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "board.html"
    assert main(["page", "--published", "-o", str(output)]) == 0
    assert "61 models x 24 benchmarks" in capsys.readouterr().out
    found = json.loads(parts(output.read_text())["data"])
    assert found["views"]["direct"] is None
    assert found["views"]["trained"]["components"]["explained"][0] == pytest.approx(0.855, abs=5e-4)


def test_command_reads_tables_and_names_missing_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "scores.csv"
    lines = [
        f"{model},{task},trained,{0.1 * (row + column) + 0.05:.3f}"
        for row, model in enumerate("abcd")
        for column, task in enumerate(("mnli", "cola"))
    ]
    table.write_text("\n".join(["model,benchmark,preparation,score", *lines]))
    assert main(["page", str(table), "-o", str(tmp_path / "board.html")]) == 0
    assert "4 models x 2 benchmarks" in capsys.readouterr().out
    assert main(["page"]) == 1
    assert "add --published" in capsys.readouterr().err
    assert main(["page", str(tmp_path / "nothing"), "-o", str(tmp_path / "x.html")]) == 1
    assert not (tmp_path / "x.html").exists()


def test_without_plotly_the_message_gives_the_pip_command(tmp_path: Path) -> None:
    # A process in which plotly cannot be imported, as if the extra were not installed.
    code = (
        "import sys; from importlib.machinery import PathFinder; found = PathFinder.find_spec\n"
        "PathFinder.find_spec = staticmethod(lambda name, *more: None if name == 'plotly' else found(name, *more))\n"
        "from lm_harmony.cli.main import main; sys.exit(main(['page', '--published', '-o', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "board.html")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "lm-harmony[page]"' in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_page_imports_no_engine(tmp_path: Path) -> None:
    code = (
        "import sys; from lm_harmony.cli.main import main; main(['page', '--published', '-o', sys.argv[1]])\n"
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "board.html")], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
