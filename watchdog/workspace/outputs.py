"""Hold the files that a script left, open them, and notice when they change."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import OutputUnreadable

# Characters of an output's name in an error.
_SHOWN_NAME = 300


@dataclass(frozen=True, slots=True)
class Output:
    """One regular file that a script left.

    ``path``: absolute, without symbolic links. ``name``: relative to ``TMP_OUTPUT_DIR``; bytes that are
    not UTF-8 stand in it as lone surrogates (:func:`os.fsdecode`). Characters that are not safe on every system are
    replaced. ``fd``: of the file, once it has no name any more (:func:`hold_outputs`).
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


@dataclass(slots=True)
class Listing:
    """What a script left.

    ``skipped``: name and reason of each entry that is not an output. ``renamed``: the new name of each output whose own
    name would leave its directory on another system.
    """

    outputs: list[Output] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


def hold_outputs(outputs: Sequence[Output]) -> list[Output]:
    """Open outputs and take their names away, so that no script finds them; return them with their descriptors.

    A hard link that the script made elsewhere stays.

    Raises:
        OutputUnreadable: as :func:`open_output`.
    """
    held: list[Output] = []
    try:
        for output in outputs:
            held.append(output.held_by(open_output(output)))
    except BaseException:
        release_outputs(held)
        raise
    for output in outputs:
        # Two outputs may be one file, by links.
        with contextlib.suppress(OSError):
            os.unlink(output.path)
    return held


def release_outputs(held: Iterable[Output]) -> None:
    """Close what :func:`hold_outputs` opened."""
    for output in held:
        os.close(output.fd)


def open_output(output: Output) -> int:
    """Open an output for reading and return its descriptor, at the file's begin.

    Of an output that is held only one descriptor may be read from at a time, except with ``pread``: they share their
    position.

    Raises:
        OutputUnreadable: it is gone, not readable, or not what it was when it was listed.
    """
    # O_NONBLOCK: a FIFO put in the file's place must not block the open.
    try:
        if output.fd >= 0:
            fd = os.dup(output.fd)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fd = os.open(output.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OutputUnreadable(f"cannot read the output {output.name!r}: {error.strerror}") from error
    try:
        raise_if_changed(fd, output)
    except OutputUnreadable:
        os.close(fd)
        raise
    return fd


def raise_if_changed(fd: int, output: Output) -> None:
    """Raise :class:`OutputUnreadable` if a file is not any more what it was when it was listed."""
    status = os.fstat(fd)
    is_same = status.st_size == output.size_bytes and status.st_mtime == output.mtime_s
    if not stat.S_ISREG(status.st_mode) or not is_same:
        raise OutputUnreadable(f"the output {output.name!r} changed after the script had ended")


def cannot_read(name: str, error: OSError) -> OutputUnreadable:
    return OutputUnreadable(f"cannot read the output {shortened(name)}: {error.strerror}")


def shortened(name: str) -> str:
    """Return a name for an error: of a path of thousands of characters the begin and the end."""
    return repr(name if len(name) <= _SHOWN_NAME else f"{name[: _SHOWN_NAME // 2]}…{name[-_SHOWN_NAME // 2 :]}")
