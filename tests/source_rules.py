"""The rules of docs/architecture.md as functions of source files. Each one returns its violations, one line each.

They read the syntax tree only, so tests/test_architecture.py can also apply them to small sources that break them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "lm_harmony"
MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MIN_WORDS = 250, 50, 9, 4
AVOIDED = re.compile(
    r"(?<![a-z])("
    r"anew|mend|mends|mended|mending|whereof|wherein|thereof|thrift|thrifty|be it|nowhere else|"
    r"crew|crews|duel|duels|respondent|respondents|learner|learners|lesson|lessons|trunk|trunks|"
    r"told apart|given up|who learns|who counts|the plain path|on the very model"
    r")(?![a-z])",
    re.IGNORECASE,
)
"""Archaic words, and private words that a term of the field replaces."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement's target."""

    target: str
    """Dotted name of the imported module, or of the imported name in it."""
    line: int
    """Line number of the statement, from 1."""
    lazy: bool
    """Whether the statement is inside a function."""
    typing: bool
    """Whether only type checkers execute the statement."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file of the package."""

    name: str
    """Dotted name, for example ``lm_harmony.engine.training``."""
    text: str
    """Content of the source file."""
    is_package: bool = False
    """Whether the file is an ``__init__.py``."""

    @property
    def tree(self) -> ast.Module:
        """Return the syntax tree of the file."""
        return ast.parse(self.text)

    @property
    def layer(self) -> str:
        """Return the package or top-level module below ``lm_harmony``, and an empty string for ``lm_harmony`` itself."""
        return layer_of(self.name)

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Return all functions and methods, nested ones too."""
        return [node for node in ast.walk(self.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


Package = Mapping[str, Module]
"""Dotted name -> module."""


def read_package(folder: Path) -> Package:
    """Return all modules below ``folder``, which is the folder of the package itself."""
    modules = {}
    for file in sorted(folder.rglob("*.py")):
        parts = (NAME, *file.relative_to(folder).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name=name, text=file.read_text(encoding="utf-8"), is_package=parts[-1] == "__init__")
    return modules


def layer_of(name: str) -> str:
    """Return the layer of a dotted name below ``lm_harmony``."""
    return name.split(".")[1] if "." in name else ""


def imports(module: Module) -> list[Import]:
    """Return what the module imports. ``from a import b`` has the target ``a.b``, because b can be a module."""
    tree, found = module.tree, []
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    lazy = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(target=target, line=node.lineno, lazy=id(node) in lazy, typing=id(node) in typing) for target in targets]
    return found


def resolve(package: Package, target: str) -> str | None:
    """Return the module of ``package`` that ``target`` names, or None."""
    return target if target in package else target.rpartition(".")[0] if target.rpartition(".")[0] in package else None


def upward_imports(package: Package, layers: Mapping[str, set[str]]) -> list[str]:
    """Return imports of a layer that ``layers`` does not allow, and layers that it does not list."""
    found = [f"{module.name}: not in the list of layers" for module in package.values() if module.layer not in {"", *layers}]
    for module in package.values():
        for one in imports(module) if module.layer in layers else ():
            target = resolve(package, one.target)
            if target and layer_of(target) not in {"", module.layer, *layers[module.layer]}:
                found.append(f"{module.name}:{one.line}: imports {target}")
    return found


def cycles(package: Package) -> list[str]:
    """Return modules that import themselves through others, at the top of a file or inside a function."""
    graph = {
        name: {
            target for one in imports(module) if not one.typing and (target := resolve(package, one.target)) not in (None, name)
        }
        for name, module in package.items()
    }
    return [f"{name}: is in an import cycle" for name in package if name in reachable(graph, graph[name])]


def reachable(graph: Mapping[str, set[str]], start: Iterable[str]) -> set[str]:
    """Return all nodes that can be reached from ``start``, itself included."""
    seen: set[str] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += graph[node]
    return seen


def orphans(package: Package, commands: set[str]) -> list[str]:
    """Return modules that no other module imports or names in a string, and that are no command."""
    used = set(commands)
    for module in package.values():
        texts = [node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        targets = {resolve(package, one.target) for one in imports(module)} | {text for text in texts if text in package}
        used |= {target for target in targets if target and target != module.name}
    return [f"{name}: has no importer" for name, module in package.items() if name not in used and not module.is_package]


def lazy_imports(package: Package, allowed_layers: set[str], optional: set[str]) -> list[str]:
    """Return imports inside functions, except in ``allowed_layers`` and except for ``optional`` libraries and modules."""
    return [
        f"{module.name}:{one.line}: imports {one.target} inside a function"
        for module in package.values()
        if module.layer not in allowed_layers
        for one in imports(module)
        if one.lazy and not any(f"{one.target}.".startswith(f"{name}.") for name in optional)
    ]


def importers(package: Package, library: str, allowed: Iterable[str]) -> list[str]:
    """Return modules that import ``library``, except those whose name starts with one of ``allowed``."""
    return [
        f"{module.name}:{one.line}: imports {one.target}"
        for module in package.values()
        if not module.name.startswith(tuple(allowed))
        for one in imports(module)
        if one.target.split(".")[0] == library
    ]


def long_files(package: Package) -> list[str]:
    """Return files with more lines than allowed."""
    counts = {name: module.text.count("\n") for name, module in package.items()}
    return [f"{name}: has {count} lines (at most {MAX_LINES})" for name, count in counts.items() if count > MAX_LINES]


def long_functions(package: Package) -> list[str]:
    """Return functions with more lines than allowed."""
    return [
        f"{module.name}:{node.lineno}: {node.name} has {count} lines (at most {MAX_FUNCTION_LINES})"
        for module in package.values()
        for node in module.functions
        if (count := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def many_parameters(package: Package) -> list[str]:
    """Return functions with more parameters than allowed. ``self`` and ``cls`` do not count."""
    found = []
    for module in package.values():
        for node in module.functions:
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
            count = len([one for one in every if one.arg not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                found.append(f"{module.name}:{node.lineno}: {node.name} has {count} parameters (at most {MAX_PARAMETERS})")
    return found


def short_field_docstrings(package: Package) -> list[str]:
    """Return docstrings of fields of classes that have fewer than four words."""
    found = []
    for module in package.values():
        for owner in (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)):
            for field, text in zip(owner.body, owner.body[1:], strict=False):
                is_text = (
                    isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
                )
                if isinstance(field, (ast.AnnAssign, ast.Assign)) and is_text and len(text.value.value.split()) < MIN_WORDS:
                    found.append(f"{module.name}:{text.lineno}: {owner.name}: docstring {text.value.value!r} is too short")
    return found


def avoided_words(package: Package) -> list[str]:
    """Return lines with a word that the code avoids, in names, comments, docstrings or messages."""
    return [
        f"{module.name}:{number}: says {match[0]!r}"
        for module in package.values()
        for number, line in enumerate(module.text.splitlines(), 1)
        for match in AVOIDED.finditer(line)
    ]


def public_annotations(package: Package, public: Mapping[str, str]) -> Iterator[tuple[str, ast.expr]]:
    """Yield (place, annotation) for the parameters, results and fields of ``public``: name -> module that defines it."""
    for name, home in public.items():
        nodes = [node for node in package[home].tree.body if getattr(node, "name", "") == name]
        members = [member for node in nodes if isinstance(node, ast.ClassDef) for member in node.body]
        for node in (*nodes, *members):
            if isinstance(node, ast.AnnAssign):
                yield f"{home}:{node.lineno}: {name}.{ast.unparse(node.target)}", node.annotation
            elif isinstance(node, ast.FunctionDef) and (
                node in nodes or not node.name.startswith("_") or node.name == "__init__"
            ):
                given = node.args
                every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
                for annotation in filter(None, (node.returns, *(one.annotation for one in every))):
                    yield f"{home}:{node.lineno}: {name}.{node.name}", annotation


def public_any(package: Package, public: Mapping[str, str]) -> list[str]:
    """Return parameters, results and fields of the public API whose type contains ``Any``."""
    return [
        f"{place} has the type {ast.unparse(annotation)}"
        for place, annotation in public_annotations(package, public)
        if re.search(r"\bAny\b", ast.unparse(annotation))
    ]


def unmapped_modules(package: Package, page: str) -> list[str]:
    """Return modules without a line of their own in the map ``page``, and lines without a module."""
    lines = re.findall(r"^- `([\w/]+\.py)`: \S.*$", page, flags=re.MULTILINE)
    files = [f"{name.removeprefix(NAME + '.').replace('.', '/')}.py" for name, module in package.items() if not module.is_package]
    missing = [f"{file}: has {lines.count(file)} lines in the map" for file in files if lines.count(file) != 1]
    return missing + [f"{line}: is no module" for line in lines if line not in files]
