"""Memory of a run, estimated before any weight is loaded: each component from the model's size, the recipe and the longest row.

A study, ``plan`` and a single run use this one estimate. ``bench/memory.py`` compares it with the measured peak of whole runs.
Packed rows are assumed, because no probe has run yet; ``padded`` says that the run asks for padded batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from lm_harmony.engine.lm_head import LOGITS_ON_CPU, LOGITS_ON_GPU
from lm_harmony.engine.lm_head_blocks import SMALLEST_VOCABULARY, HeadBlocks
from lm_harmony.engine.model_size import ModelSize
from lm_harmony.models.device import Precision, gib
from lm_harmony.recipe import Recipe

PROCESS_BYTES = {"cpu": 630_000_000, "cuda": 600_000_000}
"""Memory of a process beside its tensors and tokenizer. On a CPU: Python with all libraries, 480 MB, and what choosing
backends leaves, 150 MB, both measured with SmolLM2-135M. On a GPU: context and workspaces of CUDA and cuBLAS, assumed."""
TOKENIZER_BYTES = 2_500
"""Host memory of a tokenizer for each token of its vocabulary. Measured before the weights are loaded: a process with the 49,152
tokens of SmolLM2 had 605 MB, one with the 262,144 of Gemma 3 had 1,141 MB."""
CPU_BLOCKS = 2.0
"""Resident memory over the bytes of activations on a CPU. glibc keeps freed blocks between those that are still used: 1.5 in the
first pass of SmolLM2-135M on a row of 512 tokens, and more in later ones. 1 on a GPU, whose allocator joins them: assumed."""
HOST_BYTES = 3_000_000_000
"""Host memory of a process that computes on a GPU: libraries, rows, and the part of a file that is being read. Assumed."""
QUANTIZED_BITS = {"nf4": 4.127, "int8": 8.0}
"""Bits of a quantized weight. nf4 with double quantization has 0.127 bits of constants (QLoRA, arXiv 2305.14314, section 3)."""
MOMENTS = {"adamw_torch": 2, "adamw_torch_fused": 2, "adafactor": 0, "sgd": 0}
"""Optimizer -> tensors of the size of the trained weights that it keeps. Adafactor keeps sums over rows and columns only."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a run on its device, by component."""

    process: int
    """Libraries, or the context of the GPU: everything that is there before the model is loaded."""
    weights: int
    """Weights of the model."""
    adapter: int
    """Weights of the adapter; 0 if all weights are trained."""
    optimizer: int
    """Moments of the optimizer."""
    gradients: int
    """Gradients of the trained weights."""
    activations: int
    """What one training pass keeps for its backward pass, and what the backward pass of one layer computes."""
    logits: int
    """Logits of one chunk of the output layer, with their gradients."""
    cache: int
    """Keys and values of one generated answer."""
    saving: int
    """Copy of optimizer moments or weights in host memory while a checkpoint is written or read; 0 on a GPU."""

    @property
    def total(self) -> int:
        """Largest number of bytes that the run needs at one time.

        Gradients, activations and logits exist during a training step only. A checkpoint is written after it, and answers are
        generated after that, so the largest of the three counts.
        """
        step = self.gradients + self.activations + self.logits
        return self.process + self.weights + self.adapter + self.optimizer + max(step, self.saving, self.cache)

    def describe(self) -> str:
        """Return the components of at least a hundredth of the total, largest first: "weights 9.0 GiB, activations 2.1 GiB"."""
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = sorted((name for name in sizes if sizes[name] * 100 >= self.total), key=lambda name: -sizes[name])
        return ", ".join(f"{name} {gib(sizes[name])}" for name in shown)


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What decides the memory of a run beside its model and its rows."""

    recipe: Recipe
    """Recipe with the adapter, the optimizer and the quantization."""
    precision: Precision
    """Number formats of weights and products on the device."""
    device_type: str = "cpu"
    """Kind of the device: "cpu", "cuda" or another one."""
    gradient_checkpointing: bool = False
    """Whether each layer keeps its input only."""
    padded: bool = False
    """Whether batches are padded, which keeps the logits of every token."""


def estimate_memory(size: ModelSize, settings: MemorySettings, *, tokens: int) -> MemoryEstimate:
    """Return the estimated memory of a run.

    Weights, gradients and moments: bytes per weight as in ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1), for the
    formats that the engine uses. Adapters are float32 (PEFT's ``autocast_adapter_dtype``). Activations: ``block_bytes``. Logits:
    the chunks of ``lm_head``, or the blocks of ``lm_head_blocks`` where a probe may choose them.

    Args:
        size: model with its adapter.
        settings: recipe, number formats, device and gradient checkpointing.
        tokens: input tokens of one training pass: those of the longest row at least.
    """
    recipe, full = settings.recipe, settings.recipe.lora is None
    trained = size.trained * (settings.precision.width if full else 4)
    moments = MOMENTS[recipe.optimizer] * trained
    weights = weight_bytes(size, settings)
    width = _product_bytes(settings.precision)
    cached = (tokens + recipe.max_new_tokens) * 2 * size.key_width * size.layers * width
    host = PROCESS_BYTES["cpu"] + TOKENIZER_BYTES * size.vocabulary
    return MemoryEstimate(
        process=PROCESS_BYTES["cuda"] if settings.device_type == "cuda" else host,
        weights=weights,
        adapter=0 if full else trained,
        optimizer=moments,
        gradients=trained,
        activations=_activation_bytes(size, settings, tokens),
        logits=_logit_bytes(size, settings, tokens),
        cache=cached,
        saving=max(moments, weights if full else trained) if settings.device_type == "cpu" else 0,
    )


def weight_bytes(size: ModelSize, settings: MemorySettings) -> int:
    """Return the bytes of the model's weights; with quantization, linear layers inside the blocks take fewer bits."""
    bits = QUANTIZED_BITS.get(settings.recipe.quantize or "")
    if bits is None:
        return size.parameters * settings.precision.width
    return int(size.linear * bits / 8) + (size.parameters - size.linear) * settings.precision.width


def block_bytes(size: ModelSize, settings: MemorySettings) -> int:
    """Return the bytes that one token of a training pass keeps in one Transformer block for the backward pass.

    Counted on the autograd graph of a llama block, by the rule that an operator keeps what its gradient needs (Korthikanti et al.
    2022, arXiv 2205.05198, section 4), without what frozen weights do not need. A test counts the kept tensors of real blocks.

    - the input of each normalization layer, in float32;
    - queries, keys, values and their result, which fused attention keeps instead of scores (arXiv 2205.14135);
    - gate, activation and product of the MLP; on a CPU the activation is computed again (``recompute``);
    - with an adapter: the inputs of its layers, and one byte of dropout mask for each input;
    - if all weights are trained: the inputs of all linear layers and the normalized inputs.
    """
    width, lora = _product_bytes(settings.precision), settings.recipe.lora
    attention = 2 * size.query_width + 2 * size.key_width
    recomputed = settings.device_type == "cpu" and not settings.gradient_checkpointing and not settings.padded
    mlp = size.mlp_tensors - (1 if recomputed and size.mlp_tensors == 3 else 0)
    kept = attention + mlp * size.inner
    masks = 0
    if lora is None:
        kept += size.norms + 2 * size.hidden + size.query_width + size.inner
    else:
        inputs = size.adapted_inputs // size.layers
        kept += min(inputs, size.hidden if inputs <= 3 * size.hidden else 2 * size.hidden + size.query_width + size.inner)
        masks = inputs if lora.lora_dropout else 0
    return kept * width + 4 * size.norms + masks


def _activation_bytes(size: ModelSize, settings: MemorySettings, tokens: int) -> int:
    """Return the bytes of a training pass: kept for the backward pass, and the gradients inside the block that is computed."""
    width, block = _product_bytes(settings.precision), block_bytes(size, settings)
    working = (3 * size.inner + 4 * size.hidden) * width
    layers = size.layers * size.hidden * width + block if settings.gradient_checkpointing else size.layers * block
    # Autocast keeps a converted copy of every weight until the backward pass has ended.
    converted = size.parameters * 2 if settings.precision.autocast else 0
    blocks = CPU_BLOCKS if settings.device_type == "cpu" else 1.0
    return int(blocks * tokens * (layers + working + 16 * size.hidden)) + converted


def _logit_bytes(size: ModelSize, settings: MemorySettings, tokens: int) -> int:
    """Return the bytes of logits and their gradients that exist at the same time.

    A frozen output layer overwrites its float32 logits with the gradient, beside two copies in half precision. A trained one
    keeps the logits, their probabilities, and two gradients. Padded batches do this for all tokens at once. Blocks of a large
    vocabulary, on a CPU, need two blocks of float32 logits, the converted weights of a block, and two float32 numbers for each
    hidden state's width. Whether a probe will choose them is not known yet, but it does for large vocabularies.
    """
    half = _product_bytes(settings.precision) == 2
    if settings.device_type == "cpu" and not settings.padded and size.vocabulary >= SMALLEST_VOCABULARY:
        rows, block = HeadBlocks().sizes(tokens, size.vocabulary, copied=size.hidden if half else 0)
        return 8 * rows * block + (4 * block * size.hidden if half else 0) + 8 * tokens * size.hidden
    most = LOGITS_ON_CPU if settings.device_type == "cpu" else LOGITS_ON_GPU
    count = tokens * size.vocabulary if settings.padded else min(tokens * size.vocabulary, max(most, size.vocabulary))
    if settings.padded or settings.recipe.lora is None:
        return 16 * count
    return count * (8 if half else 4)


def _product_bytes(precision: Precision) -> int:
    """Return the bytes of a number of the type in which matrix products are computed."""
    return 2 if precision.autocast else precision.width


def with_checkpointing(settings: MemorySettings) -> MemorySettings:
    """Return the settings with gradient checkpointing."""
    return replace(settings, gradient_checkpointing=True)


def gpus_needed(total: int, memory: float) -> int:
    """Return how many GPUs hold a run whose model is spread over them; each has a context of its own.

    Args:
        total: bytes of the run on one GPU.
        memory: bytes of a GPU.
    """
    process = PROCESS_BYTES["cuda"]
    return max(1, math.ceil((total - process) / max(1.0, memory - process)))


def runs_that_fit(total: int, process: int, free: int) -> int:
    """Return how many equal runs fit into memory at once, if the first one's process is running already.

    Args:
        total: bytes of one run.
        process: bytes of its process, which are not free any more.
        free: bytes that are free now.
    """
    return max(0, (free + process) // max(1, total))
