"""A run in lm_eval's file formats: a results file for each scored model, and per-document samples.

The trained and the untouched model have one file each: results_<time>.json and direct/results_<time>.json.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lm_harmony.benchmarks.catalogue import benchmark_name
from lm_harmony.benchmarks.harness.bootstrap import BOOTSTRAP_DRAWS
from lm_harmony.benchmarks.harness.provenance import experiment_of, hash_of_samples, lm_eval_results
from lm_harmony.benchmarks.types import MetricKey, Score
from lm_harmony.runs.record import RunRecord
from lm_harmony.runs.run_setup import RunSetup
from lm_harmony.runs.shots import direct_name
from lm_harmony.runs.store import RunStore

TRAINED = "train-before-test"
"""Suffix of the task's alias for the score of a trained model."""


def write_trained(store: RunStore, run: RunSetup, record: RunRecord) -> None:
    """Write samples_test.jsonl and results_<time>.json of the chosen epoch, if it was tested.

    Args:
        store: the run's folder, with the weights of the chosen epoch.
        run: the loaded benchmark and model, without an adapter.
        record: record of the run, whose score has its samples.
    """
    if record.trained is not None:
        store.write_samples("test", record.trained.samples)
        now = time.time()
        store.write_results(trained_results(store, run, record, date=now), time=_stamp(now))


def write_direct(store: RunStore, run: RunSetup, record: RunRecord) -> None:
    """Write <direct score>/results_<time>.json for each direct score without such a file; the score must have its samples."""
    for shots in (*([] if record.direct is None else [0]), *record.direct_fewshot):
        base = replace(store, folder=store.folder / direct_name(shots))
        if not any(base.folder.glob("results_*.json")):
            now = time.time()
            base.folder.mkdir(parents=True, exist_ok=True)
            base.write_results(direct_results(run, record, date=now, shots=shots), time=_stamp(now))


def trained_results(store: RunStore, run: RunSetup, record: RunRecord, *, date: float) -> dict[str, Any]:
    """Return what ``lm_eval`` writes about the trained model, plus the key ``train_before_test`` with the record.

    ``model_args`` loads that model: the base with ``peft=<adapter>``, or the trained folder where all weights were trained.

    Args:
        store: the run's folder, which holds the weights.
        run: the benchmark and the base model.
        record: record of the run; its ``trained`` is not None.
        date: seconds since 1970.
    """
    assert record.trained is not None
    folder = (store.folder / "adapter").resolve()
    args, parameters = _base_args(run), int(run.model.module.num_parameters())
    if record.spec.recipe.lora is None:
        args = {**args, "pretrained": str(folder)}
        del args["revision"]
    else:
        args, parameters = {**args, "peft": str(folder)}, parameters + _adapter_parameters(folder)
    results = _results(run, record, record.trained, args=args, parameters=parameters, date=date)
    # A folder has neither commit nor branch: lm_eval leaves the hash empty and writes its default branch.
    results["config"] |= {"model_sha": "", "model_revision": "main"} if record.spec.recipe.lora is None else {"peft_sha": ""}
    train_on = record.spec.benchmark.train_on
    how = TRAINED if train_on is None else f"{TRAINED} on {benchmark_name(train_on)}"
    for part in ("results", "groups"):
        if run.task.name in results.get(part, {}):
            results[part][run.task.name]["alias"] += f" ({how})"
    return {**results, "train_before_test": record.to_dict()}


def direct_results(run: RunSetup, record: RunRecord, *, date: float, shots: int = 0) -> dict[str, Any]:
    """Return what ``lm_eval`` writes about the untouched model.

    Args:
        run: the benchmark and the base model.
        record: record of the run; its direct score with that number of examples is not None and has its samples.
        date: seconds since 1970.
        shots: number of examples before each question.
    """
    score = record.direct_fewshot[shots] if shots else record.direct
    assert score is not None
    parameters = int(run.model.module.num_parameters())
    results = _results(run, record, score, args=_base_args(run), parameters=parameters, date=date)
    if shots:
        for task in run.task.subtasks:
            fields, config = json.loads(json.dumps(task.few_shot_fields, default=str)), results["configs"][task.name]
            given = {
                **config["fewshot_config"],
                "samples": None,
                "split": fields["fewshot_split"],
                **(fields["fewshot_config"] or {}),
            }
            results["configs"][task.name] = {**config, **fields, "num_fewshot": shots, "fewshot_config": given}
        results["n-shot"] = dict.fromkeys(results["n-shot"], shots)
        results["fewshot_as_multiturn"] = record.spec.model.apply_chat_template
    return results


def _adapter_parameters(folder: Path) -> int:
    """Return the number of weights that an adapter adds; biases of the base model that it replaces do not count."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as weights:
            names = [name for name in weights.keys() if "lora_" in name]  # noqa: SIM118 - it is no dictionary
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return count


def _base_args(run: RunSetup) -> dict[str, Any]:
    spec, precision = run.spec.model, run.model.precision
    args: dict[str, Any] = {"pretrained": spec.name, "revision": spec.revision, "dtype": precision.weights}
    if precision.autocast is not None:
        args["mixed_precision_dtype"] = precision.autocast
    if spec.trust_remote_code:
        args["trust_remote_code"] = True
    if run.spec.prompt.template_variables:
        args["chat_template_args"] = run.spec.prompt.template_variables
    if run.spec.prompt.think_end_token is not None:
        args["think_end_token"] = run.spec.prompt.think_end_token
    return args


def _stamp(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"


def _results(
    run: RunSetup, record: RunRecord, score: Score, *, args: dict[str, Any], parameters: int, date: float
) -> dict[str, Any]:
    """Return what ``lm_eval.simple_evaluate`` and its tracker return for ``score`` (lm_eval.result_schema.EvalResults)."""
    spec, tokenizer = record.spec, run.model.text.tokenizer
    template = tokenizer.chat_template if spec.model.apply_chat_template else None
    tables = lm_eval_results(run.task, score)
    # As the user says, where the task does not.
    tables["higher_is_better"][run.task.name][MetricKey.parse(record.metric).metric] = record.higher_is_better
    counts = tables["n-samples"].values()
    cut = any(count["effective"] < count["original"] for count in counts)
    return {
        **tables,
        "config": {
            **_config(run, record, args=args, parameters=parameters),
            "limit": max(count["effective"] for count in counts) if cut else None,
        },
        "git_hash": record.environment.get("git_revision"),
        "date": date,
        "transformers_version": record.environment["versions"]["transformers"],
        "lm_eval_version": record.environment["versions"]["lm_eval"],
        "tokenizer_eos_token": [tokenizer.eos_token, str(tokenizer.eos_token_id)],
        "tokenizer_bos_token": [tokenizer.bos_token, str(tokenizer.bos_token_id)],
        "eot_token_id": tokenizer.eos_token_id,
        "max_length": run.model.max_length,
        "task_hashes": {
            task.name: hash_of_samples([one for one in score.samples if one.get("task", task.name) == task.name])
            for task in run.task.subtasks
        },
        **experiment_of(
            args,
            chat_template=template["default"] if isinstance(template, dict) else template,
            system_instruction=spec.prompt.system_instruction,
        ),
    }


def _config(run: RunSetup, record: RunRecord, *, args: dict[str, Any], parameters: int) -> dict[str, Any]:
    spec = record.spec
    return {
        "model": "lm-harmony",
        "model_args": args,
        "model_num_parameters": parameters,
        "model_dtype": str(run.model.module.dtype),
        "model_revision": spec.model.revision,
        "model_sha": record.model_revision or "",
        "batch_size": spec.execution.eval_batch_size,
        "batch_sizes": [],
        "device": record.environment.get("device"),
        "use_cache": None,
        "bootstrap_iters": BOOTSTRAP_DRAWS,
        "gen_kwargs": None if spec.prompt.max_gen_toks is None else {"max_gen_toks": spec.prompt.max_gen_toks},
        **dict.fromkeys(("random_seed", "numpy_seed", "torch_seed", "fewshot_seed"), spec.seed),
    }
