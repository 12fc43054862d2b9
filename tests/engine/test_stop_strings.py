"""Answers end at the first token with which their decoded text contains a stop string, or at an end token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from tiny import TEXTS, VOCABULARY, tiny_model, tiny_module, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lm_harmony.benchmarks.types import Request
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.scoring import Scorer
from lm_harmony.engine.stop_strings import REPLACEMENT, StopStrings
from lm_harmony.models.loading import LanguageModel, build_language_model

PIECES = ("▁", "▁the", "the", "▁e", "é", "日", "本", "▁\n", "\n", "\n\n", ".", "▁.", "Q", ":", "Q:", "'t", "▁n", "x")


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that decodes like Llama 2's: "▁" is a space, and characters without a piece are spelled in bytes."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    made = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[], byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>", bos_token="<s>")


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that decodes like BERT's: with spaces between words, which transformers removes before punctuation."""
    names = {"[UNK]": 0, "</s>": 1, "a": 2, ".": 3, "n": 4}
    made = Tokenizer(models.WordPiece(vocab=names, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="[UNK]", clean_up_tokenization_spaces=True)


@cache
def model_of(kind: str) -> LanguageModel:
    makers = {"bytes": tiny_tokenizer, "sentencepiece": sentencepiece_tokenizer, "wordpiece": wordpiece_tokenizer}
    tokenizer = makers[kind]()
    return build_language_model(kind, tiny_module(eos_token_id=tokenizer.eos_token_id), tokenizer)


def stop_strings(kind: str, *stop: str) -> StopStrings:
    return StopStrings(model_of(kind), GenerationSettings(stop=stop, max_new_tokens=9, options=()))


def length(found: StopStrings, written: Sequence[int]) -> int | None:
    """Return the number of tokens of the answer."""
    return next((count for count in range(1, len(written) + 1) if found.is_finished(written[:count])), None)


def length_by_definition(kind: str, stop: Sequence[str], written: Sequence[int]) -> int | None:
    """Return the same, with all tokens decoded after each of them."""
    tokenizer, text = model_of(kind).text.tokenizer, model_of(kind).text
    for count in range(1, len(written) + 1):
        decoded = tokenizer.decode(list(written[:count]))
        if written[count - 1] == text.end_id or any(end in decoded for end in (*stop, text.end_text)):
            return count
    return None


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_an_answer_ends_where_its_decoded_text_contains_a_stop_string(kind: str, data: st.DataObject) -> None:
    """Random tokens, parts of characters and special tokens included; most stop strings are pieces of the text they make."""
    tokenizer = model_of(kind).text.tokenizer
    size = len(tokenizer)
    few = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6), label="few tokens, often repeated")
    words = st.sampled_from(["é", "日本", "\n\n", " the", "Q:", "☃", "a."]).map(lambda word: list(tokenizer(word)["input_ids"]))
    tokens = st.lists(st.sampled_from(few).map(lambda token: [token]) | st.integers(0, VOCABULARY - 1).map(lambda t: [t]) | words)
    written = [token for part in data.draw(tokens, label="tokens") for token in part]
    text = tokenizer.decode(written)
    starts = st.integers(0, max(0, len(text) - 1))
    pieces = st.tuples(starts, st.integers(1, 5)).map(lambda place: text[place[0] : sum(place)])
    pieces = pieces.filter(lambda piece: piece and REPLACEMENT not in piece)  # stop strings are made of characters
    other = st.sampled_from(["\n", ".", "zz", "é", " ", "Question:"])
    stop = data.draw(st.lists(pieces | other if text else other, max_size=3), label="stop strings")
    assert length(stop_strings(kind, *stop), written) == length_by_definition(kind, stop, written)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_character_that_is_spelled_in_bytes_ends_an_answer(kind: str) -> None:
    tokenizer = model_of(kind).text.tokenizer
    x, *snowman = tokenizer("x☃")["input_ids"]
    assert len(snowman) == 3
    assert length(stop_strings(kind, "☃"), [x, *snowman, x]) == 4
    # Negative control: none of its tokens has the character by itself.
    assert all("☃" not in tokenizer.decode([token, token]) for token in snowman)


def test_a_row_cut_between_bytes_may_show_a_stop_string_that_it_does_not_contain() -> None:
    """A run of bytes decodes to characters only if all of it is valid. Its last four bytes are, the run with the first is not."""
    tokenizer = model_of("sentencepiece").text.tokenizer
    written = tokenizer.convert_tokens_to_ids(["<0xE6>", "<0x41>", "<0x41>", "<0x41>", "<0x0A>"])
    assert tokenizer.decode(written[1:]) == "AAA\n" and tokenizer.decode(written) == 5 * REPLACEMENT
    assert length(stop_strings("sentencepiece", "\n"), written) is None
    assert length(stop_strings("sentencepiece", "\n"), written[1:]) == 4


def test_text_is_decoded_as_lm_eval_decodes_it() -> None:
    """A tokenizer that removes spaces before punctuation removes them before stop strings are looked for."""
    tokenizer = model_of("wordpiece").text.tokenizer
    written = tokenizer.convert_tokens_to_ids(["a", ".", "n"])
    assert length(stop_strings("wordpiece", "a."), written) == 2
    assert length(stop_strings("wordpiece", " ."), written) is None
    assert " ." in tokenizer.decode(written, clean_up_tokenization_spaces=False)  # negative control


class CountingTokenizer(PreTrainedTokenizerFast):
    """Counts the tokens that it decodes."""

    decoded = 0

    def _decode(self, token_ids: int | list[int], **options: object) -> str:
        self.decoded += 1 if isinstance(token_ids, int) else len(token_ids)
        return super()._decode(token_ids, **options)  # type: ignore[no-any-return]


def test_rows_are_decoded_only_after_tokens_that_can_complete_a_stop_string() -> None:
    """A token is decoded once to see whether it can. The whole row is decoded after those that can."""
    tokenizer = CountingTokenizer(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|end|>")
    model = build_language_model("counting", tiny_module(), tokenizer)
    written = tokenizer("the quick brown fox jumps over the lazy dog " * 5)["input_ids"]
    for stop, most in (("\n\n", 0), ("dig", len("dog" * 5) * len(written))):
        found = StopStrings(model, GenerationSettings(stop=(stop,), max_new_tokens=9, options=()))
        tokenizer.decoded = 0
        assert length(found, written) is None
        assert 0 < tokenizer.decoded <= 2 * len(set(written)) + most
    assert tokenizer.decoded > 2 * len(set(written))  # negative control: every "g" can complete "dig"


THINKING = tuple("a dog\n.:")
"""Single characters of which answers with a think part are made; "." ends the think part and ":" is a stop string."""


def ids_of(text: str) -> list[int]:
    """Return the tokens of the single characters of a text."""
    tokenizer = model_of("bytes").text.tokenizer
    return [token for one in text for token in tokenizer.encode(one, add_special_tokens=False)]


def thinking(end: str | int | None, *stop: str) -> StopStrings:
    return StopStrings(model_of("bytes"), GenerationSettings(stop=stop, max_new_tokens=99, options=()), end)


@settings(max_examples=300, deadline=None)
@given(written=st.lists(st.sampled_from(THINKING), min_size=1, max_size=30), as_id=st.booleans())
def test_the_think_part_is_cut_off_as_by_lm_eval(written: list[str], as_id: bool) -> None:
    """HFLM cuts an id from the tokens and a text from the decoded text, strips spaces, and then searches stop strings."""
    tokens = ids_of("".join(written))
    (end_id,) = ids_of(".")
    found = thinking(end_id if as_id else ".", ":", "\n")
    # What HFLM.generate_until does with the generated tokens of a row.
    kept = tokens[len(tokens) - tokens[::-1].index(end_id) :] if as_id and end_id in tokens else tokens
    decoded = found.tokenizer.decode(kept, skip_special_tokens=True)
    decoded = decoded.lstrip() if as_id else decoded
    assert found.text_of(tokens) == postprocess_generated_text(decoded, [":", "\n", "<|end|>"], None if as_id else ".")


@pytest.mark.parametrize("as_id", [False, True])
def test_an_answer_does_not_end_inside_its_think_part(as_id: bool) -> None:
    (end_id,) = ids_of(".")
    end: str | int = end_id if as_id else "."
    tokens = ids_of("a: dog\n a. dog: a")
    assert length(thinking(end, ":"), tokens) == len(ids_of("a: dog\n a. dog:"))
    assert thinking(end, ":").text_of(ids_of("a: dog\n a. dog:")) == "dog"
    assert length(thinking(end, ":"), ids_of("a: dog: a")) is None  # no think part has ended
    assert length(thinking(end, ":"), [*ids_of("a: dog"), 0]) == len(ids_of("a: dog")) + 1  # an end token always ends
    assert length(thinking(None, ":"), tokens) == 2  # negative control: without a think part


def test_hflm_generates_the_same_answers() -> None:
    """HFLM itself, with batches of one row: texts and ids that tiny models generate end their think part."""
    model = tiny_model(seed=3)
    requests = [Request(kind="generate_until", context=text, generation={"until": [], "max_gen_toks": 24}) for text in TEXTS]
    whole = Scorer(model=model).reply(requests)
    cut = 0
    for end in (str(whole[0])[5], str(whole[1])[3:5], model.text.encode([str(whole[2])])[0][6]):
        harness = HFLM(
            pretrained=tiny_module(seed=3), tokenizer=tiny_tokenizer(), device="cpu", batch_size=1, think_end_token=end
        )
        instances = [Instance("generate_until", {}, (one.context, dict(one.generation)), 0) for one in requests]
        ours = Scorer(model=model, think_end=end).reply(requests)
        assert ours == harness.generate_until(instances, disable_tqdm=True)
        cut += sum(str(one) != str(other) for one, other in zip(ours, whole, strict=True))
    assert cut >= 3  # negative control: most answers have a think part
