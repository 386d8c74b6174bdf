r"""The line of a call for a worker that said ``ready sh``: a shell runs it with ``eval "export $call"``.

::

    CALL_ID='1' Http_Name='it'\''s'; unset -v Http_Other

A caller chooses the values, and parts of the names. Between single quotes, only the next single quote has a meaning for
a shell. The shell reads one line, so a value with a newline is left out. A few values with a control character are left
out, too, because bash would change them.

A shell uses some variables itself. Some are read-only, and an assignment ends the shell. Others change how the shell
runs (``IFS``). Bash evaluates the text that is assigned to an integer variable such as ``RANDOM``: the text
``x[$(command)]`` would run a command. The line never has a variable of these kinds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..system.pattern import pattern

_NAME = pattern(r"(?!BASH|ZSH|zsh_)[A-Za-z_][A-Za-z0-9_]*")
# Bash, dash, BusyBox, ksh, mksh and zsh. Variables that programs use, too, are not here: PATH, HOME, LANG and others.
_USED_BY_SHELLS = frozenset(
    "ARGC ATTY CDPATH CHILD_MAX COLUMNS COMP_CWORD COMP_KEY COMP_LINE COMP_POINT COMP_TYPE COMP_WORDBREAKS "
    "COMP_WORDS COPROC DIRSTACK DIRSTACKSIZE EGID EMACS ENV EPOCHREALTIME EPOCHSECONDS ERRNO EUID EXECIGNORE FCEDIT "
    "FIGNORE FPATH FUNCNAME FUNCNEST GID GLOBIGNORE GLOBSORT GROUPS HISTCHARS HISTCMD HISTCONTROL HISTFILE "
    "HISTFILESIZE HISTIGNORE HISTSIZE HISTTIMEFORMAT HOSTFILE IFS IGNOREEOF INPUTRC JOBMAX KEYBOARD_HACK KEYTIMEOUT "
    "KSHEGID KSHGID KSHUID KSH_VERSION LINENO LINES LISTMAX LOGCHECK MAIL MAILCHECK MAILPATH MAPFILE NULLCMD OLDPWD "
    "OPTARG OPTERR OPTIND PGRP PIPESTATUS POSIXLY_CORRECT PPID PROMPT_COMMAND PROMPT_DIRTRIM PS0 PS1 PS2 PS3 PS4 "
    "PWD RANDOM READLINE_ARGUMENT READLINE_LINE READLINE_MARK READLINE_POINT READNULLCMD REPLY SAVEHIST SECONDS "
    "SHELLOPTS SHLVL SRANDOM TIMEFORMAT TMOUT TRY_BLOCK_ERROR TRY_BLOCK_INTERRUPT TTYIDLE UID USERNAME USER_ID _ "
    "argv auto_resume cdpath fignore fpath histchars mailpath manpath module_path options path pipestatus prompt "
    "psvar signals status".split()
)


class ShellLine:
    """Write the lines of one worker. Variables of the last call are removed, so the next call does not see them."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def line(self, variables: Mapping[str, str], own_environment: Mapping[str, str]) -> tuple[bytes, list[str]]:
        """Return the line of a call, and the names whose value the line cannot carry.

        If the previous call set a variable that this call does not set, the line restores the value of the worker's own
        environment, or removes the variable.

        Args:
            variables: the variables that the call adds to the environment of the worker.
            own_environment: the environment that the worker was started with.
        """
        values: dict[str, str] = {}
        left_out: list[str] = []
        for name, value in variables.items():
            if _can_carry(name, value):
                values[name] = value
            else:
                left_out.append(name)
        unset = []
        names = set(values)
        for name in sorted(self._names - names):
            own = own_environment.get(name)
            if own is None:
                unset.append(name)
            elif _can_carry(name, own):
                values[name] = own
            else:
                unset.append(name)
                left_out += [name] if name not in left_out else []
        self._names = names
        return _line(values, unset), left_out


def _can_carry(name: str, value: str) -> bool:
    if not _NAME.fullmatch(name) or name in _USED_BY_SHELLS or "\n" in value or "\0" in value:
        return False
    # Bash puts an extra \x01 before each \x01. After an incomplete character, it sometimes removes one \x01 too many.
    return "\x01" not in value or value.isascii()


def _line(values: Mapping[str, str], unset: list[str]) -> bytes:
    if not values:
        # `export` without a name would print all variables.
        values, unset = {"WATCHDOG_NOTHING": ""}, ["WATCHDOG_NOTHING", *unset]
    text = " ".join(f"{name}={_quoted(value)}" for name, value in values.items())
    if unset:
        text += "; unset -v " + " ".join(unset)
    return os.fsencode(text) + b"\n"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
