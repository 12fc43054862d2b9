"""The rules for values in study.yaml: pydantic types that check a value and describe it in the JSON Schema.

Recipes, caps and execution options are checked by the classes that hold them in a run, so a study refuses what a run refuses.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date
from textwrap import dedent
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationInfo,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lm_harmony.benchmarks.prompt import Prompt
from lm_harmony.benchmarks.types import Caps, SplitProtocol
from lm_harmony.errors import UsageError, check_flag, check_integer, check_number
from lm_harmony.recipe import PUBLISHED, Lora, Recipe
from lm_harmony.runs.spec import LARGEST_SEED, Execution, ModelSpec

CAPS = {"max_num_train": "train", "max_num_valid": "validation", "max_num_test": "test"}
"""Key in the file -> field of ``Caps``."""
EXECUTION = (
    *("device", "device_map", "engine", "micro_batch", "eval_batch_size", "gradient_checkpointing", "memory", "use_git"),
    "allow_task_code",
)
"""Fields of ``Execution`` that a study can set."""


def rule(check: Callable[[str, Any], object], accepted: Any) -> PlainValidator:
    """Return a validator that leaves the value as it is.

    Args:
        check: called with the key and the value; raises UsageError if the value is not allowed.
        accepted: type that the JSON Schema shows.
    """

    def validate(value: Any, info: ValidationInfo) -> Any:
        check(str(info.field_name), value)
        return value

    return PlainValidator(validate, json_schema_input_type=accepted)


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        remedy = "Give one text" if isinstance(value, (list, Mapping)) else f"Write it in quotes: '{value}'"
        raise UsageError(f"{key} must be text, got {value!r}. {remedy}.")


def _check_date(_: str, value: Any) -> None:
    ModelSpec(name="", chat_template_date=str(value) if isinstance(value, date) else value)


def check_protocol(key: str, value: Any) -> None:
    if value not in get_args(SplitProtocol):
        raise UsageError(f"{key} must be clean or published, got {value!r}. Use clean.")


def check_choice(key: str, value: Any) -> None:
    if value != "validation":
        raise UsageError(f"{key} must be validation, got {value!r}, because no other split may decide. Write choose: validation.")


def check_not_empty(value: Any, info: ValidationInfo) -> Any:
    """Refuse a list that is empty or missing."""
    if not value:
        key = info.field_name
        raise UsageError(f"{key} must name at least one, got {value!r}. List names under {key}.")
    return value


def check_seeds(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise UsageError(f"seeds must be a list of whole numbers from 0, got {value!r}. Write seeds: [0].")
    return value


def _check_prompt(key: str, value: Any) -> None:
    ended = {"think_end_token": "</think>"} if key == "chat_template_args" else {}  # its absence is an error of the whole entry
    Prompt(**{**ended, key: value})


def _check_several(key: str, value: Any) -> None:
    for one in value if isinstance(value, list) and value else [value]:
        Caps(**{CAPS[key]: one})
    if isinstance(value, list) and len(set(value)) < len(value):
        raise UsageError(f"{key} = {value} has a number twice. Remove one.")


def _check_lora(key: str, value: Any) -> None:
    Recipe.from_dict({"lora": {key: value}})


def _check_recipe(key: str, value: Any) -> None:
    if key == "lora" and isinstance(value, Mapping):
        LoraOverrides.model_validate(value)
    else:
        Recipe.from_dict({**asdict(PUBLISHED), key: value})


Text = Annotated[str, rule(_check_text, str)]
Flag = Annotated[bool, rule(check_flag, bool)]
Number = Annotated[float, rule(check_number, Annotated[float, Field(ge=0)])]
Rows = Annotated[int, rule(lambda key, value: Caps(**{CAPS[key]: value}), Annotated[int, Field(ge=1)])]
Variables = Annotated[Mapping[str, Any], rule(_check_prompt, dict[str, Any])]
PromptText = Annotated[str, rule(_check_prompt, str)]
Token = Annotated[str | int, rule(_check_prompt, str | int)]
Tokens = Annotated[int, rule(_check_prompt, Annotated[int, Field(ge=1)])]
SeveralRows = Annotated[int | list[int], rule(_check_several, Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]])]
Date = Annotated[str | date, rule(_check_date, date)]
Seed = Annotated[
    int, rule(lambda _, value: check_integer("a seed", value, 0, LARGEST_SEED), Annotated[int, Field(ge=0, le=LARGEST_SEED)])
]


class StudyMapping(BaseModel):
    """A mapping of study.yaml. The docstrings under its fields are their descriptions in the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    documented_in: ClassVar[type | None] = None
    """The class whose docstrings describe the fields; None: the model itself."""

    # pydantic's use_attribute_docstrings reads the source of each class while the module is imported, which takes two seconds.
    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        shown = handler(schema)
        properties = handler.resolve_ref_schema(shown)["properties"]
        docs = _field_docstrings(cls.documented_in or cls)
        for name in properties:
            properties[name]["description"] = docs[name]
        return shown


def _field_docstrings(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a class, in one line."""
    body = ast.parse(dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        ast.unparse(statement.target): " ".join(str(ast.literal_eval(text.value)).split())
        for statement, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _overrides(kind: type, check: Callable[[str, Any], object], defaults: Mapping[str, Any], **hints: Any) -> type[BaseModel]:
    """Return a model of a mapping that sets some fields of the dataclass ``kind``.

    Args:
        kind: the dataclass; its docstrings become the descriptions in the JSON Schema.
        check: called with key and value; raises UsageError if the value is not allowed.
        defaults: what the JSON Schema shows as default of each field.
        hints: the fields that can be set, with their types.
    """
    known: dict[str, Any] = {
        name: (Annotated[Any, rule(check, hint)], Field(default=defaults[name])) for name, hint in hints.items()
    }
    model = create_model(kind.__name__, __base__=StudyMapping, __doc__=kind.__doc__, **known)
    model.documented_in = kind
    return model


def only_given(model: type[BaseModel]) -> PlainValidator:
    """Return a validator that checks a mapping by ``model`` and leaves it as it is, so that it holds only what was given."""

    def validate(value: Any) -> Any:
        model.model_validate(value)
        return value

    return PlainValidator(validate, json_schema_input_type=model)


def or_name(key: str, entry: Any) -> BeforeValidator:
    """Return a validator that reads a plain text as a mapping with that text under ``key``."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value, json_schema_input_type=str | entry)


LoraOverrides = _overrides(Lora, _check_lora, asdict(Lora()), **get_type_hints(Lora))
RecipeOverrides = _overrides(Recipe, _check_recipe, asdict(PUBLISHED), **{**get_type_hints(Recipe), "lora": LoraOverrides | None})
ExecutionOverrides = _overrides(
    Execution,
    lambda key, value: Execution(**{key: value}),
    {**asdict(Execution()), "use_git": False},
    **{name: hint for name, hint in get_type_hints(Execution).items() if name in EXECUTION},
)
RecipeMapping = Annotated[dict[str, Any], only_given(RecipeOverrides)]
