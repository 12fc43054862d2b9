"""A run's prompt: lm_eval's HFLM gives the same scores with the same options, and think parts are cut off training targets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval_alone import lm_eval_task
from task_files import write_task
from tiny import CHAT_TEMPLATE, TEXTS, write_tiny_model

from lm_harmony.analysis.load_records import record_rows
from lm_harmony.benchmarks.prompt import PLAIN_PROMPT, Prompt
from lm_harmony.benchmarks.types import Caps
from lm_harmony.errors import ModelError, NotCurrent, UsageError
from lm_harmony.recipe import Lora, Recipe
from lm_harmony.runs.preflight import check_request
from lm_harmony.runs.protocol import train_before_test
from lm_harmony.runs.published_settings import differences_from_published
from lm_harmony.runs.setup import set_up_run
from lm_harmony.runs.spec import BenchmarkSpec, Execution, ModelSpec, RunSpec
from lm_harmony.runs.store import RunStore

TEMPLATE = "{% if enable_thinking is defined and not enable_thinking %}/no_think\n{% endif %}" + CHAT_TEMPLATE
"""A template that says first whether the model shall think, as SmolLM3's does."""
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_target": "label",
    "doc_to_choice": ["no", "maybe not", "yes"],
    "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
}
WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "think of {{label}} . {{word}}",
    "generation_kwargs": {"until": ["never written"], "do_sample": False, "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
}
THINKING = Prompt(
    chat_template_args='{"enable_thinking": false}',
    system_instruction="Answer in one word.",
    gen_prefix="So it is",
)


def rows(first: int, count: int) -> list[dict[str, Any]]:
    words = ("dog", "fox", "heat")
    return [{"text": f"{number} {TEXTS[number % 4]}", "label": number % 3, "word": words[number % 3]}
            for number in range(first, first + count)]  # fmt: skip


ROWS = {"train": rows(0, 8), "validation": rows(10, 4), "test": rows(20, 6)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    model = write_tiny_model(folder / "model", chat=True)
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    for name, fields in (("choice", CHOICE), ("written", WRITTEN)):
        write_task(folder, ROWS, name=name, **fields)
    return folder


def spec_of(world: Path, task: str, prompt: Prompt, **fields: Any) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(world / "model"), apply_chat_template=True),
        benchmark=BenchmarkSpec(task=str(world / f"{task}.yaml"), data_dir=world),
        recipe=Recipe(epochs=1, learning_rate=1e-2, lora=Lora(target_modules=("all-linear",))),
        prompt=prompt,
        direct=True,
        execution=Execution(device="cpu"),
        **fields,
    )


def results_of(store: RunStore) -> dict[str, Any]:
    (file,) = store.folder.glob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def lm_eval_scores(world: Path, task: str, ours: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Score the trained model that a results file names with lm_eval's HFLM and the options in the file."""
    prefix = ours["configs"][task].get("gen_prefix")
    found: Any = simple_evaluate(
        **{
            "model": "hf",
            "model_args": dict(ours["config"]["model_args"]),
            "gen_kwargs": ours["config"]["gen_kwargs"],
            "system_instruction": ours["system_instruction"],
            **options,
        },
        device="cpu",
        batch_size=1,
        tasks=[lm_eval_task(world / f"{task}.yaml", ROWS, gen_prefix=prefix)],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=1,
    )
    return {
        "samples": [(one["prompt_hash"], one["filtered_resps"]) for one in found["samples"][task]],
        "scores": {key: value for key, value in found["results"][task].items() if "," in key and "stderr" not in key},
    }


def our_scores(store: RunStore, task: str) -> dict[str, Any]:
    lines = (store.folder / "samples_test.jsonl").read_text(encoding="utf-8").splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda one: one["doc_id"])
    results = results_of(store)["results"][task]
    return {
        "samples": [(one["prompt_hash"], one["filtered_resps"]) for one in samples],
        "scores": {key: value for key, value in results.items() if "," in key and "stderr" not in key},
    }


def test_lm_eval_gives_the_same_scores_of_choices(world: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    train_before_test(spec_of(world, "choice", THINKING), store)
    ours, theirs = our_scores(store, "choice"), lm_eval_scores(world, "choice", results_of(store))
    assert [one for one, _ in ours["samples"]] == [one for one, _ in theirs["samples"]]
    assert ours["scores"] == pytest.approx(theirs["scores"]) and len(ours["scores"]) == 2
    assert results_of(store)["system_instruction"] == "Answer in one word."
    assert results_of(store)["config"]["model_args"]["chat_template_args"] == {"enable_thinking": False}
    for dropped in ({"system_instruction": None}, {"model_args": {"pretrained": str(world / "model")}}):  # negative control
        other = lm_eval_scores(world, "choice", results_of(store), **dropped)
        assert [one for one, _ in other["samples"]] != [one for one, _ in ours["samples"]]


def test_lm_eval_gives_the_same_answers(world: Path, tmp_path: Path) -> None:
    """Answers of 20 tokens instead of the task's 4, of which the part up to a character that the model generates is cut off."""
    plain = RunStore(tmp_path / "plain")
    train_before_test(spec_of(world, "written", replace(THINKING, max_gen_toks=20)), plain)
    answers = [json.loads(line)["resps"][0][0] for line in (plain.folder / "samples_test.jsonl").read_text().splitlines()]
    end = next(
        one for one, _ in Counter("".join(answers)).most_common() if one.strip() and one not in "think of 012. dog heat fox"
    )
    store = RunStore(tmp_path / "thinking")
    train_before_test(spec_of(world, "written", replace(THINKING, max_gen_toks=20, think_end_token=end)), store)
    ours, results = our_scores(store, "written"), results_of(store)
    assert results["config"]["gen_kwargs"] == {"max_gen_toks": 20}
    assert results["config"]["model_args"]["think_end_token"] == end
    assert ours == lm_eval_scores(world, "written", results)
    for changed in ({"gen_kwargs": None}, {"model_args": {**results["config"]["model_args"], "think_end_token": None}}):
        assert ours["samples"] != lm_eval_scores(world, "written", results, **changed)["samples"]


def test_the_think_part_is_cut_off_training_targets(world: Path) -> None:
    def targets(prompt: Prompt) -> list[str | None]:
        return [example.continuation for example in set_up_run(spec_of(world, "written", prompt)).splits.train]

    whole, cut = targets(PLAIN_PROMPT), targets(Prompt(think_end_token="."))
    assert whole[0] == "think of 0 . dog" and cut[0] == "dog"  # no delimiter after a chat
    run = set_up_run(spec_of(world, "written", Prompt(think_end_token=".")))
    text = run.model.text.tokenizer
    assert cut == [one.split(".")[-1].lstrip() for one in map(str, whole)]
    assert all("think of" not in text.decode(sequence.ids) for sequence in run.sequences)
    assert run.scorer.think_end == "."
    as_id = text.convert_tokens_to_ids(".")
    assert targets(Prompt(think_end_token=as_id)) == cut
    assert set_up_run(spec_of(world, "written", Prompt(think_end_token=as_id))).scorer.think_end == as_id


def test_questions_after_examples_have_the_prompt_too(world: Path) -> None:
    run = set_up_run(spec_of(world, "choice", THINKING, direct_fewshot=(0, 2)))
    for shots in (0, 2):
        context = run.direct[shots].examples[0].requests[0].context
        assert context.startswith("/no_think\n<|sys|>Answer in one word.") and context.count("So it is") == shots + 1


def test_a_plain_prompt_leaves_the_request_as_it_was(world: Path) -> None:
    plain, other = spec_of(world, "written", PLAIN_PROMPT), spec_of(world, "written", Prompt(think_end_token="."))
    assert "prompt" not in plain.to_dict() and other.to_dict()["prompt"] == {"think_end_token": "."}
    for spec in (plain, other, spec_of(world, "choice", THINKING)):
        assert RunSpec.from_dict(spec.to_dict()) == spec
    prints = {str(set_up_run(spec).fingerprints.test) for spec in (plain, other)}
    assert len(prints) == 2  # the requests are equal, and the answers are read in another way


@pytest.mark.parametrize(
    ("task", "prompt", "message"),
    [
        ("choice", Prompt(max_gen_toks=9), "max_gen_toks = 9 has no effect on choice, which generates no answer"),
        (
            "choice",
            Prompt(chat_template_args='{"enable_thinking": true}', think_end_token="</t>"),
            "enable_thinking = true does not suit choice, which scores given answers (output_type: multiple_choice)",
        ),
    ],
)
def test_a_prompt_that_does_not_suit_the_benchmark_is_refused(world: Path, task: str, prompt: Prompt, message: str) -> None:
    """The command line refuses it without torch, and so does a run that Python starts."""
    spec = spec_of(world, task, prompt)
    for refuse in (check_request, set_up_run):
        with pytest.raises(UsageError) as caught:
            refuse(spec)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    check_request(spec_of(world, "written", prompt))


def test_a_variable_that_the_template_does_not_have_is_refused(world: Path) -> None:
    with pytest.raises(ModelError, match=r"no variable 'enable_thinkin'.*Did you mean 'enable_thinking'"):
        set_up_run(spec_of(world, "choice", Prompt(chat_template_args='{"enable_thinkin": false}')))
    plain = replace(spec_of(world, "choice", PLAIN_PROMPT), model=ModelSpec(name=str(world / "model")))
    with pytest.raises(UsageError, match=r"has no effect without a chat template. Add --dataset_param.apply_chat_template"):
        replace(plain, prompt=Prompt(chat_template_args='{"enable_thinking": false}'))


def test_runs_with_different_prompts_are_not_mixed(world: Path, tmp_path: Path) -> None:
    """Neither in the scores of one model, whichever run is read first, nor when a run is continued."""
    prompts = (PLAIN_PROMPT, Prompt(gen_prefix="So it is"))
    for number, prompt in enumerate((*prompts, PLAIN_PROMPT)):
        seeded = spec_of(world, "choice", prompt, seed=number)
        train_before_test(
            replace(seeded, benchmark=replace(seeded.benchmark, caps=Caps(train=4))), RunStore(tmp_path / str(number))
        )
    with pytest.raises(UsageError, match=r"with different settings: prompt.gen_prefix None and 'So it is'"):
        record_rows(tmp_path)
    (tmp_path / "0").rename(tmp_path / "9")
    with pytest.raises(UsageError, match=r"with different settings: prompt.gen_prefix 'So it is' and None"):
        record_rows(tmp_path)


def test_a_prompt_is_named_as_a_difference_from_the_published_runs() -> None:
    plain = RunSpec(model=ModelSpec(name="m", apply_chat_template=True), benchmark=BenchmarkSpec(task="arc_easy"))
    asked = replace(plain, prompt=Prompt(gen_prefix="So"))
    assert differences_from_published(plain, 10**6) == ("a chat template instead of none",)
    assert differences_from_published(asked, 10**6)[1:] == ("gen_prefix 'So' instead of none",)


def test_a_run_is_not_continued_with_another_prompt(world: Path, tmp_path: Path) -> None:
    store, begun = RunStore(tmp_path), spec_of(world, "choice", THINKING)
    train_before_test(begun, store)
    (tmp_path / "record.json").unlink()
    with pytest.raises(NotCurrent, match=r"prompt was .*'gen_prefix': 'So it is'.*, is None"):
        store.refuse_conflict(replace(begun, prompt=PLAIN_PROMPT), resume=True, overwrite=False)
    store.refuse_conflict(begun, resume=True, overwrite=False)
