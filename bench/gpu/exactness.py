"""Step 1 compares the chosen backend with padded batches in float32 on the CPU. Step 8 compares and times new backends."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from bench.gpu.models import SHIPPED, one_shape
from bench.gpu.rows import Bench
from bench.gpu.training import train_row
from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.attention_kernels import AttentionKernels
from lm_harmony.engine.backends import PACKED, PADDED, Backend, choose_backend
from lm_harmony.engine.forward import packed_logprobs, prefix_tree_logprobs
from lm_harmony.engine.lm_head_blocks import HeadBlocks
from lm_harmony.engine.memory import memory_budget
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.models.loading import LanguageModel, load_model

Make = Callable[[LanguageModel], Backend]


def _with_kernels(kernels: AttentionKernels, model: LanguageModel) -> Backend:
    """Return the packed backend with the given attention kernels, whatever the probe of the engine says."""
    return replace(
        PACKED,
        train_forward=partial(packed_logprobs, kernels=kernels),
        score_forward=partial(prefix_tree_logprobs, kernels=kernels),
        memory_budget=memory_budget(model.module),
    )


def _with_head_blocks(model: LanguageModel) -> Backend:
    """Return the packed backend with the output layer in blocks of its vocabulary, which the engine chooses on a CPU only."""
    return replace(
        PACKED,
        train_forward=partial(packed_logprobs, head_blocks=HeadBlocks()),
        score_forward=partial(prefix_tree_logprobs, head_blocks=HeadBlocks()),
        memory_budget=memory_budget(model.module),
    )


CANDIDATES: dict[str, Make] = {
    name: partial(_with_kernels, kernels)
    for name, kernels in {"varlen": AttentionKernels(varlen=True), "merged prefix": AttentionKernels(merged_prefix=True)}.items()
} | {"compiled": partial(choose_backend, engine="compiled"), "head blocks": _with_head_blocks}
"""Name of a new backend, which needs CUDA -> function that makes it for a model. Step 8 compares it with the CPU and times it."""
KNOWN: dict[str, Make] = {"auto": choose_backend}
"""Backends of step 1."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest difference that counts as equal: in nats for log-probabilities, relative to the norm for gradients.

Twice the difference of padded batches of the same dtype on the same device also counts as equal.
"""
WRITTEN_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Results of a model that are compared."""

    learned: torch.Tensor
    """Log-probability of each label of a training batch, float32 on the CPU."""
    gradient: torch.Tensor
    """Gradient of their mean with respect to all weights except embeddings, as one float32 vector on the CPU."""
    scored: torch.Tensor
    """Log-likelihood of each answer in nats."""
    written: list[str]
    """Generated answer to each question."""


def exactness(bench: Bench) -> None:
    """Compare the shipped models and a random model with grouped-query attention."""
    with tempfile.TemporaryDirectory() as folder:
        random_one = Path(folder) / "random, grouped heads"
        models = [SHIPPED / "models" / name for name in bench.sizes.demo_models]
        for path in [_write_grouped(random_one), *models]:
            with bench.measurement("exactness of a model", model=path.name):
                compare(bench, path, KNOWN)


def compare(bench: Bench, path: Path, made: Mapping[str, Make]) -> None:
    """Write the differences from the results of the CPU for each dtype and each backend."""
    requests = _questions(bench.sizes.compared)
    reference = _numbers(load_model(str(path), dtype="float32", device="cpu"), PADDED, requests)
    for dtype, tolerance in TOLERANCE.items():
        model = load_model(str(path), dtype=dtype, device=str(bench.device))
        padded = _distance(_numbers(model, PADDED, requests), reference)
        chosen = {name: make(model) for name, make in made.items()}
        if not all(backend.packed for backend in chosen.values()):
            chosen["packed"] = PACKED  # "auto" has found it not exact enough, and the row shows its differences
        for name, backend in chosen.items():
            with bench.measurement("exactness", model=path.name, dtype=dtype, backend=name, questions=len(requests) // 4) as row:
                found = _distance(_numbers(model, backend, requests), reference)
                row |= {"packed": backend.packed} | found | {f"{key}_padded": value for key, value in padded.items()}
                row["exact"] = all(found[key] <= max(tolerance, 2 * padded[key]) for key in ("learned", "gradient", "scored"))


def _write_grouped(folder: Path) -> Path:
    """Write a model with grouped-query attention and head size 64, which fused kernels support.

    Its weights are large enough that answers have distinct scores.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(SHIPPED / "models" / "llama-1"))
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1_024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in module.parameters():
        if weight.dim() > 1:
            weight.data.mul_(2)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _questions(count: int) -> list[Request]:
    """Return the scoring requests of the four answers to each of ``count`` shipped questions."""
    lines = (SHIPPED / "rows" / "micro_endings" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:count]]
    return [
        Request(kind="loglikelihood", context=f"{row['name']} is", continuation=f" {ending}")
        for row in rows
        for ending in row["endings"]
    ]


def _numbers(model: LanguageModel, backend: Backend, requests: list[Request]) -> Numbers:
    scorer = Scorer(model=model, backend=backend, batch_size=32)
    contexts = dict.fromkeys(request.context for request in requests)
    limit = {"until": [], "max_gen_toks": WRITTEN_TOKENS}
    generation_requests = [Request(kind="generate_until", context=context, generation=limit) for context in contexts]
    learned, gradient = _learned(model, backend, requests[::4])
    return Numbers(
        learned=learned,
        gradient=gradient,
        scored=torch.tensor([nats for nats, _ in scorer.reply(requests)]),
        written=scorer.reply(generation_requests),
    )


def _learned(model: LanguageModel, backend: Backend, requests: list[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of a training batch and the gradient of their mean."""
    pairs = model.text.encode_pairs([(request.context, request.continuation) for request in requests])
    rows = [TokenSequence(ids=pair.context + pair.continuation, first_label=1) for pair in pairs]
    frozen = [model.module.get_input_embeddings(), model.module.get_output_embeddings()]
    model.module.requires_grad_(True)
    for part in frozen:
        part.requires_grad_(False)  # as with LoRA, where the output layer has a separate backward pass
    weights = [weight for weight in model.module.parameters() if weight.requires_grad]
    with backend.active(model.module):
        logprobs = backend.train_forward(model.module, rows).logprobs_L
        grads = torch.autograd.grad(-logprobs.mean(), weights, allow_unused=True)
    model.module.requires_grad_(False)
    flat = [grad.float().cpu().flatten() for grad in grads if grad is not None]
    return logprobs.detach().float().cpu(), torch.cat(flat)


def _distance(found: Numbers, reference: Numbers) -> dict[str, Any]:
    """Return largest differences in nats, the relative difference of the gradients, and the fraction of equal answers."""
    error = found.gradient - reference.gradient
    equal = sum(one == other for one, other in zip(found.written, reference.written, strict=True))
    return {
        "learned": float((found.learned - reference.learned).abs().max()),
        "scored": float((found.scored - reference.scored).abs().max()),
        "gradient": float(error.norm() / reference.gradient.norm()),
        "written_equal": equal / len(reference.written),
    }


def new_backends(bench: Bench, candidates: Mapping[str, Make] | None = None) -> None:
    """Compare each candidate with the CPU. Then time its LoRA steps on the shapes of step 3."""
    if candidates is None and bench.device.type != "cuda":
        bench.rows.write("new backends", found=f"{', '.join(CANDIDATES)} need CUDA")
        return
    candidates = CANDIDATES if candidates is None else candidates
    models = [SHIPPED / "models" / name for name in (bench.sizes.demo_models[-1],)]
    with tempfile.TemporaryDirectory() as folder:
        for path in [_write_grouped(Path(folder) / "random, grouped heads"), *models]:
            with bench.measurement("exactness of a model", model=path.name):
                compare(bench, path, candidates)

    def timed(bench: Bench, model: LanguageModel, _: object) -> None:
        for name, make in candidates.items():
            train_row(bench, model, make(model), name)

    for shape in bench.sizes.training:
        with bench.measurement("shape", shape=shape):
            one_shape(bench, shape, timed)
        bench.release()
