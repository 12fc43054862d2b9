"""One self-contained HTML page: sources from page/, libraries from their packages, the board's values as JSON.

Nothing is fetched: the page's content security policy forbids every connection, and names the digest of each script that may run.
Names are data: they travel as JSON in which no character can end the script element, and become text nodes in the browser.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
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
    "charts",
    "download",
    "start",
)
"""Sources in page/, in the order in which they are read into one script."""
_EXPORT = re.compile(r"export\{([^}]*)\};?")


def write_page(data: Mapping[str, Any], path: Path) -> None:
    """Write the page, whole or not at all.

    Args:
        data: what ``page_data`` returns.
        path: the HTML file; its folder must be there.

    Raises:
        MissingExtra: a library is not installed.
        UsageError: the path is a folder, or its folder is missing.
        StoreError: it cannot be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: {path.parent} is no folder"
        raise UsageError(f"output: {path} {what}. Name a file in a folder that is there, such as board.html.")
    text = page_text(data)
    try:
        write_atomically(path, text)
    except StoreError as error:
        raise StoreError(f"{path} cannot be written: {error.__cause__}. Make room, or name another file.") from error


def page_text(data: Mapping[str, Any]) -> str:
    """Return the page's HTML.

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
        **{name: _packed(code) for name, code in libraries.items()},
    }
    # One pass over the template: what is put in is not searched for places again.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _source("page.html"))


def json_for_html(values: Any) -> str:
    """Return JSON that can stand in a script element: ASCII only, and no <, > or & that could end it or begin markup."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(*scripts: str) -> str:
    """Return a policy under which only these scripts run and nothing is connected to.

    Styles are free because Plotly sets them; pictures are those that the page makes itself, for its own downloads.
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
    """Return gzip in base64; without a time stamp, so that equal boards give equal files."""
    return base64.b64encode(gzip.compress(code.encode(), compresslevel=9, mtime=0)).decode()


@cache
def _datatables() -> str:
    """Return DataTables from the bundle in itables, an ES module, as a script that defines ``DataTable``."""
    module = _library("itables", "html/dt_bundle.js")
    exported = _EXPORT.search(module)
    # "Md as DateTime,vh as default": which of the bundle's own names stands for what it exports.
    pairs = [entry.split(" as ") for entry in exported[1].split(",")] if exported else []
    names = {outer.strip(): inner.strip() for inner, outer in pairs}
    if exported is None or "default" not in names:
        raise MissingExtra(f"itables: its bundle exports no DataTables. {_PIP}")
    code = module[: exported.start()] + f"globalThis.DataTable={names['default']};" + module[exported.end() :]
    return "(() => {" + code + "\n})();"


@cache
def _plotly() -> str:
    return _library("plotly", "package_data/plotly.min.js")


_PIP = 'Install what a page needs: pip install "lm-harmony[page]"'


def _library(package: str, file: str) -> str:
    """Return a file of an installed package without importing it, which would take longer than reading it."""
    found = find_spec(package)
    path = Path(found.origin).parent / file if found and found.origin else None
    if path is None or not path.is_file():
        raise MissingExtra(f"{package} is not installed, or has no {file}. {_PIP}")
    return path.read_text(encoding="utf-8")
