"""Make models of published sizes with random weights, texts of random tokens, and the backends to measure."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

import lm_harmony
from bench.gpu.measure import wait
from bench.gpu.rows import PEAKS, Bench
from lm_harmony.engine.backends import PACKED, PADDED, Backend, choose_backend
from lm_harmony.engine.forward import Forward, LabelLogprobs
from lm_harmony.engine.memory import memory_budget
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.models.device import configure_device
from lm_harmony.models.loading import LanguageModel, build_language_model

SHIPPED = Path(lm_harmony.__file__).parent / "demo" / "shipped"
"""Folder of the demo models and rows. lm_harmony.demo is not imported, because it reads study files."""


def _config(kind: type[PretrainedConfig], **values: Any) -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta", 1e4)}
    return kind(rope_parameters=rope, **values)  # type: ignore[call-arg]


SHAPES: dict[str, PretrainedConfig] = {
    "qwen2.5-7b": _config(
        Qwen2Config,
        vocab_size=152_064,
        hidden_size=3_584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rope_theta=1e6,
    ),
    "llama-3.2-1b": _config(
        LlamaConfig,
        vocab_size=128_256,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rope_theta=5e5,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": _config(
        Qwen2Config,
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_theta=1e6,
        tie_word_embeddings=True,
    ),
    "tiny": _config(
        LlamaConfig,
        vocab_size=1_024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}
"""Published configurations with their vocabulary sizes, and one configuration for ``--tiny``."""


def random_module(shape: str, device: torch.device) -> PreTrainedModel:
    """Make random weights of ``shape`` on ``device``, in bfloat16 on a GPU and in float32 on a CPU."""
    configure_device(device)
    with torch.device(device):  # created on the device, because seven billion weights take minutes on a CPU
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        module: PreTrainedModel = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype)
    return module


def random_model(bench: Bench, shape: str) -> LanguageModel:
    """Make a model of ``shape`` with a shipped tokenizer, and write a row with its sizes."""
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(str(SHIPPED / "models" / "llama-1"))
    model = build_language_model(shape, random_module(shape, bench.device), tokenizer)
    wait(bench.device)
    body, head = linear_weights(model.module)
    size = {"parameters": model.module.num_parameters(), "linear_weights": body, "head_weights": head}
    dtype = str(model.module.dtype).removeprefix("torch.")
    bench.rows.write("model", shape=shape, dtype=dtype, **size, build_s=time.perf_counter() - started)
    return model


def linear_weights(module: PreTrainedModel) -> tuple[int, int]:
    """Return the number of weights of all linear layers except the output layer, and of the output layer."""
    head = module.get_output_embeddings()
    linear = (part for part in module.modules() if isinstance(part, torch.nn.Linear) and part is not head)
    return sum(part.weight.numel() for part in linear), head.weight.numel()


def share_of_peak(bench: Bench, flops: float, seconds: float) -> dict[str, Any]:
    """Return TFLOP/s and, for a known chip, their share of its dense bf16 peak, as fields of a row."""
    reached: dict[str, Any] = {"tflops": flops / seconds / 1e12}
    if bench.rows.chip in PEAKS and bench.device.type == "cuda":
        reached["share_of_peak"] = reached["tflops"] / PEAKS[bench.rows.chip][0]
    return reached


def backends(bench: Bench, model: LanguageModel) -> dict[str, Backend]:
    """Return the backends to measure by name, and write a row with the choice of "auto" and its log messages.

    If "auto" finds packed rows not exact enough, they are also measured, with the name "packed", to know their speed.
    """
    log, lines = logging.getLogger("lm_harmony"), _Lines()
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        chosen = choose_backend(model)
    finally:
        log.removeHandler(lines)
    found = {"auto": chosen}
    if not chosen.packed:
        found["packed"] = replace(PACKED, memory_budget=memory_budget(model.module))
    described = {"chosen": chosen.describe(), "budget": asdict(chosen.memory_budget), "said": lines.texts}
    bench.rows.write("backend", shape=model.name, cudnn_attention=torch.backends.cuda.cudnn_sdp_enabled(), **described)
    return found | {"plain": PADDED}


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Store the log message."""
        self.texts.append(record.getMessage())


@dataclass
class Counted:
    """A forward pass that counts its tokens, labels and calls."""

    forward: Forward
    """Forward pass that is counted."""
    tokens: int = 0
    """Number of input tokens, without padding."""
    labels: int = 0
    """Number of predicted tokens."""
    passes: int = 0
    """Number of calls."""
    largest: int = 0
    """Number of tokens of the largest pass."""

    def __call__(self, module: PreTrainedModel, sequences: Sequence[TokenSequence]) -> LabelLogprobs:
        """Count the sequences and call the forward pass."""
        tokens = sum(len(sequence.ids) - 1 for sequence in sequences)
        self.tokens += tokens
        self.labels += sum(len(sequence.labels) for sequence in sequences)
        self.passes += 1
        self.largest = max(self.largest, tokens)
        return self.forward(module, sequences)


def counting(backend: Backend) -> tuple[Backend, Counted]:
    """Return ``backend`` with a counted training pass, and its counts."""
    counted = Counted(backend.train_forward)
    return replace(backend, train_forward=counted), counted


def texts(vocabulary: int, count: int, *, seed: int, answers: int = 1) -> list[TokenSequence]:
    """Make ``count`` questions with ``answers`` answers each. Lengths are like arc_easy: about 40 and 6 tokens.

    With one answer all tokens are labels, as in training. With several, only the tokens of the answers are.
    """
    draw = random.Random(seed)
    made = []
    for row in range(count):
        question = draw.choices(range(vocabulary), k=max(8, round(draw.lognormvariate(3.6, 0.4))))
        for _ in range(answers):
            answer = draw.choices(range(vocabulary), k=max(1, round(draw.lognormvariate(1.7, 0.6))))
            first = 1 if answers == 1 else len(question)
            made.append(TokenSequence(ids=(*question, *answer), first_label=first, row=row))
    return made


Measure = Callable[[Bench, LanguageModel, dict[str, Backend]], None]
"""Function that measures one model on its backends and writes the rows."""


def each_shape(bench: Bench, shapes: Sequence[str], measure: Measure) -> None:
    """Make and measure one model after another. An error is written as a row, and the next model is made."""
    for shape in shapes:
        with bench.measurement("shape", shape=shape):
            one_shape(bench, shape, measure)
        bench.release()


def one_shape(bench: Bench, shape: str, measure: Measure) -> None:
    """Make a model and measure it. No reference to the model is kept."""
    model = random_model(bench, shape)
    measure(bench, model, backends(bench, model))
