"""Everything about a GPU in twelve minutes: ``python bench/gpu_day.py --out gpu.jsonl``.

It needs a checkout, torch, transformers and peft; neither lm_eval nor datasets, no model folder and no network. Each figure is a
JSON line in ``--out`` the moment it is known. ``--report gpu.jsonl`` prints the tables of docs/performance.md, ``--tiny`` runs
every step with tiny shapes on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# As a script this file puts its own folder on the path, not the checkout; the package may not be installed.
sys.path[:] = [str(ROOT / "src"), str(ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "bench")]

from bench.gpu.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
