"""Steps 5 and 6: score questions with several pass sizes, and generate answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.gpu.measure import peak_bytes, reset_peak, timed, wait
from bench.gpu.models import each_shape, linear_weights, share_of_peak, texts
from bench.gpu.rows import Bench
from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.backends import Backend
from lm_harmony.engine.layout import prefix_tree_layout
from lm_harmony.engine.packed_attention import PackedAttention
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, to_device
from lm_harmony.models.loading import LanguageModel

PADDED_SEQUENCES = 32
"""Sequences of a padded scoring pass. Their logits fit in the memory next to a model of 7 billion weights."""
CONTEXT_TOKENS = (20, 60)
"""Shortest and longest context of a generated answer, in tokens."""


def scoring(bench: Bench) -> None:
    """Time the scoring of questions with four answers."""
    each_shape(bench, bench.sizes.other, _measure_scoring)


def _measure_scoring(bench: Bench, model: LanguageModel, backends: dict[str, Backend]) -> None:
    sizes = bench.sizes
    sequences = texts(model.module.config.vocab_size, sizes.questions, seed=2, answers=4)
    body, head = linear_weights(model.module)
    for name, backend in backends.items():
        ordered = [sequences[place] for place in backend.scoring_order(sequences)]
        for size in sizes.passes if backend.packed else (PADDED_SEQUENCES,):
            unit = "tokens" if backend.packed else "sequences"
            what = "layout, passes and the copy of their log-probabilities to the host"
            with bench.measurement(
                "scoring", shape=model.name, backend=name, questions=sizes.questions, pass_size=size, unit=unit, counted=what
            ) as row:
                batches: list[Sequence[TokenSequence]] = []
                reset_peak(bench.device)
                row |= timed(lambda: _score_all(model, backend, ordered, size, batches), bench.device, seconds=sizes.seconds)  # noqa: B023
                row |= {"passes": len(batches), "peak_bytes": peak_bytes(bench.device)}
                row["questions_per_s"] = sizes.questions / row["median_s"]
                tokens, places = sum(len(one.ids) - 1 for one in sequences), sum(len(one.labels) for one in sequences)
                if backend.packed:
                    layout = _layout(bench, model, batches)
                    tokens, places = layout.pop("tokens"), layout.pop("places")
                    row |= layout
                row |= {"tokens": tokens, "tokens_per_s": tokens / row["median_s"]}
                row |= share_of_peak(bench, 2 * (body * tokens + head * places), row["median_s"])


def _score_all(
    model: LanguageModel, backend: Backend, ordered: list[TokenSequence], size: int, batches: list[Sequence[TokenSequence]]
) -> None:
    """Score ``ordered`` in passes of ``size``, as Scorer does, and put the batches of the passes into ``batches``."""
    batches.clear()
    start, end_of_batch = 0, backend.end_of_batch()
    with torch.no_grad(), backend.active(model.module):
        while start < len(ordered):
            end = end_of_batch(ordered, start, size)
            found = backend.score_forward(model.module, ordered[start:end])
            found.logprobs_L.cpu()
            found.greedy_L.cpu()
            batches.append(ordered[start:end])
            start = end


def _layout(bench: Bench, model: LanguageModel, batches: list[Sequence[TokenSequence]]) -> dict[str, Any]:
    """Return the time of the layout, which is a part of ``_score_all``, and its counts.

    Returns:
        layout_s is the time of making prefix trees. masks_s is the time of making attention masks on the device.
        trees is the number of trees, and masked of attention calls with a mask. tokens is the number of computed tokens, and
        places of those with a label.
    """
    started = time.perf_counter()
    layouts = [prefix_tree_layout(batch) for batch in batches]
    layout = time.perf_counter()
    masked = 0
    for one in layouts:
        attention = PackedAttention(one)
        attention.place(to_device(bench.device, *attention.arrays))
        masked += sum(mask is not None for mask in attention.masks(None, model.module.dtype))
    wait(bench.device)
    return {
        "layout_s": layout - started,
        "masks_s": time.perf_counter() - layout,
        "trees": sum(len(one.starts_S) for one in layouts),
        "masked": masked,
        "tokens": sum(one.tokens for one in layouts),
        "places": sum(len(set(one.sources_L.tolist())) for one in layouts),
    }


def writing(bench: Bench) -> None:
    """Time the generation of answers of a fixed length."""
    each_shape(bench, bench.sizes.other, _generate)


def _generate(bench: Bench, model: LanguageModel, backends: dict[str, Backend]) -> None:
    sizes = bench.sizes
    # A model with random weights may generate any token, also end tokens at which transformers' generate() would stop.
    model.module.generation_config.eos_token_id = None
    draw, tokenizer = random.Random(3), model.text.tokenizer
    contexts = [
        str(tokenizer.decode(draw.choices(range(1, len(tokenizer)), k=draw.randint(*CONTEXT_TOKENS))))
        for _ in range(sizes.answers)
    ]
    limit = {"max_gen_toks": sizes.answer_tokens, "until": []}
    requests = [Request(kind="generate_until", context=context, generation=limit) for context in contexts]
    ways: dict[str, Callable[[], object]] = {}
    for name, backend in backends.items():
        large = replace(backend, memory_budget=replace(backend.memory_budget, generation_rows=sizes.answers))
        ways[name] = partial(Scorer(model=model, backend=large, batch_size=sizes.answers).reply, requests)
    # The last one, because it may switch the model to another attention function.
    ways["generate_batch"] = partial(_by_transformers, model, model.text.encode(contexts), sizes.answer_tokens)
    for name, way in ways.items():
        what = "contexts and answers" + ("" if name == "generate_batch" else ", and the search for stop strings on the host")
        with bench.measurement("writing", shape=model.name, backend=name, answers=sizes.answers, counted=what) as row:
            passes = list[int]()
            hook = model.module.get_input_embeddings().register_forward_pre_hook(lambda *_: passes.append(1))  # noqa: B023
            reset_peak(bench.device)
            try:
                row |= timed(way, bench.device, seconds=sizes.seconds, rounds=3)
            finally:
                hook.remove()
            # No answer ends before its limit.
            tokens, counted = sizes.answers * sizes.answer_tokens, len(passes) / (row["rounds"] + 1)
            row |= {"tokens": tokens, "passes": counted, "peak_bytes": peak_bytes(bench.device)}
            row |= {"tokens_per_s": tokens / row["median_s"], "ms_per_pass": row["median_s"] * 1e3 / counted}


def _by_transformers(model: LanguageModel, contexts: Sequence[Sequence[int]], tokens: int) -> object:
    """Generate answers by transformers' own continuous batching."""
    # By default its cache takes most of the memory, which is right for a GPU and slow on a CPU.
    small = {} if model.device.type == "cuda" else {"num_blocks": 64, "page_size": 32, "max_batch_tokens": 512}
    batching = ContinuousBatchingConfig(max_requests_per_batch=len(contexts), **small)
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=model.text.end_id)
    inputs = [list(context) for context in contexts]
    found = model.module.generate_batch(inputs, generation_config=config, continuous_batching_config=batching)
    assert [len(output.generated_tokens) for output in found.values()] == [tokens] * len(contexts)
    return found
