"""lm_eval finds the engine as its model ``lm_harmony``. The scores equal those of lm_eval's own HFLM."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 - registers lm_eval's own models, among them hf
import pytest
from fork_server import forked_python
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from packaging.requirements import Requirement
from peft import LoraConfig, get_peft_model
from task_files import write_task
from tiny import TEXTS, tiny_module, write_tiny_model

from lm_harmony.errors import ModelError, UsageError
from lm_harmony.lm_eval_model import AUTO_BATCH_SIZE, HarmonyLM

ROWS = [{"text": text, "label": place % 3} for place, text in enumerate(TEXTS * 2)]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "label",
        "doc_to_choice": ["no", "maybe, maybe not", "yes"],
        "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two models, an adapter of the first, and the task files."""
    folder = tmp_path_factory.mktemp("world")
    for seed in (0, 1):
        write_tiny_model(folder / f"model{seed}", seed=seed, chat=True)
    write_tiny_model(folder / "no-chat")
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    get_peft_model(tiny_module(), adapter).save_pretrained(str(folder / "adapter"))
    for name, fields in TASKS.items():
        files = {role: str(folder / "tasks" / name / f"{role}.jsonl") for role in ("train", "test")}
        rows = dict.fromkeys(files, ROWS)
        write_task(folder / "tasks", rows, name=name, dataset_path="json", dataset_kwargs={"data_files": files}, **fields)
    return folder


def results_of(world: Path, model: str, args: str, **options: Any) -> dict[str, Any]:
    """Return metric -> value of all tasks from ``simple_evaluate``, and the log-likelihoods and texts of the replies."""
    manager = TaskManager(include_path=str(world / "tasks"), include_defaults=False)
    found = simple_evaluate(
        model=model, model_args=args, tasks=list(TASKS), task_manager=manager, device="cpu", bootstrap_iters=0, **options
    )
    metrics = {
        f"{task} {key}": value
        for task, values in found["results"].items()
        for key, value in values.items()
        if "," in key and "stderr" not in key
    }
    replies = {task: [sample["filtered_resps"] for sample in samples] for task, samples in found["samples"].items()}
    return {"metrics": metrics, "written": replies["written"], "numbers": _numbers([replies["choice"], replies["rolling"]])}


def _numbers(value: Any) -> list[float]:
    return [number for item in value for number in _numbers(item)] if isinstance(value, (list, tuple)) else [float(value)]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_simple_evaluate_gives_the_scores_of_hflm(world: Path, engine: str, chat: bool) -> None:
    """The three request types, with packed and padded batches, with and without a chat template."""
    args = f"pretrained={world / 'model0'},dtype=float32"
    options = {"apply_chat_template": chat, "batch_size": 2}
    ours = results_of(world, "lm_harmony", f"{args},engine={engine}", **options)
    theirs = results_of(world, "hf", args, **options)
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-4)
    assert ours["numbers"] == pytest.approx(theirs["numbers"], abs=1e-4)
    assert ours["written"] == theirs["written"]
    assert len(ours["numbers"]) > len(ROWS) * 4


def test_an_adapter_is_applied_as_in_hflm(world: Path) -> None:
    """``peft=`` loads an adapter. Without it, or with another model, the log-likelihoods differ."""
    args = f"pretrained={world / 'model0'},dtype=float32"
    ours = results_of(world, "lm_harmony", f"{args},peft={world / 'adapter'}")
    theirs = results_of(world, "hf", f"{args},peft={world / 'adapter'}")
    assert ours["numbers"] == pytest.approx(theirs["numbers"], abs=1e-4)
    for other in (args, f"pretrained={world / 'model1'},dtype=float32"):
        assert results_of(world, "lm_harmony", other)["numbers"] != pytest.approx(ours["numbers"], abs=1e-2)


def test_the_command_line_of_lm_eval_knows_the_model(world: Path, tmp_path: Path) -> None:
    """``python -m lm_harmony.lm_eval_model`` is lm_eval's command with our model. lm_eval alone does not know the model."""
    arguments = ["--model", "lm_harmony", "--model_args", f"pretrained={world / 'model0'}", "--device", "cpu"]
    arguments += ["--tasks", str(world / "tasks" / "choice.yaml"), "--output_path", str(tmp_path / "out")]
    done = subprocess.run([forked_python(), "-m", "lm_harmony.lm_eval_model", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(file.read_text(encoding="utf-8"))["results"]["choice"]
    expected = results_of(world, "lm_harmony", f"pretrained={world / 'model0'}")["metrics"]
    assert {f"choice {key}": written[key] for key in ("acc,none", "brier_score,none")} == pytest.approx(
        {key: value for key, value in expected.items() if key.startswith("choice")}, abs=1e-6
    )
    alone = "import lm_eval.models; from lm_eval.api.registry import model_registry; print('lm_harmony' in model_registry)"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("value", "size"), [(4, 4), ("4", 4), ("auto", AUTO_BATCH_SIZE), ("auto:4", AUTO_BATCH_SIZE)])
def test_batch_size_is_a_number_or_auto(world: Path, value: int | str, size: int) -> None:
    """lm_eval passes ``--batch_size`` on as text or as a number."""
    assert HarmonyLM(str(world / "model0"), batch_size=value, engine="plain").scorer.batch_size == size


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": "many"}, "batch_size must be a whole number"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, auto, got 'float16'"),
        ({"engine": "fast"}, "engine must be one of auto, plain, got 'fast'"),
    ],
)
def test_other_arguments_are_refused(world: Path, fields: dict[str, Any], message: str) -> None:
    """The message names the argument, the value and what is allowed."""
    with pytest.raises(UsageError, match=message):
        HarmonyLM(str(world / "model0"), **fields)


def test_chat_templates_distinguish_models_in_the_request_cache(world: Path) -> None:
    """lm_eval's request cache is keyed by the template. A template's name is refused, and so is a model without a template."""
    first, second = (HarmonyLM(str(world / f"model{seed}"), engine="plain") for seed in (0, 1))
    assert first.tokenizer_name == second.tokenizer_name
    second.scorer.model.text.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert first.tokenizer_name != second.tokenizer_name
    assert second.chat_template(True) == "{{ messages[0]['content'] }}"
    assert second.chat_template(False) is None
    with pytest.raises(UsageError, match="only the default chat template is supported, got 'tools'"):
        first.chat_template("tools")
    with pytest.raises(ModelError, match="chat template"):
        HarmonyLM(str(world / "no-chat"), engine="plain").apply_chat_template([{"role": "user", "content": "?"}])


def test_the_class_is_the_registered_one(world: Path) -> None:
    """``get_model`` returns the class. The reply to a single request has lm_eval's types."""
    assert get_model("lm_harmony") is HarmonyLM
    model = get_model("lm_harmony").create_from_arg_string(f"pretrained={world / 'model0'}", {"device": "cpu", "batch_size": "1"})
    [(nats, greedy)] = model.loglikelihood([Instance("loglikelihood", {}, ("a", " b"), 0, ("task", 0, 1))])
    assert nats < 0
    assert isinstance(greedy, bool)
    assert str(model.device) == "cpu"


def test_the_installed_lm_eval_is_one_that_pyproject_allows() -> None:
    """The header of the test session has the version. The versions before and after the allowed range are refused."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [allowed] = [one.specifier for one in map(Requirement, project["dependencies"]) if one.name == "lm_eval"]
    assert allowed.contains(version("lm_eval"))
    assert not allowed.contains("0.4.12")
    assert not allowed.contains("0.5.0")
