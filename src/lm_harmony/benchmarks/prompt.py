"""What a run puts around a question, and what it reads of an answer, beyond the task's own file. No torch.

The names are lm_eval's: ``chat_template_args`` and ``think_end_token`` of its model ``hf``, ``--system_instruction``,
``gen_prefix`` of a task's file, and ``max_gen_toks`` of its ``generation_kwargs``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from lm_harmony.errors import FILE_RULES, UsageError, check_integer

_TEXTS = ("system_instruction", "gen_prefix", "think_end_token")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Changes to the prompts and answers of a run. The default changes nothing."""

    __pydantic_config__ = FILE_RULES

    chat_template_args: str = "{}"
    """Further variables of the chat template, as a JSON object such as {"enable_thinking": false}."""
    system_instruction: str | None = None
    """Text before the question: with a chat template, the system message. A task's description follows it."""
    gen_prefix: str | None = None
    """Beginning of every answer, after which the model continues; replaces that of the task's file."""
    think_end_token: str | int | None = None
    """Text or token id that ends the think part of an answer, which is cut off before filters and metrics."""
    max_gen_toks: int | None = None
    """Longest generated answer in tokens, think part included; replaces the limit of the task's file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "chat_template_args", _canonical(self.chat_template_args))
        for name in _TEXTS:
            text = getattr(self, name)
            if (isinstance(text, str) and text.strip()) or text is None or (name == "think_end_token" and _is_id(text)):
                continue
            allowed = "text or a token id from 0" if name == "think_end_token" else "text"
            raise UsageError(f"{name} must be {allowed}, not empty, got {text!r}. Give it in quotes, or remove it.")
        if isinstance(self.think_end_token, str) and self.think_end_token.isdigit():
            raise UsageError(f"think_end_token = {self.think_end_token!r} is text. Write a token id without quotes.")
        if self.max_gen_toks is not None:
            check_integer("max_gen_toks", self.max_gen_toks, 1)
        if self.thinks and self.think_end_token is None:
            raise UsageError(
                "chat_template_args: enable_thinking = true needs think_end_token, the text after which the answer begins. "
                "Give it, such as </think>, or set enable_thinking to false."
            )

    @property
    def template_variables(self) -> dict[str, object]:
        """Name -> value of the further variables of the chat template."""
        variables: dict[str, object] = json.loads(self.chat_template_args)
        return variables

    @property
    def thinks(self) -> bool:
        """Whether the chat template is told to let the model think."""
        return bool(self.template_variables.get("enable_thinking"))

    def changes(self) -> dict[str, object]:
        """Return the fields that are not at their defaults, as a record has them."""
        return {name: value for name, value in asdict(self).items() if value != getattr(PLAIN_PROMPT, name)}

    def with_text(self, text_of: Callable[[str | int], str]) -> Prompt:
        """Return the prompt with its think_end_token as text, which ``text_of`` gives: answers that are trained on are texts."""
        token = self.think_end_token
        return self if token is None else replace(self, think_end_token=text_of(token))

    def task_fields(self) -> dict[str, object]:
        """Return the fields of lm_eval's task configuration that are changed; a mapping changes only its own keys."""
        fields = {"gen_prefix": self.gen_prefix, "generation_kwargs": self.max_gen_toks and {"max_gen_toks": self.max_gen_toks}}
        return {name: value for name, value in fields.items() if value is not None}

    def check_chat(self, applied: bool) -> None:
        """Check that a chat template is applied if variables are given for it.

        Raises:
            UsageError: there are variables and no chat template.
        """
        if self.template_variables and not applied:
            raise UsageError(
                f"chat_template_args = {self.chat_template_args} has no effect without a chat template. "
                f"Add --dataset_param.apply_chat_template (in a study: apply_chat_template), or remove it."
            )

    def check_task(self, task: str, output_type: str) -> None:
        """Check that these changes suit a task's type of answers; the rule for thinking is lm_eval's.

        Raises:
            UsageError: a limit of answers, or thinking, is asked of a task that generates no answer.
        """
        if output_type == "generate_until":
            return
        if self.max_gen_toks is not None:
            raise UsageError(
                f"max_gen_toks = {self.max_gen_toks} has no effect on {task}, which generates no answer "
                f"(output_type: {output_type}). Remove it there."
            )
        if self.thinks and output_type != "loglikelihood_rolling":
            raise UsageError(
                f"chat_template_args: enable_thinking = true does not suit {task}, which scores given answers "
                f"(output_type: {output_type}). Set enable_thinking to false, or choose a benchmark that generates answers."
            )


def cut_think_part(text: str, end: str | None) -> str:
    """Return what follows the last ``end`` of a text, without spaces before it, as lm_eval's ``postprocess_generated_text``."""
    return text if end is None else text.split(end)[-1].lstrip()


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _canonical(text: object) -> str:
    """Return a JSON object with sorted keys, so that equal variables are equal text."""
    try:
        values = json.loads(text) if isinstance(text, str) else text
        if isinstance(values, Mapping) and all(isinstance(name, str) and name.isidentifier() for name in values):
            return json.dumps(values, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # json.JSONDecodeError is a ValueError
        pass
    raise UsageError(
        f"chat_template_args must be a JSON object of names and values, got {text!r}. "
        f"""Give one such as '{{"enable_thinking": false}}'."""
    )


PLAIN_PROMPT = Prompt()
"""The prompt of the task's own file."""
