"""Text encoding: token ids equal those of lm_eval, and no text begins with two BOS tokens."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

import pytest
import transformers.utils.chat_template_utils as transformers_templates
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from tiny import tiny_model, tiny_module, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.backends import choose_backend
from lm_harmony.engine.scoring import Scorer
from lm_harmony.errors import ModelError
from lm_harmony.models import text as text_module
from lm_harmony.models.loading import build_language_model
from lm_harmony.models.text import TextEncoder
from lm_harmony.recipe import CHAT_TEMPLATE_DATE

TEXT = st.text(alphabet="ab cé\n.<|>Question:", max_size=30)
HARNESS = {bos: HFLM(pretrained=tiny_module(), tokenizer=tiny_tokenizer(bos=bos), device="cpu") for bos in (False, True)}


@settings(max_examples=150, deadline=None)
@given(context=TEXT.filter(bool), continuation=TEXT.filter(bool), bos=st.booleans(), starts_with_bos=st.booleans())
def test_pairs_are_encoded_as_by_lm_eval(context: str, continuation: str, bos: bool, starts_with_bos: bool) -> None:
    context = "<|bos|>" + context if starts_with_bos else context
    ours = tiny_model(bos=bos).text.encode_pairs([(context, continuation)])[0]
    context_ids, continuation_ids = HARNESS[bos]._encode_pair(context, continuation)
    # lm_eval fails on a context of spaces alone, because the context is then empty.
    assert list(ours.context) == (context_ids or [tiny_model(bos=bos).text.prefix_id])
    assert list(ours.continuation) == continuation_ids


def test_encoding_a_batch_equals_encoding_each_text() -> None:
    encoder = tiny_model(bos=True).text
    texts = ["a dog", "<|bos|>a dog", "", "a dog <|bos|>"]
    assert encoder.encode(texts) == [encoder.encode([text])[0] for text in texts]
    assert encoder.encode(["<|bos|>a dog"]) == encoder.encode(["a dog"])


def test_a_text_is_encoded_once_until_the_cache_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(tokenizer := tiny_tokenizer(), name="m")
    encoded: list[str] = []
    original = type(tokenizer)._encode_plus

    def count_calls(self, text, *rest, **options):  # type: ignore[no-untyped-def]
        encoded.extend(text)
        return original(self, text, *rest, **options)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", count_calls)
    pairs = [("is it", " yes"), ("is it", " no"), ("is it", " yes")]
    first = encoder.encode_pairs(pairs)
    assert sorted(encoded) == ["is it", "is it no", "is it yes"]
    assert encoder.encode_pairs(pairs) == first and len(encoded) == 3
    encoder.encode(["is it"])[0].clear()  # changing the returned list does not change the cache
    assert encoder.encode_pairs(pairs) == first and len(encoded) == 3
    monkeypatch.setattr(text_module, "MOST_HELD", 0)
    assert encoder.encode_pairs(pairs) == first and len(encoded) > 3


def test_two_bos_tokens_are_refused_if_the_encoder_adds_the_second() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    encoder = TextEncoder(tokenizer, name="m")
    encoder.check_single_prefix("<|bos|>hello")
    encoder._prefix_text = "never"  # disables the rule that prevents the second BOS token
    with pytest.raises(ModelError, match="begins with two"):
        encoder.check_single_prefix("<|bos|>hello again")


def test_two_bos_tokens_in_the_text_are_refused() -> None:
    with pytest.raises(ModelError, match="begins with two"):
        tiny_model(bos=True).text.check_single_prefix("<|bos|><|bos|>hello")


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        tiny_model().text.render_chat([{"role": "user", "content": "hi"}])


def test_chats_are_rendered_as_by_lm_eval() -> None:
    encoder = tiny_model(chat=True).text
    harness = HFLM(pretrained=tiny_module(), tokenizer=tiny_tokenizer(chat=True), device="cpu")
    history = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert encoder.render_chat(history) == harness.apply_chat_template(history)
    prefilled = [*history, {"role": "assistant", "content": "Answer:"}]
    assert encoder.render_chat(prefilled, add_generation_prompt=False) == harness.apply_chat_template(
        prefilled, add_generation_prompt=False
    )


def test_a_template_without_a_system_role_gets_no_system_message() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    refuse = "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + refuse + "{{ m['content'] }}{% endfor %}"
    encoder = TextEncoder(tokenizer, name="m")
    assert encoder.render_chat([{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]) == "hi"


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    module = tiny_module()
    module.resize_token_embeddings(250)
    with pytest.raises(ModelError, match="the tokenizer has 300 tokens, the embedding 250 rows"):
        build_language_model("m", module, tiny_tokenizer())


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_an_added_token_without_embedding_is_refused_only_where_a_text_has_it(engine: str) -> None:
    """GPT-2 with an added [PAD]: all replies are those of the same model without it."""
    padded = tiny_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    kinds = ("loglikelihood", "generate_until")
    requests = [
        Request(kind=kind, context=text, continuation=" is", generation={"until": ["."]}) for kind in kinds for text in TEXTS
    ]
    replies = []
    for tokenizer in (tiny_tokenizer(), padded):
        model = build_language_model("m", tiny_module(), tokenizer)
        replies.append(Scorer(model=model, backend=choose_backend(model, engine), max_new_tokens=4, batch_size=3).reply(requests))
    assert replies[0] == replies[1]
    with pytest.raises(ModelError, match=r"a text contains the token '\[PAD\]', which has no embedding"):
        model.text.encode(["a [PAD]"])
    assert build_language_model("m", tiny_module(), tiny_tokenizer()).text.encode(["a [PAD]"])  # negative control: plain letters


def test_a_tokenizer_without_eos_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        build_language_model("m", tiny_module(), tokenizer)


def appending_tokenizer(how: str, *, bos: bool) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with a setting that appends the end-of-text token to every text."""
    tokenizer = tiny_tokenizer(bos=bos)
    if how == "post-processor":
        single = "<|bos|> $A <|end|>" if bos else "$A <|end|>"
        special = [("<|bos|>", 1), ("<|end|>", 0)]
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    else:
        tokenizer.add_bos_token, tokenizer.add_eos_token = bos, True
        tokenizer.update_post_processor()
    assert tokenizer.encode("a dog")[-1] == tokenizer.eos_token_id
    return tokenizer


TEXTS = ["a", "a dog", "a dog is it", "the quick brown fox"]
PAIRS = [("is it", " yes"), ("is it", " no"), ("a dog ", "no"), ("", "alone"), ("<|bos|>a dog", " is"), ("ends", " here<|end|>")]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("how", ["post-processor", "add_eos_token"])
def test_an_appended_end_of_text_token_is_removed(how: str, bos: bool) -> None:
    """Texts are encoded as by the same tokenizer without that setting, and as by lm_eval with that tokenizer."""
    ours, reference = TextEncoder(appending_tokenizer(how, bos=bos), name="m"), TextEncoder(tiny_tokenizer(bos=bos), name="m")
    assert (ours.appended, reference.appended) == (("<|end|>",), ())
    assert ours.encode_pairs(PAIRS) == reference.encode_pairs(PAIRS)
    texts = ["a dog", "", "<|bos|>a dog", "a dog<|end|>"]
    assert ours.encode(texts) == reference.encode(texts)
    context, continuation = HARNESS[bos]._encode_pair("is it", " yes")
    [pair] = ours.encode_pairs([("is it", " yes")])
    assert (list(pair.context), list(pair.continuation)) == (context, continuation)


def test_lm_eval_scores_the_appended_token_as_the_answer() -> None:
    """Negative control: with such a tokenizer, lm_eval appends the token to the context and scores the token as the answer."""
    harness = HFLM(pretrained=tiny_module(), tokenizer=appending_tokenizer("post-processor", bos=False), device="cpu")
    context, continuation = harness._encode_pair("a", "b")
    assert context[-1] == 0 and continuation == [0]


def test_an_end_of_text_token_in_the_text_is_kept() -> None:
    assert TextEncoder(appending_tokenizer("post-processor", bos=True), name="m").encode(["a<|end|>"])[0][-1] == 0


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    """Without tokenizer.json, transformers builds a tokenizer of special tokens, and any text is one unknown token."""
    fields = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ModelError, match=r"model m: its tokenizer has \d tokens, all of them special.* Copy tokenizer.json"):
        TextEncoder(AutoTokenizer.from_pretrained(tmp_path), name="m")


def chat_encoder(template: str, name: str = "m") -> TextEncoder:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = template
    return TextEncoder(tokenizer, name=name)


QUESTION = [{"role": "user", "content": "hi"}]
ALL = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "line", "reason"),
    [
        (ALL + "\n\n{% if %}", 3, "TemplateSyntaxError"),
        (ALL + "\n{{ strftime_now('%Y') }}\n{% endfor %}", 3, "TemplateSyntaxError"),
        (ALL + "\n{{ no_such_function() }}", 2, "UndefinedError: 'no_such_function' is undefined"),
        ("{{ strftime_now('%Y') }}\n" + ALL + "{{ messages + 1 }}", 2, "TypeError"),
        ("\n" + ALL + "{{ raise_exception('never two') }}", 2, "TemplateError: never two"),
    ],
)
def test_the_error_names_file_and_line_of_a_template_that_fails(template: str, line: int, reason: str, tmp_path: Path) -> None:
    """The message also contains the reason that jinja gives."""
    encoder = chat_encoder(template, name=str(tmp_path))
    encoder.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        encoder.render_chat(QUESTION)
    message = str(caught.value)
    assert reason in message and f"({tmp_path / 'chat_template.jinja'}, line {line} of the template)" in message
    assert message.endswith("or drop --dataset_param.apply_chat_template.")
    assert chat_encoder(ALL).render_chat(QUESTION) == "hi"


def test_the_error_of_a_template_from_the_hub_names_the_model() -> None:
    with pytest.raises(ModelError, match=r"fails: UndefinedError.*\(the chat template of owner/m, line 1 of the template\)"):
        chat_encoder("{{ no_such_function() }}", name="owner/m").render_chat(QUESTION)


def test_dropping_system_messages_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = chat_encoder("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ALL)
    with caplog.at_level(logging.WARNING, logger="lm_harmony"):
        assert encoder.render_chat(QUESTION) == "hi" and not caplog.records
        for _ in range(2):
            assert encoder.render_chat([{"role": "system", "content": "x"}, *QUESTION]) == "hi"
    assert [record.getMessage() for record in caplog.records] == [
        "model m: its chat template takes no system message (TemplateError: no system); it is left out."
    ]


GRANITE = "  {{ 'Today: ' + strftime_now('%B %d, %Y') }}\n{% if true %}\n" + ALL + "{% endif %}\n"
LLAMA_3_1 = "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{{ date_string }}: " + ALL
LLAMA_3_2 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}{{ date_string }}: " + ALL
)
IN_A_MACRO = "{% macro head() %}{{ strftime_now('%-d/%-m/%y, %A, 100%%') }}{% endmacro %}{{ head() }} " + ALL


@pytest.mark.parametrize(
    ("template", "default", "other"),
    [
        (GRANITE, "  Today: July 26, 2024\nhi", "  Today: January 05, 2026\nhi"),
        (LLAMA_3_1, "26 Jul 2024: hi", "05 Jan 2026: hi"),
        (LLAMA_3_2, "26 Jul 2024: hi", "05 Jan 2026: hi"),
        (IN_A_MACRO, "26/7/24, Friday, 100% hi", "5/1/26, Monday, 100% hi"),
        (ALL, "hi", "hi"),
    ],
)
def test_a_chat_template_uses_the_given_date(template: str, default: str, other: str) -> None:
    """The template reads the date from a function or a variable. The default is the fallback date of Llama 3."""
    encoder = chat_encoder(template)
    assert CHAT_TEMPLATE_DATE == "2024-07-26"
    assert encoder.render_chat(QUESTION) == default
    assert encoder.render_chat(QUESTION, date="2026-01-05") == other
    assert encoder.render_chat(QUESTION) == default


@pytest.mark.parametrize("template", ["\n\n" + GRANITE, GRANITE, "{{- strftime_now('%d') }}\n" + ALL + "\n\n", IN_A_MACRO])
def test_a_template_renders_as_in_lm_eval_except_for_the_date(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the given date, lm_eval renders the same text with the same blank lines. On the next day it renders another text."""

    class Clock(datetime):
        day = 5

        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 1, cls.day, 13, 45)

    monkeypatch.setattr(transformers_templates, "datetime", Clock)
    encoder = chat_encoder(template)
    harness = HFLM(pretrained=tiny_module(), tokenizer=encoder.tokenizer, device="cpu")
    ours = encoder.render_chat(QUESTION, date="2026-01-05")
    assert ours == harness.apply_chat_template(QUESTION)
    Clock.day = 6
    assert ours == encoder.render_chat(QUESTION, date="2026-01-05") != harness.apply_chat_template(QUESTION)


def test_the_appended_token_is_found_with_a_vocabulary_of_words() -> None:
    """The check encodes a token of the vocabulary, because this tokenizer has no single letters or digits."""
    words = Tokenizer(models.WordLevel({"<|end|>": 0, "dog": 1, "yes": 2}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for single, appended in (("$A", ()), ("$A <|end|>", ("<|end|>",)), ("<|end|> $A", ())):
        words.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<|end|>", 0)])
        encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>"), name="m")
        assert encoder.appended == appended
        assert encoder.encode(["dog yes"])[0][-2:] == [1, 2]
