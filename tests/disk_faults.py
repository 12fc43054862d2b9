"""A process whose writes fail: ``python disk_faults.py FOLDER`` carries out a run again and again and prints JSON about it.

It is started with ``tests/disk_faults.c`` preloaded (``started``). A run on a tiny model is executed as a worker does it. In each
turn one write below the results fails, and then the run is executed again without a fault.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("disk_faults.c")
ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")


def started(folder: Path, turns: int) -> dict[str, Any]:
    """Compile the library, run this file with it, and return what it printed."""
    library = folder / "disk_faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, __file__, str(folder), str(turns)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(folder: Path, turns: int) -> dict[str, Any]:
    """Carry out the run without a fault and then ``turns`` times with one; return what happened."""
    sys.path.insert(0, str(Path(__file__).parent / "studies"))
    from world import write_world

    from lm_harmony.studies.messages import Outcome
    from lm_harmony.studies.study import Study
    from lm_harmony.studies.worker import RunExecutor

    faults, draw = ctypes.CDLL(None), random.Random(0)
    study = Study.read(write_world(folder, models=["models/llama"], benchmarks=["parity.yaml"], seeds=[0]))
    (run,) = study.runs
    executor, results = RunExecutor(), str(run.results_dir)
    faults.fault_log(str(folder / "log").encode())
    faults.fault_set(results.encode(), 0, 0, 0)
    assert executor.execute(run).outcome == Outcome.FINISHED
    operations = faults.fault_count()
    faults.fault_log(None)
    reference = run.store.record()
    outcomes: list[list[object]] = []
    for turn in range(turns):
        shutil.rmtree(results)
        name, at, lasting = draw.choice(ERRORS), draw.randint(1, operations), draw.random() < 0.5
        faults.fault_set(results.encode(), getattr(errno, name), at, int(lasting))
        with_fault = RunExecutor(executor._caches and replace(executor._caches)).execute(run)
        faults.fault_set(results.encode(), 0, 0, 0)
        finished = run.state().finished
        same = not finished or run.store.record() == reference
        again = executor.execute(run)
        complete = again.outcome == Outcome.FINISHED and run.store.record() == reference
        left = [str(path) for path in run.results_dir.rglob(".*") if path.name.endswith((".part", ".lease"))]
        outcomes.append([turn, name, at, lasting, str(with_fault.outcome), with_fault.cause, same, complete, left])
    return {"operations": operations, "results": results, "outcomes": outcomes, "log": str(folder / "log")}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
