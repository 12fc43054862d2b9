"""Each text gets the score of a batch of one, even where RoPE frequencies depend on the longest text of a forward pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from joint import Run, train_jointly
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import ARCHITECTURES, MAX_LENGTH, VOCABULARY, tiny_model, tiny_module, tiny_tokenizer
from transformers import CONFIG_MAPPING

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.adapters import trainable
from lm_harmony.engine.backends import PACKED, PADDED, Backend, choose_backend
from lm_harmony.engine.continuous_batching import decode_greedily
from lm_harmony.engine.forward import padded_logprobs, prefix_tree_logprobs
from lm_harmony.engine.memory import MemoryBudget
from lm_harmony.engine.rope import RopeRegimes, regimes_of
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.sequences import TokenSequence, end_by_sequences
from lm_harmony.engine.training import fine_tune
from lm_harmony.models.loading import LanguageModel, build_language_model
from lm_harmony.recipe import Lora, Recipe

LIMIT = 32
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [1.0, 3.0, 9.0, 30.0],
    "original_max_position_embeddings": LIMIT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 8.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": LIMIT}),
    "llama-longrope": ("llama", {"rope_parameters": LONGROPE}),
    "llama-dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT}),
}
EACH_MODEL = pytest.mark.parametrize("name", MODELS)
BACKENDS = pytest.mark.parametrize("backend", [PADDED, PACKED], ids=["padded", "packed"])
TEXT = "".join(str(number * number % 10) for number in range(3 * MAX_LENGTH))  # a token for each digit
LENGTHS = (10, LIMIT - 1, LIMIT, LIMIT + 1, 40, 60, 40, 20, 90, LIMIT)
LORA = Lora(lora_dropout=0.0, target_modules=("all-linear",))


@cache
def original(name: str) -> LanguageModel:
    """Make a tiny model. Tests run only copies of it, because forward passes may change its RoPE frequencies."""
    architecture, fields = MODELS[name]
    module = tiny_module(architecture, **copy.deepcopy(fields))
    for part, weight in module.named_parameters():
        if "q_proj" in part or "k_proj" in part or "qkv_proj" in part:  # gives attention that is not uniform
            weight.data.mul_(4)
    model = build_language_model(name, module, tiny_tokenizer())
    return replace(model, max_length=MAX_LENGTH)  # dynamic scaling works beyond max_position_embeddings


def model_of(name: str) -> LanguageModel:
    return replace(original(name), module=copy.deepcopy(original(name).module))


def separate_hflm_answers(name: str, requests: Sequence[Request]) -> list[Any]:
    """Return HFLM's answer to each request on a new copy of the model, because transformers keeps frequencies between passes."""
    answers = []
    for request in requests:
        module, tokenizer = model_of(name).module, copy.deepcopy(tiny_tokenizer())
        hflm = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=1, device="cpu", max_length=MAX_LENGTH)
        arguments: tuple[Any, ...] = (request.context, request.continuation or dict(request.generation))
        arguments = (request.continuation,) if request.kind == "loglikelihood_rolling" else arguments
        [answer] = getattr(hflm, request.kind)([Instance(request.kind, {}, arguments, 0)], disable_tqdm=True)
        answers.append(answer)
    return answers


def scored() -> list[Request]:
    """Return texts on both sides of the limit with a shared prefix, so that they would form one prefix tree."""
    return [
        Request(kind="loglikelihood", context=TEXT[: length - 3], continuation=TEXT[length - 3 : length] + letter)
        for length in LENGTHS
        for letter in "17"
    ]


def sequences() -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(2, VOCABULARY, (length + 1,), generator=generator).tolist() for length in LENGTHS]
    return [TokenSequence(ids=tuple(ids), first_label=1, row=row) for row, ids in enumerate(drawn)]


def separate_logprobs(name: str, given: Sequence[TokenSequence]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [padded_logprobs(model_of(name).module, [sequence]).logprobs_L for sequence in given]


@BACKENDS
@EACH_MODEL
def test_each_text_scores_as_in_a_batch_of_one_under_hflm(name: str, backend: Backend) -> None:
    expected = separate_hflm_answers(name, scored())
    found = Scorer(model=model_of(name), backend=backend, batch_size=4).reply(scored())
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("forward_pass", [padded_logprobs, prefix_tree_logprobs])
@EACH_MODEL
def test_one_forward_pass_for_all_lengths_would_change_the_scores(name: str, forward_pass: Any) -> None:
    """Negative control: a longer text in the pass changes the log-likelihood of a short one by more than half a nat."""
    separate = separate_logprobs(name, sequences())
    with torch.no_grad():
        batched = forward_pass(model_of(name).module, sequences())
    parts = batched.logprobs_L.split(batched.counts)
    changes = [float((one.sum() - other.sum()).abs()) for one, other in zip(parts, separate, strict=True)]
    assert max(changes) > 0.5
    assert changes[LENGTHS.index(max(LENGTHS))] < 1e-3


def test_transformers_keeps_the_frequencies_of_a_longer_text() -> None:
    """With dynamic scaling, a text scored after a longer one still gets the frequencies of the longer one."""
    model, [long, short] = model_of("llama-dynamic"), [sequences()[LENGTHS.index(length)] for length in (90, 40)]
    [separate] = separate_logprobs("llama-dynamic", [short])
    with torch.no_grad():
        padded_logprobs(model.module, [long])
        assert float((padded_logprobs(model.module, [short]).logprobs_L - separate).abs().max()) > 0.1
        with PADDED.active(model.module):
            padded_logprobs(model.module, [long])
            assert torch.equal(padded_logprobs(model.module, [short]).logprobs_L, separate)
        # The next forward pass is not affected.
        assert torch.equal(padded_logprobs(model.module, [short]).logprobs_L, separate)


@BACKENDS
@EACH_MODEL
def test_rolling_log_likelihoods_are_those_of_a_batch_of_one_under_hflm(name: str, backend: Backend) -> None:
    requests = [Request(kind="loglikelihood_rolling", context="", continuation=TEXT[:length]) for length in (*LENGTHS, 300)]
    found = Scorer(model=model_of(name), backend=backend, batch_size=4).reply(requests)
    assert found == pytest.approx(separate_hflm_answers(name, requests), abs=1e-4, rel=1e-6)


@BACKENDS
@EACH_MODEL
def test_generated_answers_are_those_of_a_batch_of_one_under_hflm(name: str, backend: Backend) -> None:
    """Some answers stay below the limit, some cross it, and some start beyond it."""
    requests = [
        Request(kind="generate_until", context=TEXT[place : place + length], generation={"until": [], "max_gen_toks": 8})
        for place, length in enumerate((5, 9, 20, 25, 26, 30, LIMIT, LIMIT + 1, 40, 41, 41, 80))
    ]
    expected = separate_hflm_answers(name, requests)
    assert Scorer(model=model_of(name), backend=backend, batch_size=4).reply(requests) == expected
    model = model_of(name)
    contexts = model.text.encode([request.context for request in requests])
    options: dict[str, Any] = {"max_new_tokens": 8, "is_finished": lambda _: False}
    with torch.no_grad():
        batched = {row.place: row.written for row in decode_greedily(model, contexts, batch_size=12, **options)}
    assert [model.text.tokenizer.decode(list(batched[place])) for place in range(len(requests))] != expected


@pytest.mark.parametrize("micro_batch", [1, 8])
@BACKENDS
@EACH_MODEL
def test_the_loss_of_a_step_is_the_mean_over_sequences_in_batches_of_one(name: str, backend: Backend, micro_batch: int) -> None:
    separate = separate_logprobs(name, sequences())
    expected = -float(torch.cat(separate).double().mean())
    recipe = Recipe(lora=LORA, epochs=2, batch_size=len(LENGTHS), learning_rate=1e-3)
    with trainable(model_of(name), recipe, seed=0) as trainee:
        [first, second] = fine_tune(trainee, sequences(), recipe, seed=0, micro_batch=micro_batch, backend=backend)
    assert first.loss == pytest.approx(expected, abs=1e-5)
    assert second.loss < first.loss
    with torch.no_grad():  # negative control: a short sequence in one batch with a long one
        short, long = LENGTHS.index(LIMIT), LENGTHS.index(90)
        batched = padded_logprobs(model_of(name).module, [sequences()[short], sequences()[long]]).logprobs_L
    assert float((batched.mean() - torch.cat([separate[short], separate[long]]).mean()).abs()) > 1e-3


@EACH_MODEL
def test_jointly_trained_runs_have_the_losses_of_separate_training(name: str) -> None:
    """Sequences of different runs share a pass only if they need the same frequencies."""
    recipe = Recipe(lora=LORA, epochs=2, batch_size=4, learning_rate=1e-3)
    runs = [Run(sequences=sequences()[start:], recipe=recipe, seed=start, micro_batch=4) for start in (0, 3)]
    found = train_jointly(model_of(name), runs)
    for place, run in enumerate(runs):
        with trainable(model_of(name), recipe, seed=run.seed) as trainee:
            separate = [epoch.loss for epoch in fine_tune(trainee, run.sequences, recipe, seed=run.seed, micro_batch=1)]
        assert [epoch.loss for epoch in found[place][0]] == pytest.approx(separate, abs=1e-5)


@EACH_MODEL
def test_packed_backends_support_length_dependent_rope(name: str) -> None:
    backend = choose_backend(model_of(name))
    assert backend.packed and backend.continuous_batching


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3_text", "phi3", "mamba"])
def test_models_without_length_dependent_rope_are_batched_as_before(architecture: str) -> None:
    """All lengths belong to one regime, so order and batches do not change."""
    regimes, given = regimes_of(tiny_model(architecture).module), sequences()
    assert regimes == RopeRegimes()
    places = [3, 1, 2, 0, *range(4, len(given))]
    assert regimes.order(given, places) == places
    assert regimes.within(end_by_sequences)(given, 0, 8) == 8


def test_regimes_are_read_from_every_form_of_configuration() -> None:
    longrope = regimes_of(original("phi3").module)
    assert longrope.of(LIMIT) == longrope.of(1) != longrope.of(LIMIT + 1) == longrope.of(9999)
    dynamic = regimes_of(original("llama-dynamic").module)
    assert dynamic.of(LIMIT) == dynamic.of(1) != dynamic.of(LIMIT + 1) != dynamic.of(LIMIT + 2)
    module = copy.deepcopy(tiny_module("gemma3_text"))  # one set of parameters for each type of layer
    module.config.rope_parameters = {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}
    assert regimes_of(module) == longrope
    module.config = CONFIG_MAPPING["gpt2"](rope_scaling={"type": "su"}, original_max_position_embeddings=LIMIT)  # remote code
    assert regimes_of(module) == longrope
    published: dict[str, Any] = {
        "type": "longrope",
        "short_factor": LONGROPE["short_factor"],
        "long_factor": LONGROPE["long_factor"],
    }
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH, "pad_token_id": 0}
    module.config = CONFIG_MAPPING["phi3"](rope_scaling=published, original_max_position_embeddings=LIMIT, **sizes)
    assert regimes_of(module) == longrope
    given = sequences()
    ordered = [given[place] for place in longrope.order(given, range(len(given)))]
    assert longrope.within(end_by_sequences)(ordered, 0, 100) == sum(length > LIMIT for length in LENGTHS)


def test_a_small_generation_batch_gives_the_same_texts() -> None:
    """With three rows at a time, finished rows are replaced by new ones of the same regime."""
    arguments = {"until": ["3"], "max_gen_toks": 6}
    texts = [TEXT[place : place + 5 + place % 40] for place in range(40)]
    requests = [Request(kind="generate_until", context=text, generation=arguments) for text in texts]
    backend = replace(PACKED, memory_budget=MemoryBudget(generation_rows=3))
    few = Scorer(model=model_of("phi3"), backend=backend).reply(requests)
    assert few == Scorer(model=model_of("phi3"), batch_size=1).reply(requests)
