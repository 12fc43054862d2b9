"""The reference command line as frozen dataclasses: their fields are the flags, their docstrings the help.

``--train_param.learning_rate 1e-4`` is ``RunFlags.train_param.learning_rate``. ``reference.run_spec`` turns them into what a run
takes; flags whose effect is built in are accepted with a line that says so, flags that would change the protocol are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_harmony.benchmarks.types import SplitProtocol
from lm_harmony.recipe import CHAT_TEMPLATE_DATE, Lora

BUILT_IN = {
    "train_param.packing": "batches are laid out by the engine; texts never see each other",
    "train_param.dataset_text_field": "the text is rendered by the benchmark's lm_eval task",
    "train_param.save_safetensors": "safetensors is the only format written",
    "train_param.auto_find_batch_size": "forward passes shrink by themselves when memory runs out; the optimizer batch stays",
    "train_param.eval_accumulation_steps": "scores never stay on the accelerator",
    "train_param.eval_steps": "validation comes after each epoch",
    "train_param.save_steps": "a checkpoint is written after each epoch",
}
"""Flag -> why it has nothing left to decide."""


@dataclass(frozen=True, kw_only=True)
class DatasetParam:
    """Which rows are used, and how they are rendered."""

    max_num_train: int = 50_000
    """Most training rows."""
    max_num_valid: int = 1_000
    """Most validation rows."""
    max_num_test: int = 10_000
    """Most test rows."""
    apply_chat_template: bool = False
    """Render training and scoring with the model's chat template."""
    chat_template_date: str = CHAT_TEMPLATE_DATE
    """What a chat template that asks for the date takes for today, as YYYY-MM-DD."""


@dataclass(frozen=True, kw_only=True)
class TrainParam:
    """Training, in the words of transformers' TrainingArguments."""

    max_seq_length: int = 1024
    """Longest training text in tokens; longer ones lose context from the left."""
    per_device_train_batch_size: int = 8
    """Sequences in one forward pass."""
    per_device_eval_batch_size: int = 8
    """Sequences in one scoring pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes in one optimizer step: the optimizer batch is this times per_device_train_batch_size."""
    auto_find_batch_size: bool = True
    """Built in: forward passes shrink when memory runs out."""
    load_best_model_at_end: bool = True
    """Test the best epoch by validation; off: the last epoch."""
    metric_for_best_model: str | None = None
    """Metric that chooses the epoch, as lm_eval keys it, with or without eval_ before it; default: the benchmark's own."""
    greater_is_better: bool = True
    """Direction of that metric; decides where the benchmark gives none, else it must agree with the benchmark's."""
    num_train_epochs: int = 5
    """Passes over the training rows."""
    max_steps: int = -1
    """Stop after this many optimizer steps; -1: never."""
    eval_strategy: str = "epoch"
    """epoch: the protocol chooses between epochs."""
    save_strategy: str = "epoch"
    """epoch, or no: a run that is stopped starts again from the beginning."""
    logging_strategy: str = "steps"
    """steps, epoch or no: which losses go to the trackers."""
    logging_steps: int = 10
    """Optimizer steps between two logged losses."""
    eval_steps: int | None = None
    """Built in: validation comes after each epoch."""
    save_steps: int | None = None
    """Built in: a checkpoint is written after each epoch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    eval_accumulation_steps: int | None = None
    """Built in: scores never stay on the accelerator."""
    optim: str = "adamw_torch"
    """adamw_torch, adamw_torch_fused, adafactor or sgd."""
    learning_rate: float = 2e-5
    """Peak learning rate."""
    lr_scheduler_type: str = "linear"
    """linear, cosine, constant, constant_with_warmup or polynomial."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup_steps: int = 0
    """Optimizer steps of warm-up."""
    warmup_ratio: float = 0.0
    """Warm-up as a fraction of all steps."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: never."""
    adam_beta1: float = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: float = 0.999
    """AdamW's decay of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    bf16: bool = False
    """The same as --dtype bfloat16."""
    fp16: bool = False
    """Refused: half precision without loss scaling loses small gradients."""
    report_to: str = "none"
    """Trackers: tensorboard, trackio, wandb (comma between several), or none."""
    dataset_text_field: str = "text"
    """Built in: the benchmark renders its text."""
    save_safetensors: bool = True
    """Built in: nothing else is written."""
    packing: bool = False
    """Built in: the engine lays out its batches."""
    seed: int = 0
    """The same as --random_seed."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Fine-tune a model on a benchmark's training split, choose the epoch on validation, and only then test."""

    base_model: str
    """Hub id or folder of the model."""
    task_name: str
    """An lm_eval task with a training split, or a task's YAML file; `lm-harmony benchmarks` lists the catalogue."""
    exp_name: str | None = None
    """Folder of the run below results_dir; default: <task>/<model>."""
    data_dir: Path | None = None
    """Folder with <task>/{train,validation,test}.jsonl; default: the hub."""
    include_path: Path | None = None
    """Folder with further task YAMLs."""
    split_protocol: SplitProtocol = "clean"
    """clean: no scored question in training; published: the published splits, leaks included."""
    random_seed: int = 0
    """Governs everything random: split, order, dropout, adapter."""
    eval_before_train: bool = False
    """Score the untouched model too (direct evaluation)."""
    eval_after_train: bool = True
    """Score the chosen epoch on the test split."""
    eval_every_epoch: bool = False
    """Add each epoch's test scores to the record, after the choice."""
    only_evaluate: bool = False
    """Score a finished run's weights again."""
    resume_from_checkpoint: bool = False
    """Continue an unfinished run after its last finished epoch."""
    overwrite: bool = False
    """Replace a run that is there."""
    completion_only: bool = False
    """Loss on the answer only."""
    max_new_tokens: int = 256
    """Longest generated answer in tokens."""
    eval_max_batch_size: int | None = None
    """Most sequences in one scoring pass, whatever per_device_eval_batch_size says."""
    use_peft: bool = True
    """Train a LoRA adapter; off: all weights."""
    dtype: str = "auto"
    """Base weights: float32, bfloat16, or auto (float32 on a CPU; where a GPU has it, bfloat16, or autocast of all weights)."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    engine: str = "auto"
    """auto: the fast forward passes where a probe finds them exact; plain: padded batches everywhere."""
    revision: str = "main"
    """Branch, tag or commit of the model."""
    trust_remote_code: bool = False
    """Run code from the model's repository."""
    results_dir: Path = Path("results")
    """Where runs are kept."""
    use_git: bool = True
    """Note the git revision of the working folder in the record."""
    debug: bool = False
    """Show tracebacks and the libraries' own messages."""
    dataset_param: DatasetParam = DatasetParam()
    """Which rows are used, and how they are rendered."""
    peft_config: Lora = Lora()
    """The LoRA adapter, in PEFT's words."""
    train_param: TrainParam = TrainParam()
    """Training, in the words of transformers' TrainingArguments."""
