r"""The answers that a worker writes to fd 4, and the line of JSON that it reads for a call from fd 3.

A worker writes these lines::

    ready | ready sh | ready fork          it has loaded, and can take a call
    progress F | progress F any text       how much of the call is done, from 0 to 1
    done | done N                          the call has ended with the exit code N, from 0 to 255; without N: 0

A line has at most 4096 bytes with its newline. It may end with ``\r\n``, as in a script that was written on Windows.
Any other line is an error, because the server then does not know which call the worker serves.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..errors import quoted
from ..logs.progress_line import LONGEST_LINE_BYTES, Progress, progress_of
from ..system.pattern import pattern

_DONE = pattern(rb"done(?: ([0-9]{1,3}))?")


class Ready(msgspec.Struct, frozen=True):
    """The worker can take a call.

    ``dialect``: the form of the lines that it reads. ``forks``: it runs each call in a child process of its own.
    """

    dialect: Literal["json", "sh"] = "json"
    forks: bool = False


class Done(msgspec.Struct, frozen=True):
    """The call has ended."""

    exit_code: int = 0


class ProtocolError(Exception):
    """The worker wrote something that is not an answer. The text quotes the beginning of it."""


Answer = Ready | Progress | Done
_READY = {b"ready": Ready(), b"ready sh": Ready(dialect="sh"), b"ready fork": Ready(forks=True)}


class AnswerLines:
    """Read answers from the bytes of fd 4, which may be cut anywhere.

    A line that is not an answer ends the reading. Its ``ProtocolError`` is not raised: it is the last element of the
    returned list, after the answers that came before the wrong line. ``feed`` then ignores all bytes.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._has_failed = False

    def feed(self, data: bytes) -> list[Answer | ProtocolError]:
        """Return the answers that end in ``data``. If a line is wrong, the last element is an error."""
        answers: list[Answer | ProtocolError] = []
        begin = 0
        while begin < len(data) and not self._has_failed:
            room_bytes = LONGEST_LINE_BYTES - len(self._line)
            end = data.find(b"\n", begin, begin + room_bytes)
            if end >= 0:
                line = bytes(self._line) + data[begin:end]
                self._line.clear()
                answers.append(self._answer(line))
                begin = end + 1
            elif len(data) - begin >= room_bytes:
                answers.append(self._error(bytes(self._line) + data[begin : begin + room_bytes], "is too long"))
            else:
                self._line += data[begin:]
                break
        return answers

    def end(self) -> ProtocolError | None:
        """Return an error if fd 4 was closed within a line."""
        return self._error(bytes(self._line), "has no newline at its end") if self._line else None

    def _answer(self, line: bytes) -> Answer | ProtocolError:
        text = line.removesuffix(b"\r")
        if (ready := _READY.get(text)) is not None:
            return ready
        if (match := _DONE.fullmatch(text)) and (exit_code := int(match[1] or 0)) <= 255:
            return Done(exit_code)
        if (progress := progress_of(text)) is not None:
            return progress
        return self._error(line, "is not an answer")

    def _error(self, line: bytes, why: str) -> ProtocolError:
        self._has_failed = True
        self._line.clear()
        shown = quoted(line.decode("utf-8", "surrogateescape"))
        return ProtocolError(
            f"the worker wrote the line {shown} to fd 4, which {why}; a line has at most {LONGEST_LINE_BYTES} bytes "
            "and is `ready`, `ready sh`, `ready fork`, `progress F` or `progress F TEXT` with F from 0 to 1, `done`, "
            "or `done N` with N from 0 to 255"
        )


def json_line(call_id: str, deadline_s: float | None, variables: dict[str, str]) -> bytes:
    r"""Return the line of a call for a worker that said ``ready`` or ``ready fork``.

    The line has only ASCII characters. A byte that is not UTF-8 is a lone surrogate (``\udc80``), as in Python's
    ``os.environ``.

    Args:
        deadline_s: when the time of the call is over, in seconds since 1970; None if the time is not limited.
        variables: the variables that the call adds to the environment of the worker.
    """
    call = {"call_id": call_id, "deadline": deadline_s, "env": variables}
    try:
        line = msgspec.json.encode(call)
    except UnicodeEncodeError:  # a lone surrogate
        line = None
    if line is None or not line.isascii():
        # msgspec needs a tenth of the time, but cannot write this line. Few calls need the module.
        import json

        line = json.dumps(call, separators=(",", ":")).encode()
    return line + b"\n"
