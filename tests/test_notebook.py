"""The notebook's cells run from top to bottom on a CPU, as a reader runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from fork_server import forked_python

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "train_before_test.ipynb"


def test_the_cells_run_in_their_order(tmp_path: Path) -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    install, *code = cells
    assert install == "%pip install --quiet lm-harmony" and len(code) == 3
    assert not any(cell.get("outputs") for cell in content["cells"])  # an output of another version would mislead
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = [forked_python(variables), "-c", "\n".join(code)]
    done = subprocess.run(program, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = re.findall(r"^(llama-3|neox-3) direct (\S+) ± \S+ trained (\S+) ±", done.stdout, flags=re.MULTILINE)
    assert [name for name, _, _ in scores] == ["llama-3", "neox-3"], done.stdout
    assert re.search(r"^1 \S+ PC1 \d+, rank 1 to \d+$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^rank \d+, \d+ to \d+, among 60 other models$", done.stdout, flags=re.MULTILINE)
