"""Every setting of a generation_config that acts on answers has the effect that it has under lm_eval's HFLM."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import tiny_model, tiny_tokenizer, write_tiny_model
from transformers import AutoModelForCausalLM, GenerationConfig

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.backends import PACKED, PADDED, Backend, choose_backend
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.scoring import Scorer
from lm_harmony.errors import BenchmarkError
from lm_harmony.models.loading import LanguageModel

CONTEXTS = ("Q: what is the city?\nA:", "the quick brown fox", "yes no", "a dog and a dog and a dog", "Question: heat\nAnswer:")
GREEDY = {"until": ["zz", "\n\n"], "max_gen_toks": 12, "do_sample": False}
EOS = 0
WITH_EFFECT: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 3},
    "beams with a length penalty": {"num_beams": 3, "length_penalty": -4.0, "early_stopping": True},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(60, 160)]},
    "bad words of two tokens": {"bad_words_ids": [[first, second] for first in range(60, 100) for second in range(60, 100)]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(2, 200))},
    "suppress_tokens": {"suppress_tokens": list(range(2, 200))},
    "sequence_bias": {"sequence_bias": [[[EOS], 6.0], [[100], -9.0], [[101], 4.0]]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 3.0)},
    "min_length": {"min_length": 24, "sequence_bias": [[[EOS], 7.0]]},
    "min_new_tokens": {"min_new_tokens": 6, "exponential_decay_length_penalty": (1, 9.0)},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 9.0},
    "encoder_no_repeat_ngram_size": {"encoder_repetition_penalty": 9.0, "encoder_no_repeat_ngram_size": 2},
    "forced_eos_token_id": {"forced_eos_token_id": 77},
    "max_new_tokens": {"max_new_tokens": 4},
    "eos_token_id": {"eos_token_id": [EOS, *range(100, 200)]},
    "max_time": {"max_time": 0.0},
}
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
    "max_length": {"max_length": 20},
    "neutral": {"repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0, "guidance_scale": 1.0},
    "outputs": {"return_dict_in_generate": True, "output_scores": True},
}
BACKENDS = pytest.mark.parametrize("backend", [PADDED, PACKED], ids=["padded", "packed"])


def model_with(**settings: Any) -> LanguageModel:
    model = tiny_model()
    for name, value in settings.items():
        setattr(model.module.generation_config, name, value)
    return model


def questions(arguments: Mapping[str, Any] = GREEDY) -> list[Request]:
    return [Request(kind="generate_until", context=context, generation=arguments) for context in CONTEXTS]


def hflm(model: LanguageModel, requests: Sequence[Request]) -> list[str]:
    """Return the answers of lm_eval's HFLM, one text at a time, because some settings read the padding of a batch."""
    single_text = HFLM(pretrained=model.module, tokenizer=copy.deepcopy(tiny_tokenizer()), batch_size=1, device="cpu")
    instances = [
        Instance(request.kind, {}, (request.context, dict(request.generation)), number) for number, request in enumerate(requests)
    ]
    answers: list[str] = single_text.generate_until(instances, disable_tqdm=True)
    return answers


def ours(model: LanguageModel, backend: Backend, requests: Sequence[Request]) -> list[str]:
    return Scorer(model=model, backend=backend, batch_size=4).reply(requests)


@BACKENDS
@pytest.mark.parametrize("name", WITH_EFFECT)
def test_a_setting_has_the_effect_it_has_under_hflm(name: str, backend: Backend) -> None:
    model = model_with(**WITH_EFFECT[name])
    answers = ours(model, backend, questions())
    assert answers == hflm(model, questions())
    assert answers != hflm(model_with(), questions())  # negative control: without the setting the answers differ


@pytest.mark.parametrize("name", ["num_beams", "suppress_tokens", "no_repeat_ngram_size", "repetition_penalty"])
def test_a_setting_of_a_task_has_the_effect_it_has_under_hflm(name: str) -> None:
    """``generation_kwargs`` of a task override the model's generation_config. Values may be lists."""
    model, requests = model_with(repetition_penalty=1.3), questions({**GREEDY, **WITH_EFFECT[name]})
    answers = ours(model, choose_backend(model), requests)
    assert answers == hflm(model, requests) != hflm(model, questions())


@pytest.mark.parametrize(
    "own", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"typical_p": 0.4}], ids=lambda own: next(iter(own))
)
def test_sampling_follows_the_models_settings(own: Mapping[str, Any]) -> None:
    """With the same seed one text is sampled as under HFLM. The task sets the temperature, the model the other settings."""
    model, [request, *_] = model_with(**own), questions({**GREEDY, "do_sample": True, "temperature": 1.5})
    answers = Scorer(model=model, seed=5, backend=PACKED).reply([request])
    torch.manual_seed(5)
    assert answers == hflm(model, [request])
    assert answers != Scorer(model=model_with(top_k=0), seed=5).reply([request])  # negative control


@BACKENDS
@pytest.mark.parametrize("stop", ["e", "th", "s "])
def test_beam_search_stops_as_under_hflm(stop: str, backend: Backend) -> None:
    model, requests = model_with(num_beams=4), questions({**GREEDY, "until": [stop]})
    assert ours(model, backend, requests) == hflm(model, requests)


@BACKENDS
def test_stop_strings_end_an_answer(backend: Backend) -> None:
    """HFLM fails because it passes no tokenizer to generate(). The expected answers are those with a tokenizer."""
    model = model_with()
    free = hflm(model, questions())
    model.module.generation_config.stop_strings = [free[0][4:6], "e"]
    with pytest.raises(ValueError, match="could not locate a tokenizer"):
        hflm(model, questions())
    with_tokenizer = questions({**GREEDY, "tokenizer": tiny_tokenizer()})
    answers = ours(model, backend, questions())
    assert answers == hflm(model, with_tokenizer) != free


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_settings_without_effect_keep_continuous_batching(name: str) -> None:
    """Settings without effect on greedy decoding do not change the answers and do not disable continuous batching."""
    model = model_with(**WITHOUT_EFFECT[name])
    assert not GenerationSettings.read(GREEDY, default_limit=9).beyond_greedy(model.module.generation_config)
    assert choose_backend(model).continuous_batching
    expected = hflm(model_with(), questions())
    assert ours(model, choose_backend(model), questions()) == ours(model, PADDED, questions()) == expected
    if name != "outputs":  # HFLM cannot read generate()'s dictionaries
        assert hflm(model, questions()) == expected


@pytest.mark.parametrize("name", WITH_EFFECT)
def test_settings_with_effect_are_detected(name: str) -> None:
    """Answers with such a setting, or with an unknown one, are generated by generate()."""
    decoding, settings = GenerationSettings.read(GREEDY, default_limit=9), dict(WITH_EFFECT[name])
    ends = settings.pop("eos_token_id", None)  # an answer ends at these with every decoder
    assert set(decoding.beyond_greedy(GenerationConfig(**settings))) == set(settings) - {"length_penalty", "early_stopping"}
    assert decoding.beyond_greedy(GenerationConfig(eos_token_id=ends, new_setting=3)) == {"new_setting": 3}
    assert decoding.beyond_greedy(GenerationConfig(eos_token_id=ends)) == {}


def test_default_values_of_all_fields_have_no_effect() -> None:
    """No field of GenerationConfig is reported at its default value."""
    defaults = {
        name: value for name, value in GenerationConfig._get_default_generation_params().items() if name != "num_assistant"
    }
    assert len(defaults) > 15
    assert GenerationSettings.read(GREEDY, default_limit=9).beyond_greedy(GenerationConfig(**defaults)) == {}


def test_settings_of_generation_config_json_are_used(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS, "suppress_tokens": list(range(2, 200))}))
    module = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = model_with()
    without_file = ours(model, choose_backend(model), questions())
    model.module.generation_config = module.generation_config
    assert ours(model, choose_backend(model), questions()) == hflm(model, questions()) != without_file


def test_several_answers_to_a_question_are_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"num_return_sequences = 2 .* Set it to 1"):
        ours(model_with(num_return_sequences=2, num_beams=2), PACKED, questions())


@BACKENDS
def test_answers_in_a_batch_of_different_lengths_equal_those_of_single_texts(backend: Backend) -> None:
    """min_length counts the tokens of the context. In a padded batch it would also count the padding."""
    model = model_with(**WITH_EFFECT["min_length"])
    single_text = [Scorer(model=model).reply([request])[0] for request in questions()]
    assert Scorer(model=model, backend=backend, batch_size=5).reply(questions()) == single_text
    ids = [model.text.encode([context])[0] for context in CONTEXTS]
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    output = model.module.generate(input_ids=padded, attention_mask=mask, max_length=longest + 12)  # type: ignore[operator]
    texts = [model.text.tokenizer.decode(row, skip_special_tokens=True) for row in output[:, longest:]]
    assert texts != single_text  # negative control


def test_the_probe_also_checks_generation(caplog: pytest.LogCaptureFixture) -> None:
    """If a model scores exactly but its answers differ with continuous batching, generate() is used."""
    model = tiny_model()
    assert choose_backend(model).continuous_batching
    body = model.module.model
    inner = body.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        # Like an architecture that computes its own positions when it continues rows from a cache.
        if kwargs.get("past_key_values") is not None and kwargs["input_ids"].shape[1] == 1 < kwargs["input_ids"].shape[0]:
            kwargs["position_ids"] = kwargs["position_ids"] * 0
        return inner(*args, **kwargs)

    body.forward = forward
    with caplog.at_level("INFO"):
        backend = choose_backend(model)
    assert backend.packed and not backend.continuous_batching
    assert "continuous batching is not exact for llama" in caplog.text
