"""Parses the command line with tyro. A usage error is one line and a pointer to the help; ``-h`` shows a short help."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial, wraps
from typing import Any, NoReturn

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lm_harmony.cli.console import say
from lm_harmony.errors import did_you_mean

PROGRAM = "lm-harmony"
Command = Callable[..., Any]
_KINDS = {"INT": "a whole number", "FLOAT": "a number"}


def parse(words: Sequence[str], groups: Mapping[str, Sequence[Command]], *, description: str) -> Callable[[], object]:
    """Return the call that a command line asks for.

    Args:
        words: the words after the program's name.
        groups: the functions that can be called, by the title of their group in the help. The name of a function is its command.
        description: text above the list of commands.

    Raises:
        SystemExit: help was printed (status 0), or the words are no command line (status 2).
    """
    named = {command.__name__: command for commands in groups.values() for command in commands}
    first = words[0] if words else "--help"
    if not first.startswith("-") and first not in named:
        _refuse(f"there is no command {first!r}.{did_you_mean(first, named)} Commands: {', '.join(named)}.", PROGRAM)
    if "-h" in words:
        say(*(_short_help(named[first]) if first in named else _commands(groups)))
        raise SystemExit(0)
    if first == "--help":
        _show_help(groups, description)
        raise SystemExit(0)
    _refuse_empty(words, first if first in named else "")
    if "--help" in words and first in named:
        words = [first, "--help"]  # the help of `board add --help` has the word add too
    app, captured = tyro.extras.SubcommandApp(), io.StringIO()
    for command in named.values():
        app.command(_deferred(command))
    try:
        with redirect_stderr(captured):
            call = app.cli(prog=PROGRAM, description=description, args=words, use_underscores=True)
    except SystemExit as end:
        if end.code:
            _refuse(one_line(captured.getvalue(), first), f"{PROGRAM} {first}" if first in named else PROGRAM)
        raise
    return call  # type: ignore[no-any-return]


def _deferred(command: Command) -> Command:
    """Return a function with the signature of ``command`` that returns the call instead of carrying it out."""

    @wraps(command)
    def call(*arguments: Any, **flags: Any) -> Callable[[], object]:
        return partial(command, *arguments, **flags)

    return call


def _refuse_empty(words: Sequence[str], command: str) -> None:
    """Refuse an empty value, which would be the working folder as a path and no restriction as a name."""
    for before, word in zip(["", *words], words, strict=False):
        flag = word[:-1] if word.startswith("--") and word.endswith("=") else before if word == "" else None
        if flag is not None:
            what = f"the value of {flag}" if flag.startswith("-") else "a value"
            _refuse(f"{what} is empty. Give one, or leave it out.", f"{PROGRAM} {command}".strip())


def _refuse(message: str, place: str) -> NoReturn:
    say(f"{PROGRAM}: {message}", f"See {place} --help.", stderr=True)
    raise SystemExit(2)


def one_line(box: str, command: str) -> str:
    """Return the error that tyro printed in a box as one line, with the flag that may have been meant.

    Args:
        box: the printed text.
        command: the command whose flags may be suggested.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    title = 1 if "╭" in text else 2  # without UTF-8, the box has no sides and its title is underlined
    lines = [inner for line in text.splitlines()[title:] if (inner := line.strip("│╰╯ "))]
    rule = next((line for line in lines if re.fullmatch(r"[─-]{5,}", line)), "-" * 5)
    message, *others = "\n".join(lines).split(f"\n{rule}\n")
    rest = "\n".join(others)
    if message.startswith("Missing from"):
        required = re.findall(
            r"^(--[\w.]+) \S+$|^([A-Z]+|\{[^}]*\})\n(.*?)\.?\s\(required\)", message, flags=re.MULTILINE | re.DOTALL
        )
        names = [flag or f"{place} ({' '.join(about.split())})" for flag, place, about in required]
        unknown = re.findall(r"^--[\w.-]+$", rest.partition("Unrecognized options:")[2].split(rule)[0], flags=re.MULTILINE)
        meant = "".join(f" Unknown: {flag}.{did_you_mean(flag, names)}" for flag in unknown)
        return f"missing: {', '.join(names)}.{meant}"
    said = " ".join(re.sub(r"\(applied to .*?\)", "", message.split("\nArguments are applied")[0]).split()).rstrip(".")
    said += "" if said.endswith("?") else "."
    said = re.sub(r"^Error parsing __tyro\S*: ", "", said)  # the message of one of our classes, which names the flag
    optional = re.match(
        r"Error parsing (--\S+): No type matching \{None\}\|(\w+) could be instantiated from \['(.*?)'\]", said, re.IGNORECASE
    )
    if optional:
        flag, kind, value = optional.groups()
        said = f"{flag} must be {_KINDS.get(kind, kind)}, got {value!r}."
    several = re.match(r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]", said)
    if several:
        said = f"{several[1]} must be values with spaces between them, of the type that the help shows, got {several[2]}."
    number = re.match(r"Error parsing (--\S+): (?:could not convert string to|invalid literal for) (float|int)[^:]*: (.*)", said)
    if number:
        said = f"{number[1]} must be {_KINDS[number[2].upper()]}, got {number[3]}"
    if re.fullmatch(r"Unrecognized options: (True|False|true|false)\.", said):
        said += " A switch has no value: --NAME is yes and --no_NAME is no."
    return said[0].lower() + said[1:] + _suggestion(rest, command)


def _suggestion(text: str, command: str) -> str:
    """Return the first flag of ``command`` among those that tyro found to be similar, as a sentence, or ""."""
    flag = ""
    for line in text.splitlines():
        if line.startswith("--"):
            flag = line.split()[0].rstrip(",")  # a switch is listed with its opposite: --x, --no_x
        elif flag and line == f"in {PROGRAM} {command} --help":
            return f" Did you mean {flag}?"
    return ""


def _short_help(command: Command) -> list[str]:
    """Return the lines of a command's short help: its purpose and example."""
    example = _example(command)
    return [_purpose(command), *([f"Example: {example}"] if example else []), f"All flags: {PROGRAM} {command.__name__} --help"]


def _commands(groups: Mapping[str, Sequence[Command]]) -> list[str]:
    """Return the lines of the short help of the program: all commands with their purpose."""
    width = max(len(command.__name__) for commands in groups.values() for command in commands)
    lines = [f"usage: {PROGRAM} COMMAND ..."]
    for title, commands in groups.items():
        lines += [f"{title}:", *(f"  {command.__name__:{width}}  {_purpose(command)}" for command in commands)]
    return [*lines, f"Flags of a command: {PROGRAM} COMMAND --help"]


def _show_help(groups: Mapping[str, Sequence[Command]], description: str) -> None:
    """Print the help of the program: all commands in groups, with their purpose and an example."""
    console = Console()
    width = max(len(command.__name__) for commands in groups.values() for command in commands)
    say(f"usage: {PROGRAM} COMMAND ...", "")
    console.print(description, markup=False, highlight=False)
    for title, commands in groups.items():
        table = Table.grid(Column(width=width + 4, no_wrap=True), Column(overflow="fold"))
        for command in commands:
            table.add_row(f"  {command.__name__}", Text(_purpose(command)))
            table.add_row("", Text(f"$ {_example(command)}"))
        say("", f"{title}:")
        console.print(table)
    say(
        "",
        f"{PROGRAM} COMMAND --help  all flags of a command",
        f"{PROGRAM} COMMAND -h      its purpose and an example",
        f"{PROGRAM} -h              the commands without examples",
        f"{PROGRAM} --version       the version",
    )


def _purpose(command: Command) -> str:
    """Return the first sentence of a command's docstring."""
    return (inspect.getdoc(command) or "").split("\n\n")[0].split(". ")[0].rstrip(".") + "."


def _example(command: Command) -> str:
    """Return the example of a command's docstring, or ""."""
    found = re.search(r"Example: `(.*?)`", inspect.getdoc(command) or "", flags=re.DOTALL)
    return " ".join(found[1].split()) if found else ""
