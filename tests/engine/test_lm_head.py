"""The output layer in blocks of the vocabulary gives the results of float64 logits, and a probe chooses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from operators import LiveBytes
from peft.utils import ModulesToSaveWrapper
from tiny import tiny_model, tiny_module, tiny_tokenizer

from lm_harmony.engine import lm_head_blocks, lm_head_probe
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import PACKED, choose_backend
from lm_harmony.engine.forward import packed_logprobs, padded_logprobs, prefix_tree_logprobs
from lm_harmony.engine.lm_head import LMHead, lm_head_logprobs, lm_head_of
from lm_harmony.engine.lm_head_blocks import HeadBlocks, PlainHead
from lm_harmony.engine.lm_head_probe import choose_head_blocks
from lm_harmony.engine.onednn_linear import OneDnnLinear, use_onednn
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import fine_tune
from lm_harmony.models.loading import LanguageModel, build_language_model
from lm_harmony.recipe import Lora, Recipe

ROWS, TOKENS, WIDTH = 23, 1_111, 64
SMALL = HeadBlocks(logits=700, smallest_block=64)
"""Blocks of 62 tokens and chunks of 8 rows. The last block and the last chunk are smaller."""
PRODUCTS = [
    SMALL,
    replace(SMALL, forward_onednn=True, backward_onednn=True),
    HeadBlocks(),
    HeadBlocks(logits=1, smallest_block=7),
]
HEADS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"softcap": 5.0},
    "cohere": {"scale": 0.0625},
    "granite": {"scale": 1 / 4.0, "softcap": 3.0},
    "phi": {"bias": True, "scale": 1.5, "softcap": 8.0},
}
"""Scale, soft-capping and bias of the output layers of these architectures, and combinations of them."""
RECIPE = Recipe(lora=Lora(target_modules=("all-linear",), lora_dropout=0.1), epochs=25, batch_size=4, learning_rate=1e-3)


def head_of(*, bias: bool = False, **factors: Any) -> PlainHead:
    """Return an output layer whose weights are trained."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(TOKENS, WIDTH, generator=generator).mul_(0.3).requires_grad_()
    bias_V = torch.randn(TOKENS, generator=generator).requires_grad_() if bias else None
    return PlainHead(weight_VxD=weight, bias_V=bias_V, **factors)


def chunked(head: PlainHead, *, trained: bool = False) -> LMHead:
    """Return the same output layer without blocks."""

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        values = torch.nn.functional.linear(hidden, head.weight_VxD, head.bias_V) * head.scale
        return values if head.softcap is None else torch.tanh(values / head.softcap) * head.softcap

    return LMHead(logits, vocabulary=len(head.weight_VxD), trained=trained, plain=head)


def inputs(head: PlainHead) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states and labels. The labels of some rows are certain, those of one are the least probable token."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    labels = torch.randint(TOKENS, (ROWS,), generator=generator)
    weight = head.weight_VxD.detach().float()
    labels[0], labels[1] = 0, TOKENS - 1
    hidden[2] = weight[labels[2]] * 4
    hidden[3] = weight[labels[3]] * 2
    hidden[4] = weight[labels[4]] * -4
    return hidden, labels


def found_by(
    head: LMHead, blocks: HeadBlocks | None, hidden: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return log-probabilities, greedy flags, and the gradients by the hidden states and by what is trained of the layer."""
    assert head.plain is not None
    hidden, rows = hidden.clone().requires_grad_(), np.arange(len(labels))
    logprobs, greedy = lm_head_logprobs(head, hidden, torch.from_numpy(rows), labels, rows, blocks=blocks)
    weights = [one for one in (head.plain.weight_VxD, head.plain.bias_V) if one is not None and one.requires_grad]
    # The weights of the rows in the loss differ, as those of several runs in a pass do.
    loss = (logprobs * torch.linspace(0.5, 2, len(labels))).sum()
    return logprobs.detach(), greedy, list(torch.autograd.grad(loss, [hidden, *weights]))


def exact(head: PlainHead, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return what ``found_by`` returns, from float64 logits of the whole vocabulary."""
    doubled = [None if one is None else one.detach().double().requires_grad_() for one in (head.weight_VxD, head.bias_V)]
    hidden = hidden.double().requires_grad_()
    logits = torch.nn.functional.linear(hidden, doubled[0], doubled[1]) * head.scale  # type: ignore[arg-type]
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    logprobs = logits.log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
    loss = (logprobs * torch.linspace(0.5, 2, len(labels), dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(loss, [hidden, *(one for one in doubled if one is not None)])
    return logprobs.detach(), logits.argmax(dim=-1) == labels, list(gradients)


def errors(found: tuple[Any, Any, list[torch.Tensor]], expected: tuple[Any, Any, list[torch.Tensor]]) -> tuple[float, float]:
    """Return the largest error of a log-probability, and the largest relative error of a row of a gradient."""
    rows = []
    for one, other in zip(found[2], expected[2], strict=True):
        difference, size = (one.double() - other).reshape(len(other), -1).norm(dim=1), other.reshape(len(other), -1).norm(dim=1)
        rows.append(float((difference / size.clamp(min=1e-3 * float(size.max()))).max()))
    return float((found[0].double() - expected[0]).abs().max()), max(rows)


@pytest.mark.parametrize("blocks", PRODUCTS, ids=["small", "oneDNN", "large", "tiny"])
@pytest.mark.parametrize("name", HEADS)
def test_log_probabilities_and_gradients_equal_those_of_float64_logits(name: str, blocks: HeadBlocks) -> None:
    head = head_of(**HEADS[name])
    hidden, labels = inputs(head)
    expected = exact(head, hidden, labels)
    for trained in (True, False):
        for weight in (head.weight_VxD, head.bias_V):
            if weight is not None:
                weight.requires_grad_(trained)
        found = found_by(chunked(head, trained=trained), blocks, hidden, labels)
        known = expected if trained else (*expected[:2], expected[2][:1])
        of_logprobs, of_gradients = errors(found, known)
        assert of_logprobs < 1e-5 and of_gradients < 1e-4
        assert torch.equal(found[1], expected[1])
    assert bool(expected[1].any()) and not bool(expected[1].all())


@pytest.mark.parametrize("wrong", [{"scale": 1.001}, {"softcap": 5.01}, {"softcap": None}, {"bias_V": None}], ids=str)
def test_a_wrong_factor_is_detected(wrong: dict[str, Any]) -> None:
    """Negative control of the test above."""
    head = head_of(bias=True, softcap=5.0)
    hidden, labels = inputs(head)
    expected = exact(head, hidden, labels)
    found = found_by(chunked(replace(head, **wrong), trained=True), SMALL, hidden, labels)
    of_logprobs, of_gradients = errors(found, (*expected[:2], expected[2][: len(found[2])]))
    assert of_logprobs > 1e-5 and of_gradients > 1e-4


def test_sums_that_are_not_scaled_down_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the gradient's sum keeps the scale of the first block when a larger logit is found."""
    head = head_of()
    hidden, labels = inputs(head)
    expected = exact(head, hidden, labels)
    right = lm_head_blocks.HeadBlocks.add_gradient
    sums: dict[int, torch.Tensor] = {}

    def unscaled(self: HeadBlocks, sum_CxD: torch.Tensor, grad_CxB: torch.Tensor, weight_BxD: torch.Tensor) -> None:
        sum_CxD.copy_(sums.get(id(sum_CxD), sum_CxD))
        right(self, sum_CxD, grad_CxB, weight_BxD)
        sums[id(sum_CxD)] = sum_CxD.clone()

    monkeypatch.setattr(lm_head_blocks.HeadBlocks, "add_gradient", unscaled)
    of_logprobs, of_gradients = errors(
        found_by(chunked(head, trained=True), HeadBlocks(logits=100 * ROWS, smallest_block=1), hidden, labels), expected
    )
    assert of_logprobs < 1e-5 and of_gradients > 1e-2


def test_the_first_of_equally_probable_tokens_is_greedy() -> None:
    """Tokens 5, 400 and 401 have the same largest logit; 400 and 401 are in another block than 5."""
    head = head_of()
    with torch.no_grad():
        head.weight_VxD[[5, 400, 401]] = 2.0
    hidden, rows = torch.ones(1, WIDTH), np.zeros(4, dtype=np.int64)
    labels = torch.tensor([5, 400, 401, 7])
    with torch.no_grad():
        for blocks in (*PRODUCTS, None):
            _, greedy = lm_head_logprobs(chunked(head), hidden, torch.from_numpy(rows), labels, rows, blocks=blocks)
            assert greedy.tolist() == [True, False, False, False]
    for label, expected in zip(labels, (True, False, False, False), strict=True):
        assert found_by(chunked(head, trained=True), SMALL, hidden, label[None])[1].tolist() == [expected]


def test_several_labels_of_one_row_are_scored_as_without_blocks() -> None:
    head = head_of(softcap=6.0, bias=True)
    hidden, _ = inputs(head)
    generator = torch.Generator().manual_seed(2)
    rows = np.sort(np.concatenate([np.arange(ROWS), [0, 0, 9, 22]]))
    labels = torch.randint(TOKENS, (len(rows),), generator=generator)
    with torch.no_grad():
        expected, flags = lm_head_logprobs(chunked(head), hidden, torch.from_numpy(rows), labels, rows)
        for blocks in PRODUCTS:
            found, found_flags = lm_head_logprobs(chunked(head), hidden, torch.from_numpy(rows), labels, rows, blocks=blocks)
            assert float((found - expected).abs().max()) < 1e-5 and torch.equal(found_flags, flags)
        shifted, _ = lm_head_logprobs(chunked(head), hidden, torch.from_numpy(rows), labels.roll(1), rows, blocks=SMALL)
    assert float((shifted - expected).abs().max()) > 0.1  # negative control


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
@pytest.mark.parametrize("name", HEADS)
def test_half_precision_is_not_less_exact_than_without_blocks(name: str, autocast: bool) -> None:
    """Blocks sum in float32. Without blocks the logits and their gradients are rounded to bfloat16."""
    head = head_of(**HEADS[name])
    hidden, labels = inputs(head)
    if not autocast:
        halves = (one if one is None else one.detach().bfloat16().requires_grad_() for one in (head.weight_VxD, head.bias_V))
        head, hidden = replace(head, **dict(zip(("weight_VxD", "bias_V"), halves, strict=True))), hidden.bfloat16()
    expected = exact(head, hidden, labels)
    for trained in (True, False):
        for weight in (head.weight_VxD, head.bias_V):
            if weight is not None:
                weight.requires_grad_(trained)
        known = expected if trained else (*expected[:2], expected[2][:1])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            with_blocks = errors(found_by(chunked(head, trained=trained), SMALL, hidden, labels), known)
            without = errors(found_by(chunked(head, trained=trained), None, hidden, labels), known)
        assert with_blocks[0] < 2e-5 and with_blocks[0] < without[0]
        assert with_blocks[1] < 0.005 and with_blocks[1] < without[1]


def test_nothing_of_the_size_of_all_logits_exists() -> None:
    """A pass of 23 rows and 1,111 tokens has 102 kB of logits. The gradient by trained weights has 284 kB."""
    peaks, logits, gradient = {}, ROWS * TOKENS * 4, TOKENS * WIDTH * 4
    for trained in (False, True):
        head = head_of(softcap=5.0)
        head.weight_VxD.requires_grad_(trained)
        hidden, labels = inputs(head)
        for blocks in (SMALL, None):
            with LiveBytes() as bytes_of:
                found_by(chunked(head, trained=trained), blocks, hidden, labels)
            peaks[trained, blocks is not None] = bytes_of.peak - gradient  # without the weights
    assert peaks[False, True] < logits < peaks[False, False] / 2
    assert peaks[True, True] < gradient + logits < peaks[True, False] - logits


def questions(tokens: int) -> list[TokenSequence]:
    """Return eight sequences, of which two and two begin alike."""
    generator = torch.Generator().manual_seed(3)
    begin = torch.randint(2, tokens, (6,), generator=generator).tolist()
    found = []
    for row in range(8):
        ids = (*begin[: 2 + row // 2], *torch.randint(2, tokens, (5 + 3 * row,), generator=generator).tolist())
        found.append(TokenSequence(ids=ids, first_label=1 + row % 3, row=row))
    return found


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "granite", "phi", "cohere"])
def test_fifty_steps_and_scores_are_those_without_blocks(architecture: str) -> None:
    blocks, sequences = HeadBlocks(logits=900, smallest_block=32), questions(300)
    with_blocks = replace(PACKED, train_forward=partial(packed_logprobs, head_blocks=blocks))
    # AdamW would enlarge the rounding of gradients that are zero, such as those of the biases of keys.
    all_weights = replace(RECIPE, lora=None, optimizer="sgd")
    for recipe in (RECIPE, all_weights) if architecture in ("gemma2", "phi", "cohere") else (RECIPE,):
        ends = []
        for backend in (PACKED, with_blocks):
            with trainable(tiny_model(architecture), recipe, seed=0) as trainee:
                epochs = list(fine_tune(trainee, sequences, recipe, seed=0, micro_batch=4, backend=backend))
                ends.append({name: weight.detach().clone() for name, weight in trainee.trained_parameters().items()})
        assert sum(len(epoch.steps) for epoch in epochs) == 50
        for name, expected in ends[0].items():
            assert (ends[1][name] - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name
        assert any(not torch.equal(ends[1][name], expected) for name, expected in ends[0].items())  # they did run
    module = tiny_module(architecture)
    with torch.no_grad():
        expected_scores = padded_logprobs(module, sequences)
        for forward in (packed_logprobs, prefix_tree_logprobs):
            found = forward(module, sequences, head_blocks=blocks)
            assert float((found.logprobs_L - expected_scores.logprobs_L).abs().max()) < 1e-5
            assert torch.equal(found.greedy_L, expected_scores.greedy_L)


def test_the_architectures_above_have_scale_softcap_bias_and_tied_weights() -> None:
    heads = {name: lm_head_of(tiny_module(name)).plain for name in ("llama", "gemma2", "granite", "phi", "cohere")}
    assert all(head is not None for head in heads.values())
    assert heads["gemma2"].softcap == 30 and heads["llama"].softcap is None  # type: ignore[union-attr]
    assert heads["granite"].scale == 0.25 and heads["cohere"].scale == 0.0625  # type: ignore[union-attr]
    assert heads["phi"].bias_V is not None and heads["llama"].bias_V is None  # type: ignore[union-attr]
    tied = tiny_module("gemma2")
    assert heads["gemma2"] is not None and tied.lm_head.weight is tied.get_input_embeddings().weight


def test_a_head_in_modules_to_save_is_trained_without_blocks() -> None:
    """PEFT keeps the former weights of the layer beside the trained ones. Blocks must not read them."""
    gradients = []
    recipe = Recipe(lora=Lora(lora_dropout=0.0))
    for blocks in (None, SMALL):
        model = tiny_model()
        model.module.lm_head = wrapper = ModulesToSaveWrapper(model.module.lm_head, "default")
        wrapper.enable_adapters(True)
        with trainable(model, recipe, seed=0) as trainee:
            head = lm_head_of(trainee.model.module)
            assert head.plain is None
            trained = [*trainee.trained_parameters().values(), wrapper.modules_to_save["default"].weight.requires_grad_()]
            loss = packed_logprobs(trainee.model.module, questions(300), head_blocks=blocks).logprobs_L.sum()
            gradients.append(torch.autograd.grad(loss, trained))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert float(gradients[0][-1].norm()) > 0


class Wrapped(torch.nn.Module):
    """A module around an output layer that adds to its result, as an adapter does."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x) + x.sum(dim=-1, keepdim=True)
        return result


def other_layers() -> dict[str, torch.nn.Module]:
    """Return output layers that blocks must not compute."""
    hooked, replaced = torch.nn.Linear(WIDTH, TOKENS), torch.nn.Linear(WIDTH, TOKENS)
    hooked.register_forward_hook(lambda *given: given[2] * 2)
    replaced.forward = lambda x: x  # type: ignore[method-assign]

    class Quantized(torch.nn.Linear):
        pass

    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(WIDTH, TOKENS))
    return {
        "hooked": hooked,
        "forward replaced": replaced,
        "subclass": Quantized(WIDTH, TOKENS),
        "parametrized": parametrized,
        "meta": torch.nn.Linear(WIDTH, TOKENS, device="meta"),
        "float64": torch.nn.Linear(WIDTH, TOKENS, dtype=torch.float64),
        "wrapped": Wrapped(torch.nn.Linear(WIDTH, TOKENS)),
    }


@pytest.mark.parametrize("name", list(other_layers()))
def test_other_output_layers_are_not_computed_in_blocks(name: str) -> None:
    plain = partial(PlainHead.of, scale=1.0, softcap=None)
    assert plain(other_layers()[name]) is None
    layer = torch.nn.Linear(WIDTH, TOKENS)
    assert plain(layer) is not None  # the negative control
    shape = frozenset({(TOKENS, WIDTH)})
    with use_onednn(layer, OneDnnLinear(forward=shape, backward=shape)):
        assert "forward" in vars(layer) and plain(layer) is not None


@pytest.mark.parametrize("rows", [1, 3, 40, 258, 5_000])
@pytest.mark.parametrize("vocabulary", [7, 1_000, 49_152, 151_936, 262_144])
def test_chunks_and_blocks_stay_below_the_limits(rows: int, vocabulary: int) -> None:
    for logits in (1, 5_000, lm_head_blocks.BLOCK_LOGITS):
        blocks = HeadBlocks(logits=logits)
        chunk, block = blocks.sizes(rows, vocabulary)
        assert 1 <= chunk <= rows and 1 <= block <= vocabulary and chunk * block <= max(logits, lm_head_blocks.SMALLEST_BLOCK)
        assert chunk == rows or block <= lm_head_blocks.SMALLEST_BLOCK
        _, copied = blocks.sizes(rows, vocabulary, copied=4_096)
        assert copied <= block and copied * 4_096 <= lm_head_blocks.COPIED_WEIGHTS
    chunk, block = HeadBlocks().sizes(258, 262_144)
    assert chunk == 258 and block == 9_363
    assert HeadBlocks().sizes(258, 262_144, copied=4_096) == (258, 2_428)


@pytest.fixture(scope="module")
def wide() -> LanguageModel:
    """Return a model whose vocabulary is large enough for blocks."""
    module = tiny_module("gemma2", vocab_size=lm_head_blocks.SMALLEST_VOCABULARY)
    return build_language_model("wide", module, tiny_tokenizer())


class Clock:
    """A simulated clock, and log-probabilities whose two ways take the given seconds on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, chunks: float, blocks: float) -> None:
        self.seconds, self.chunks, self.blocks = 0.0, chunks, blocks
        monkeypatch.setattr(lm_head_probe, "work_clock", lambda: self.seconds)
        monkeypatch.setattr(lm_head_probe, "lm_head_logprobs", self.charging)

    def charging(self, *given: Any, blocks: HeadBlocks | None) -> tuple[torch.Tensor, torch.Tensor]:
        self.seconds += self.chunks if blocks is None else self.blocks
        return lm_head_logprobs(*given, blocks=blocks)


@pytest.mark.parametrize(("seconds", "chosen"), [(1.9, True), (2.1, False)])
def test_the_probe_chooses_blocks_where_they_are_faster(
    wide: LanguageModel, seconds: float, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, chunks=2.0, blocks=seconds)
    found = choose_head_blocks(wide, OneDnnLinear())
    assert (found is not None) is chosen


def test_the_probe_refuses_small_vocabularies_and_wrong_products(wide: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, chunks=2.0, blocks=1.0)
    assert choose_head_blocks(tiny_model(), OneDnnLinear()) is None
    assert choose_head_blocks(wide, OneDnnLinear()) is not None
    right: Callable[..., torch.Tensor] = HeadBlocks.product
    with monkeypatch.context() as patch:
        patch.setattr(HeadBlocks, "product", lambda *given: right(*given) * 1.01)
        assert choose_head_blocks(wide, OneDnnLinear()) is None
    with monkeypatch.context() as patch:
        patch.setattr(HeadBlocks, "add_gradient", lambda *given: None)
        assert choose_head_blocks(wide, OneDnnLinear()) is None


def test_the_backend_uses_and_records_what_the_probe_chose(wide: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (1.0, 3.0):
        Clock(monkeypatch, chunks=2.0, blocks=seconds)
        backend = choose_backend(wide)
        assert backend.packed and (backend.head_blocks is not None) is (seconds == 1.0)
        assert ("head" in backend.describe()) is (seconds == 1.0)
        for forward in (backend.train_forward, backend.score_forward):
            assert forward.keywords["head_blocks"] == backend.head_blocks  # type: ignore[attr-defined]


def test_the_backend_refuses_blocks_that_are_wrong_for_the_model(wide: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of more than 12,000 tokens are wrong. The probe has smaller ones, as it has more rows than the texts."""
    Clock(monkeypatch, chunks=2.0, blocks=1.0)
    right = HeadBlocks.product

    def wrong(self: HeadBlocks, x_CxD: torch.Tensor, weight_BxD: torch.Tensor) -> torch.Tensor:
        return right(self, x_CxD, weight_BxD) * (1.01 if len(weight_BxD) > 12_000 else 1.0)

    monkeypatch.setattr(HeadBlocks, "product", wrong)
    backend = choose_backend(wide)
    assert backend.packed and backend.head_blocks is None
