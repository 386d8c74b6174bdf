"""`watchdog init`: write a first function into a directory, beside the files that are there already."""

from __future__ import annotations

import contextlib
import os
import shlex

from ..errors import WatchdogError
from ..logs.text import printable
from ..system import standard_output
from ..system.nameless_file import copy_part, link, open_nameless, write_all

# The mode of each file. The umask is applied to it.
_MODES = {"script.sh": 0o777, "function_config.yaml": 0o666, "Dockerfile": 0o666, "README.md": 0o666}
_TEMPLATES = os.path.join(os.path.dirname(__file__), "first_function")


def init(directory: str) -> int:
    """Write the files that do not exist yet, and print a list of all files. Return the exit code 0.

    Raises:
        WatchdogError: a file cannot be written. Then no file is left that this command wrote.
    """
    is_new = not os.path.isdir(directory)
    written: list[str] = []
    kept: list[str] = []
    path = directory
    try:
        os.makedirs(directory, exist_ok=True)
        for name, mode in _MODES.items():
            path = os.path.join(directory, name)
            with open(os.path.join(_TEMPLATES, name), "rb") as template:
                text = template.read()
            (written if _write_new(path, text, mode) else kept).append(path)
    except OSError as error:
        _take_back(written, directory if is_new else None)
        raise WatchdogError(
            f"{_shown(path)} cannot be written: {error.strerror}; no file was written; choose another directory"
        ) from error
    for each in written:
        standard_output.write_line(f"wrote {_shown(each)}")
    for each in kept:
        standard_output.write_line(f"kept {_shown(each)}, which exists already")
    go_there = "" if os.path.samefile(directory, ".") else f"cd {shlex.quote(directory)} && "
    standard_output.write_line(f"\nTry it: {printable(go_there)}watchdog run README.md -o report.txt")
    return 0


def _take_back(written: list[str], new_directory: str | None) -> None:
    with contextlib.suppress(OSError):
        for each in written:
            os.unlink(each)
        if new_directory is not None:
            os.rmdir(new_directory)


def _shown(path: str) -> str:
    return printable(os.path.normpath(path))


def _write_new(path: str, data: bytes, mode: int) -> bool:
    """Write a file as a whole, if nothing has its name yet. Return whether it was written."""
    if os.path.lexists(path):
        return False
    fd = open_nameless(os.path.dirname(path) or ".", mode)
    try:
        write_all(fd, data)
        if not link(fd, path):
            _copy(fd, len(data), path, mode)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
    return True


def _copy(fd: int, size_bytes: int, path: str, mode: int) -> None:
    """Copy the file to its name, on a file system that cannot give a name to a nameless file."""
    try:
        copy_part(fd, 0, size_bytes, path, mode)
    except FileExistsError:
        raise
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
