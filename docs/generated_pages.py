"""Pages of the site that are made from README, CONTRIBUTING and the code, so that they cannot differ from them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import lm_harmony
from lm_harmony.cli.main import main
from lm_harmony.studies.study_file import json_schema

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the files of the site."""
    pages = {
        "index.md": _from_root("README.md"),
        "contributing.md": _from_root("CONTRIBUTING.md"),
        "reference/command_line.md": command_line(),
        "reference/study.md": study_file(),
        "reference/python.md": python(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    return markdown.replace("](../README.md)", "](index.md)").replace("](../CONTRIBUTING.md)", "](contributing.md)")


def _from_root(name: str) -> str:
    """Return a file of the repository's root with the links of a page of the site. Of other links, only the text stays."""

    def linked(link: re.Match[str]) -> str:
        text, path, anchor = link[1], link[2], link[3] or ""
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        if path == "CONTRIBUTING.md":
            return f"[{text}](contributing.md)"
        return text if (ROOT / path).exists() else link[0]

    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\[(?:docs/)?(\w+)\.md\]\(", lambda link: f"[{link[1].lower().replace('_', ' ')}](", text)
    return re.sub(r"\[([^][]*)\]\(([\w./-]+)(#[\w-]+)?\)", linked, text)


def command_line() -> str:
    """Return what ``--help`` prints for every command."""
    parts = ["# Command line", "Words with underscores may be written with dashes. `-h` prints a short help."]
    os.environ["COLUMNS"] = "100"
    for command in re.findall(r"^  (\w+)  ", _printed("-h"), flags=re.MULTILINE):
        parts += [f"## {command}", f"```text\n{_printed(command, '--help')}\n```"]
    return "\n\n".join(parts) + "\n"


def _printed(*words: str) -> str:
    """Return what a command line prints, without colours."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(words)
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip("\n")


def study_file() -> str:
    """Return the keys of a study file with type, default and meaning, from its JSON Schema."""
    schema = json_schema()
    parts = ["# study.yaml", _keys(schema)]
    titles = {
        "ModelEntry": "An entry of models",
        "BenchmarkEntry": "An entry of benchmarks",
        "Recipe": "recipe",
        "Lora": "recipe.lora",
    }
    for name, part in schema["$defs"].items():
        parts += [
            f"## {titles.get(name, name.lower())}",
            " ".join(part.get("description", "").split("\n\n")[0].split()),
            _keys(part),
        ]
    return "\n\n".join(parts) + "\n"


def _keys(schema: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in schema["properties"].items():
        default = "" if "default" not in value else f"`{json.dumps(value['default'])}`"
        meaning = " ".join(str(value.get("description", "")).split()).replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{key}` | {_type(value)} | {default or 'required'} | {meaning} |")
    return "\n".join(rows)


def _type(value: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "$ref" in value:
        return "mapping"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(one) for one in value["anyOf"] if one.get("type") != "null"))
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}" if "items" in value else "list"
    return {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(
        value.get("type", ""), value.get("type", "any")
    )


def python() -> str:
    """Return directives that print the docstrings of the public names."""
    parts = ["# Python", "The public names. [Python by example](../api.md) shows how they are used together."]
    for name in lm_harmony.__all__:
        public = getattr(lm_harmony, name)
        parts.append(f"::: {public.__module__}.{public.__qualname__}")
    return "\n\n".join(parts) + "\n"
