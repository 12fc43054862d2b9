"""Chat templates of thinking models: rendered with variables as by lm_eval's HFLM, and refused where a variable is unknown.

The templates are those of Qwen3, SmolLM3, gpt-oss and DeepSeek-R1-distill (tests/chat_templates).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as transformers_templates
from lm_eval.models.huggingface import HFLM
from tiny import tiny_module, tiny_tokenizer

from lm_harmony.benchmarks.prompt import Prompt
from lm_harmony.errors import ModelError, UsageError
from lm_harmony.models.text import TextEncoder

TEMPLATES = Path(__file__).parents[1] / "chat_templates"
NAMES = ("qwen3", "smollm3", "gpt_oss", "deepseek_r1_distill")
QUESTION = {"role": "user", "content": "2+2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS: dict[str, tuple[list[dict[str, str]], bool]] = {
    "question": ([QUESTION], True),
    "system": ([SYSTEM, QUESTION], True),
    "prefix": ([QUESTION, {"role": "assistant", "content": "The answer is"}], False),
    "system and prefix": ([SYSTEM, QUESTION, {"role": "assistant", "content": "The answer is"}], False),
}


@cache
def encoder(name: str) -> TextEncoder:
    """Return an encoder with the template of ``name``; the end-of-text token is the only one of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return TextEncoder(tokenizer, name=name)


def rendered(name: str, conversation: str, variables: Mapping[str, Any], *, day: str = "2026-01-05") -> str:
    messages, prompted = CONVERSATIONS[conversation]
    return str(encoder(name).chat_renderer(day, variables)(messages, add_generation_prompt=prompted))


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        *((name, {}) for name in NAMES),
        *((name, {"enable_thinking": value}) for name in ("qwen3", "smollm3") for value in (False, True)),
        ("gpt_oss", {"reasoning_effort": "low", "model_identity": "You are small."}),
    ],
)
def test_requests_are_those_of_lm_eval(
    name: str, variables: dict[str, Any], conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same day, which gpt-oss prints: HFLM with ``chat_template_args`` gives the same text."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 1, 5, 13, 45)

    monkeypatch.setattr(transformers_templates, "datetime", Clock)
    harness = HFLM(pretrained=tiny_module(), tokenizer=encoder(name).tokenizer, device="cpu", chat_template_args=dict(variables))
    messages, prompted = CONVERSATIONS[conversation]
    assert rendered(name, conversation, variables) == harness.apply_chat_template(messages, prompted)


@pytest.mark.parametrize(
    ("name", "conversation", "variables", "end"),
    [
        ("qwen3", "question", {}, "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen3", "question", {"enable_thinking": True}, "2+2?<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen3", "question", {"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("qwen3", "prefix", {}, "<|im_start|>assistant\n<think>\n\n</think>\n\nThe answer is"),
        ("smollm3", "question", {}, "<|im_end|>\n<|im_start|>assistant\n"),
        ("smollm3", "question", {"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n"),
        ("smollm3", "prefix", {"enable_thinking": False}, "<think>\n\n</think>\nThe answer is"),
        ("gpt_oss", "question", {}, "<|end|><|start|>assistant"),
        ("gpt_oss", "prefix", {}, "<|start|>assistant<|channel|>final<|message|>The answer is"),
        ("deepseek_r1_distill", "question", {}, "<｜User｜>2+2?<｜Assistant｜><think>\n"),
        ("deepseek_r1_distill", "prefix", {}, "<｜User｜>2+2?<｜Assistant｜>The answer is"),
    ],
)
def test_where_the_answer_begins(name: str, conversation: str, variables: dict[str, Any], end: str) -> None:
    """These are the ends of the contexts that docs/runs.md names for each family."""
    assert rendered(name, conversation, variables).endswith(end)


def test_variables_change_the_text() -> None:
    """Negative control: the comparison with lm_eval would fail if the variables were dropped."""
    for name, variables in (
        ("qwen3", {"enable_thinking": False}),
        ("smollm3", {"enable_thinking": False}),
        ("gpt_oss", {"reasoning_effort": "low"}),
    ):
        assert rendered(name, "question", variables) != rendered(name, "question", {})
    assert "Reasoning: low" in rendered("gpt_oss", "question", {"reasoning_effort": "low"})
    assert rendered("gpt_oss", "question", {}, day="2026-01-06") != rendered("gpt_oss", "question", {})
    assert "Be brief." in rendered("deepseek_r1_distill", "system", {})


@pytest.mark.parametrize(
    ("name", "variable", "message"),
    [
        (
            "qwen3",
            "enable_thinkin",
            "has no variable 'enable_thinkin' (the chat template of qwen3). Did you mean 'enable_thinking'",
        ),
        ("gpt_oss", "enable_thinking", "the chat template of model gpt_oss has no variable 'enable_thinking'"),
        ("deepseek_r1_distill", "enable_thinking", "has no variable 'enable_thinking'"),
        ("qwen3", "messages", "messages is set by lm-harmony itself. Remove it."),
        ("smollm3", "add_generation_prompt", "add_generation_prompt is set by lm-harmony itself"),
    ],
)
def test_a_variable_without_effect_is_refused(name: str, variable: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        encoder(name).chat_renderer(None, {variable: False})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_end_of_the_think_part_is_a_text_or_a_token_that_exists() -> None:
    text = encoder("qwen3")
    assert text.think_end_text("</think>") == "</think>"
    assert text.think_end_text(70) == text.tokenizer.decode([70])
    with pytest.raises(ModelError, match=r"'<\|end\|>' is a special token of model qwen3.*Give its id: 0\."):
        text.think_end_text("<|end|>")
    with pytest.raises(ModelError, match=r"think_end_token = 300 is no token of model qwen3, which has ids below 300"):
        text.think_end_text(300)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template_args": "{enable_thinking: false}"}, "chat_template_args must be a JSON object"),
        ({"chat_template_args": '["enable_thinking"]'}, "chat_template_args must be a JSON object"),
        ({"chat_template_args": '{"a b": 1}'}, "chat_template_args must be a JSON object of names"),
        ({"chat_template_args": '{"enable_thinking": true}'}, "enable_thinking = true needs think_end_token"),
        ({"system_instruction": " "}, "system_instruction must be text, not empty, got ' '"),
        ({"gen_prefix": ""}, "gen_prefix must be text, not empty"),
        ({"think_end_token": ""}, "think_end_token must be text or a token id from 0, not empty"),
        ({"think_end_token": -1}, "think_end_token must be text or a token id from 0"),
        ({"think_end_token": True}, "think_end_token must be text or a token id from 0"),
        ({"think_end_token": "12"}, "think_end_token = '12' is text. Write a token id without quotes."),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1, got 0"),
        ({"max_gen_toks": 2.5}, "max_gen_toks must be a whole number"),
    ],
)
def test_wrong_values_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Prompt(**values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_equal_variables_are_equal_prompts() -> None:
    written = '{"b": 1,   "a": [true, null]}'
    assert Prompt(chat_template_args=written) == Prompt(chat_template_args='{"a": [true, null], "b": 1}')
    assert json.loads(Prompt(chat_template_args=written).chat_template_args) == json.loads(written)
    assert Prompt(chat_template_args="{}").changes() == {} and Prompt(gen_prefix="A:").changes() == {"gen_prefix": "A:"}
