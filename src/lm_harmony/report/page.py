"""Writes a board as one self-contained HTML page: the sources in page/, libraries from installed packages, and the data as JSON.

The page loads nothing from the network. Its content security policy forbids all connections and lists the digest of each script
that may run. Names are never interpreted as HTML: in the JSON no character can end the script element, and in the browser names
become text nodes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lm_harmony.errors import MissingExtra, StoreError, UsageError
from lm_harmony.runs.files import write_atomically

SCRIPTS = (
    "numbers",
    "elements",
    "components",
    "board",
    "state",
    "table",
    "controls",
    "hint",
    "compare",
    "findings",
    "charts",
    "bump",
    "heat",
    "download",
    "start",
)
"""Sources in page/, in the order in which they are concatenated into one script."""
_EXPORT = re.compile(r"export\{([^}]*)\};?")


def write_page(data: Mapping[str, Any], path: Path) -> None:
    """Write the page atomically: after an error the file is unchanged.

    Args:
        data: values of ``page_data``.
        path: HTML file to write; its folder must exist.

    Raises:
        MissingExtra: a library is not installed.
        UsageError: the path is a folder, or its folder does not exist.
        StoreError: the file cannot be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written, because {path.parent} is not a folder"
        raise UsageError(f"output: {path} {what}. Name a file in an existing folder, such as board.html.")
    text = page_text(data)
    try:
        write_atomically(path, text)
    except StoreError as error:
        raise StoreError(f"{path} cannot be written: {error.__cause__}. Free disk space, or name another file.") from error


def page_text(data: Mapping[str, Any], written: date | None = None) -> str:
    """Return the page's HTML.

    Args:
        data: values of ``page_data``.
        written: date on the page; None: today.

    Raises:
        MissingExtra: a library is not installed.
    """
    script = '(() => {\n"use strict";\n' + "\n".join(_source(f"{name}.js") for name in SCRIPTS) + "})();\n"
    libraries = {"datatables": _datatables(), "plotly": _plotly()}
    parts = {
        "policy": _policy(script, *libraries.values()),
        "style": _source("page.css"),
        "script": script,
        "data": json_for_html(data),
        "written": (written or date.today()).isoformat(),
        **{name: _packed(code) for name, code in libraries.items()},
    }
    # A single pass over the template, so that placeholders inside inserted text are left alone.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _source("page.html"))


def json_for_html(values: Any) -> str:
    """Return JSON that is safe in a script element: ASCII only, and without <, > and &."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(*scripts: str) -> str:
    """Return a content security policy that allows only these scripts and no connections.

    Inline styles are allowed because Plotly sets them. Images are limited to those that the page creates for its downloads.
    """
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" for code in scripts)
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")


@cache
def _packed(code: str) -> str:
    """Return code as gzip in base64, without a time stamp, so that equal boards give equal files."""
    return base64.b64encode(gzip.compress(code.encode(), compresslevel=9, mtime=0)).decode()


@cache
def _datatables() -> str:
    """Return DataTables, an ES module in the package itables, as a script that defines ``DataTable``."""
    module = _library("itables", "html/dt_bundle.js")
    exported = _EXPORT.search(module)
    # The export list, such as "Md as DateTime,vh as default", maps names inside the bundle to exported names.
    pairs = [entry.split(" as ") for entry in exported[1].split(",")] if exported else []
    names = {outer.strip(): inner.strip() for inner, outer in pairs}
    if exported is None or "default" not in names:
        raise MissingExtra(f"itables: its bundle does not export DataTables. {_PIP}")
    code = module[: exported.start()] + f"globalThis.DataTable={names['default']};" + module[exported.end() :]
    return "(() => {" + code + "\n})();"


@cache
def _plotly() -> str:
    return _library("plotly", "package_data/plotly.min.js")


_PIP = 'Install the packages for pages with: pip install "lm-harmony[page]"'


def _library(package: str, file: str) -> str:
    """Return the text of a file in an installed package. The package is not imported, because that is slow."""
    found = find_spec(package)
    path = Path(found.origin).parent / file if found and found.origin else None
    if path is None or not path.is_file():
        raise MissingExtra(f"{package} is not installed, or has no {file}. {_PIP}")
    return path.read_text(encoding="utf-8")
