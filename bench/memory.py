"""Compare the estimated memory of a run with its measured peak: ``python -m bench.memory``. Each run is a process of its own."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from lm_harmony.engine.memory_estimate import estimate_memory
from lm_harmony.engine.model_size import model_size
from lm_harmony.models.device import choose_precision, gib
from lm_harmony.models.loading import load_without_weights
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.memory_check import memory_settings
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

QWEN = "Qwen2.5-0.5B-shape"
KINDS = ("lora", "lora+checkpointing", "full", "full+checkpointing")
_TASK = """\
task: rows
dataset_path: rows
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: [" yes", " no"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of this benchmark."""

    models: tuple[Path, ...]
    """Folders of models. The first one is also trained with all weights and with gradient checkpointing."""
    qwen: bool = False
    """Also measure the shape of Qwen2.5-0.5B with random weights, with the tokenizer of the first model."""
    tokens: int = 1024
    """Tokens of each row."""
    only: tuple[Path, str] | None = None
    """Measure one model and one kind of training in this process, and print a JSON line."""


def main(flags: Flags) -> None:
    """Print estimate and peak of each run."""
    if flags.only is not None:
        print(json.dumps(measure(*flags.only, tokens=flags.tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = [(flags.models[0], kind) for kind in KINDS] + [(model, "lora") for model in flags.models[1:]]
        if flags.qwen:
            runs.append((write_qwen(Path(folder) / QWEN, flags.models[0]), "lora"))
        table = Table("model", "training", "estimate", "measured peak", "estimate / peak")
        for model, kind in runs:
            command = [sys.executable, "-m", "bench.memory", "--models", str(model), "--tokens", str(flags.tokens)]
            done = subprocess.run([*command, "--only", str(model), kind], check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            ratio = f"{found['estimate'] / found['peak']:.2f}"
            table.add_row(model.name, kind, gib(found["estimate"]), gib(found["peak"]), ratio)
            print(json.dumps({"model": model.name, "training": kind, **found}), flush=True)
    Console(width=110).print(table)


def write_qwen(folder: Path, tokenizer: Path) -> Path:
    """Write a model with the shape of Qwen2.5-0.5B and random weights; return its folder."""
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def measure(model: Path, kind: str, *, tokens: int) -> dict[str, int]:
    """Carry out a short run and return its estimated and its measured bytes."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        spec = RunSpec(
            model=ModelSpec(name=str(model)),
            benchmark=BenchmarkSpec(task=str(write_rows(Path(folder), tokens)), data_dir=Path(folder)),
            recipe=Recipe(epochs=1, batch_size=2, max_length=tokens, lora=Lora() if kind.startswith("lora") else None),
            execution=Execution(device="cpu", gradient_checkpointing="checkpointing" in kind, use_git=False),
        )
        hollow = load_without_weights(str(model))
        precision = choose_precision("auto", device_type="cpu", has_bfloat16=False, adapter=spec.recipe.lora is not None)
        settings = memory_settings(spec, precision, "cpu")
        estimate = estimate_memory(model_size(hollow, spec.recipe), settings, tokens=tokens)
        train_before_test(spec, RunStore(Path(folder) / "run"))
    return {"estimate": estimate.total, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def write_rows(folder: Path, tokens: int) -> Path:
    """Write four training rows that are at least ``tokens`` long, and short rows for scoring; return the file of the task."""
    (folder / "rows.yaml").write_text(_TASK, encoding="utf-8")
    (folder / "rows").mkdir()
    for split, count, words in (("train", 4, tokens), ("validation", 1, tokens // 2), ("test", 1, tokens // 2)):
        rows = [json.dumps({"text": f"row {split} {row}" + " the" * words, "label": 0}) for row in range(count)]
        (folder / "rows" / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "rows.yaml"


if __name__ == "__main__":
    main(tyro.cli(Flags))
