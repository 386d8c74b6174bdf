"""Find what makes the success of a call doubtful, although the script ended with exit code 0.

A script that fails shows this with its exit code. Some mistakes do not change the exit code: outputs in the wrong
directory, a program of a pipeline that the kernel killed, line ends of Windows. Then the answer has a warning, because
only the author of the script can know whether the result is right. A correct script must never get a warning.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

_MOST_NAMED = 3
# The largest number of entries that are read in one directory. More would take too long for a hint.
_MOST_ENTRIES = 1000


class CallWarning(msgspec.Struct, frozen=True):
    """A warning for the caller.

    ``name``: short ASCII without commas, for the header ``X-Warning``. ``detail``: what happened and what to do.
    """

    name: str
    detail: str


NO_OUTPUT = CallWarning(
    "no-output",
    "the script left no file in TMP_OUTPUT_DIR and printed nothing, so the answer is empty; "
    'write the outputs to "$TMP_OUTPUT_DIR"',
)
OUT_OF_MEMORY = CallWarning(
    "out-of-memory",
    "while the script ran, the kernel killed a process of this container because there was no memory left, but the "
    "script ended with exit code 0; its outputs may be incomplete, unless the process was part of another call; give "
    "the container more memory, process less data at a time, or let the script stop at errors (set -e -o pipefail)",
)
STILL_WORKING = CallWarning(
    "still-working",
    "processes of the script still worked when linger_timeout had passed after its exit, so the server ended them; the "
    "outputs may be incomplete; let the script wait for its processes (wait), or raise linger_timeout",
)
CRLF = CallWarning(
    "crlf",
    "the script ended with exit code 0, but its lines end as on Windows (CRLF), which no shell understands, so its "
    "commands got wrong arguments; convert it with dos2unix",
)

BYTE_ORDER_MARK = CallWarning(
    "byte-order-mark",
    "the script ended with exit code 0, but it begins with a byte order mark; a shell reads the mark as a part of the "
    "first command and does not run it; save the script as UTF-8 without BOM",
)


def no_space(directory: str) -> CallWarning:
    """Return the warning that the file system of the workspaces is full."""
    return CallWarning(
        "no-space",
        f"no space is left in {directory}, so outputs may be incomplete; give it more space, or lower max_inflight",
    )


def outputs_skipped(count: int) -> CallWarning:
    """Return the warning that some entries of ``TMP_OUTPUT_DIR`` are not in the answer."""
    what = "1 entry" if count == 1 else f"{count} entries"
    why = (
        "is not in the answer, because it is not a file"
        if count == 1
        else "are not in the answer, because they are not files"
    )
    return CallWarning(
        "outputs-skipped",
        f"{what} of TMP_OUTPUT_DIR {why} in this directory; the log names each",
    )


def files_elsewhere(input_dir: str, since_ns: int) -> CallWarning | None:
    """Look for files that a script without outputs wrote to ``TMP_INPUT_DIR`` or to its working directory.

    This reads both directories, which may take a while, so call it in a thread.

    Args:
        since_ns: when the script was started, in nanoseconds since 1970. Files of its first milliseconds may be missed,
            because file systems use a coarse clock.

    Returns:
        None if no such file is found, or if the directories cannot be read.
    """
    # All calls share the working directory, and its folders change for many reasons. For example, the
    # working directory may be "/", and /tmp changes often.
    found = list(_written("TMP_INPUT_DIR", input_dir, since_ns, with_folders=True))
    with contextlib.suppress(OSError):
        found += _written(f"the working directory {os.getcwd()}", ".", since_ns, with_folders=False)
    if not found:
        return None
    named = ", ".join(f"{name!r} in {where}" for name, where in found[:_MOST_NAMED])
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return CallWarning(
        "files-elsewhere",
        f"files were written while the script ran, but none to TMP_OUTPUT_DIR: {named}{more}; "
        'if they are outputs, write them to "$TMP_OUTPUT_DIR"',
    )


def _written(where: str, directory: str, since_ns: int, *, with_folders: bool) -> Iterator[tuple[str, str]]:
    """Yield the name of each visible file that was written since ``since_ns``, followed by ``where``."""
    logs_of_this_server = set()
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            logs_of_this_server.add((status.st_dev, status.st_ino))
    try:
        with os.scandir(directory) as entries:
            names = sorted(
                entry.name
                for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)
                if not entry.name.startswith(".") and _is_new(entry, since_ns, logs_of_this_server, with_folders)
            )
    except OSError:
        return
    yield from ((name, where) for name in names)


def _is_new(entry: os.DirEntry[str], since_ns: int, excluded: set[tuple[int, int]], with_folders: bool) -> bool:
    try:
        if not entry.is_file(follow_symlinks=False) and not (with_folders and entry.is_dir(follow_symlinks=False)):
            return False
        status = entry.stat(follow_symlinks=False)
    except OSError:  # the file is gone
        return False
    # Compare the time of the last change of the content: an input that the script only renamed is not a new file.
    return status.st_mtime_ns > since_ns and (status.st_dev, status.st_ino) not in excluded
