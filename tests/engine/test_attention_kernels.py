"""Attention kernels that a GPU may use give the results of the default, and the probe takes only exact and faster ones."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch
from tiny import PACKABLE, VOCABULARY, tiny_model
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.attention_function import packed_attention
from lm_harmony.engine.attention_kernels import DEFAULT_KERNELS, AttentionKernels, chain_attention, varlen_attention
from lm_harmony.engine.attention_probe import choose_kernels, fastest
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.compiled_layers import compiled_layers, decoder_layers
from lm_harmony.engine.forward import packed_logprobs, prefix_tree_logprobs
from lm_harmony.engine.layout import concatenated_layout
from lm_harmony.engine.length_groups import group_segments
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.errors import ModelError
from lm_harmony.recipe import Lora, Recipe

RECIPE = Recipe(lora=Lora(target_modules=("all-linear",), lora_dropout=0.0))
MERGED, VARLEN = AttentionKernels(merged_prefix=True), AttentionKernels(varlen=True)


def few_shot(*, branches: int) -> list[TokenSequence]:
    """Return questions of several lengths after the same 40 tokens, with some answers each."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda size: tuple(torch.randint(2, VOCABULARY, (size,), generator=generator).tolist())  # noqa: E731
    examples = draw(40)
    contexts = [(*examples, *draw(6 + 3 * number)) for number in range(7)]
    return [TokenSequence(ids=(*ids, *draw(3)), first_label=len(ids)) for ids in contexts for _ in range(branches)]


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_merged_prefix_gives_the_scores_of_a_mask(architecture: str, branches: int) -> None:
    module = tiny_model(architecture).module
    with torch.no_grad():
        expected, found = (
            prefix_tree_logprobs(module, few_shot(branches=branches), kernels=one) for one in (AttentionKernels(), MERGED)
        )
    assert (found.logprobs_L - expected.logprobs_L).abs().max() < 2e-5


def test_a_merged_prefix_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the comparison: a wrong merge changes the scores."""
    module = tiny_model().module
    with torch.no_grad():
        expected = prefix_tree_logprobs(module, few_shot(branches=3)).logprobs_L
        monkeypatch.setattr("lm_harmony.engine.packed_attention.merged_attention", lambda one, _, __, ___: one)
        found = prefix_tree_logprobs(module, few_shot(branches=3), kernels=MERGED).logprobs_L
    assert (found - expected).abs().max() > 1e-3


def by_definition(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, keys: torch.Tensor, *_: int, **options: Any
) -> torch.Tensor:
    """Compute varlen_attn sequence by sequence; PyTorch has no kernel of it for a CPU."""
    assert bounds.dtype == torch.int32 and torch.equal(bounds, keys) and options["window_size"][1] == 0
    parts = []
    for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        places = torch.arange(stop - start)
        behind = places[:, None] - places
        left = options["window_size"][0]
        allowed = (behind >= 0) & ((behind <= left) if left >= 0 else True)
        tensors = [tensor[start:stop].transpose(0, 1)[None] for tensor in (q, k, v)]
        grouped = options.get("enable_gqa", False)
        parts.append(scaled_dot_product_attention(*tensors, attn_mask=allowed, scale=options["scale"], enable_gqa=grouped))
    return torch.cat([part[0].transpose(0, 1) for part in parts])


@pytest.mark.parametrize("architecture", PACKABLE)
def test_varlen_attention_gets_the_sequences_windows_and_scale(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", by_definition)
    gradients = []
    for kernels in (DEFAULT_KERNELS, VARLEN):
        with trainable(tiny_model(architecture), RECIPE, seed=0) as trainee:
            found = packed_logprobs(trainee.model.module, few_shot(branches=1), kernels=kernels).logprobs_L
            found.sum().backward()
            gradients.append([found.detach(), *(weight.grad for weight in trainee.trained_parameters().values())])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm() + 1e-6


def test_varlen_attention_has_the_shapes_of_pytorch() -> None:
    """PyTorch's own operator accepts the arguments; on device ``meta`` it computes shapes only."""
    q, k, v = (torch.empty(20, heads, 16, device="meta", dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 8, 20], dtype=torch.int32, device="meta")
    found = varlen_attention(q, k, v, bounds, longest=12, window=None, scale=None)
    assert found.shape == q.shape
    found.sum().backward()
    assert k.grad is not None and k.grad.shape == k.shape


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("sizes", [(9, 9, 9), (70, 72, 71), (10, 80, 200, 12)])
def test_chain_attention_is_that_of_each_sequence_with_its_gradients(sizes: tuple[int, ...], scale: float | None) -> None:
    """Equal and unequal lengths, one and several groups, with keys that several queries share."""
    layout = concatenated_layout([TokenSequence(ids=tuple(range(size + 1)), first_label=1) for size in sizes])
    groups, slots_Q, back_N, _ = group_segments(layout)
    assert all(group.chains for group in groups) and len(groups) == {9: 1, 70: 1, 10: 3}[sizes[0]]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, sum(sizes), 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(sum(sizes), 4, 8, generator=generator)

    def computed(lengths: tuple[int, ...], *, own_places: bool = True) -> list[torch.Tensor]:
        slots, back = torch.from_numpy(slots_Q), torch.from_numpy(back_N)
        gathers = None if len(set(lengths)) == 1 else (slots, back if own_places else back.flip(0))
        found = chain_attention(*inputs, [(group.segments, group.longest) for group in groups], gathers, scale)
        return [found, *torch.autograd.grad((found * weights).sum(), inputs)]

    parts = zip(*(tensor.split(sizes, dim=2) for tensor in inputs), strict=True)
    each = [scaled_dot_product_attention(*part, is_causal=True, scale=scale, enable_gqa=True) for part in parts]
    joined = torch.cat(each, dim=2).squeeze(0).transpose(0, 1)
    expected = [joined, *torch.autograd.grad((joined * weights).sum(), inputs)]
    for one, other in zip(computed(sizes), expected, strict=True):
        assert (one - other).abs().max() < 1e-5
    if len(set(sizes)) > 1:  # negative control
        wrong = computed(sizes, own_places=False)
        assert all((one - other).abs().max() > 1e-2 for one, other in zip(wrong, expected, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_training_on_a_cpu_uses_chain_attention(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the comparisons with padded batches: other attention changes the log-probabilities."""
    module, rows = tiny_model(architecture).module, few_shot(branches=1)
    expected = packed_logprobs(module, rows).logprobs_L
    monkeypatch.setattr("lm_harmony.engine.packed_attention.chain_attention", lambda query, *_: query.squeeze(0).transpose(0, 1))
    assert (packed_logprobs(module, rows).logprobs_L - expected).abs().max() > 1e-3


def test_the_probe_takes_a_kernel_only_if_it_is_exact_and_faster() -> None:
    default, other = DEFAULT_KERNELS, MERGED

    def result(seconds: float, value: float) -> torch.Tensor:
        time.sleep(seconds)
        return torch.tensor([1.0, value])

    def unsupported() -> torch.Tensor:
        raise NotImplementedError("no kernel")

    slow = partial(result, 0.02, 2.0)
    assert fastest({default: slow, other: partial(result, 0.0, 2.0)}) == other
    assert fastest({default: slow, other: partial(result, 0.03, 2.0)}) == default
    assert fastest({default: slow, other: partial(result, 0.0, 2.2)}) == default
    assert fastest({default: slow, other: unsupported}) == default


def test_the_probe_runs_on_a_model_and_leaves_it_unchanged() -> None:
    model = tiny_model()
    weight = model.module.get_input_embeddings().weight
    before = weight.requires_grad, weight.detach().clone()
    assert not choose_kernels(model).varlen  # a CPU has no kernel for it
    assert weight.requires_grad == before[0] and torch.equal(weight, before[1]) and weight.grad is None


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox"])
def test_compiled_layers_have_no_graph_break_and_the_same_results(architecture: str) -> None:
    """The graphs are captured whole, for any number of tokens, and run without a compiler, which takes minutes on a CPU."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with trainable(tiny_model(architecture), RECIPE, seed=0) as trainee:
        module, found = trainee.model.module, []
        sizes = [few_shot(branches=2)[start:] for start in (0, 2, 4, 6)]  # PyTorch compiles again for a group of one sequence
        expected = [packed_logprobs(module, sequences).logprobs_L for sequences in sizes]
        with packed_attention(module), compiled_layers(module, backend=keep):
            for number, sequences in enumerate(sizes):
                found.append(packed_logprobs(module, sequences).logprobs_L)
                found[-1].sum().backward()
                if number == 1:
                    captured = len(graphs)
        layers = len(decoder_layers(module))
    assert layers == 2 and layers <= captured == len(graphs) <= 2 * layers, "new numbers of tokens must not compile again"
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() < 1e-6
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(module))


def test_compiled_layers_are_refused_on_a_cpu() -> None:
    with pytest.raises(ModelError, match="engine compiled needs a CUDA device, and the model is on cpu"):
        choose_backend(tiny_model(), "compiled")
