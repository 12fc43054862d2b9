"""A model's chat template: rendered with a fixed date, and named with its line when it fails. No torch."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a chat template raises: jinja's own errors, and Python's from the expressions in it."""
_CODES = "aAbBcdDeFGhHIjklmMnpPrRSTuUVwWxXyYzZ"
"""Letters of ``strftime``."""
_NUMBERS = "deHIjklmMSUVWyG"
"""Letters that give numbers, of which ``%-d`` and its like drop the leading zeros."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], *, day: str, generation_prompt: bool) -> str:
    """Render messages as ``apply_chat_template`` does, with ``day`` in the place of today.

    A template asks for the date by the function ``strftime_now`` or by the variable ``date_string`` (Llama 3: "26 Jul 2024").

    Args:
        tokenizer: whose template renders.
        messages: each {"role", "content"}.
        day: the date as YYYY-MM-DD.
        generation_prompt: end with the opening of an answer; False: the last message is continued.

    Raises:
        jinja2.TemplateError: or another of ``FAILURES``; ``failed_line`` gives the template's line.
    """
    template, today, options = str(tokenizer.get_chat_template()), date.fromisoformat(day), dict[str, Any]()
    if "strftime_now" in template:
        options["chat_template"] = _with_date(template, today)
    if "date_string" in template:
        options["date_string"] = today.strftime("%d %b %Y")
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
    """Put a macro ``strftime_now`` on a line before the template: transformers lets no caller pass a function.

    Jinja takes the newline after a block away (transformers sets trim_blocks), so that the template's own text is unchanged.
    """
    values = {f"%-{code}": today.strftime(f"%{code}").strip().lstrip("0") or "0" for code in _NUMBERS}
    values |= {f"%{code}": today.strftime(f"%{code}") for code in _CODES}
    replaced = "".join(f".replace({code!r}, {value!r})" for code, value in {**values, "%%": "%"}.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"


def failed_line(error: Exception, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the line of the template, from 1, at which ``render`` failed; None where the error tells none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in ("<template>", "<unknown>")]
    found = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else (lines or [None])[-1]
    added = "strftime_now" in str(tokenizer.chat_template)  # the line of the macro
    return None if found is None else max(1, found - added)


def place_of_template(name: str) -> str:
    """Return the file that holds the chat template of a model folder, or words that say whose it is.

    Args:
        name: the model's folder or hub id.
    """
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if (Path(name) / file).is_file():
            return str(Path(name) / file)
    return f"the chat template of {name}"
