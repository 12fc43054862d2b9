"""Measure the overhead of a study over the time of its runs, and the time to read 10,000 records: ``python -m bench.study``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
import yaml

from lm_harmony.demo.study import SHIPPED
from lm_harmony.demo.texts import TASKS
from lm_harmony.studies.study import Study

READ = """
import json, resource, sys, time
from pathlib import Path
from lm_harmony.analysis.load_records import find_runs
started = time.perf_counter()
records = [store.record() for store in find_runs(Path(sys.argv[1]))]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"count": len(records), "seconds": time.perf_counter() - started, "peak": peak}))
"""


@dataclass(frozen=True)
class Flags:
    """Sizes of this benchmark."""

    seeds: int = 40
    """Number of runs of the study."""
    records: int = 10_000
    """Number of records that are read."""


def main(flags: Flags) -> None:
    """Run a study of tiny runs and report its seconds and model loads. Then copy one record many times and read all copies."""
    with tempfile.TemporaryDirectory() as name:
        study = write_study(Path(name), flags.seeds)
        peak = run_study(Path(name) / "study.yaml")
        events = [json.loads(line) for line in (study.spec.results_dir / "events.jsonl").read_text().splitlines()]
        ends = [event for event in events if event["event"] == "run_finished"]
        records = study.records()
        work = sum(record.costs[f"{phase}_seconds"] for record in records for phase in ("training", "validation", "test"))
        each = (ends[-1]["time"] - ends[0]["time"]) / (len(ends) - 1)
        overhead = each - work / len(ends)
        print(f"{len(ends)} runs, the first after {ends[0]['time'] - events[0]['time']:.1f} s, then one each {each:.2f} s,")
        print(f"of which {overhead:.2f} s are not training, validation or test")
        print(f"the base was loaded {ends[-1]['loads']} time(s); the coordinator's peak memory is {peak / 2**20:.0f} MiB")
        reading = read_many(next(study.spec.results_dir.rglob("record.json")), Path(name) / "many", flags.records)
        print(f"{flags.records:,} records read in {reading['seconds']:.1f} s with {reading['peak'] / 2**20:.0f} MiB")
    loads = ends[-1]["loads"]
    print(json.dumps({"bench": "study", "overhead": overhead, "loads": loads, "coordinator": peak, "records": reading}))


def write_study(folder: Path, seeds: int) -> Study:
    """Write a study file for ``seeds`` runs of the smallest demo model on one demo benchmark."""
    content = {
        "models": [str(SHIPPED / "models" / "llama-1")],
        "benchmarks": [str(TASKS / "micro_reviews.yaml")],
        "seeds": list(range(seeds)),
        "recipe": {"epochs": 1, "lora": {"target_modules": ["all-linear"]}},
        "max_num_train": 16,
        "max_num_valid": 8,
        "max_num_test": 8,
        "data_dir": str(SHIPPED / "rows"),
        "execution": {"device": "cpu"},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return Study.read(folder / "study.yaml")


def run_study(path: Path) -> int:
    """Run the study command. Return the peak resident memory of its coordinator process in bytes."""
    process = subprocess.Popen([sys.executable, "-m", "lm_harmony.cli", "study", str(path)], stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.05)
    assert process.returncode == 0, "the study failed"
    return peak


def read_many(record: Path, results: Path, count: int) -> dict[str, float]:
    """Copy a record ``count`` times and read all copies in a new process."""
    for number in range(count):
        folder = results / f"{number % 100}" / f"{number}"
        folder.mkdir(parents=True)
        shutil.copyfile(record, folder / "record.json")
    done = subprocess.run([sys.executable, "-c", READ, str(results)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main(tyro.cli(Flags))
