"""The study behind the golden files: three tiny models on a choice, a written answer and a text corpus, by the command line only.

`python tests/golden_study.py` writes tests/golden again; do so only where a number is meant to change, and say why in the commit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from fork_server import forked_python
from tiny import write_tiny_model

from lm_harmony.runs.environment import cpu_name

GOLDEN = Path(__file__).with_name("golden")
COMMANDS = (
    "run",
    "plan",
    "fetch",
    "study",
    "status",
    "leaderboard",
    "analyze",
    "audit",
    "rows",
    "compare",
    "export",
    "submit",
    "board",
    "place",
    "page",
    "benchmarks",
    "models",
    "demo",
)
MODELS = ("llama", "gpt_neox", "gpt2")
RECIPE = {"epochs": 3, "learning_rate": 0.02, "max_new_tokens": 6, "lora": {"target_modules": ["all-linear"]}}
WORDS = ("fox", "dog", "city", "river", "wood", "heat")
"""What answers depend on, so that models can learn it."""
_CHOSEN = """\
task: NAME
dataset_path: NAME
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: "number {{number}} is"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
_WRITTEN = """\
task: letters
dataset_path: letters
output_type: generate_until
training_split: train
validation_split: validation
test_split: test
doc_to_text: "letter {{number}}:"
doc_to_target: " {{word}}"
generation_kwargs: {until: ["."], do_sample: false}
metric_list:
  - metric: chrf
    aggregation: chrf
    higher_is_better: true
"""


def write_study(folder: Path) -> Path:
    """Write models, benchmarks and study.yaml below ``folder``; return the study file's path."""
    for model in MODELS:
        write_tiny_model(folder / "models" / model, model)
    for name, every in (("fives", 5), ("threes", 3)):
        (folder / f"{name}.yaml").write_text(_CHOSEN.replace("NAME", name), encoding="utf-8")
        _write_rows(folder / "data" / name, partial(_choice, every))
    (folder / "letters.yaml").write_text(_WRITTEN, encoding="utf-8")
    _write_rows(
        folder / "data" / "letters", lambda number: {"number": f"{number} {WORDS[number % 6]}", "word": f"{WORDS[number % 2]}."}
    )
    _write_rows(folder / "fox", lambda number: {"text": f"The quick brown fox jumps over {number} lazy dogs."})
    study = {
        "models": [f"models/{model}" for model in MODELS],
        "benchmarks": ["fives.yaml", "threes.yaml", "letters.yaml", f"corpus:{folder / 'fox'}"],
        "seeds": [0, 1],
        "recipe": RECIPE,
        "direct": True,
        "results_dir": "results",
        "data_dir": "data",
        "execution": {"device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def _choice(every: int, number: int) -> dict[str, Any]:
    """Return a row whose choices change with it, so that models prefer different ones."""
    return {
        "number": f"{number} {WORDS[number % 6]}",
        "choices": [WORDS[(number * every + place) % 6] for place in range(3)],
        "label": number // every % 3,
    }


def _write_rows(folder: Path, row: Any) -> None:
    folder.mkdir(parents=True)
    number = 0
    for split, size in {"train": 48, "validation": 12, "test": 24}.items():
        lines = [json.dumps(row(number + place)) for place in range(size)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        number += size


def command(*words: str, cwd: Path | None = None, columns: int = 200) -> str:
    """Return what a command prints, on one thread and a terminal of ``columns``; fail if it fails."""
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": str(columns), "NO_COLOR": "1"}
    environment = {**os.environ, **settings}
    program = [forked_python(environment), "-m", "lm_harmony.cli", *words]
    done = subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def kernels() -> str:
    """Name what decides the last digits of a training: the processor's maker and instructions, and the version of torch.

    MKL computes with other code on AMD's processors than on Intel's.
    """
    maker = cpu_name().split()[0]
    return f"{maker} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__.split('+')[0]}"


def without_machine(values: Any, folder: Path) -> Any:
    """Return a record without seconds, versions and hardware, and with <study> for its folder."""
    if isinstance(values, dict):
        dropped = ("environment", "costs", "seconds", "validation_seconds", "sha256", "direct_id", "check")
        return {key: without_machine(value, folder) for key, value in values.items() if key not in dropped}
    if isinstance(values, list):
        return [without_machine(value, folder) for value in values]
    return re.sub(r".*/lm_harmony/", "<package>/", values.replace(str(folder), "<study>")) if isinstance(values, str) else values


def records(folder: Path) -> dict[str, Any]:
    """Return every record of the study by its run's name."""
    results = folder / "results"
    return {
        _without_id(path.parent.relative_to(results).as_posix()): without_machine(json.loads(path.read_text("utf-8")), folder)
        for path in sorted(results.rglob("record.json"))
    }


def _without_id(run: str) -> str:
    """Return a run's name; a corpus is named by its whole path, so that its id differs from folder to folder."""
    return re.sub(r"-[0-9a-f]{16}$", "", run) if run.startswith("corpus") else run


def file_names(folder: Path) -> list[str]:
    """Return every file below the results folder, with <time>, <id> and <pid> for what differs from run to run."""
    results = folder / "results"
    names = [path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()]
    for pattern, name in {r"results_[-T0-9.]+json": "results_<time>.json", r"[0-9a-f]{16}": "<id>", r"/\d+-": "/<pid>-"}.items():
        names = [re.sub(pattern, name, path) for path in names]
    return sorted(set(names))


def formats(folder: Path) -> dict[str, Any]:
    """Return the keys of each kind of file of a run, all the way down to values."""
    run = next((folder / "results" / "fives" / "llama").glob("seed0-*"))
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        if path.suffix in (".json", ".jsonl") and "adapter" not in path.parts:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
        elif path.suffix == ".yaml":
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        else:
            continue
        name = re.sub(r"results_[-T0-9.]+json", "results_<time>.json", path.relative_to(run).as_posix())
        found[name] = sorted(set(_keys(values)))
    first_event = (folder / "results" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    found["events.jsonl"] = sorted({f"{event['event']}: {', '.join(sorted(event))}" for event in map(json.loads, first_event)})
    return found


def _keys(values: Any, above: str = "") -> Iterator[str]:
    if isinstance(values, dict) and above.count(".") < 2 and not above.endswith(("versions", "pretty_env_info")):
        for key, value in values.items():
            yield from _keys(value, f"{above}.{key}" if above else key)
    else:
        yield above


def flags() -> dict[str, list[str]]:
    """Return the flags of each command with their values and defaults, as --help shows them; words of help are free."""
    found = {}
    for name in COMMANDS:
        # On a wide terminal the number of flags decides whether they are printed in one column or in several.
        text = re.sub(r"[│╭╮╰╯─]", " ", command(name, "--help", columns=129))
        lines = [re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines() if re.match(r"\s{1,3}(-|[A-Z{\[])", line)]
        defaults = re.findall(r"\(default: [^)]*\)", re.sub(r"\s+", " ", text))
        found[name] = [*(line for line in lines if line.startswith("-") or line.isupper() or line.endswith("PATH")), *defaults]
    return found


def boards(results: Path, out: Path) -> dict[str, str]:
    """Return what the commands make of a folder of records: boards, tables and page data, as text by name."""
    made = {
        f"leaderboard_{preparation}.csv": command("leaderboard", str(results), "--format", "csv", "--preparation", preparation)
        for preparation in ("trained", "direct")
    }
    board = json.loads(command("leaderboard", str(results), "--format", "json"))
    made["leaderboard.json"] = json.dumps(_without_words(board), indent=1)
    command("analyze", str(results), "--output", str(out / "analysis"), "--no-figures")
    for path in sorted((out / "analysis" / "tables").glob("*.csv")):
        made[f"tables/{path.name}"] = path.read_text(encoding="utf-8")
    for name, words in {"page.json": (str(results),), "page_published.json": ("--published",)}.items():
        command("page", *words, "--output", str(out / "board.html"))
        page = (out / "board.html").read_text(encoding="utf-8")
        data = re.search(r'<script[^>]*application/json[^>]*id="data"[^>]*>(.*?)</script>', page, re.S)
        assert data is not None
        made[name] = json.dumps(_without_words(json.loads(data[1])), indent=1)
    return made


def _without_words(values: Any) -> Any:
    """Return values without sentences for people: a sentence may be written better."""
    if isinstance(values, dict):
        return {key: _without_words(value) for key, value in values.items() if key != "version"}
    if isinstance(values, list):
        return [_without_words(value) for value in values]
    if isinstance(values, str):
        return "<words>" if values.count(" ") > 2 else values.replace(str(GOLDEN), "<golden>")
    return values


def write_golden(folder: Path) -> None:
    """Run the study below ``folder`` and write the golden files."""
    command("study", str(write_study(folder)))
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for path in sorted((folder / "results").rglob("*")):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".yaml") and not {"adapter", "direct"} & set(path.parts):
            copy = GOLDEN / "runs" / path.relative_to(folder / "results")
            if (
                any(part.startswith("seed0") for part in path.parts) or path.name == "record.json"
            ):  # files of one seed stand for all
                copy.parent.mkdir(parents=True, exist_ok=True)
                text = path.read_text(encoding="utf-8").replace(str(folder), "/study")
                copy.write_text(re.sub(r"/[^\s\"]*/src/lm_harmony/", "/package/lm_harmony/", text), encoding="utf-8")
    values = {"kernels": kernels(), "records": records(folder), "files": file_names(folder), "formats": formats(folder)}
    for name, value in {**values, "flags": flags()}.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, text in boards(GOLDEN / "runs", folder).items():
        path = GOLDEN / "boards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def differences(found: Any, golden: Any, *, allowed: float, place: str = "") -> Iterable[str]:
    """Yield where two structures differ: numbers by more than ``allowed`` relative to their size (at least 1), else at all."""
    if isinstance(found, float) and isinstance(golden, int | float) and allowed:
        if abs(found - golden) > allowed * max(1.0, abs(golden)):
            yield f"{place}: {found} instead of {golden}"
    elif isinstance(found, dict) and isinstance(golden, dict) and list(found) == list(golden):
        for key in golden:
            yield from differences(found[key], golden[key], allowed=allowed, place=f"{place}.{key}")
    elif isinstance(found, list) and isinstance(golden, list) and len(found) == len(golden):
        for number, pair in enumerate(zip(found, golden, strict=True)):
            yield from differences(*pair, allowed=allowed, place=f"{place}[{number}]")
    elif isinstance(found, str) and isinstance(golden, str) and allowed and NUMBER.sub("#", found) == NUMBER.sub("#", golden):
        numbers = zip(NUMBER.findall(found), NUMBER.findall(golden), strict=True)
        for one, other in numbers:
            yield from differences(float(one), float(other), allowed=allowed, place=place)
    elif found != golden:
        yield f"{place}: {str(found)[:200]} instead of {str(golden)[:200]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write_golden(Path(scratch))
