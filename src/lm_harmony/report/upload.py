"""Uploads to repositories on the hub, only on request: a pull request with scores, or an adapter with its card and record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lm_harmony.errors import StoreError, UsageError
from lm_harmony.report.finished_scores import TRAINED, FinishedScore, dataset_of, finished_scores
from lm_harmony.report.submission import portable
from lm_harmony.runs.tested_weights import refuse_other_weights

RECORD = "lm_harmony_record.json"
"""Name of the run's record in an adapter's repository."""
_PAPER = "https://arxiv.org/abs/2507.05195"
_DESCRIPTION = f"""Scores by LM-Harmony ({_PAPER}). The notes of each entry say whether the model was
scored as it is, or after it was fine-tuned on the benchmark's training split (train-before-test), and how."""


def propose_scores(output: Path, files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Open a pull request with the exported scores in the repository of each model; yield each model and the URL.

    Args:
        output: folder of the export.
        files: what was written there: <model>/.eval_results/<benchmark>.yaml.

    Raises:
        UsageError: a model is in a folder, so that it has no repository. Nothing was sent.
        StoreError: the hub refuses or cannot be reached.
    """
    models: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        models[file.relative_to(output).parents[1].as_posix()].append(file)
    for model in models:
        check_repository("pull_request", model)
    for model, own in models.items():
        added = [CommitOperationAdd(f".eval_results/{file.name}", file) for file in own]
        with _hub_errors(model):
            made = HfApi().create_commit(
                model, added, commit_message="Add evaluation results", commit_description=_DESCRIPTION, create_pr=True
            )
        yield model, str(made.pr_url)


def check_repository(field: str, name: str) -> None:
    """Raise UsageError unless ``name`` is that of a repository on the hub, OWNER/NAME."""
    try:
        validate_repo_id(name)
        if "/" in name:
            return
    except HFValidationError:
        pass
    raise UsageError(f"{field}: {name!r} is no repository on the hub. Its name is OWNER/NAME, such as my-group/my-adapter.")


def push_adapter(results: Path, name: str, *, private: bool) -> str:
    """Upload the adapter of a finished run with a model card and its record, and return the URL of the repository.

    Args:
        results: folder of the run.
        name: repository, which is created if it does not exist.
        private: whether a new repository is private.

    Raises:
        UsageError: there is not exactly one finished and current run, it has no adapter, or its base model is in a folder.
        DamagedFile: the adapter is not the one that was tested.
        StoreError: the hub refuses or cannot be reached.
    """
    check_repository("push_adapter", name)
    found, _ = finished_scores(results)
    folders = {score.store.folder for score in found}
    if len(folders) != 1:
        raise UsageError(f"push_adapter: {len(folders)} runs lie below {results}. Name the folder of one run.")
    record, folder = found[0].record, found[0].store.folder / "adapter"
    if record.spec.recipe.lora is None or record.trained is None or not (folder / "adapter_model.safetensors").is_file():
        raise UsageError(f"push_adapter: {folder} holds no adapter with a score. Name the folder of a run that has both.")
    base = record.spec.model.name
    if Path(base).is_absolute() or base.startswith("."):
        raise UsageError(
            f"push_adapter: the base model is the folder {base}, which nobody else can load. Upload it, and run on its name."
        )
    refuse_other_weights(found[0].store, record)
    weights = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "README.md"]
    added = [CommitOperationAdd(path.name, path) for path in weights]
    added += [CommitOperationAdd("README.md", adapter_card(found, name).encode()), CommitOperationAdd(RECORD, portable(record))]
    with _hub_errors(name):
        made = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().create_commit(name, added, commit_message=f"Add an adapter trained on {record.benchmark}")
    return str(made)


def adapter_card(scores: Sequence[FinishedScore], name: str) -> str:
    """Return the model card of an adapter: metadata for the hub, what it is, how it was trained and what it scored.

    Args:
        scores: all scores of its run, the trained one last.
        name: repository of the adapter.
    """
    record, spec = scores[0].record, scores[0].record.spec
    assert spec.recipe.lora is not None
    lora = ", ".join(f"{key} {value}" for key, value in asdict(spec.recipe.lora).items())
    rows = [
        f"| {score.preparation} | {key} | {value:.4f} | {'' if (error := score.stderrs.get(key)) is None else f'{error:.4f}'} |"
        for score in scores
        for key, value in score.metrics.items()
    ]
    lines = [
        f"# {name.split('/')[-1]}",
        "",
        f"A LoRA adapter of {spec.model.name} (commit {record.model_revision or 'unknown'}), trained on the training split of "
        f"{record.benchmark} for an evaluation by train-before-test: every model is fine-tuned on a benchmark with the same "
        f"recipe, the epoch is chosen on validation rows, and only then the test rows are scored. It was made to measure "
        f"the model, and not for use.",
        "",
        f"- How: {scores[-1].notes}.",
        f"- Batch size {spec.recipe.batch_size}, seed {spec.seed}; {lora}.",
        f"- The whole record is in [{RECORD}]({RECORD}).",
        "",
        "| score on the test split | metric | value | standard error |",
        "|---|---|---:|---:|",
        *rows,
        "",
        f"Method: [Train-before-Test Harmonizes Language Model Rankings]({_PAPER}).",
    ]
    return f"---\n{_card_data(scores[-1], name.split('/')[-1]).to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _card_data(trained: FinishedScore, name: str) -> ModelCardData:
    """Return the metadata of an adapter's card: its base model, data set and scores."""
    record, dataset = trained.record, dataset_of(trained.record)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=dataset[0] if dataset else record.benchmark,
            dataset_name=record.benchmark,
            dataset_split="test",
            dataset_revision=dataset[1] if dataset else None,
            metric_type=key.split(",")[0],
            metric_name=key,
            metric_value=value,
            source_name="LM-Harmony",
            source_url=_PAPER,
        )
        for key, value in trained.metrics.items()
    ]
    return ModelCardData(
        base_model=record.spec.model.name,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "lm-harmony", TRAINED],
        datasets=[dataset[0]] if dataset else None,
        model_name=name,
        eval_results=results,
    )


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turn errors of the hub into one line.

    Raises:
        StoreError: the hub refuses or cannot be reached.
    """
    try:
        yield
    except Exception as error:  # the HTTP library has its own errors
        reason = " ".join(str(error).split()).rstrip(".")[:300]
        raise StoreError(
            f"{repository} on the hub: {reason or type(error).__name__}. Check the network, and that HF_TOKEN may write there."
        ) from error
