"""Describe the files that a script left, open them, and check that they have not changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

import msgspec

from ..errors import OutputUnreadable
from ..system.files import raise_if_no_descriptor

# The largest number of characters of an output's name in an error message.
_SHOWN_NAME = 300


class Output(msgspec.Struct, frozen=True):
    """One regular file that a script left.

    Attributes:
        path: the absolute path, without symbolic links.
        name: the path relative to ``TMP_OUTPUT_DIR``. Bytes that are not UTF-8 are lone surrogates
            (:func:`os.fsdecode`). Characters that are not safe on every system are replaced.
        fd: the descriptor of the file after :func:`hold_outputs` has removed its name; -1 before.
    """

    path: str
    name: str
    size_bytes: int
    mtime_s: float
    mode: int
    fd: int = -1

    def held_by(self, fd: int) -> Output:
        """Return the same output with its descriptor."""
        return Output(self.path, self.name, self.size_bytes, self.mtime_s, self.mode, fd)


def size_of(outputs: Sequence[Output]) -> int:
    """Return the number of bytes of all outputs together."""
    if len(outputs) == 1:  # the usual case
        return outputs[0].size_bytes
    return sum(output.size_bytes for output in outputs)


def hold_outputs(outputs: Sequence[Output]) -> list[Output]:
    """Open outputs and remove their names, so that no script can find them. Return them with their descriptors.

    If the script made another hard link to an output, that link stays.

    Raises:
        OutputUnreadable, OutOfResources: for the same reasons as in :func:`open_output`.
    """
    held: list[Output] = []
    try:
        for output in outputs:
            held.append(output.held_by(open_output(output)))
    except BaseException:
        release_outputs(held)
        raise
    for output in outputs:
        # Two outputs may be the same file, because of links. The second removal fails then.
        try:
            os.unlink(output.path)
        except OSError:
            continue
    return held


def release_outputs(held: Iterable[Output]) -> None:
    """Close the descriptors that :func:`hold_outputs` opened."""
    for output in held:
        os.close(output.fd)


def open_output(output: Output) -> int:
    """Open an output for reading and return its descriptor, at the beginning of the file.

    All descriptors of an output of :func:`hold_outputs` share one position. So only one of them may be read at a time,
    except with ``pread``.

    Raises:
        OutputUnreadable: the file is gone or not readable, or has changed since it was listed.
        OutOfResources: no descriptor is free.
    """
    try:
        if output.fd >= 0:
            fd = os.dup(output.fd)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            # With O_NONBLOCK, this does not wait if the script has put a FIFO in the place of the file.
            fd = os.open(output.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise cannot_read(output.name, error) from error
    try:
        raise_if_changed(fd, output)
    except BaseException:
        os.close(fd)
        raise
    return fd


def raise_if_changed(fd: int, output: Output) -> None:
    """Raise :class:`OutputUnreadable` if a file has changed since it was listed."""
    status = os.fstat(fd)
    is_same = status.st_size == output.size_bytes and status.st_mtime == output.mtime_s
    if not stat.S_ISREG(status.st_mode) or not is_same:
        raise OutputUnreadable(f"the output {shortened(output.name)} changed after the script had ended")


def cannot_read(name: str, error: OSError) -> OutputUnreadable:
    """Return the error of an output. If it cannot be read because no descriptor is free, raise another error."""
    failure = f"cannot read the output {shortened(name)}"
    raise_if_no_descriptor(error, failure)
    return OutputUnreadable(f"{failure}: {error.strerror}")


def shortened(name: str) -> str:
    """Return a name for an error message. For a very long path, this is only the beginning and the end of it."""
    return repr(name if len(name) <= _SHOWN_NAME else f"{name[: _SHOWN_NAME // 2]}…{name[-_SHOWN_NAME // 2 :]}")
