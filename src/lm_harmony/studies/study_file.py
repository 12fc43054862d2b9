"""The keys of study.yaml as pydantic models, and the JSON Schema that editors use.

``python -m lm_harmony.studies.study_file`` prints the JSON Schema, which is shipped as study.schema.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic.json_schema import GenerateJsonSchema

from lm_harmony.benchmarks.recurrence import NearDuplicateRule, check_near_duplicates
from lm_harmony.benchmarks.types import Caps, Shots, SplitProtocol
from lm_harmony.errors import UsageError, check_integer
from lm_harmony.recipe import CHAT_TEMPLATE_DATE
from lm_harmony.runs.shots import check_shots
from lm_harmony.studies.value_rules import (
    Date,
    ExecutionOverrides,
    Flag,
    LoraOverrides,
    Number,
    PromptText,
    RecipeMapping,
    RecipeOverrides,
    Rows,
    Seed,
    SeveralRows,
    StudyMapping,
    Text,
    Token,
    Tokens,
    Variables,
    check_choice,
    check_not_empty,
    check_protocol,
    check_seeds,
    only_given,
    or_name,
    rule,
)


class ModelEntry(StudyMapping):
    """A model by its name or folder, or a group of the catalogue's models by family, kind and size."""

    name: Text | None = None
    """Name on the hub, or a folder, relative to the study file."""
    revision: Text = "main"
    """Branch, tag or commit on the hub."""
    revisions: Annotated[list[Text], BeforeValidator(check_not_empty)] | None = None
    """Checkpoints of a training run: branches, tags or commits on the hub, or folders in the folder `name` (checkpoint-*)."""
    trust_remote_code: Flag = False
    """Execute Python code from the model's repository."""
    apply_chat_template: Flag = False
    """Render training and scoring with the model's chat template. If not given, the study's value is used."""
    chat_template_date: Date | None = None
    """Date that the chat template takes for today. If not given, the study's value is used."""
    chat_template_args: Variables = Field(default={})
    """Further variables of the chat template, such as {enable_thinking: false}."""
    system_instruction: PromptText | None = None
    """Text before every question; with a chat template, the system message. If not given, the study's value is used."""
    think_end_token: Token | None = None
    """Text or token id that ends the think part of an answer, which is cut off before it is scored."""
    recipe: RecipeMapping = Field(default={})
    """Values that differ from the study's recipe, for this model."""
    family: Text | None = None
    """Take every catalogued model of this family, such as Pythia."""
    kind: Text | None = None
    """Take every catalogued model of this kind: base or instruct."""
    min_params_b: Number | None = None
    """Take catalogued models with at least this many billion parameters."""
    max_params_b: Number | None = None
    """Take catalogued models with at most this many billion parameters."""

    def group(self) -> dict[str, Any]:
        """Return the rule by which models are taken from the catalogue, as far as it was given."""
        return self.model_dump(include={"family", "kind", "min_params_b", "max_params_b"}, exclude_none=True)


class BenchmarkEntry(StudyMapping):
    """A benchmark by its task, or a suite of benchmarks."""

    task: Text
    """Name of an lm_eval task, its YAML file, corpus:PATH, or a suite: paper24, leaderboard9, perplexity."""
    train_on: Text | None = None
    """Train and validate on rows of another benchmark: a task, its YAML file, mmlu_aux or mc_mix. If not given: on its own."""
    metric: Text | None = None
    """Metric that chooses the epoch, such as "acc_norm,none". If not given, the benchmark's own is used."""
    greater_is_better: Flag | None = None
    """Direction of the metric, if neither the task nor lm_eval gives it."""
    recipe: RecipeMapping = Field(default={})
    """Values that differ from the recipe of the study and of the model, for this benchmark."""
    gen_prefix: PromptText | None = None
    """Beginning of every answer, after which the model continues. If not given, the task's own is used."""
    max_gen_toks: Tokens | None = None
    """Longest generated answer in tokens, think part included. If not given, the task's own limit is used."""
    max_num_train: SeveralRows = Caps().train
    """Most training rows; a list, such as [50, 500, 5000], trains once with each. If not given, the study's value is used."""
    max_num_valid: Rows = Caps().validation
    """Most validation rows. If not given, the study's value is used."""
    max_num_test: Rows = Caps().test
    """Most test rows. If not given, the study's value is used."""


class StudyFile(StudyMapping):
    """A study: every model is fine-tuned and tested on every benchmark with every seed. Paths are relative to the study file."""

    models: Annotated[list[Annotated[ModelEntry, or_name("name", ModelEntry)]], BeforeValidator(check_not_empty)]
    """Names on the hub, folders, or groups of the catalogue such as {family: Pythia, max_params_b: 1}."""
    benchmarks: Annotated[list[Annotated[BenchmarkEntry, or_name("task", BenchmarkEntry)]], BeforeValidator(check_not_empty)]
    """Tasks of lm_eval, YAML files, corpus:PATH, or suites: paper24, leaderboard9, perplexity."""
    corpora: list[Text] = Field(default=[])
    """Files or folders of your own texts. The suite perplexity consists of them."""
    seeds: Annotated[list[Seed], BeforeValidator(check_seeds)] = Field(default=[0])
    """Seeds; each gives a run of its own for each model and benchmark."""
    recipe: RecipeMapping = Field(default={})
    """Values that differ from the published recipe."""
    choose: Annotated[Literal["validation"], rule(check_choice, Literal["validation"])] | None = None
    """validation: where `learning_rate` is a list, each rate is trained and validation chooses one. Only with such a list."""
    direct: Flag = True
    """Score the untouched models too."""
    direct_fewshot: Annotated[
        list[Shots], rule(lambda _, value: check_shots(value), list[Annotated[int, Field(ge=0)] | Literal["task"]])
    ] = Field(default=[0])
    """Numbers of examples before each question, each a direct score of its own. task: as the task's file says."""
    apply_chat_template: Flag = False
    """Render training and scoring with the models' chat templates."""
    chat_template_date: Date | None = CHAT_TEMPLATE_DATE
    """Date that chat templates take for today."""
    system_instruction: PromptText | None = None
    """Text before every question; with a chat template, the system message."""
    results_dir: Text = "results"
    """Folder of the results, or a URL such as s3://bucket/folder."""
    data_dir: Text | None = None
    """Folder with <task>/{train,validation,test}.jsonl. If not given, rows come from the hub."""
    models_dir: Text | None = None
    """Folder with <owner>/<name>/ as `lm-harmony fetch` writes it. Models that are not there come from the hub."""
    include_path: Text | None = None
    """Folder of your own task YAML files."""
    split_protocol: Annotated[SplitProtocol, rule(check_protocol, SplitProtocol)] = "clean"
    """clean: no scored question is trained on. published: the splits of the paper, with their leaks."""
    near_duplicates: Annotated[NearDuplicateRule, rule(check_near_duplicates, NearDuplicateRule)] = "keep"
    """drop: leave out training rows in which a scored question recurs with other choices, in other spacing or nearly."""
    execution: Annotated[dict[str, Any], only_given(ExecutionOverrides)] = Field(default={})
    """How runs are executed. It changes scores by rounding at most."""
    joint: Annotated[int, rule(lambda key, value: check_integer(key, value, 1), Annotated[int, Field(ge=1)])] = 1
    """Most runs of one model that a worker trains jointly, in common passes. On a CPU, more than 1 gains nothing."""
    max_num_train: SeveralRows = Caps().train
    """Most training rows of each benchmark; a list, such as [50, 500, 5000], trains once with each (`lm-harmony rows`)."""
    max_num_valid: Rows = Caps().validation
    """Most validation rows of each benchmark."""
    max_num_test: Rows = Caps().test
    """Most test rows of each benchmark."""

    @field_validator("corpora")
    @classmethod
    def _check_corpora(cls, corpora: list[str], info: ValidationInfo) -> list[str]:
        """Check that the suite that consists of the corpora is a benchmark of the study."""
        asked = info.data.get("benchmarks")
        if corpora and asked is not None and all(entry.task != "perplexity" for entry in asked):
            raise UsageError(
                f"corpora = {corpora} has no effect without the benchmark perplexity. Add perplexity to benchmarks, or remove it."
            )
        return corpora


def keys_at(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that a mapping in the file can have.

    Args:
        place: where the mapping stands, such as ("models", 2, "recipe"); () for the whole file.
    """
    models: Mapping[str | None, type[BaseModel]] = {
        None: StudyFile,
        "models": ModelEntry,
        "benchmarks": BenchmarkEntry,
        "recipe": RecipeOverrides,
        "lora": LoraOverrides,
        "execution": ExecutionOverrides,
    }
    last = next((key for key in reversed(place) if isinstance(key, str)), None)
    return list(models[last].model_fields)


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of study.yaml."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **StudyFile.model_json_schema(schema_generator=_WithoutTitles),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
