"""One lm_eval task: its documents, each rendered as training text and as requests, and the score of replies to them."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from lm_harmony.benchmarks.catalogue import CORPUS_PREFIX, benchmark_name
from lm_harmony.benchmarks.corpus import read_corpus
from lm_harmony.benchmarks.harness.documents import (
    ROW_ERRORS,
    build_task,
    drop_null_answer,
    file_and_line,
    null_column,
    raw_row,
    right_answer,
    unprocessable_row,
)
from lm_harmony.benchmarks.harness.patches import bypass_dataset_cache, sandboxed_templates
from lm_harmony.benchmarks.harness.scoring import direction_of, request_of, score_replies, score_without
from lm_harmony.benchmarks.harness.task_file import local_jsonl_files, read_config, split_names_of
from lm_harmony.benchmarks.local_data import read_splits
from lm_harmony.benchmarks.prompt import PLAIN_PROMPT, Prompt
from lm_harmony.benchmarks.types import Aliases, ChatTemplate, Example, MetricKey, Reply, Role, Score, SplitUse, used_splits
from lm_harmony.errors import BenchmarkError


class HarnessTask:
    """One lm_eval task: loads documents, renders them as examples, and scores the replies to them."""

    def __init__(
        self,
        path: Path,
        data_dir: Path | None = None,
        *,
        corpus: Path | None = None,
        use: SplitUse = "all",
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a task with its rows from the hub, from ``data_dir``, or from a text corpus.

        Args:
            path: the task's YAML file.
            data_dir: a folder that has <task>/{train,validation,test}.jsonl; None: the rows that the task names.
            corpus: file or folder of the user's texts, which are the rows and give the task its name.
            use: which of its splits are needed; the others may be missing.
            changes: fields that the file of a group replaces, if the task is one of a group; None: it is not.

        Raises:
            BenchmarkError: the task cannot be fine-tuned, or its rows cannot be loaded.
        """
        config = read_config(path, use, changes or {})
        self.name: str = config["task"]
        self.subtask = "" if changes is None else self.name
        """Name of the task if it is one of a group, else ""."""
        named = split_names_of(config)
        self.split_names = used_splits(named, use)
        scored = self.split_names.get("test") or self.split_names.get("validation") or self.split_names["train"]
        if use == "training":  # lm_eval builds no task without a split to score
            config |= {"validation_split": scored, "test_split": None}
        self._files: dict[str, Path] = {}
        self._take_rows(config, named, data_dir, corpus)
        self.few_shot_fields = {key: config.get(key) for key in ("num_fewshot", "fewshot_split", "fewshot_config")}
        """What the task's file says of examples before a question (``harness.few_shot``)."""
        # With an empty list of samples lm_eval does not build few-shot documents.
        config |= {"num_fewshot": 0, "fewshot_split": None, "fewshot_config": {"samples": []}}
        self.lm_eval_task = build_task(self.name, config, self._files.get(scored))
        self.output_type = str(self.lm_eval_task.OUTPUT_TYPE)
        self.prompt = PLAIN_PROMPT

    def _take_rows(self, config: dict[str, Any], named: dict[Role, str], data_dir: Path | None, corpus: Path | None) -> None:
        """Change a configuration so that lm_eval reads the rows of ``corpus``, of ``data_dir``, or those that the task names."""
        if corpus is not None:
            self.name = config["task"] = benchmark_name(f"{CORPUS_PREFIX}{corpus}")
            texts = {role: datasets.Dataset.from_dict({"text": texts}) for role, texts in read_corpus(corpus).items()}
            config["custom_dataset"] = lambda **_: datasets.DatasetDict(texts)
        elif data_dir is not None:
            # Of roles that share a split, as validation and test of MedMCQA do, the first one names its file.
            files = {split: data_dir / self.name / f"{role}.jsonl" for role, split in reversed(named.items())}
            self._files = {split: files[split] for split in self.split_names.values()}
            config["custom_dataset"] = lambda **_: read_splits(self._files)
            config.pop("dataset_kwargs", None)
        else:
            self._files = local_jsonl_files(config)
            if self._files:
                # Only a check. lm_eval reads the rows with `datasets`, which makes timestamps of dates that JSON has as strings.
                read_splits(self._files)
            bypass_dataset_cache(config)

    def with_prompt(self, prompt: Prompt) -> HarnessTask:
        """Change the task's prompts and answers, and return the task; the think_end_token of ``prompt`` is text.

        Raises:
            UsageError: the prompt does not suit the task.
        """
        prompt.check_task(self.name, self.output_type)
        self.prompt = prompt
        for key, value in prompt.task_fields().items():
            self.lm_eval_task.set_config(key, value, update=isinstance(value, dict))
        return self

    @property
    def subtasks(self) -> tuple[HarnessTask, ...]:
        """The task itself; a group has several (``harness.group``)."""
        return (self,)

    @property
    def row_offsets(self) -> Mapping[str, int]:
        """Task -> number of scored rows of the tasks before it in its group."""
        return {self.subtask: 0}

    @property
    def scored_role(self) -> Role:
        """Role of the split that is scored in the test."""
        return "test" if "test" in self.split_names else "validation"

    @property
    def metrics(self) -> Mapping[str, bool | None]:
        """Metric key ("acc,none") -> whether higher is better; None: not defined (see ``scoring.direction_of``)."""
        return {
            str(MetricKey(metric, ensemble.name)): direction_of(self.name, metric, higher)
            for metric, higher in self.lm_eval_task.higher_is_better().items()
            for ensemble in self.lm_eval_task._filters
        }

    def documents(self, role: Role) -> datasets.Dataset:
        """Return the documents of a role in ``split_names``, preprocessed as in lm_eval.

        Raises:
            BenchmarkError: the task's preprocessing fails on a row.
        """
        docs: Callable[[], datasets.Dataset] = {
            "train": self.lm_eval_task.training_docs,
            "validation": self.lm_eval_task.validation_docs,
            "test": self.lm_eval_task.test_docs,
        }[role]
        state = random.getstate()
        random.seed(0)  # process_docs of GPQA shuffles the choices
        try:
            return docs()
        except ROW_ERRORS as error:
            where = unprocessable_row(self._files.get(self.split_names[role]), self.lm_eval_task.config.process_docs)
            raise BenchmarkError(
                f"benchmark {self.name}, {role} rows{where}: {error}. Correct the rows to the columns and types of the task."
            ) from error
        finally:
            random.setstate(state)

    def example(
        self, row: int, document: Mapping[str, Any], *, chat: ChatTemplate | None, aliases: Aliases, split: str = ""
    ) -> Example:
        """Render one document as training text and requests.

        Args:
            row: number of the document in its split, from 0, for messages and records.
            document: the document.
            chat: the model's chat template, or None for plain text.
            aliases: which of several right answers is trained on.
            split: the split that the document comes from, for messages.

        Raises:
            BenchmarkError: the document does not fit the task's templates, or a null would be printed in a request.
        """
        render = functools.partial(self._render, row, chat, aliases, f"{self.subtask} {split} row {row}".strip())
        sources = functools.partial(self._sources, split, row, document, render)
        try:
            with sandboxed_templates():
                example = render(document)
                column = null_column(example, sources)
        except ROW_ERRORS as error:
            raise BenchmarkError(
                f"benchmark {self.name}, {self.location(split, row, document)}: {error} (columns: {', '.join(document)}). "
                f"Correct the row to the columns and types of the task."
            ) from error
        if column is not None:
            raise BenchmarkError(
                f"benchmark {self.name}, {self.location(split, row, document)}: column {column!r} is null, and the task "
                f"would print it as None. Fill in the value, or leave the row out."
            )
        with sandboxed_templates():
            return drop_null_answer(example, sources)

    def location(self, split: str, row: int, document: Mapping[str, Any]) -> str:
        """Return the split and row of a document for messages, such as "test row 5", and for local rows the file and line."""
        moved = self.lm_eval_task.config.process_docs is not None and self._raw_row(split, row, document) is None
        return f"{split} row {row}".strip() + file_and_line(self._files.get(split), row, moved=moved)

    def _raw_row(self, split: str, row: int, document: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the row before the task's processing, where it was processed from row ``row`` alone."""
        processing, rows = self.lm_eval_task.config.process_docs, (self.lm_eval_task.dataset or {}).get(split)
        return None if processing is None or rows is None else raw_row(rows, row, document, processing)

    def _sources(
        self, split: str, row: int, document: Mapping[str, Any], render: Callable[[Mapping[str, Any]], Example]
    ) -> Iterator[tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Example]]]:
        """Yield (row, function that renders it): the document, and the row before the task's processing, if there is one."""
        yield document, render
        raw, processing = self._raw_row(split, row, document), self.lm_eval_task.config.process_docs
        if raw is not None and processing is not None:
            yield raw, lambda changed: render(processing(datasets.Dataset.from_list([dict(changed)]))[0])

    def _render(
        self, row: int, chat: ChatTemplate | None, aliases: Aliases, location: str, document: Mapping[str, Any]
    ) -> Example:
        task, chats = self.lm_eval_task, {"apply_chat_template": chat is not None, "chat_template": chat}
        context = task.fewshot_context(
            document,
            num_fewshot=0,
            system_instruction=self.prompt.system_instruction,
            gen_prefix=task.doc_to_prefix(document),
            **chats,
        )
        metadata = (self.name, row, task.config.repeats)
        built = task.construct_requests(doc=document, ctx=context, metadata=metadata, **chats)
        instances = built if isinstance(built, list) else [built]
        rules: dict[str, Any] = {"chat": chat is not None, "aliases": aliases, "think_end": self.prompt.think_end_token}
        right_context, answer = right_answer(task, document, instances, **rules)
        return Example(
            row=row,
            document=document,
            location=location,
            context=right_context,
            continuation=answer,
            requests=tuple(request_of(instance, location) for instance in instances),
            target=str(task.doc_to_target(document)),
            subtask=self.subtask,
        )

    def score(self, examples: Sequence[Example], replies: Sequence[Sequence[Reply]], *, errors: bool, samples: bool) -> Score:
        """Score the replies to ``examples``: see ``scoring.score_replies``."""
        with sandboxed_templates():
            return score_replies(self.lm_eval_task, examples, replies, errors=errors, samples=samples)

    def score_without(self, score: Score, left_out: Collection[int]) -> Score:
        """Return a score without some documents: see ``scoring.score_without``."""
        return score_without(self.lm_eval_task, score, left_out)

    def lm_eval_config(self) -> dict[str, Any]:
        """Return the version, the configuration as lm_eval writes it to a results file, and the number of documents it scores."""
        config = dict(self.lm_eval_task.dump_config())
        config.pop("custom_dataset", None)  # a function of ours, whose source lm_eval would write
        plain = json.loads(json.dumps(config, default=str))
        return {"version": self.lm_eval_task.VERSION, "rows": len(self.lm_eval_task.eval_docs), "config": plain}
