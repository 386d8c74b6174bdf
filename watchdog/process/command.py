"""Find what to run: the script of an image, its first line, its interpreter."""

from __future__ import annotations

import errno
import os
import re
import shlex
import time

from ..errors import ScriptUnavailable
from ..system.files import open_regular, raise_if_no_descriptor
from ..system.pattern import pattern
from .byte_order_mark import has_mark, refuse_utf16, without_mark

# If the last change of a file was more than this number of seconds ago, a further change gives the file a different
# timestamp. Some file systems store timestamps in whole seconds only.
_SETTLED_S = 2.0
# This number of bytes is enough to see how the lines of a script end.
_START_BYTES = 4096
CRLF_HINT = "its lines end as on Windows (CRLF), which no shell understands: convert it with dos2unix"
_SHELL = pattern(rb"(?:[^\s/]*/)*(?:a|ba|c|da|fi|k|mk|o|tc|ya|z)?sh")


def command_for(script_path: str, path: str) -> list[str]:
    """Return the command that runs a script: with the interpreter of its first line (``#!``), or else with ``/bin/sh``.

    The script need not be executable.

    Args:
        script_path: an existing file.
        path: the script's ``PATH``. If the path of the interpreter does not exist, the interpreter's name is looked up
            in ``PATH``.

    Raises:
        ScriptUnavailable: the script cannot be read or is UTF-16 text, or its interpreter does not exist.
        OutOfResources: no descriptor is free.
    """
    try:
        with open(open_regular(script_path), "rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise_if_no_descriptor(error, f"the script {script_path} cannot be read")
        raise ScriptUnavailable(_script_unreadable(script_path, error)) from None
    if start.startswith(b"\x7fELF"):
        if not os.access(script_path, os.X_OK):
            raise ScriptUnavailable(f"{script_path} is a program but not executable; run chmod +x on it in the image")
        return [script_path]
    refuse_utf16(start, script_path)
    start = without_mark(start)
    if not start.startswith(b"#!"):
        return [_interpreter("/bin/sh", path, script_path), script_path]
    try:
        return _command_of_shebang(start, script_path, path)
    except ValueError as error:  # the line has a NUL, or a quotation without its end
        raise ScriptUnavailable(f"the first line of {script_path} cannot be understood: {error}") from None


def is_shell_script(start: bytes) -> bool:
    """Return whether a shell runs the script that begins with these bytes: the first line says so, or has no ``#!``."""
    if start.startswith(b"\x7fELF"):
        return False
    start = without_mark(start)
    if not start.startswith(b"#!"):
        return True
    return any(_SHELL.fullmatch(word) for word in start[2:].partition(b"\n")[0].split())


def has_crlf(start: bytes) -> bool:
    """Return whether this is a shell script whose lines end as on Windows.

    In a correct script, some lines may end like this, such as the lines of a here-document. The first line of the
    script never ends like this.
    """
    if not start.partition(b"\n")[0].endswith(b"\r") or not is_shell_script(start):
        return False
    return start.count(b"\r\n") * 2 > start.count(b"\n")


class Script:
    """A script file. Its command is determined again when the file has changed.

    ``has_crlf``, ``has_mark``: the results of ``has_crlf()`` and ``has_mark()`` for the file of the last command.
    ``state``: what the file system said about the file of the last command. It differs if the file has changed.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: str) -> None:
        self.has_crlf = self.has_mark = False
        self.state: tuple[object, ...] = ()
        self._path = path
        self._known: tuple[tuple[object, ...], list[str]] | None = None

    def current_state(self) -> tuple[object, ...]:
        """Return what the file system says about the file now; () if there is no file."""
        try:
            return _state_of(os.stat(self._path))
        except OSError:
            return ()

    def command(self, path: str) -> list[str]:
        """Do the same as :func:`command_for`. If nothing has changed, this takes only two system calls."""
        try:
            status = os.stat(self._path)
        except OSError:
            self.state = ()
            return command_for(self._path, path)
        self.state = _state_of(status)
        state = (path, *self.state)
        if self._known is not None and self._known[0] == state and os.access(self._known[1][0], os.X_OK):
            return self._known[1]
        command = command_for(self._path, path)
        start = read_start(self._path)
        self.has_crlf, self.has_mark = has_crlf(start), has_mark(start)
        # Two changes in the same clock tick give a file the same time. So the command is not remembered if the file has
        # just changed.
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S:
            self._known = (state, command)
        return command


def _state_of(status: os.stat_result) -> tuple[object, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def read_start(path: str) -> bytes:
    """Return the first 4 KiB of a script; b"" if it cannot be read."""
    try:
        fd = open_regular(path)
    except OSError:
        return b""
    try:
        return os.read(fd, _START_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)


def found_command(words: list[str], path: str) -> list[str]:
    """Return a command in which the path of the program replaces its name, as in a shell.

    Args:
        words: the program and its arguments: at least one word.
        path: the command's ``PATH``.

    Raises:
        ScriptUnavailable: the program does not exist, or is not executable.
    """
    import shutil

    name = words[0]
    found = shutil.which(name, path=path)
    if found is not None:
        return [found, *words[1:]]
    where = "is not an executable file" if "/" in name else f"is in no directory of the PATH {path!r}"
    raise ScriptUnavailable(f"the command {name} of fprocess {where}; install it in the image or change fprocess")


def _command_of_shebang(start: bytes, script_path: str, path: str) -> list[str]:
    # An editor on Windows leaves a carriage return, which would become a part of the interpreter's name.
    words = os.fsdecode(start[2:].split(b"\n", 1)[0].strip()).split(None, 1)
    if not words:
        raise ScriptUnavailable(f"the first line of {script_path} is an empty #!; name an interpreter after it")
    name, argument = words[0], words[1:]
    found = _found_interpreter(name, path)
    if found is None and os.path.basename(name) == "env" and argument:
        # The image has no `env`: do the same as `env`.
        name, *rest = shlex.split(re.sub(r"^-S\s*", "", argument[0])) or [name]
        return [_interpreter(name, path, script_path), *rest, script_path]
    return [found or _interpreter(name, path, script_path), *argument, script_path]


def _script_unreadable(script_path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return (
            f"there is no script at {script_path}; copy or mount one there, name another with script_path, "
            "or give its text as base64 in SCRIPT"
        )
    if error.errno == errno.EISDIR:
        return (
            f"{script_path} is a directory, not a script; `docker run -v` makes a directory when the file "
            "to mount does not exist on the host"
        )
    return f"the script {script_path} cannot be read: {error.strerror}"


def _interpreter(name: str, path: str, script_path: str) -> str:
    found = _found_interpreter(name, path)
    if found is None:
        raise ScriptUnavailable(
            f"the interpreter {name} of {script_path} is not in this image, and {os.path.basename(name)!r} is not in "
            f"its PATH {path!r}; install it or change the script's first line"
        )
    return found


def _found_interpreter(name: str, path: str) -> str | None:
    if "/" in name and os.access(name, os.X_OK) and os.path.isfile(name):
        return name
    for directory in path.split(os.pathsep):
        candidate = os.path.join(directory or ".", os.path.basename(name))
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    return None
