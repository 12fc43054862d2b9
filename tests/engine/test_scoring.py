"""Replies equal those of lm_eval's HFLM. They do not depend on batch size, order of requests or available memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from lm_eval_alone import RepliesLM
from tiny import ARCHITECTURES, MAX_LENGTH, TEXTS, tiny_model, tiny_tokenizer
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, PretrainedConfig

from lm_harmony.benchmarks.types import Reply, Request
from lm_harmony.engine.backends import PACKED, PADDED, Backend
from lm_harmony.engine.continuous_batching import decode_greedily
from lm_harmony.engine.generation_settings import GenerationSettings
from lm_harmony.engine.scoring import Scorer
from lm_harmony.errors import BenchmarkError, ScoreNotFinite
from lm_harmony.models.loading import LanguageModel, longest_input

LONG = " ".join(TEXTS) * 3
PAIRS = (
    ("Question: Which of these would best slow the transfer of heat?\nAnswer:", " wood"),
    ("Question: Which of these would best slow the transfer of heat?\nAnswer:", " the quick brown fox"),
    ("Is this sentence positive or negative?  ", "yes"),  # trailing spaces move to the continuation
    ("Is this sentence positive or negative?\n", "no"),
    ("", " yes"),
    ("", "The quick brown fox jumps over the lazy dog"),
    ("a", "b"),  # one token each
    ("a", "b"),  # the same request twice
    ("Q: a\nA:", "X"),  # one-token continuations of one context, which HFLM answers from one forward pass
    ("Q: a\nA:", "Y"),
    ("naïve – ☃", "日本語 ✓"),
    ("<|bos|>a chat", " b"),
    ("<|end|>a text", " b"),
    (LONG, " no"),  # longer than the model's maximum: truncated on the left
    (LONG, "\nThe quick brown fox jumps over the lazy dog"),
    (LONG, "7" * (MAX_LENGTH - 1)),
    (LONG, "7" * MAX_LENGTH),
)
GENERATION = (
    ("Question: what is the capital?\nAnswer:", {"max_gen_toks": 12}),
    ("Q: a", {"until": [], "max_new_tokens": 12, "do_sample": False, "temperature": 0.0}),
    ("naïve – ☃", {"until": "\n", "max_gen_toks": 12, "do_sample": False}),
    ("x", {"until": ["\n\n", "Question:"], "max_gen_toks": 12}),
    (LONG, {"until": ["\n\n", "Question:"], "max_gen_toks": 12}),
    (LONG, {"until": ["."], "max_gen_toks": MAX_LENGTH - 1}),
)
BOTH = pytest.mark.parametrize("bos", [False, True], ids=["no bos", "bos"])
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES)


@cache
def model_and_hflm(architecture: str, bos: bool) -> tuple[LanguageModel, HFLM]:
    """Return one tiny model as a LanguageModel and as an HFLM."""
    model = tiny_model(architecture, bos=bos)
    tokenizer = copy.deepcopy(model.text.tokenizer)  # HFLM sets its pad token
    return model, HFLM(pretrained=model.module, tokenizer=tokenizer, batch_size=4, device="cpu")


def scoring_request(context: str, continuation: str) -> Request:
    return Request(kind="loglikelihood", context=context, continuation=continuation)


def rolling_request(text: str) -> Request:
    return Request(kind="loglikelihood_rolling", context="", continuation=text)


def generation_request(context: str, arguments: Mapping[str, Any]) -> Request:
    return Request(kind="generate_until", context=context, generation=arguments)


def hflm_answers(hflm: HFLM, requests: Sequence[Request]) -> list[Any]:
    """Return the replies of lm_eval's HFLM to requests of one kind."""
    arguments: list[tuple[Any, ...]] = []
    for request in requests:
        if request.kind == "loglikelihood_rolling":
            arguments.append((request.continuation,))
        elif request.kind == "loglikelihood":
            arguments.append((request.context, request.continuation))
        else:
            arguments.append((request.context, dict(request.generation)))
    instances = [Instance(requests[0].kind, {}, given, number) for number, given in enumerate(arguments)]
    answer: Callable[..., list[Any]] = getattr(hflm, requests[0].kind)
    return answer(instances, disable_tqdm=True)


def greedy_pairs(hflm: HFLM) -> list[tuple[str, str]]:
    """Return pairs of a context and its greedy next token. Tokens that are no valid text are left out."""
    contexts = ["Q: what is the city?", "the fox", "yes no", "Is it", "a dog", "Answer: the", *"bcdefghijk"]
    texts = hflm_answers(hflm, [generation_request(context, {"max_gen_toks": 1}) for context in contexts])
    return [(context, text) for context, text in zip(contexts, texts, strict=True) if text.strip() and "\ufffd" not in text]


def text_of(tokens: int, bos: bool) -> str:
    """Return a text of ``tokens`` tokens. The tokenizer never merges digits."""
    return "".join(str(number * number % 10) for number in range(tokens - bos))


@BOTH
@EACH
def test_loglikelihoods_and_greedy_flags_are_those_of_hflm(architecture: str, bos: bool) -> None:
    """All kinds of contexts and continuations get HFLM's greedy flag, and its log-likelihood within 1e-4 nats."""
    model, hflm = model_and_hflm(architecture, bos)
    requests = [scoring_request(*pair) for pair in (*PAIRS, *greedy_pairs(hflm))]
    ours = Scorer(model=model, batch_size=4).reply(requests)
    theirs = hflm_answers(hflm, requests)
    # The relative tolerance is for HFLM, which sums the log-probabilities in float32.
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=1e-4, rel=1e-7)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in ours} == {True, False}


@pytest.mark.parametrize(
    ("original", "wrong"),
    [
        (("Is it?  ", "yes"), ("Is it?", "yes")),  # without the trailing spaces
        (("", " yes"), ("a", " yes")),
        ((LONG, " no"), (LONG[:80], " no")),  # truncated on the right
        (("<|bos|>a chat", " b"), ("a chat", " b")),
    ],
)
def test_the_comparison_detects_a_wrongly_read_request(original: tuple[str, str], wrong: tuple[str, str]) -> None:
    """Negative control: a small mistake in reading a request changes its log-likelihood by more than 1e-2 nats."""
    model, hflm = model_and_hflm("llama", False)
    [(theirs, _)] = hflm_answers(hflm, [scoring_request(*original)])
    [(ours, _)] = Scorer(model=model).reply([scoring_request(*wrong)])
    assert abs(ours - theirs) > 1e-2


@EACH
def test_loglikelihoods_are_those_of_float64_arithmetic(architecture: str) -> None:
    """They are within 1e-4 nats of the definition, computed in float64 for one sequence at a time."""
    model, _ = model_and_hflm(architecture, False)
    exact = copy.deepcopy(model.module).double()
    requests = [scoring_request(*pair) for pair in PAIRS]
    for request, (nats, _) in zip(requests, Scorer(model=model).reply(requests), strict=True):
        [pair] = model.text.encode_pairs([(request.context, request.continuation)])
        ids = torch.tensor((pair.context + pair.continuation)[-MAX_LENGTH - 1 :])
        with torch.no_grad():
            logprobs = exact(ids[None, :-1], use_cache=False).logits[0].double().log_softmax(dim=-1)
        chosen = logprobs.gather(1, ids[1:, None])[-len(pair.continuation) :]
        assert nats == pytest.approx(float(chosen.sum()), abs=1e-4)


@BOTH
@EACH
def test_rolling_loglikelihoods_are_those_of_hflm(architecture: str, bos: bool) -> None:
    """Texts are empty, shorter than the model's maximum length, as long, one token longer, and three times as long."""
    model, hflm = model_and_hflm(architecture, bos)
    lengths = (5, MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1, 3 * MAX_LENGTH)
    texts = [text_of(tokens, bos) for tokens in lengths]
    assert [len(ids) for ids in model.text.encode(texts)] == list(lengths)
    requests = [rolling_request(text) for text in (*texts, "naïve – ☃ 日本語", "", LONG)]
    ours = Scorer(model=model, batch_size=4).reply(requests)
    assert ours == pytest.approx(hflm_answers(hflm, requests), abs=1e-4, rel=1e-7)
    assert ours[lengths.index(MAX_LENGTH)] - ours[lengths.index(MAX_LENGTH + 1)] > 1e-2  # the 129th token counts


@BOTH
@EACH
def test_generated_answers_are_those_of_hflm(architecture: str, bos: bool) -> None:
    """The strings are equal with several stop strings, with limits, and with contexts that must be truncated."""
    model, hflm = model_and_hflm(architecture, bos)
    requests = [generation_request(context, arguments) for context, arguments in GENERATION]
    ours = Scorer(model=model, batch_size=4).reply(requests)
    assert ours == hflm_answers(hflm, requests)
    assert all(ours)


@EACH
def test_answers_end_before_their_first_stop_string(architecture: str) -> None:
    """Each row of a batch ends at its first stop string, even if the stop string spans several tokens."""
    model, hflm = model_and_hflm(architecture, False)
    contexts = ["Q: what?\nA:", "the dog", LONG, "yes no", "Is it"]
    free = hflm_answers(hflm, [generation_request(context, {"max_gen_toks": 24}) for context in contexts])
    clean = [place for place, text in enumerate(free) if text[8:11].strip() and "\ufffd" not in text[8:11]]
    for stop in [free[place][8:11] for place in clean]:
        requests = [generation_request(context, {"until": ["\n\n\n", stop], "max_gen_toks": 24}) for context in contexts]
        ours = Scorer(model=model, batch_size=8).reply(requests)
        assert ours == hflm_answers(hflm, requests) == [text.split(stop)[0] for text in free]
    assert clean


def test_generation_stops_at_the_stop_string() -> None:
    """A batch needs as many forward passes as its answers have tokens, however the stop string is tokenized."""
    model, _ = model_and_hflm("llama", False)
    free = [generated(model, tokens) for tokens in range(1, 41)]
    clean = [free[-1][start : start + 3] for start in range(9, len(free[-1]) - 3)]
    stop = next(span for span in clean if "\ufffd" not in span and span not in free[9])
    passes: list[int] = []
    hook = model.module.register_forward_pre_hook(lambda *_: passes.append(1))
    generated(model, 40, until=stop)
    hook.remove()
    assert len(passes) == next(tokens for tokens, text in enumerate(free, start=1) if stop in text) < 40


def generated(model: LanguageModel, tokens: int, **arguments: str) -> str:
    request = generation_request("yes no", {"max_gen_toks": tokens, **arguments})
    return Scorer(model=model).reply([request] * 2)[0]


def test_max_new_tokens_applies_where_a_task_sets_no_limit() -> None:
    """max_new_tokens limits only requests without a limit of their own."""
    model, hflm = model_and_hflm("llama", False)
    scorer = Scorer(model=model, max_new_tokens=3)
    short, long = scorer.reply([generation_request("Q: a", {}), generation_request("Q: a", {"max_gen_toks": 9})])
    assert [short] == hflm_answers(hflm, [generation_request("Q: a", {"max_gen_toks": 3})])
    assert [long] == hflm_answers(hflm, [generation_request("Q: a", {"max_gen_toks": 9})])
    assert len(long) > len(short)


def test_a_limit_that_leaves_no_space_for_the_context_is_refused() -> None:
    """With as many new tokens as the model's maximum length, no token is left for the context."""
    request = generation_request("Q:", {"max_gen_toks": MAX_LENGTH})
    with pytest.raises(BenchmarkError, match=r"leaves no space .* Lower --max_new_tokens"):
        Scorer(model=tiny_model()).reply([request])


def test_an_empty_question_is_answered() -> None:
    """Generation from an empty context starts with the prefix token."""
    model, hflm = model_and_hflm("llama", False)
    [ours] = Scorer(model=model).reply([generation_request("", {"max_gen_toks": 8})])
    assert [ours] == hflm_answers(hflm, [generation_request("<|end|>", {"max_gen_toks": 8})])


STOP = st.text(min_size=1, max_size=3)
LIMIT = st.none() | st.integers(1, 300)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "until": STOP | st.lists(STOP, max_size=3),
        "max_gen_toks": LIMIT,
        "max_new_tokens": LIMIT,
        "max_tokens": LIMIT,
        "max_completion_tokens": LIMIT,
        "do_sample": st.none() | st.booleans(),
        "temperature": st.sampled_from([0, 0.0, 0.5, 1.0]),
        "top_p": st.sampled_from([0.5, 0.9]),
    },
)


@settings(max_examples=200, deadline=None)
@given(arguments=ARGUMENTS)
def test_generation_arguments_are_read_as_lm_eval_reads_them(arguments: dict[str, Any]) -> None:
    """Stop strings, limit, sampling and temperature equal those of lm_eval's normalize_gen_kwargs."""
    theirs: dict[str, Any] = dict(normalize_gen_kwargs(arguments, 77))
    ours = GenerationSettings.read(arguments, default_limit=77)
    options = dict(ours.options)
    assert list(ours.stop) == theirs["until"]
    assert ours.max_new_tokens == theirs["max_gen_toks"]
    assert options["do_sample"] == bool(theirs["do_sample"])
    assert options.get("top_p") == arguments.get("top_p")
    if options["do_sample"]:
        assert options.get("temperature", 0.0) == theirs.get("temperature", 0.0)
    else:
        assert "temperature" not in options


@EACH
def test_the_maximum_length_is_that_of_hflm(architecture: str) -> None:
    """max_length equals that of HFLM for every architecture."""
    model, hflm = model_and_hflm(architecture, False)
    assert model.max_length == hflm.max_length == MAX_LENGTH


CONFIGS = [PretrainedConfig(n_ctx=55), *(CONFIG_MAPPING[kind]() for kind in ("gpt2", "llama", "mamba", "gemma3", "mpt"))]


@pytest.mark.parametrize("limit", [77, None])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type or "n_ctx")
def test_the_maximum_length_follows_lm_evals_rule(config: PretrainedConfig, limit: int | None) -> None:
    """The config, the nested text config, the tokenizer and the default are used in lm_eval's order."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.model_max_length = int(1e30) if limit is None else limit
    assert longest_input(config, tokenizer) == resolve_max_length(config, tokenizer)


class TokenIdsLM(HFLM):
    """HFLM that returns its token ids instead of running the model."""

    def _loglikelihood_tokens(self, requests: Any, *_: Any, **__: Any) -> Any:
        return [(context, continuation) for _, context, continuation in requests]


PIECES = st.sampled_from([" ", "  ", "\n", "\t", "the", " the", "Answer:", "<|end|>", "<|bos|>", "é", "日", "\u2003"])
TEXT = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=6).map("".join)


@BOTH
@settings(max_examples=80, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=6))
def test_texts_become_hflms_token_ids(pairs: list[tuple[str, str]], bos: bool) -> None:
    """Token ids of any context and continuation equal those of HFLM, also for empty contexts."""
    model, hflm = model_and_hflm("llama", bos)
    token_ids_lm = TokenIdsLM(pretrained=model.module, tokenizer=hflm.tokenizer, batch_size=4, device="cpu")
    theirs = hflm_answers(token_ids_lm, [scoring_request(*pair) for pair in pairs])
    for (context, continuation), ours, (context_ids, ids) in zip(pairs, model.text.encode_pairs(pairs), theirs, strict=True):
        # HFLM fails on a context of only spaces if the tokenizer adds no BOS token. We add the prefix token.
        assert list(ours.context) == (context_ids or [model.text.prefix_id])
        assert list(ours.continuation) == ids
        if context:
            assert (context_ids, ids) == hflm._encode_pair(context, continuation)


def mixed_requests() -> list[Request]:
    """Return requests of all three kinds in alternating groups."""
    scores = [scoring_request(*pair) for pair in PAIRS]
    rolls = [rolling_request(text) for text in ("short", LONG, "", text_of(MAX_LENGTH + 1, False))]
    texts = [
        generation_request(context, {"until": ["e"], "max_gen_toks": 8}) for context in ("Q: a", "the dog", LONG, "yes", "naïve")
    ]
    return [*scores[:5], *texts[:2], *rolls, *scores[5:], *texts[2:]]


def assert_same(ours: Sequence[Reply], expected: Sequence[Reply]) -> None:
    """Assert that strings and greedy flags are equal, and that numbers are equal within rounding."""
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        if isinstance(one, str) or isinstance(other, str):
            assert one == other
        else:
            assert one == pytest.approx(other, abs=1e-4, rel=1e-7)
            assert not isinstance(one, tuple) or not isinstance(other, tuple) or one[1] == other[1]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@EACH
def test_answers_do_not_depend_on_the_batch_size(architecture: str, batch_size: int) -> None:
    """Batches of one, of three and of all rows give the same replies in the order of the requests."""
    model, _ = model_and_hflm(architecture, False)
    expected = Scorer(model=model, batch_size=5).reply(mixed_requests())
    assert_same(Scorer(model=model, batch_size=batch_size).reply(mixed_requests()), expected)


def test_answers_do_not_depend_on_the_order_of_requests() -> None:
    """Reversed requests get the replies in reversed order."""
    scorer = Scorer(model=tiny_model(), batch_size=4)
    expected = scorer.reply(mixed_requests())
    assert_same(scorer.reply(mixed_requests()[::-1])[::-1], expected)
    with pytest.raises(AssertionError):  # negative control
        assert_same(scorer.reply(mixed_requests()[::-1]), expected)


def test_no_request_gets_no_answer() -> None:
    """An empty list of requests gives an empty list of replies."""
    assert Scorer(model=tiny_model()).reply([]) == []


def test_answers_do_not_change_when_memory_runs_out(out_of_memory: Callable[..., list[int]]) -> None:
    """If more than two rows run out of memory, all replies stay the same. The batch size that fits is found only once."""
    model = tiny_model()
    expected = Scorer(model=model, batch_size=8).reply(mixed_requests())
    calls = out_of_memory(model.module, 2)
    assert_same(Scorer(model=model, batch_size=8).reply(mixed_requests()), expected)
    # For each of the three kinds the batch is halved at most twice. The smaller size is then kept.
    assert 3 <= len([rows for rows in calls if rows > 2]) <= 6


class MemoryRunsOutWhenRowsEnter(TorchFunctionMode):
    """Fails when the first keys of new rows are written into a cache that other rows use."""

    failed = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rows_enter = function is torch.Tensor.__setitem__ and isinstance(args[1], slice) and args[1].start
        if rows_enter and not self.failed:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return function(*args, **(kwargs or {}))


def test_no_answer_is_lost_when_memory_runs_out_while_rows_enter_a_running_batch() -> None:
    model, contexts = tiny_model(), [tuple(range(1, 4 + place)) for place in range(9)]

    def answers() -> dict[int, tuple[int, ...]]:
        options: dict[str, Any] = {"batch_size": 4, "max_new_tokens": 8}
        # Rows end at different steps, so others enter.
        rows = decode_greedily(model, contexts, is_finished=lambda written: len(written) > written[0] % 5, **options)
        return {row.place: row.written for row in rows}

    with torch.no_grad():
        expected = answers()
        with MemoryRunsOutWhenRowsEnter() as memory:
            found = answers()
    assert memory.failed == 1
    assert found == expected and sorted(found) == list(range(len(contexts)))


@pytest.mark.parametrize(
    "request_", [scoring_request("a", "b"), rolling_request("text"), generation_request("a", {"max_gen_toks": 3})]
)
def test_one_row_that_does_not_fit_raises_the_out_of_memory_error(
    request_: Request, out_of_memory: Callable[..., list[int]]
) -> None:
    """A batch of one row cannot be halved, so the original error is raised."""
    model = tiny_model()
    calls = out_of_memory(model.module, 0)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        Scorer(model=model, batch_size=2).reply([request_] * 2)
    assert calls == [2, 1]


def test_other_errors_are_raised_without_a_retry() -> None:
    """An error that is not about memory is raised immediately."""
    model = tiny_model()

    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Scorer(model=model, batch_size=8).reply([scoring_request("a", "b")] * 8)


def sampled(seed: int, *, temperature: float = 1.0) -> list[str]:
    request = generation_request("Q: what is it?\nA:", {"do_sample": True, "temperature": temperature, "max_gen_toks": 8})
    return Scorer(model=tiny_model(), seed=seed).reply([request] * 4)


def test_sampling_depends_only_on_the_seed() -> None:
    """The same seed gives the same answers for any global random state. Another seed or temperature gives others."""
    torch.manual_seed(1)
    first = sampled(0)
    torch.manual_seed(2)
    assert sampled(0) == first
    assert sampled(1) != first
    assert sampled(0, temperature=9.0) != first
    assert len(set(first)) > 1


def test_sampling_does_not_change_the_global_random_state() -> None:
    """The state of PyTorch's global generator is unchanged, also after generation has failed."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sampled(0)
    with pytest.raises(BenchmarkError):
        Scorer(model=tiny_model()).reply([generation_request("Q", {"max_gen_toks": 10**6, "do_sample": True})])
    assert torch.equal(torch.get_rng_state(), before)


BROKEN = {"nan": float("nan"), "infinite": float("inf")}


def broken_model(value: float, *, only_for: int | None = None) -> LanguageModel:
    """Make a tiny model in which the embedding of one token, or every output, is not finite."""
    model = tiny_model()
    if only_for is None:
        model.module.lm_head.weight.data[7] = value  # type: ignore[union-attr]
    else:
        model.module.get_input_embeddings().weight.data[only_for] = value  # type: ignore[index, union-attr]
    return model


@pytest.mark.parametrize("backend", [PADDED, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_a_score_that_is_not_finite_raises_an_error_with_its_row(kind: str, value: str, backend: Backend) -> None:
    """One document has a token whose embedding is NaN or infinite. The error has its row, and no reply is returned."""
    texts = ["yes no", "a dog", "the city", "Q: 9 or what?", "the fox"]
    [digit] = tiny_tokenizer().encode("9")
    make = {
        "loglikelihood": lambda text: scoring_request("Answer the question with one word. " + text, " no"),
        "loglikelihood_rolling": rolling_request,
        "generate_until": lambda text: generation_request(text, {"max_gen_toks": 4}),
    }[kind]
    requests = [replace(make(text), location=f"test row {40 + place}") for place, text in enumerate(texts)]
    model = broken_model(BROKEN[value], only_for=digit)
    scorer = Scorer(model=model, backend=backend, batch_size=1)
    with pytest.raises(ScoreNotFinite, match=r"= (nan|inf|-inf) for test row 43: no score .*--dtype"):
        scorer.reply(requests)
    assert len(scorer.reply([*requests[:3], *requests[4:]])) == 4  # negative control: the other documents are scored


@pytest.mark.parametrize("backend", [PADDED, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "request_", [scoring_request("a", " no"), rolling_request("text"), generation_request("a", {"max_gen_toks": 3})]
)
def test_a_model_whose_output_is_not_finite_raises_an_error(request_: Request, backend: Backend) -> None:
    with pytest.raises(ScoreNotFinite, match="for request 0: no score"):
        Scorer(model=broken_model(float("nan")), backend=backend).reply([request_])


def test_lm_eval_with_our_engine_raises_an_error_with_the_document() -> None:
    instances = [Instance("loglikelihood", {}, ("a", text), 0, ("task", row, 1)) for row, text in ((5, "b"), (6, "9 c"))]
    [digit] = tiny_tokenizer().encode("9")
    harness = RepliesLM(Scorer(model=broken_model(float("nan"), only_for=digit)).reply)
    with pytest.raises(ScoreNotFinite, match="document 6 of task: no score"):
        harness.loglikelihood(instances)
