"""Find shell syntax in a command that is started without a shell."""

from __future__ import annotations

import re
import shlex

from ..system.pattern import pattern

# The first group matches what a shell would act on. The other branches match quoted and escaped text.
_TOKENS = pattern(
    r"""\\. | '[^']*' | "(?:\\.|[^"\\])*" | (\|\|? | && | &(?=\s*\Z) | ; | >>? | <<?
        | \$[A-Za-z_][A-Za-z0-9_]* | \$[({][^)}]*[)}]? | \$[0-9@*#?$!] | `[^`]*`? | (?<!\S)~(?=[/\s]|\Z) | \*)""",
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT = pattern(r"\s*([A-Za-z_][A-Za-z0-9_]*=)")
_MOST_SHOWN = 5


def unquoted_shell_syntax(command: str) -> list[str]:
    """Return the shell syntax of a command, each kind once: `|`, `&&`, `;`, `>`, `$NAME`, `*` and similar ones.

    Quoted syntax is left out: the program gets it as text, or the shell of `sh -c '…'` acts on it.
    """
    found = [match[1] for match in _TOKENS.finditer(command) if match[1] is not None]
    if assignment := _ASSIGNMENT.match(command):
        found.insert(0, assignment[1])
    return list(dict.fromkeys(found))


def advice_on_shell_syntax(command: str) -> str | None:
    """Return a warning if a command has unquoted shell syntax, and how to write the command; else None."""
    found = unquoted_shell_syntax(command)
    if not found:
        return None
    shown = ", ".join(found[:_MOST_SHOWN]) + (" and more" if len(found) > _MOST_SHOWN else "")
    return (
        f"has {shown} outside quotes, but no shell reads it: the program gets this as text. "
        f"If a shell is to read it, write: sh -c {shlex.quote(command)}; else quote it"
    )
