"""All weights trained under autocast: float32 weights, bfloat16 products, float32 log-probabilities; shown on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import PACKED, PADDED, Backend, choose_backend
from lm_harmony.engine.forward import packed_logprobs, padded_logprobs, prefix_tree_logprobs
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence
from lm_harmony.engine.training import fine_tune
from lm_harmony.models.device import Precision
from lm_harmony.models.loading import LanguageModel
from lm_harmony.recipe import Recipe

RECIPE = Recipe(lora=None, epochs=2, batch_size=4, learning_rate=1e-3)
SEQUENCES = [TokenSequence(ids=tuple(range(5, 5 + size)), first_label=1, row=size) for size in (9, 14, 6, 11, 7, 12, 20, 8)]
QUESTIONS = [
    Request(kind="loglikelihood", context=context, continuation=f" {answer}")
    for context in ("the cat", "a dog is here")
    for answer in ("one", "two three")
]
TEXTS = [
    Request(kind="generate_until", context=context, continuation="", generation={"until": ["."], "max_gen_toks": 5})
    for context in ("the cat", "a dog")
]
ARCHITECTURES = ("llama", "gpt_neox", "gpt2", "gemma2")


class Products(TorchDispatchMode):
    """Counts matrix products by the type they are computed in, and tells whether any exponential was of another than float32."""

    def __init__(self) -> None:
        super().__init__()
        self.types = Counter[torch.dtype]()
        self.normalised = set[torch.dtype]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            self.types[args[-1].dtype] += 1
        if name in ("logsumexp", "exp_", "_log_softmax"):
            self.normalised.add(args[0].dtype)
        return func(*args, **dict(kwargs or {}))


def mixed(model: LanguageModel) -> LanguageModel:
    return replace(model, autocast=torch.bfloat16)


def trained(model: LanguageModel, backend: Backend) -> tuple[dict[str, torch.Tensor], list[float], Products]:
    """Train all weights; return what changed of them, the epochs' losses, and the products that were computed."""
    before = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    with trainable(model, RECIPE, seed=0) as trainee, Products() as products:
        losses = [epoch.loss for epoch in fine_tune(trainee, SEQUENCES, RECIPE, seed=0, micro_batch=2, backend=backend)]
        changes = {name: weight.detach() - before[name] for name, weight in trainee.trained_parameters().items()}
    return changes, losses, products


@pytest.mark.parametrize("backend", [PACKED, PADDED], ids=["fast", "plain"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_stay_float32_and_learn_from_bfloat16_products(architecture: str, backend: Backend) -> None:
    exact, exact_losses, without = trained(tiny_model(architecture), backend)
    found, losses, products = trained(mixed(tiny_model(architecture)), backend)
    assert products.types[torch.bfloat16] > 20 and not products.types[torch.float32]
    assert not without.types[torch.bfloat16] and without.types[torch.float32] > 20  # the negative control
    assert products.normalised == without.normalised == {torch.float32}
    assert {change.dtype for change in found.values()} == {torch.float32}
    assert losses != exact_losses and losses == pytest.approx(exact_losses, rel=0.02)
    # Converted weights are made again in each pass: with those of the first step the loss would not follow the float32 one.
    assert losses[1] < losses[0] and exact_losses[1] < exact_losses[0]
    weight = max(exact, key=lambda name: exact[name].numel())
    assert torch.cosine_similarity(found[weight].flatten(), exact[weight].flatten(), dim=0) > 0.8


@pytest.mark.parametrize("backend", [PACKED, PADDED], ids=["fast", "plain"])
def test_scores_and_texts_are_computed_in_bfloat16_too(backend: Backend) -> None:
    model = tiny_model()
    with Products() as without:
        exact = Scorer(model=model, backend=backend).reply(QUESTIONS)
    with Products() as products:
        found = Scorer(model=mixed(model), backend=backend).reply(QUESTIONS)
    assert products.types[torch.bfloat16] and not products.types[torch.float32]
    assert without.types[torch.float32] and not without.types[torch.bfloat16]
    assert products.normalised == {torch.float32}
    nats, expected = [score for score, _ in found], [score for score, _ in exact]
    assert nats != expected and nats == pytest.approx(expected, abs=0.2)
    with Products() as writing:
        assert len(Scorer(model=mixed(model), backend=backend, max_new_tokens=5).reply(TEXTS)) == 2
    assert writing.types[torch.bfloat16] and not writing.types[torch.float32]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fast_paths_serve_under_autocast_as_near_as_the_plain_one(architecture: str) -> None:
    """The probe compares layouts in float32; under autocast they differ by no more than autocast itself changes."""
    model = mixed(tiny_model(architecture))
    backend = choose_backend(model)
    assert backend.packed and not backend.onednn
    with torch.no_grad():
        exact = padded_logprobs(model.module, SEQUENCES).logprobs_L
        with model.mixed_precision():
            plain = padded_logprobs(model.module, SEQUENCES).logprobs_L
            rounding = (plain - exact).abs().max()
            assert rounding > 0
            for path in (packed_logprobs, prefix_tree_logprobs):
                assert (path(model.module, SEQUENCES).logprobs_L - plain).abs().max() <= 2 * rounding


def test_the_model_tells_its_number_formats() -> None:
    assert tiny_model().precision == Precision(weights="float32")
    assert mixed(tiny_model()).precision == Precision(weights="float32", autocast="bfloat16")
