"""Recipe: all hyperparameters of a fine-tuning as one frozen value; ``PUBLISHED`` is the recipe of the paper.

Source: Zhang, Dominguez-Olmedo, Hardt, "Train-before-Test Harmonizes Language Model Rankings" (arXiv 2507.05195), appendix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WrapValidator
from pydantic_core import PydanticKnownError

from lm_harmony.errors import FILE_RULES, UsageError, check_flag, check_integer, check_learning_rates, check_number, did_you_mean

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
TRAINING_VERSION = 2
"""Version of the training behind a recipe, part of its fingerprint. It is raised when an equal recipe, seed and input give other
weights, by more than rounding. Version 2 computes dropout masks from counters. Before, they came from random generators."""
DTYPES = ("auto", "float32", "bfloat16")
QUANTIZATIONS = ("nf4", "int8")
"""Formats of quantized base weights, computed by bitsandbytes."""
CHAT_TEMPLATE_DATE = "2024-07-26"
"""Default date that chat templates take as today, as YYYY-MM-DD; it is the default inside Llama 3's template."""


def _unconverted(value: Any, check: Callable[[Any], float]) -> Any:
    check(value)
    return value


def _any_number(value: Any, check: Callable[[Any], int]) -> Any:
    """Return the value as it is: the flag takes whole numbers, a recipe of a study any number."""
    return value


def _itself(value: float) -> float:
    return value


Number = Annotated[float, WrapValidator(_unconverted), PlainSerializer(_itself, return_type=Any)]
"""A finite number that is read and written as int or float, as given, because fingerprints of 1 and 1.0 differ."""


def _number_or_several(value: Any) -> Any:
    several = tuple(value) if isinstance(value, list | tuple) else (value,)
    for number in several:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise PydanticKnownError("float_type")
    return several if isinstance(value, list | tuple) else value


NumberOrSeveral = Annotated[
    float | tuple[float, ...], PlainValidator(_number_or_several), PlainSerializer(_itself, return_type=Any)
]
"""A number as ``Number``, or a tuple of several."""
NumberShownWhole = Annotated[int, WrapValidator(_any_number), PlainSerializer(_itself, return_type=Any)]
"""A number whose flag takes whole numbers only, while a recipe of a study gives any; its rule is checked by its class."""


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{field} must be one of {', '.join(known)}, got {value!r}.{did_you_mean(str(value), known)}")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter, with the field names of ``peft.LoraConfig``."""

    __pydantic_config__ = FILE_RULES

    r: int = 8
    """Rank of the update matrices."""
    lora_alpha: NumberShownWhole = 32
    """Numerator of the scale lora_alpha / r that multiplies the update."""
    lora_dropout: Number = 0.1
    """Probability with which an input of the adapter is zeroed in training."""
    target_modules: tuple[str, ...] = ()
    """Names of the adapted modules; empty: PEFT's default for the architecture, or else the query and value projections;
    ``all-linear``: every linear layer."""
    bias: str = "none"
    """Which biases are trained too: none, all or lora_only."""
    use_rslora: bool = False
    """Rank-stabilised scaling: lora_alpha / sqrt(r)."""
    use_dora: bool = False
    """Train a weight-decomposed adapter (DoRA)."""

    def __post_init__(self) -> None:
        check_integer("peft_config.r", self.r, 1)
        check_number("peft_config.lora_alpha", self.lora_alpha, low=1)
        check_number("peft_config.lora_dropout", self.lora_dropout, below=1)
        check_flag("peft_config.use_rslora", self.use_rslora)
        check_flag("peft_config.use_dora", self.use_dora)
        if not all(isinstance(name, str) for name in self.target_modules):
            raise UsageError(f"peft_config.target_modules must be names of modules, got {self.target_modules!r}. List names.")
        _one_of("peft_config.bias", self.bias, ("none", "all", "lora_only"))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of the fine-tuning. Scores are comparable if their recipes are equal."""

    __pydantic_config__ = FILE_RULES

    lora: Lora | None = Lora()
    """The adapter that is trained; None: all weights are trained."""
    epochs: int = 5
    """Passes over the training rows; the best one by validation is tested."""
    learning_rate: NumberOrSeveral = 2e-5
    """Peak value of the learning rate; several: each is trained, and validation chooses one."""
    batch_size: int = 8
    """Sequences in one optimizer step, however many forward passes they take."""
    max_length: int = 1024
    """Longest training sequence in tokens; longer ones are cut from the left of the context, as in scoring."""
    completion_only: bool = False
    """Loss on the continuation only (True) or on all tokens (False, published)."""
    optimizer: str = "adamw_torch"
    """adamw_torch, adamw_torch_fused, adafactor or sgd."""
    adam_beta1: Number = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Number = 0.999
    """AdamW's decay of the second moment."""
    adam_epsilon: Number = 1e-8
    """Term that AdamW adds to the denominator for numerical stability."""
    weight_decay: Number = 0.01
    """Decoupled weight decay, not applied to biases and norms."""
    max_grad_norm: Number = 1.0
    """Gradients are scaled down to this norm; 0 switches clipping off."""
    lr_schedule: str = "linear"
    """linear (decay to zero), cosine, constant, constant_with_warmup or polynomial."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    warmup_ratio: Number = 0.0
    """Warm-up as a fraction of all steps; used when warmup_steps is 0."""
    max_steps: int | None = None
    """Number of optimizer steps after which training stops, even within an epoch; None: no limit."""
    dtype: str = "auto"
    """Type of the base weights: float32, bfloat16 or auto. auto is float32 on a CPU. On a GPU with bfloat16 it is bfloat16 for
    LoRA, and float32 weights with bfloat16 matrix products (autocast) if all weights are trained."""
    max_new_tokens: int = 256
    """Longest generated answer in tokens, for tasks that do not set their own limit."""
    quantize: str | None = None
    """Format of the frozen base weights under an adapter, as in QLoRA: nf4, int8, or None for weights that are not quantized."""

    def __post_init__(self) -> None:
        check_integer("train_param.num_train_epochs", self.epochs, 1)
        if isinstance(self.learning_rate, list):
            raise UsageError(f"learning_rate must be a number or a tuple, got {self.learning_rate}. Write (5e-6, 2e-5).")
        if isinstance(self.learning_rate, tuple):
            check_learning_rates("learning_rate", self.learning_rate)
        else:
            check_number("train_param.learning_rate", self.learning_rate, positive=True)
        check_integer("batch size", self.batch_size, 1)
        check_integer("train_param.max_seq_length", self.max_length, 2)
        check_flag("completion_only", self.completion_only)
        check_number("train_param.adam_beta1", self.adam_beta1, below=1)
        check_number("train_param.adam_beta2", self.adam_beta2, below=1)
        check_number("train_param.adam_epsilon", self.adam_epsilon, positive=True)
        check_number("train_param.weight_decay", self.weight_decay)
        check_number("train_param.max_grad_norm", self.max_grad_norm)
        check_integer("train_param.warmup_steps", self.warmup_steps, 0)
        check_number("train_param.warmup_ratio", self.warmup_ratio, high=1)
        if self.max_steps is not None:
            check_integer("train_param.max_steps", self.max_steps, 1)
        check_integer("max_new_tokens", self.max_new_tokens, 1)
        _one_of("train_param.optim", self.optimizer, OPTIMIZERS)
        _one_of("train_param.lr_scheduler_type", self.lr_schedule, SCHEDULES)
        _one_of("dtype", self.dtype, DTYPES)
        if self.quantize is not None:
            _one_of("quantize", self.quantize, QUANTIZATIONS)
            if self.lora is None:
                raise UsageError(
                    f"quantize = {self.quantize} needs an adapter, because quantized weights cannot be trained. Remove "
                    f"--quantize, or train an adapter (--use_peft; in a study: lora)."
                )

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are trained, in the order given."""
        return self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)

    def at_rate(self, rate: float) -> Recipe:
        """Return the recipe of one of ``rates``."""
        return replace(self, learning_rate=rate)

    @property
    def total_epochs(self) -> int:
        """Number of epochs of all learning rates together, unless ``max_steps`` ends them earlier."""
        return self.epochs * len(self.rates)

    @property
    def peak_rate(self) -> float:
        """The learning rate of a single training; UsageError: the recipe has several, from which a run chooses one."""
        if isinstance(self.learning_rate, tuple):
            raise UsageError(
                f"learning_rate = {list(self.learning_rate)} has several values, and one training has one. Give one number."
            )
        return self.learning_rate

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of all fields and ``TRAINING_VERSION``."""
        return fingerprint({**written_recipe(asdict(self)), "training_version": TRAINING_VERSION})

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Recipe:
        """Return a recipe from a mapping of its fields, as a study file has it.

        Raises:
            UsageError: a key is unknown, or a value breaks the rule of its field.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise UsageError(f"recipe has no field {key!r}.{did_you_mean(key, known)}")
        lora = values.get("lora")
        if lora is not None:
            if not isinstance(lora, Mapping):
                raise UsageError(f"lora must be a mapping, or null to train all weights, got {lora!r}. Write lora: {{r: 8}}.")
            targets = lora.get("target_modules", ())
            if not isinstance(targets, (list, tuple)):  # the letters of a text would count as names
                raise UsageError(f"peft_config.target_modules must be a list, got {targets!r}. Write [{targets}].")
            lora = Lora(**{**lora, "target_modules": tuple(targets)})
        several = {name: tuple(value) for name, value in values.items() if name == "learning_rate" and isinstance(value, list)}
        checked: dict[str, Any] = {**values, "lora": lora, **several}  # each field's type is checked by __post_init__
        return cls(**checked)


def shared_adapter(recipe: Recipe) -> Lora | None:
    """Return the adapter if runs with an equal one can train jointly, because they train no weight of the base; else None."""
    lora = recipe.lora
    return None if lora is None or lora.bias != "none" or lora.use_dora else lora


def written_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe without ``quantize`` where nothing is quantized, as identities and files had it before."""
    return {name: value for name, value in values.items() if name != "quantize" or value is not None}


def fingerprint(value: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


PUBLISHED = Recipe()
"""The recipe of the published board: LoRA r 8, alpha 32, dropout 0.1; AdamW 2e-5; batch 8; 5 epochs; 1,024 tokens."""
