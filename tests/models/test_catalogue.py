"""The model catalogue is complete and plausible."""

from __future__ import annotations

from lm_harmony.models.catalogue import MODELS, find


def test_catalogue_has_the_61_published_models_by_their_hub_names() -> None:
    assert len(MODELS) == 61
    assert all(name == info.model and name.count("/") == 1 for name, info in MODELS.items())


def test_families_and_kinds_are_those_of_the_published_scores() -> None:
    assert {info.family for info in MODELS.values()} == {"Qwen", "Gemma", "Llama", "Yi", "Pythia", "GPT-2"}
    assert {info.kind for info in MODELS.values()} == {"base", "instruct"}


def test_models_are_instruct_models_if_their_name_says_so() -> None:
    tuned = ("-Instruct", "-Chat", "-it")
    assert all((info.kind == "instruct") == name.endswith(tuned) for name, info in MODELS.items())


def test_sizes_are_positive_and_close_to_the_size_in_the_name() -> None:
    for info in MODELS.values():
        assert info.nominal_params_b > 0, info.model
        # Names such as gemma-2b-it round the size down by up to a third. Qwen1.5-0.5B has 0.62 billion parameters.
        assert info.params_b is None or 0.75 < info.params_b / info.nominal_params_b < 1.35, info.model
        assert info.pretraining_tokens_b is None or info.pretraining_tokens_b > 0, info.model


def test_unknown_sizes_are_none_and_not_zero() -> None:
    unknown = MODELS["openai-community/gpt2"]
    assert unknown.params_b is None
    assert unknown.pretraining_tokens_b is None


def test_find_accepts_exact_hub_names_only() -> None:
    assert find("google/gemma-7b") is MODELS["google/gemma-7b"]
    assert find("gemma-7b") is None
