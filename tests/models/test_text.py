"""Text to token ids: lm_eval's rules, and never two BOS tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from tiny import tiny_model, tiny_module, tiny_tokenizer

from lm_harmony.errors import ModelError
from lm_harmony.models import text as text_module
from lm_harmony.models.loading import assemble
from lm_harmony.models.text import TextEncoder

TEXT = st.text(alphabet="ab cé\n.<|>Question:", max_size=30)
HARNESS = {bos: HFLM(pretrained=tiny_module(), tokenizer=tiny_tokenizer(bos=bos), device="cpu") for bos in (False, True)}


@settings(max_examples=150, deadline=None)
@given(context=TEXT.filter(bool), continuation=TEXT.filter(bool), bos=st.booleans(), starts_with_bos=st.booleans())
def test_pairs_are_encoded_as_lm_eval_does(context: str, continuation: str, bos: bool, starts_with_bos: bool) -> None:
    context = "<|bos|>" + context if starts_with_bos else context
    ours = tiny_model(bos=bos).text.encode_pairs([(context, continuation)])[0]
    context_ids, continuation_ids = HARNESS[bos]._encode_pair(context, continuation)
    # lm_eval fails on a context of spaces alone, which leaves nothing to condition on.
    assert list(ours.context) == (context_ids or [tiny_model(bos=bos).text.prefix_id])
    assert list(ours.continuation) == continuation_ids


def test_encoding_a_batch_is_encoding_each() -> None:
    encoder = tiny_model(bos=True).text
    texts = ["a dog", "<|bos|>a dog", "", "a dog <|bos|>"]
    assert encoder.encode(texts) == [encoder.encode([text])[0] for text in texts]
    assert encoder.encode(["<|bos|>a dog"]) == encoder.encode(["a dog"])


def test_a_text_is_encoded_once_until_too_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(tokenizer := tiny_tokenizer(), name="m")
    asked: list[str] = []
    inner = type(tokenizer)._encode_plus

    def counted(self, text, *rest, **options):  # type: ignore[no-untyped-def]
        asked.extend(text)
        return inner(self, text, *rest, **options)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
    pairs = [("is it", " yes"), ("is it", " no"), ("is it", " yes")]
    first = encoder.encode_pairs(pairs)
    assert sorted(asked) == ["is it", "is it no", "is it yes"]
    assert encoder.encode_pairs(pairs) == first and len(asked) == 3
    encoder.encode(["is it"])[0].clear()  # what is handed out is the caller's
    assert encoder.encode_pairs(pairs) == first and len(asked) == 3
    monkeypatch.setattr(text_module, "MOST_HELD", 0)
    assert encoder.encode_pairs(pairs) == first and len(asked) > 3


def test_a_doubled_bos_stops_the_run() -> None:
    tokenizer = tiny_tokenizer.__wrapped__(bos=True)
    encoder = TextEncoder(tokenizer, name="m")
    encoder.check_single_prefix("<|bos|>hello")
    encoder._prefix_text = "never"  # break the rule that keeps the second one away
    with pytest.raises(ModelError, match="begins with two"):
        encoder.check_single_prefix("<|bos|>hello again")


def test_a_template_that_writes_bos_twice_stops_the_run() -> None:
    with pytest.raises(ModelError, match="begins with two"):
        tiny_model(bos=True).text.check_single_prefix("<|bos|><|bos|>hello")


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        tiny_model().text.render_chat([{"role": "user", "content": "hi"}])


def test_chats_are_rendered_as_lm_eval_does() -> None:
    encoder = tiny_model(chat=True).text
    harness = HFLM(pretrained=tiny_module(), tokenizer=tiny_tokenizer(chat=True), device="cpu")
    history = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert encoder.render_chat(history) == harness.apply_chat_template(history)
    prefilled = [*history, {"role": "assistant", "content": "Answer:"}]
    assert encoder.render_chat(prefilled, add_generation_prompt=False) == harness.apply_chat_template(
        prefilled, add_generation_prompt=False
    )


def test_a_template_without_a_system_role_gets_none() -> None:
    tokenizer = tiny_tokenizer.__wrapped__(chat=True)
    refuse = "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + refuse + "{{ m['content'] }}{% endfor %}"
    encoder = TextEncoder(tokenizer, name="m")
    assert encoder.render_chat([{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]) == "hi"


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    tokenizer = tiny_tokenizer.__wrapped__()
    tokenizer.add_tokens([f"<extra{number}>" for number in range(5)])
    with pytest.raises(ModelError, match="embedding"):
        assemble("m", tiny_module(), tokenizer)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = tiny_tokenizer.__wrapped__()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        assemble("m", tiny_module(), tokenizer)
