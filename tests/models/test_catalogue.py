"""The catalogue of models is whole and plausible."""

from __future__ import annotations

from lm_harmony.models.catalogue import MODELS, find


def test_catalogue_has_the_61_published_models_by_their_hub_names() -> None:
    assert len(MODELS) == 61
    assert all(name == info.model and name.count("/") == 1 for name, info in MODELS.items())


def test_families_and_kinds_are_those_of_the_board() -> None:
    assert {info.family for info in MODELS.values()} == {"Qwen", "Gemma", "Llama", "Yi", "Pythia", "GPT-2"}
    assert {info.kind for info in MODELS.values()} == {"base", "instruct"}


def test_kind_is_what_the_name_says() -> None:
    tuned = ("-Instruct", "-Chat", "-it")
    assert all((info.kind == "instruct") == name.endswith(tuned) for name, info in MODELS.items())


def test_sizes_are_positive_and_near_the_name() -> None:
    for info in MODELS.values():
        assert info.nominal_params_b > 0, info.model
        # gemma-2b-it and its like round down by up to a third; Qwen1.5-0.5B has 0.62.
        assert info.params_b is None or 0.75 < info.params_b / info.nominal_params_b < 1.35, info.model
        assert info.pretraining_tokens_b is None or info.pretraining_tokens_b > 0, info.model


def test_empty_cells_are_unknown_not_zero() -> None:
    unknown = MODELS["openai-community/gpt2"]
    assert unknown.params_b is None
    assert unknown.pretraining_tokens_b is None


def test_find_knows_exact_hub_names_only() -> None:
    assert find("google/gemma-7b") is MODELS["google/gemma-7b"]
    assert find("gemma-7b") is None
