"""The parts of a results file that lm_eval's own code fills: names, chat template and hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.utils import hash_string


def experiment_of(model_args: Mapping[str, Any], *, chat_template: str | None) -> dict[str, Any]:
    """Return what lm_eval notes of an experiment: model_name (the adapter's, where one is given), chat_template_sha and others.

    Args:
        model_args: what ``lm_eval --model hf --model_args`` would be given.
        chat_template: the template that rendered the requests; None: plain text.
    """
    tracker = GeneralConfigTracker()
    tracker.log_experiment_args(
        model_source="hf",
        model_args=dict(model_args),
        system_instruction=None,
        chat_template=chat_template,
        fewshot_as_multiturn=False,
    )
    return asdict(tracker)


def hash_of_samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return one hash of all documents, prompts and targets, as ``EvaluationTracker.save_results_aggregated`` makes it."""
    return str(hash_string("".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)))
