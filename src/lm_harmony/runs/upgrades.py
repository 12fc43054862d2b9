"""Files that older versions of this package wrote, as plain values with the fields of today. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_harmony.errors import StoreError
from lm_harmony.runs.file_values import without_check

FORMAT = 1
"""Version of record.json; a reader refuses a newer one."""


def upgrade_spec(values: Any) -> Any:
    """Return a written specification with the fields of today: older versions wrote no date of the chat template."""
    if not isinstance(values, Mapping):
        return values
    model = values.get("model")
    if isinstance(model, Mapping) and model.get("apply_chat_template"):
        model = {"chat_template_date": None, **model}  # the template was rendered with the day of the run
    derived = {"recipe_fingerprint"}
    return {key: model if key == "model" else value for key, value in values.items() if key not in derived}


def upgrade_config(values: Any) -> Any:
    """Return a written config.yaml with the fields of today."""
    if not isinstance(values, Mapping):
        return values
    return {**upgrade_spec(without_check(values)), "recipe_fingerprint": values.get("recipe_fingerprint")}


def upgrade_record(values: Any) -> Any:
    """Return a written record with the fields of today.

    Raises:
        StoreError: it is of another format, or a value was changed after it was written.
    """
    known = values.get("format") if isinstance(values, Mapping) else None
    if known != FORMAT:
        raise StoreError(f"format = {known!r} is not the record format {FORMAT}. Read it with the LM-Harmony that wrote it.")
    rest = {key: value for key, value in without_check(values).items() if key != "format"}
    return {**rest, "spec": upgrade_spec(rest["spec"])} if "spec" in rest else rest
