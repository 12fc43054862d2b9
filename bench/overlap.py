"""Time of ``lm-harmony benchmarks --overlap`` by the number of training rows: ``python -m bench.overlap``."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
import yaml

from lm_harmony.benchmarks.harness import open_task
from lm_harmony.benchmarks.near_duplicates import near_duplicates
from lm_harmony.cli.console import quiet_libraries

TASK = {
    "task": "made",
    "dataset_path": "made",
    "output_type": "multiple_choice",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WORDS, VOCABULARY, SCORED = 40, 50_000, 2_000
"""Words of a question, words to draw from, and scored rows."""


@dataclass
class Flags:
    """What is timed."""

    rows: tuple[int, ...] = (100_000, 400_000)
    """Numbers of training rows."""


def main(flags: Flags) -> None:
    """Write rows of random words, and print the seconds and the microseconds a training row for each number of them."""
    quiet_libraries()
    draw = np.random.default_rng(0)
    for count in flags.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "made").mkdir()
            for split, size in (("train", count), ("test", SCORED)):
                with (folder / "made" / f"{split}.jsonl").open("w") as file:
                    for numbers in draw.integers(VOCABULARY, size=(size, WORDS)):
                        question = " ".join(f"w{number}" for number in numbers)
                        file.write(json.dumps({"question": question, "choices": ["one", "two"], "label": 0}) + "\n")
            (folder / "made.yaml").write_text(yaml.safe_dump(TASK))
            task = open_task(str(folder / "made.yaml"), data_dir=folder)
            started = time.perf_counter()
            near_duplicates(task)
            seconds = time.perf_counter() - started
            print(f"{count:,} training rows: {seconds:.1f} s, {1e6 * seconds / count:.0f} microseconds a row", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Flags))
