"""Renders a model's chat template with a fixed date, and finds the line at which it fails. Does not import torch."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from lm_harmony.errors import ModelError, did_you_mean
from lm_harmony.models.time_limit import cpu_limit

SECONDS = 10.0
"""CPU seconds that a template may take for one conversation. Real ones take less than a millisecond."""
FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TimeoutError, TypeError, ValueError)
"""Exceptions that a chat template raises: those of jinja, and those of Python from the expressions in the template."""
_CODES = "aAbBcdDeFGhHIjklmMnpPrRSTuUVwWxXyYzZ"
"""Format codes of ``strftime``."""
_NUMBERS = "deHIjklmMSUVWyG"
"""Format codes that give numbers. With a hyphen (``%-d``), the leading zeros are dropped."""


_RESERVED = ("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize")
"""Arguments of ``apply_chat_template`` that ``render`` sets."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    *,
    day: str,
    generation_prompt: bool,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Render messages as ``apply_chat_template`` does, with ``day`` as the current date. transformers uses Jinja's sandbox.

    A template reads the date from the function ``strftime_now`` or from the variable ``date_string`` (Llama 3: "26 Jul 2024").

    Args:
        tokenizer: tokenizer with the chat template.
        messages: mappings with the keys "role" and "content".
        day: date that the template uses as the current date, as YYYY-MM-DD.
        generation_prompt: if True, the text ends with the start of an assistant message. If False, the last message is continued.
        variables: further variables of the template, such as enable_thinking.

    Raises:
        jinja2.TemplateError: or another exception of ``FAILURES``. ``failed_line`` gives the line in the template.
    """
    template, today, options = str(tokenizer.get_chat_template()), date.fromisoformat(day), dict[str, Any]()
    if "strftime_now" in template:
        options["chat_template"] = _with_date(template, today)
    if "date_string" in template:
        options["date_string"] = today.strftime("%d %b %Y")
    options |= variables
    with cpu_limit(SECONDS):
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                continue_final_message=not generation_prompt,
                **options,
            )
        )


def _with_date(template: str, today: date) -> str:
    """Add a macro ``strftime_now`` on a line before the template, because transformers does not accept a function from callers.

    Jinja removes the newline after a block (transformers sets trim_blocks), so the text of the template does not change.
    """
    values = {f"%-{code}": today.strftime(f"%{code}").strip().lstrip("0") or "0" for code in _NUMBERS}
    values |= {f"%{code}": today.strftime(f"%{code}") for code in _CODES}
    replaced = "".join(f".replace({code!r}, {value!r})" for code, value in {**values, "%%": "%"}.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"


def failed_line(error: Exception, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the line of the template, from 1, at which ``render`` failed. None if the error does not tell it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in ("<template>", "<unknown>")]
    found = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else (lines or [None])[-1]
    added = "strftime_now" in str(tokenizer.chat_template)  # the macro adds one line
    return None if found is None else max(1, found - added)


def refuse_unused(variables: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse variables that a chat template does not use, or that are set by this program.

    Args:
        variables: name -> value.
        tokenizer: tokenizer with the chat template.
        name: the model, for the message.

    Raises:
        ModelError: there is such a variable.
    """
    template = str(tokenizer.get_chat_template())
    used = set(re.findall(r"[A-Za-z_]\w*", template))
    for variable in variables:
        if variable in _RESERVED:
            raise ModelError(f"chat_template_args: {variable} is set by lm-harmony itself. Remove it.")
        if variable not in used:
            raise ModelError(
                f"chat_template_args: the chat template of model {name} has no variable {variable!r} ({place_of_template(name)})."
                f"{did_you_mean(variable, used)} Remove it, or correct its name."
            )


def think_end_text(token: str | int, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Return the text that ends the think part of an answer: ``token`` itself, or the text of a token id.

    Args:
        token: the text or the id.
        tokenizer: the model's tokenizer.
        name: the model, for messages.

    Raises:
        ModelError: there is no such id, or the text is that of a special token, which is left out of the text of an answer.
    """
    if isinstance(token, str) and token in tokenizer.all_special_tokens:
        raise ModelError(
            f"think_end_token = {token!r} is a special token of model {name}, which is left out of the text of answers. "
            f"Give its id: {tokenizer.convert_tokens_to_ids(token)}."
        )
    if isinstance(token, int) and token >= len(tokenizer):
        raise ModelError(
            f"think_end_token = {token} is no token of model {name}, which has ids below {len(tokenizer)}. "
            f"Give an id below that, or a text such as </think>."
        )
    return token if isinstance(token, str) else str(tokenizer.decode([token]))


def place_of_template(name: str) -> str:
    """Return the path of the file with the chat template. For a hub id, return a text that names the model.

    Args:
        name: folder or hub id of the model.
    """
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if (Path(name) / file).is_file():
            return str(Path(name) / file)
    return f"the chat template of {name}"
