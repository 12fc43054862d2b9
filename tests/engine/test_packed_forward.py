"""Packed and prefix-tree forward passes equal padded batches. Where they would not, the engine falls back to padded batches."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import LiveBytes
from tiny import PACKABLE, UNPACKABLE, VOCABULARY, tiny_model, tiny_module
from transformers import CONFIG_MAPPING, AttentionInterface, AutoModelForCausalLM

from lm_harmony.benchmarks.types import Request
from lm_harmony.demo.study import SHIPPED
from lm_harmony.engine import backends
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.attention_function import NAME
from lm_harmony.engine.backends import PACKED, PADDED, choose_backend
from lm_harmony.engine.continuous_batching import decode_greedily, supports_continuous_batching
from lm_harmony.engine.forward import Forward, LabelLogprobs, packed_logprobs, padded_logprobs, prefix_tree_logprobs
from lm_harmony.engine.generation import generate
from lm_harmony.engine.layout import Layout, concatenated_layout
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.engine.packed_attention import PackedAttention
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import fine_tune
from lm_harmony.errors import ModelError
from lm_harmony.models.loading import LanguageModel, build_language_model, load_model
from lm_harmony.recipe import Lora, Recipe

model_of = cache(tiny_model)
TOKEN = st.integers(2, VOCABULARY - 1)


@st.composite
def prefix_trees(draw: st.DrawFn) -> list[TokenSequence]:
    """Draw sequences with shared prefixes of any depth, with duplicates, and with contexts of at least one token."""
    shared_prefix = draw(st.lists(TOKEN, min_size=0, max_size=30))
    sequences = []
    for _ in range(draw(st.integers(1, 4))):
        context = [*shared_prefix, *draw(st.lists(TOKEN, min_size=1, max_size=20))]
        for _ in range(draw(st.integers(1, 4))):
            context = context[: draw(st.integers(1, len(context)))] if draw(st.booleans()) else context
            continuation = draw(st.lists(TOKEN, min_size=1, max_size=5))
            sequence = TokenSequence(ids=(*context, *continuation), first_label=len(context))
            sequences += [sequence] * draw(st.integers(1, 2))
    return draw(st.permutations(sequences))


def questions() -> list[TokenSequence]:
    """Return five questions of three answers each with a shared prefix, longer than the tiny models' sliding windows."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda size: torch.randint(2, VOCABULARY, (size,), generator=generator).tolist()  # noqa: E731
    shared_prefix, sequences = draw(20), []
    for _ in range(5):
        context = [*shared_prefix, *draw(12)]
        answers = [draw(size) for size in (1, 2, 4)]
        sequences += [TokenSequence(ids=(*context, *answer), first_label=len(context)) for answer in answers]
    return sequences


def difference(found: LabelLogprobs, expected: LabelLogprobs) -> float:
    assert found.counts == expected.counts
    return float((found.logprobs_L - expected.logprobs_L).abs().max())


@pytest.mark.parametrize("forward_pass", [packed_logprobs, prefix_tree_logprobs])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_log_likelihoods_equal_those_of_padded_batches(architecture: str, forward_pass: Callable[..., LabelLogprobs]) -> None:
    module = model_of(architecture).module
    with torch.no_grad():
        expected, found = padded_logprobs(module, questions()), forward_pass(module, questions())
    assert difference(found, expected) < 1e-5
    assert torch.equal(found.greedy_L, expected.greedy_L)


@settings(max_examples=60, deadline=None)
@given(sequences=prefix_trees(), architecture=st.sampled_from(["llama", "mistral", "gemma3_text", "gpt2"]))
def test_any_prefix_tree_scores_as_padded_batches(sequences: list[TokenSequence], architecture: str) -> None:
    module = model_of(architecture).module
    with torch.no_grad():
        expected = padded_logprobs(module, sequences)
        for forward_pass in (packed_logprobs, prefix_tree_logprobs):
            found = forward_pass(module, sequences)
            assert difference(found, expected) < 1e-4
            # Two tokens may be equally probable within rounding.
            assert float((found.greedy_L != expected.greedy_L).float().mean()) < 0.02


@pytest.mark.parametrize("architecture", PACKABLE)
def test_loss_and_gradients_equal_those_of_padded_batches(architecture: str) -> None:
    gradients = []
    for forward_pass in (padded_logprobs, packed_logprobs):
        recipe = Recipe(lora=Lora(target_modules=("all-linear",), lora_dropout=0.0))
        with trainable(tiny_model(architecture), recipe, seed=0) as trainee:
            for name, weight in trainee.trained_parameters().items():
                if "lora_B" in name:  # zero at the start, which would hide half of the gradients
                    torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
            loss = -forward_pass(trainee.model.module, questions()).logprobs_L.mean()
            loss.backward()
            gradients.append({name: weight.grad for name, weight in trainee.trained_parameters().items()} | {"loss": loss})
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() <= 1e-5 * expected.norm() + 1e-9, name


def test_gradients_of_a_trained_output_layer_equal_those_of_padded_batches() -> None:
    gradients = []
    for forward_pass in (padded_logprobs, packed_logprobs):
        with trainable(tiny_model("gpt_neox"), Recipe(lora=None), seed=0) as trainee:
            (-forward_pass(trainee.model.module, questions()).logprobs_L.mean()).backward()
            gradients.append({name: weight.grad.clone() for name, weight in trainee.trained_parameters().items()})
    assert any("embed_out" in name or "lm_head" in name for name in gradients[0])
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() <= 1e-5 * expected.norm() + 1e-9, name


def test_weights_after_fifty_steps_equal_those_of_padded_batches() -> None:
    """Padded or packed, in one pass or in several, each token of a step gets the same dropout mask."""
    recipe = Recipe(lora=Lora(target_modules=("all-linear",), lora_dropout=0.3), epochs=25, learning_rate=1e-3)
    ends = []
    few_tokens = replace(PACKED, memory_budget=MemoryBudget(training_tokens=20))
    for backend, micro_batch in ((PADDED, 8), (PACKED, 8), (PADDED, 3), (few_tokens, 8)):
        with trainable(tiny_model(), recipe, seed=0) as trainee:
            epochs = list(fine_tune(trainee, questions(), recipe, seed=0, micro_batch=micro_batch, backend=backend))
            ends.append({name: weight.detach().clone() for name, weight in trainee.trained_parameters().items()})
    assert sum(len(epoch.steps) for epoch in epochs) == 50
    for other in ends[1:]:
        for name, expected in ends[0].items():
            assert (other[name] - expected).norm() <= 1e-4 * expected.norm(), name


def checkpointed(architecture: str, forward: Forward, *, on: bool) -> tuple[int, dict[str, torch.Tensor]]:
    """Return (peak bytes of one forward and backward pass, gradients) of a model with eight layers on four long texts."""
    config = copy.deepcopy(model_of(architecture).module.config)
    config.num_hidden_layers = 8
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types * 4
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = replace(model_of(architecture), module=module)
    if on:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    recipe = Recipe(lora=Lora(target_modules=("all-linear",), lora_dropout=0.1))
    texts = [TokenSequence(ids=tuple(range(2, 102)), first_label=1, row=row) for row in range(4)]
    with trainable(model, recipe, seed=0) as trainee, LiveBytes() as bytes_of:
        trainee.module.train()
        trainee.dropout.set_step(0, 1, (100 - 1,) * 4)
        with PACKED.active(module):
            (-forward(module, texts).logprobs_L.mean()).backward()
        return bytes_of.peak, {name: weight.grad for name, weight in trainee.trained_parameters().items()}


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox", "gpt2", "opt"])
def test_gradient_checkpointing_works_with_packed_rows_and_saves_memory(architecture: str) -> None:
    kept, expected = checkpointed(architecture, packed_logprobs, on=False)
    less, found = checkpointed(architecture, packed_logprobs, on=True)
    assert less < 0.6 * kept
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-9, name
    again, _ = checkpointed(architecture, packed_logprobs, on=False)  # negative control
    assert again == kept


def test_a_wrong_attention_mask_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: one token attends to one token of another branch."""
    module = model_of("llama").module
    original = PackedAttention._attends

    def wrong(self: PackedAttention, index: int, window: int | None, prefix: int) -> torch.Tensor:
        attends = original(self, index, window, prefix)
        last = attends[0, -1]  # the first tree is the longest, so its last token is no padding
        last[int((~last).nonzero()[0])] = True
        return attends

    with torch.no_grad():
        expected = padded_logprobs(module, questions())
        monkeypatch.setattr(PackedAttention, "_attends", wrong)
        assert difference(prefix_tree_logprobs(module, questions()), expected) > 1e-4


def test_a_kv_cache_in_a_packed_row_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with a KV cache, transformers' attention lets the sequences of a packed row attend to each other."""
    module = model_of("llama").module
    sequences = questions()
    with torch.no_grad():
        expected = padded_logprobs(module, sequences)
        ids = torch.tensor([[token for sequence in sequences for token in sequence.ids[:-1]]])
        positions = torch.tensor([[place for sequence in sequences for place in range(len(sequence.ids) - 1)]])
        last = torch.tensor([len(sequence.ids) - 1 for sequence in sequences]).cumsum(0) - 1
        for cache_on, equal in ((False, True), (True, False)):
            logits = module(input_ids=ids, position_ids=positions, use_cache=cache_on).logits[0, last]
            final = torch.tensor([sequence.ids[-1] for sequence in sequences])
            found = logits.log_softmax(-1)[torch.arange(len(last)), final]
            ends = expected.logprobs_L[torch.tensor(expected.counts).cumsum(0) - 1]
            assert bool((found - ends).abs().max() < 1e-4) is equal


@pytest.mark.parametrize("architecture", PACKABLE)
def test_the_probe_accepts_exact_architectures(architecture: str) -> None:
    assert choose_backend(model_of(architecture)).packed


@pytest.mark.parametrize("architecture", UNPACKABLE)
def test_the_probe_falls_back_and_logs_the_architecture(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lm_harmony"):
        assert choose_backend(model_of(architecture)) is PADDED
    (line,) = [record.getMessage() for record in caplog.records if "falling back to padded batches" in record.getMessage()]
    assert architecture in line


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_detects_a_missing_sequence_boundary(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe tolerates bfloat16 rounding. Texts that attend to each other change the scores of a trained model by far more."""
    model = load_model(str(SHIPPED / "models" / "llama-1"), dtype=dtype)
    assert choose_backend(model).packed

    def without_boundaries(sequences: Sequence[TokenSequence]) -> Layout:
        layout = concatenated_layout(sequences)
        whole = np.full_like(layout.ends_N, layout.tokens)
        return replace(layout, starts_S=layout.starts_S[:1], ends_N=whole)

    without = partial(packed_logprobs, arrange=without_boundaries)
    monkeypatch.setattr(backends, "packed_logprobs", without)
    assert choose_backend(model) is PADDED


def test_padded_batches_can_be_requested() -> None:
    assert choose_backend(model_of("llama"), "plain") is PADDED


def test_a_layer_that_chooses_keys_of_long_texts_is_not_packed(caplog: pytest.LogCaptureFixture) -> None:
    """The sparse attention of MiniMax-M3 hides blocks of a text longer than those of the probe, whose keys are one block."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY}
    sizes |= {"hidden_size": 32, "intermediate_size": 32, "dense_intermediate_size": 64, "num_local_experts": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    sparse = {"index_n_heads": 2, "index_head_dim": 8, "index_block_size": 32, "index_topk_blocks": 1}
    types = {"layer_types": ["full_attention", "minimax_m3_sparse"], "mlp_layer_types": ["dense", "dense"]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIG_MAPPING["minimax_m3_vl_text"](**sizes, **tokens, **sparse, **types)
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in module.parameters():
        weight.data.mul_(10 if weight.dim() > 1 else 1)
    model = build_language_model("sparse", module, model_of("llama").text.tokenizer)
    with caplog.at_level(logging.INFO, logger="lm_harmony"):
        assert choose_backend(model) is PADDED
    assert "passes block_indices to its attention, which packed rows do not follow" in caplog.text
    long, indexer = [TokenSequence(ids=tuple(range(2, 100)), first_label=1)], module.model.layers[1].self_attn.indexer
    with torch.no_grad():
        expected = padded_logprobs(module, long)
        indexer.topk_blocks = 4  # all of them
        assert difference(padded_logprobs(module, long), expected) > 0.01


@pytest.mark.parametrize("name", ["attention_mask", "s_aux"])
def test_packed_attention_refuses_what_it_does_not_follow(name: str) -> None:
    layer, tensor = torch.nn.Identity(), torch.zeros(1, 2, 4, 8)
    options: dict[str, Any] = {"attention_mask": None, "position_ids": torch.arange(4)[None], "use_cache": False, name: tensor}
    with pytest.raises(ValueError, match=f"Identity passes {name} to its attention"):
        AttentionInterface()[NAME](layer, tensor, tensor, tensor, packed_row=None, **options)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {"is_causal": False}),
        ("mistral", {"is_causal": False}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("gemma", {"use_bidirectional_attention": True}),
    ],
)
def test_a_model_whose_tokens_see_later_ones_is_refused(architecture: str, fields: dict[str, bool], engine: str) -> None:
    """Embedding models are loaded as causal language models. A log-likelihood would depend on the padding of its batch."""
    module = tiny_module(architecture, **fields)
    model = build_language_model("embedding", module, model_of("llama").text.tokenizer)
    long, short = (TokenSequence(ids=tuple(range(2, 2 + size)), first_label=1) for size in (30, 9))
    with torch.no_grad():
        alone, together = padded_logprobs(module, [short]).logprobs_L, padded_logprobs(module, [short, long]).logprobs_L[:8]
    assert float((alone - together).abs().max()) > 0.1
    with pytest.raises(ModelError, match=r"model embedding: the tokens after a token change its log-probability by 0\.\d+ nats"):
        choose_backend(model, engine)


def test_a_field_that_does_not_make_attention_bidirectional_is_accepted() -> None:
    """The implementation decides, not the configuration: that of gemma2 stays causal."""
    module = tiny_module("gemma2", use_bidirectional_attention=True)
    assert choose_backend(build_language_model("gemma2", module, model_of("llama").text.tokenizer)).packed


@pytest.mark.parametrize("architecture", ["llama", "mistral", "bloom"])
def test_replies_do_not_depend_on_the_backend(architecture: str) -> None:
    model = model_of(architecture)
    requests = [
        Request(kind="loglikelihood", context=context, continuation=continuation)
        for context in ("Question: what is heat?\nAnswer:", "Question: what is wood?\nAnswer:", "", "the dog " * 60)
        for continuation in (" wood", " the lazy dog", " yes", " yes")
    ]
    requests += [Request(kind="loglikelihood_rolling", context="", continuation="the quick brown fox " * 40)]
    expected = Scorer(model=model).reply(requests)
    chosen = Scorer(model=model, backend=choose_backend(model)).reply(requests)
    for reply, other in zip(expected, chosen, strict=True):
        assert other == pytest.approx(reply, abs=1e-4)


def test_out_of_memory_halves_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model: LanguageModel = tiny_model()
    requests = [
        Request(kind="loglikelihood", context=f"Question: {number}?\nAnswer:", continuation=answer)
        for number in range(12)
        for answer in (" yes", " no")
    ]
    expected = Scorer(model=model, backend=PACKED).reply(requests)
    seen = []

    def limited(_: torch.nn.Module, __: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["input_ids"].shape[1])
        if seen[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    hook = model.module.model.register_forward_pre_hook(limited, with_kwargs=True)
    found = Scorer(model=model, backend=PACKED).reply(requests)
    hook.remove()
    assert max(seen) > 60
    for one, other in zip(expected, found, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_continuous_batching_generates_the_texts_of_generate(architecture: str) -> None:
    """Forty questions with stop strings and limits, in a batch of five rows, get the strings of transformers' generate()."""
    model, draw = model_of(architecture), random.Random(0)
    words = ["the", "dog", "fox", "quick", "question", "answer", "heat", "river", "yes", "no"]
    requests = [
        Request(
            kind="generate_until",
            context=" ".join(draw.choices(words, k=draw.randint(1, 15))),
            generation={"until": ["\n", "e "], "max_gen_toks": draw.choice((3, 24)), "do_sample": False},
        )
        for _ in range(40)
    ]
    expected = generate(model, requests, batch_size=8, max_new_tokens=24, seed=0)
    few_rows = replace(PACKED, memory_budget=MemoryBudget(generation_rows=5))
    assert generate(model, requests, batch_size=8, max_new_tokens=24, seed=0, backend=few_rows) == expected
    assert len({len(answer) for answer in expected}) > 5
    assert supports_continuous_batching(model.module) and choose_backend(model).continuous_batching


def test_generated_texts_do_not_change_when_memory_runs_out() -> None:
    model = tiny_model()
    contexts = model.text.encode([f"question {number} " * (1 + number % 3) for number in range(9)])
    options: dict[str, Any] = {"max_new_tokens": 12, "is_finished": lambda written: written[-1] % 7 == 0}
    expected = {row.place: row.written for row in decode_greedily(model, contexts, batch_size=9, **options)}
    calls = 0

    def limited(_: torch.nn.Module, __: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal calls
        calls += 1
        if kwargs["input_ids"].shape[0] > 4 and calls > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    model.module.model.register_forward_pre_hook(limited, with_kwargs=True)
    assert {row.place: row.written for row in decode_greedily(model, contexts, batch_size=9, **options)} == expected
    assert len(expected) == 9 and calls > 3
