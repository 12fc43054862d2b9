"""The flags of ``lm-harmony run`` as frozen dataclasses. A field is a flag, and its docstring is the flag's help text.

``--train_param.learning_rate 1e-4`` sets ``RunFlags.train_param.learning_rate``. ``cli.run_spec`` turns flags into a RunSpec.
A flag that asks for something built in has no effect, and a line says so. A flag that would change the protocol is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_harmony.benchmarks.recurrence import NearDuplicateRule
from lm_harmony.benchmarks.types import SplitProtocol
from lm_harmony.cli.console import Format
from lm_harmony.recipe import CHAT_TEMPLATE_DATE, Lora

BUILT_IN = {
    "train_param.packing": "the engine packs sequences by itself, and attention never crosses from one to another",
    "train_param.dataset_text_field": "the benchmark's lm_eval task renders the text",
    "train_param.save_safetensors": "weights are always written as safetensors",
    "train_param.auto_find_batch_size": "forward passes shrink when memory runs out, and the optimizer batch keeps its size",
    "train_param.eval_accumulation_steps": "scores are moved to the CPU after each pass",
    "train_param.eval_steps": "validation follows each epoch",
    "train_param.save_steps": "a checkpoint is written after each epoch",
}
"""Flag without effect -> what is built in instead."""


@dataclass(frozen=True, kw_only=True)
class DatasetParam:
    """Number of rows, and how they are rendered."""

    max_num_train: int = 50_000
    """Largest number of training rows."""
    max_num_valid: int = 1_000
    """Largest number of validation rows."""
    max_num_test: int = 10_000
    """Largest number of test rows."""
    apply_chat_template: bool = False
    """Render training and scoring with the model's chat template."""
    chat_template_date: str = CHAT_TEMPLATE_DATE
    """Current date for chat templates that print one, as YYYY-MM-DD."""
    chat_template_args: str = "{}"
    """Further variables of the chat template, as a JSON object: '{"enable_thinking": false}'."""
    system_instruction: str | None = None
    """Text before every question; with a chat template, the system message."""
    gen_prefix: str | None = None
    """Beginning of every answer, after which the model continues; replaces that of the task."""
    think_end_token: str | None = None
    """Text (</think>) or token id that ends the think part of an answer, which is cut off before it is scored."""
    max_gen_toks: int | None = None
    """Maximum tokens of a generated answer, think part included; replaces the task's own limit."""


@dataclass(frozen=True, kw_only=True)
class TrainParam:
    """Training arguments, named as in transformers' TrainingArguments."""

    max_seq_length: int = 1024
    """Maximum tokens of a training sequence; longer ones are truncated from the left of the context."""
    per_device_train_batch_size: int = 8
    """Largest number of sequences in one forward pass of training."""
    per_device_eval_batch_size: int = 8
    """Largest number of sequences in one forward pass of scoring."""
    gradient_accumulation_steps: int = 1
    """Forward passes in one optimizer step. The optimizer batch has this times per_device_train_batch_size sequences."""
    load_best_model_at_end: bool = True
    """Test the epoch with the best validation score; off: the last epoch."""
    metric_for_best_model: str | None = None
    """Metric that chooses the epoch, as lm_eval names it, with or without the prefix eval_; default: the benchmark's own."""
    greater_is_better: bool = True
    """Whether a higher value of that metric is better. It must agree with the benchmark's own direction, if it has one."""
    num_train_epochs: int = 5
    """Passes over the training rows."""
    max_steps: int = -1
    """Stop after this many optimizer steps; -1: no limit."""
    eval_strategy: str = "epoch"
    """Only epoch: the best epoch is chosen by validation."""
    save_strategy: str = "epoch"
    """epoch: write a checkpoint after each epoch; no: a stopped run starts again from the beginning."""
    logging_strategy: str = "steps"
    """Losses that go to the trackers: of steps, of each epoch, or none (no)."""
    logging_steps: int = 10
    """Number of optimizer steps between two logged losses."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory and takes more time."""
    optim: str = "adamw_torch"
    """Optimizer: adamw_torch, adamw_torch_fused, adafactor or sgd."""
    learning_rate: float = 2e-5
    """Peak value of the learning rate; the published recipe has 2e-5."""
    lr_scheduler_type: str = "linear"
    """Learning-rate schedule: linear, cosine, constant, constant_with_warmup or polynomial."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the optimizer."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    warmup_ratio: float = 0.0
    """Warm-up as a fraction of all steps, rounded up; not used beside warmup_steps."""
    max_grad_norm: float = 1.0
    """Largest norm of a gradient before clipping; 0: no clipping."""
    adam_beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    adam_beta2: float = 0.999
    """AdamW's decay rate of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon, added to the denominator."""
    bf16: bool = False
    """The same as --dtype bfloat16."""
    fp16: bool = False
    """Refused: half precision without loss scaling loses small gradients."""
    report_to: str = "none"
    """Trackers, separated by commas: tensorboard, trackio, wandb; or none."""
    seed: int = 0
    """The same as --random_seed."""
    packing: bool = False
    """Built in: the engine packs sequences where that is exact."""
    dataset_text_field: str = "text"
    """Built in: the benchmark's lm_eval task renders the text."""
    save_safetensors: bool = True
    """Built in: weights are always written as safetensors."""
    auto_find_batch_size: bool = True
    """Built in: forward passes shrink when memory runs out."""
    eval_accumulation_steps: int | None = None
    """Built in: scores are moved to the CPU after each pass."""
    eval_steps: int | None = None
    """Built in: validation follows each epoch."""
    save_steps: int | None = None
    """Built in: a checkpoint is written after each epoch."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Fine-tune a model on a benchmark's training split, choose the epoch on validation, and score it on the test split."""

    base_model: str
    """Hub name or folder of the model."""
    task_name: str
    """Name of an lm_eval task with a training split, a task's YAML file, or corpus:PATH. See `lm-harmony benchmarks`."""
    exp_name: str | None = None
    """Folder of the run below results_dir; default: <task>/<model>/seed<n>-<id>, where a study looks for the same run."""
    train_on: str | None = None
    """Train and validate on rows of another benchmark, in this one's format: a task, its YAML file, mmlu_aux or mc_mix."""
    data_dir: Path | None = None
    """Folder with <task>/{train,validation,test}.jsonl; default: rows come from the hub."""
    include_path: Path | None = None
    """Folder with more YAML files of tasks."""
    split_protocol: SplitProtocol = "clean"
    """clean: no scored question is trained on; published: the splits of the paper, with their leaks."""
    near_duplicates: NearDuplicateRule = "keep"
    """Training rows in which a scored question recurs with other choices, in other spacing or nearly. keep: they are counted;
    drop: they are left out, and so are such validation rows."""
    random_seed: int = 0
    """Seed of everything random: validation split, order of rows, dropout, initial adapter."""
    eval_before_train: bool = True
    """Score the model before training too (direct score)."""
    direct_fewshot: tuple[str, ...] = ("0",)
    """Numbers of examples before each question (few-shot), each a direct score of its own: 0 5. task: as the task's file says."""
    eval_after_train: bool = True
    """Score the chosen epoch on the test split."""
    eval_every_epoch: bool = False
    """Score every epoch on the test split, after the choice and for the record only."""
    only_evaluate: bool = False
    """Score the weights of a finished run again, without training."""
    resume_from_checkpoint: bool = False
    """Continue an unfinished run after its last finished epoch."""
    overwrite: bool = False
    """Replace a run that is in the folder."""
    completion_only: bool = False
    """Compute the loss on the answer only."""
    learning_rates: tuple[float, ...] = ()
    """Several learning rates in place of train_param.learning_rate: 5e-6 2e-5 1e-4. Each is trained, and the best epoch of all on
    validation is tested."""
    max_new_tokens: int = 256
    """Maximum tokens of a generated answer."""
    eval_max_batch_size: int | None = None
    """Upper limit of per_device_eval_batch_size."""
    use_peft: bool = True
    """Train a LoRA adapter; off: train all weights."""
    dtype: str = "auto"
    """dtype of the base weights: float32, bfloat16 or auto. auto is float32 on a CPU. On a GPU with bfloat16 it is bfloat16 with
    LoRA, and float32 with bfloat16 autocast without LoRA."""
    quantize: str | None = None
    """Quantize the frozen base weights under the adapter, as in QLoRA: nf4 or int8. It is another recipe, so its scores are not
    comparable with others. It needs pip install 'lm-harmony[quantized]'."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, mps or auto."""
    device_map: str | None = None
    """auto: spread the blocks of a model that is too large for one GPU over all GPUs of this process, to train an adapter. The
    GPUs compute one after another. Choose them with CUDA_VISIBLE_DEVICES."""
    memory: str = "auto"
    """Before loading, the memory of the run is estimated. auto: gradient checkpointing is switched on where one longest row does
    not fit without it, and a run that does not fit even then is refused; check: a run that does not fit as requested is refused;
    off: no estimate."""
    engine: str = "auto"
    """auto: packed rows if a comparison with padded batches finds them exact for the model; plain: padded batches; compiled: auto
    with layers compiled by torch.compile, on CUDA only."""
    revision: str = "main"
    """Branch, tag or commit of the model on the hub."""
    trust_remote_code: bool = False
    """Allow code from the model's repository to run."""
    allow_task_code: bool = True
    """Allow Python code of the task that lm_eval does not ship (!function) to run; each file is named before it runs."""
    results_dir: Path = Path("results")
    """Folder in which runs are kept."""
    use_git: bool = True
    """Write the git revision of the working folder into the record."""
    format: Format = "table"
    """Format of the scores at the end: table is for people; csv, json and markdown are for other programs."""
    debug: bool = False
    """Show tracebacks, debug messages and the messages of other libraries."""
    dataset_param: DatasetParam = DatasetParam()
    """Number of rows, and how they are rendered."""
    peft_config: Lora = Lora()
    """The LoRA adapter, with the names of peft.LoraConfig."""
    train_param: TrainParam = TrainParam()
    """Training arguments, named as in transformers' TrainingArguments."""
