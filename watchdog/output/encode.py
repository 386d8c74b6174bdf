"""Read and encode the bytes of an answer, a piece at a time: files, stdout and base64."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

import pybase64

from ..errors import OutputUnreadable
from ..workspace.outputs import Output, cannot_read, open_output, raise_if_changed, shortened
from ..workspace.spool import KeptStream

# A multiple of 3, so that base64 of a piece needs no padding and the next piece can follow.
_PIECE_BYTES = 384 * 1024
# Bytes that a thread reads in the first pass before it checks whether the caller is still connected.
_STEP_BYTES = 4 * 1024 * 1024
_OPEN_COST_BYTES = 16 * 1024


def read_output(output: Output) -> Generator[bytes, None, None]:
    """Yield the bytes of a file in pieces of exactly ``_PIECE_BYTES``. Only the last piece may be shorter.

    The number of bytes is the size that the file had when it was listed.
    """
    is_held = output.fd >= 0
    fd = output.fd if is_held else open_output(output)
    try:
        at = 0
        while at < output.size_bytes:
            piece = _read_piece(fd, min(_PIECE_BYTES, output.size_bytes - at), at, output)
            if not piece:
                raise OutputUnreadable(f"the output {shortened(output.name)} became shorter after the script had ended")
            at += len(piece)
            if at == output.size_bytes:
                # Check before the last piece is sent. Until then the server can still end the answer early, and the
                # caller notices that bytes are missing.
                raise_if_changed(fd, output)
            yield piece
    finally:
        if not is_held:
            os.close(fd)


def _read_piece(fd: int, size_bytes: int, at: int, output: Output) -> bytes:
    """Return ``size_bytes`` bytes of a file, or fewer if the file ends earlier."""
    try:
        data = os.pread(fd, size_bytes, at)
        while 0 < len(data) < size_bytes and (more := os.pread(fd, size_bytes - len(data), at + len(data))):
            data += more
        return data
    except OSError as error:
        raise cannot_read(output.name, error) from error


def read_stdout(stdout: KeptStream) -> Generator[bytes, None, None]:
    left = stdout.size_bytes
    try:
        for piece in stdout.pieces(_PIECE_BYTES):
            left -= len(piece)
            if left < 0:
                break
            yield piece
    except OSError as error:
        raise OutputUnreadable(f"cannot read the script's stdout back: {error.strerror}") from error
    if left:
        raise OutputUnreadable("the script's stdout changed after the script had ended")


def filled(parts: Iterable[bytes | Output], read: Callable[[Output], Iterator[bytes]]) -> Generator[bytes, None, None]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            yield from read(part)


def regrouped(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """Yield the same bytes in pieces of exactly ``_PIECE_BYTES``. Only the last one may be shorter."""
    held: list[bytes] = []
    held_bytes = 0
    for piece in pieces:
        if not held and len(piece) == _PIECE_BYTES:
            yield piece
            continue
        held.append(piece)
        held_bytes += len(piece)
        if held_bytes >= _PIECE_BYTES:
            joined = b"".join(held)
            end = held_bytes - held_bytes % _PIECE_BYTES
            for start in range(0, end, _PIECE_BYTES):
                yield joined[start : start + _PIECE_BYTES]
            held = [joined[end:]] if end < held_bytes else []
            held_bytes -= end
    if held_bytes:
        yield b"".join(held)


def as_base64(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """Yield base64 of pieces of ``_PIECE_BYTES``. Only base64 of a shorter last piece may have padding."""
    for piece in pieces:
        yield pybase64.b64encode(piece)


def base64_length(size_bytes: int) -> int:
    return (size_bytes + 2) // 3 * 4


class _Checksum(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def take_checksums(
    outputs: Iterable[Output], kind: Callable[[], _Checksum], checksums: list[str]
) -> Generator[bool, None, None]:
    step_bytes = 0
    for output in outputs:
        checksum = kind()
        for piece in read_output(output):
            checksum.update(piece)
            step_bytes += len(piece)
            if step_bytes >= _STEP_BYTES:
                step_bytes = 0
                yield True
        # It takes about as long to open and close a file as to read this number of bytes.
        step_bytes += _OPEN_COST_BYTES
        checksums.append(checksum.hexdigest())
