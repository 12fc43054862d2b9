"""The flags of ``lm-harmony place``. A field is a flag, and its docstring is the flag's help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_harmony.benchmarks.types import SplitProtocol
from lm_harmony.cli.console import Format
from lm_harmony.cli.run_flags import DatasetParam, TrainParam
from lm_harmony.recipe import Lora


@dataclass(frozen=True, kw_only=True)
class PlaceFlags:
    """The flags of ``lm-harmony place``; those of runs have the names and defaults of ``lm-harmony run``."""

    model: str | None = None
    """Name of the model in the results, or the end of its folder's path; default: the only one."""
    suggest: int | None = None
    """Number of benchmarks to suggest: those that predict places best with few training rows."""
    until: int | None = None
    """Run benchmarks until the worst rank of the interval is at most this many places below the best one."""
    hours: float | None = None
    """Run benchmarks as long as the next one is predicted to end within this many hours from now."""
    format: Format = "table"
    """table is for people; csv, json and markdown have the position, the suggested benchmarks or, with --dry_run, the plan. The
    lines for people then go to standard error."""
    dry_run: bool = False
    """Only show the order of the benchmarks, their hours and what is expected of them."""
    hardware: str = "here"
    """Machine that hours are predicted for: h200, h100, a100, l40s, rtx4090, or here (this machine, measured for up to 30
    seconds)."""
    workers: int = 1
    """Number of benchmarks that run at the same time."""
    retry_failed: bool = False
    """Carry out failed runs again."""
    results_dir: Path = Path("results")
    """Folder in which runs are kept. Finished runs of the same recipe are not repeated."""
    data_dir: Path | None = None
    """Folder with <task>/{train,validation,test}.jsonl; benchmarks that are not in it are left out; default: rows come from the
    hub."""
    split_protocol: SplitProtocol = "clean"
    """clean: no scored question is trained on; published: the splits of the paper, with their leaks."""
    random_seed: int = 0
    """Seed of everything random: validation split, order of rows, dropout, initial adapter."""
    dtype: str = "auto"
    """dtype of the base weights: float32, bfloat16 or auto."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, mps or auto."""
    engine: str = "auto"
    """Forward passes: auto, plain or compiled, as for lm-harmony run."""
    revision: str = "main"
    """Branch, tag or commit of the model on the hub."""
    trust_remote_code: bool = False
    """Allow code from the model's repository to run."""
    dataset_param: DatasetParam = DatasetParam()
    """Number of rows, and how they are rendered. With fewer training rows, scores cannot be compared with the published board."""
    peft_config: Lora = Lora()
    """The LoRA adapter, with the names of peft.LoraConfig."""
    train_param: TrainParam = TrainParam()
    """Training arguments, named as in transformers' TrainingArguments."""
