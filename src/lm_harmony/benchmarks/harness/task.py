"""One lm_eval task: its documents by role, each rendered as the text that training learns and scoring asks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import jinja2
import yaml
from lm_eval import utils as lm_eval_utils
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._yaml_loader import load_yaml

from lm_harmony.benchmarks.corpus import read_corpus
from lm_harmony.benchmarks.examples import ChatTemplate, Example, Reply
from lm_harmony.benchmarks.harness.own_functions import call_every_time
from lm_harmony.benchmarks.harness.requests import request_of
from lm_harmony.benchmarks.harness.scores import count, direction_of
from lm_harmony.benchmarks.local_rows import read_splits
from lm_harmony.benchmarks.score import Score
from lm_harmony.errors import BenchmarkError

Role = Literal["train", "validation", "test"]
_SPLIT_FIELDS: Mapping[Role, str] = {"train": "training_split", "validation": "validation_split", "test": "test_split"}

# What lm_eval and the functions of a task raise when a row does not fit.
_MISFITS = (jinja2.TemplateError, LookupError, TypeError, ValueError, AttributeError, AssertionError)

# lm_eval compiles a template anew for every field of every document: 0.3 ms each, a minute for 50,000 rows.
lm_eval_utils.env.from_string = functools.lru_cache(maxsize=256)(lm_eval_utils.env.from_string)


class HarnessTask:
    """One lm_eval task: documents by role, documents as examples, replies as scores."""

    def __init__(self, path: Path, data_dir: Path | None = None, *, corpus: Path | None = None) -> None:
        """Load the task that ``path`` defines, with its data from the hub, from ``data_dir``, or from a corpus.

        Args:
            path: a task's YAML file.
            corpus: the user's texts, which name the task and are its rows.
            data_dir: a folder that holds <task>/{train,validation,test}.jsonl; None: the hub (or its local cache).

        Raises:
            BenchmarkError: the task cannot be fine-tuned or its data cannot be had.
        """
        config = read_config(path)
        self.name: str = config["task"]
        self.declared = declared_splits(config)
        if corpus is not None:
            self.name = config["task"] = f"corpus-{corpus.stem}"
            texts = read_corpus(corpus)
            config["custom_dataset"] = lambda **_: texts
        elif data_dir is not None:
            config["custom_dataset"] = functools.partial(_local_dataset, data_dir / self.name, self.declared)
            config.pop("dataset_kwargs", None)
        else:
            call_every_time(config)
        # lm_eval would list every few-shot document here: an empty list of samples spares that.
        config |= {"num_fewshot": 0, "fewshot_split": None, "fewshot_config": {"samples": []}}
        self._task = _build(self.name, config)
        self.output_type = str(self._task.OUTPUT_TYPE)

    @property
    def metrics(self) -> Mapping[str, bool | None]:
        """Metric key ("acc,none") -> whether higher is better; None: nobody says (``scores.direction_of``)."""
        return {
            f"{metric},{ensemble.name}": direction_of(self.name, metric, higher)
            for metric, higher in self._task.higher_is_better().items()
            for ensemble in self._task._filters
        }

    def documents(self, role: Role) -> datasets.Dataset:
        """Return the documents of a declared role, preprocessed as lm_eval does.

        Raises:
            BenchmarkError: the task's preprocessing cannot take a row.
        """
        docs: Callable[[], datasets.Dataset] = {
            "train": self._task.training_docs,
            "validation": self._task.validation_docs,
            "test": self._task.test_docs,
        }[role]
        try:
            return docs()
        except _MISFITS as error:
            raise BenchmarkError(
                f"benchmark {self.name}, {role} rows: {error}. Mend the rows to the schema that the task expects."
            ) from error

    def example(
        self, row: int, document: Mapping[str, Any], *, chat: ChatTemplate | None, aliases: str, split: str = ""
    ) -> Example:
        """Render one document.

        Args:
            row: its row number in its split, from 0, for messages and records.
            document: the row.
            chat: the model's chat template, or None for plain text.
            aliases: of several right answers, learn the "first" or all "joined" by spaces (as published).
            split: the split that the row comes from, for messages.

        Raises:
            BenchmarkError: the row lacks a column or holds a value that the task's templates cannot take.
        """
        task = self._task
        try:
            context = task.fewshot_context(
                document,
                num_fewshot=0,
                apply_chat_template=chat is not None,
                chat_template=chat,
                gen_prefix=task.doc_to_prefix(document),
            )
            built = task.construct_requests(
                doc=document,
                ctx=context,
                metadata=(self.name, row, task.config.repeats),
                apply_chat_template=chat is not None,
                chat_template=chat,
            )
            instances = built if isinstance(built, list) else [built]
            learned, answer = self._answer(document, instances, chat is not None, aliases)
            target = str(task.doc_to_target(document))
        except _MISFITS as error:
            raise BenchmarkError(
                f"benchmark {self.name}, {f'{split} row {row}'.strip()}: {error} (columns: {', '.join(document)}). "
                f"Mend the row to the schema that the task expects."
            ) from error
        return Example(
            row=row,
            document=document,
            context=learned,
            continuation=answer,
            requests=tuple(request_of(instance) for instance in instances),
            target=target,
        )

    def _answer(self, document: Mapping[str, Any], instances: list[Instance], chat: bool, aliases: str) -> tuple[str, str | None]:
        """Return the (context, continuation) of the right answer, taken from the requests that scoring sends."""
        task = self._task
        if self.output_type == "loglikelihood_rolling":
            return "", str(instances[0].args[0])
        if self.output_type == "loglikelihood":
            return instances[0].args[0], instances[0].args[1]
        gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        if self.output_type == "multiple_choice":
            choices = task.doc_to_choice(document)
            gold = gold[0] if isinstance(gold, list) and gold else gold
            index = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
            if not isinstance(index, int) or not 0 <= index < len(choices):
                return "", None
            return instances[index].args[0], instances[index].args[1]
        if task.config.doc_to_choice is not None:
            gold = task.doc_to_choice(document)[gold]
        if isinstance(gold, list):
            gold = (" ".join(map(str, gold)) if aliases == "joined" else str(gold[0])) if gold else None
        # As lm_eval joins a few-shot answer: a chat's reply begins without delimiter, a begun answer gets no second space.
        prefix = task.doc_to_prefix(document)
        bare = prefix[-1].isspace() if prefix else chat
        delimiter = "" if bare else task.config.target_delimiter
        return instances[0].args[0], None if gold is None else f"{delimiter}{gold}"

    def score(self, examples: Sequence[Example], replies: Sequence[Sequence[Reply]], *, errors: bool, samples: bool) -> Score:
        """Count replies to ``examples``: see ``scores.count``."""
        return count(self._task, examples, replies, errors=errors, samples=samples)

    def described(self) -> dict[str, Any]:
        """Return version and configuration as lm_eval writes them to a results file, and the rows of the scored split."""
        config = dict(self._task.dump_config())
        config.pop("custom_dataset", None)  # a function, whose source would be dumped
        plain = json.loads(json.dumps(config, default=str))
        return {"version": self._task.VERSION, "rows": len(self._task.eval_docs), "config": plain}


def read_config(path: Path) -> dict[str, Any]:
    """Read a task's file with its functions.

    Raises:
        BenchmarkError: it is no single task, or cannot be fine-tuned.
    """
    plain = _read(path, with_functions=False)
    if not isinstance(plain.get("task"), str):
        raise BenchmarkError(f"{path}: `task` must be the name of one task, got {plain.get('task')!r}. Give it a name.")
    # Before the task's own Python code is imported, which in lm_eval's code-running tasks downloads and may fail.
    _refuse_unfit(plain["task"], plain, declared_splits(plain))
    config = _read(path, with_functions=True)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    return config


def _read(path: Path, *, with_functions: bool) -> dict[str, Any]:
    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=with_functions)
    except (OSError, ValueError, ImportError, AttributeError, SyntaxError, yaml.YAMLError) as error:
        raise BenchmarkError(f"{path}: cannot be read as an lm_eval task: {error}. Mend the file.") from error
    return config


def declared_splits(config: Mapping[str, Any]) -> dict[Role, str]:
    """Return the data set's split of each role that the task declares."""
    return {role: config[key] for role, key in _SPLIT_FIELDS.items() if config.get(key)}


def _refuse_unfit(name: str, config: Mapping[str, Any], declared: Mapping[Role, str]) -> None:
    reason = None
    if "class" in config:
        reason = "it is a Python class whose training text lm_eval does not define"
    elif config.get("doc_to_image") or config.get("doc_to_audio"):
        reason = "it needs images or sound, and models here read text"
    elif config.get("unsafe_code"):
        reason = "its metric executes what the model writes"
    elif config.get("repeats", 1) != 1:
        reason = f"it asks each question {config['repeats']} times, and one reply is counted here"
    elif "train" not in declared:
        reason = "it has no training split, and train-before-test needs rows to train on"
    elif not declared.keys() & {"validation", "test"}:
        reason = "it has neither a validation nor a test split to score"
    if reason:
        raise BenchmarkError(f"benchmark {name} cannot be used: {reason}. Choose another (`lm-harmony benchmarks`).")


def _local_dataset(folder: Path, declared: Mapping[Role, str], /, **_: Any) -> datasets.DatasetDict:
    files: dict[str, Path] = {}
    for role, split in declared.items():
        files.setdefault(split, folder / f"{role}.jsonl")  # medmcqa: validation and test are one split, one file
    return read_splits(files)


def _build(name: str, config: dict[str, Any]) -> Task:
    try:
        return ConfigurableTask(config=config)
    except BenchmarkError:
        raise
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BenchmarkError(
            f"benchmark {name}: data set {config.get('dataset_path')!r} cannot be loaded: {reason}. "
            f"Connect to the hub once, or give its rows with --data_dir DIR as DIR/{name}/train.jsonl ..."
        ) from error
    except _MISFITS as error:
        raise BenchmarkError(
            f"benchmark {name}, first test row: {error}. Mend the rows to the schema that the task expects."
        ) from error
