"""Full fine-tuning under autocast, on the CPU: float32 weights, bfloat16 matrix products, float32 log-probabilities."""

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


class ProductDtypes(TorchDispatchMode):
    """Counts matrix products by their dtype, and collects the dtypes in which softmax and logsumexp are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.types = Counter[torch.dtype]()
        self.softmax_dtypes = set[torch.dtype]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            self.types[args[-1].dtype] += 1
        if name in ("logsumexp", "exp_", "_log_softmax"):
            self.softmax_dtypes.add(args[0].dtype)
        return func(*args, **dict(kwargs or {}))


def mixed(model: LanguageModel) -> LanguageModel:
    return replace(model, autocast=torch.bfloat16)


def trained(model: LanguageModel, backend: Backend) -> tuple[dict[str, torch.Tensor], list[float], ProductDtypes]:
    """Train all weights. Return their changes, the losses of the epochs, and the counted matrix products."""
    before = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    with trainable(model, RECIPE, seed=0) as trainee, ProductDtypes() as products:
        losses = [epoch.loss for epoch in fine_tune(trainee, SEQUENCES, RECIPE, seed=0, micro_batch=2, backend=backend)]
        changes = {name: weight.detach() - before[name] for name, weight in trainee.trained_parameters().items()}
    return changes, losses, products


@pytest.mark.parametrize("backend", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_stay_float32_and_are_trained_with_bfloat16_products(architecture: str, backend: Backend) -> None:
    exact, exact_losses, float32_products = trained(tiny_model(architecture), backend)
    found, losses, products = trained(mixed(tiny_model(architecture)), backend)
    assert products.types[torch.bfloat16] > 20 and not products.types[torch.float32]
    assert not float32_products.types[torch.bfloat16] and float32_products.types[torch.float32] > 20  # the negative control
    assert products.softmax_dtypes == float32_products.softmax_dtypes == {torch.float32}
    assert {change.dtype for change in found.values()} == {torch.float32}
    assert losses != exact_losses and losses == pytest.approx(exact_losses, rel=0.02)
    # Weights are cast to bfloat16 in each pass. With the casts of the first step the loss would not follow the float32 loss.
    assert losses[1] < losses[0] and exact_losses[1] < exact_losses[0]
    weight = max(exact, key=lambda name: exact[name].numel())
    assert torch.cosine_similarity(found[weight].flatten(), exact[weight].flatten(), dim=0) > 0.8


@pytest.mark.parametrize("backend", [PACKED, PADDED], ids=["packed", "padded"])
def test_scores_and_generated_texts_are_also_computed_in_bfloat16(backend: Backend) -> None:
    model = tiny_model()
    with ProductDtypes() as float32_products:
        exact = Scorer(model=model, backend=backend).reply(QUESTIONS)
    with ProductDtypes() as products:
        found = Scorer(model=mixed(model), backend=backend).reply(QUESTIONS)
    assert products.types[torch.bfloat16] and not products.types[torch.float32]
    assert float32_products.types[torch.float32] and not float32_products.types[torch.bfloat16]
    assert products.softmax_dtypes == {torch.float32}
    nats, expected = [score for score, _ in found], [score for score, _ in exact]
    assert nats != expected and nats == pytest.approx(expected, abs=0.2)
    with ProductDtypes() as generation:
        assert len(Scorer(model=mixed(model), backend=backend, max_new_tokens=5).reply(TEXTS)) == 2
    assert generation.types[torch.bfloat16] and not generation.types[torch.float32]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_backends_are_as_exact_under_autocast_as_padded_batches(architecture: str) -> None:
    """Under autocast, packed and padded batches differ by at most twice the rounding error of autocast."""
    model = mixed(tiny_model(architecture))
    backend = choose_backend(model)
    assert backend.packed and not backend.onednn
    with torch.no_grad():
        exact = padded_logprobs(model.module, SEQUENCES).logprobs_L
        with model.mixed_precision():
            padded = padded_logprobs(model.module, SEQUENCES).logprobs_L
            rounding = (padded - exact).abs().max()
            assert rounding > 0
            for forward in (packed_logprobs, prefix_tree_logprobs):
                assert (forward(model.module, SEQUENCES).logprobs_L - padded).abs().max() <= 2 * rounding


def test_the_model_reports_its_dtypes() -> None:
    assert tiny_model().precision == Precision(weights="float32")
    assert mixed(tiny_model()).precision == Precision(weights="float32", autocast="bfloat16")
