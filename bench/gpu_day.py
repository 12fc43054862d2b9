"""Measure exactness, speed and memory on a GPU in at most twelve minutes: ``python bench/gpu_day.py --out gpu.jsonl``.

It needs a checkout, torch, transformers and peft. It does not need lm_eval, datasets, a model folder or a network. Each result is
written to ``--out`` as a JSON line as soon as it is known. ``--report gpu.jsonl`` prints the tables of docs/performance.md.
``--tiny`` runs every step with tiny shapes on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# When it runs as a script, sys.path has its folder but not the checkout. The package may not be installed.
sys.path[:] = [str(ROOT / "src"), str(ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "bench")]

from bench.gpu.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
