"""Read server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import AnswerBroken

# The server sends an output in pieces of half a megabyte. A longer event is not from this server.
_MOST_BYTES = 16 * 1024 * 1024
_LINE_BYTES = 48  # the memory for an object of Python, in addition to its bytes


class EventReader:
    """Makes events from bytes. Between two pieces it keeps only the current event."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._name = b""
        self._data: list[bytes] = []
        self._size_bytes = 0

    def feed(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the data of each event that is complete.

        Raises:
            AnswerBroken: an event is too long.
        """
        self._line += piece
        if b"\n" not in piece:  # no line ends here, so the long line of an output is not searched again and again
            self._check(len(self._line))
            return
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    yield self._name.decode("utf-8", "replace"), b"\n".join(self._data)
                self._name, self._data, self._size_bytes = b"", [], 0
            else:
                self._take(bytes(line))
        self._check(len(rest))

    def _check(self, line_bytes: int) -> None:
        if self._size_bytes + line_bytes > _MOST_BYTES:
            raise AnswerBroken(f"the service sent an event of over {_MOST_BYTES} bytes")

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        self._size_bytes += len(value) + _LINE_BYTES
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
