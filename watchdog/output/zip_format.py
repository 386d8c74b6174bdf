"""Write a ZIP archive whose length is known before its first byte."""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator

from ..workspace.outputs import Output

_STORED = 0
_UTF8_NAME = 0x800
_MADE_ON_UNIX = 3 << 8
_NEEDS_PLAIN, _NEEDS_ZIP64 = 20, 45
# In a field, these values mean "see the Zip64 record". A number that is equal to such a value or
# larger needs this record.
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
# Later than all DOS dates, and early enough for localtime(3) on every system.
_LAST_TIME_S = 4_500_000_000.0


def zip_parts(outputs: Iterable[Output], crcs: Iterable[int]) -> Iterator[bytes | Output]:
    """Yield the records of a ZIP, and between them the files whose bytes belong there.

    The fields are those of PKWARE's APPNOTE 6.3.10. Zip64 records are written only if a number needs them. Sizes and
    CRC-32 come before the data, because Java's ZipInputStream refuses stored entries that have them after the data.
    """
    central: list[tuple[Output, int, int]] = []
    offset = 0
    for output, crc in zip(outputs, crcs, strict=True):
        central.append((output, crc, offset))
        header = _local_header(output, crc)
        offset += len(header) + output.size_bytes
        yield header
        yield output
    start = offset
    for entry in central:
        header = _central_header(*entry)
        offset += len(header)
        yield header
    yield _end_of_zip(len(central), start, offset - start)


def _local_header(output: Output, crc: int) -> bytes:
    name, flags = _zip_name(output.name)
    date, clock = _dos_time(output.mtime_s)
    size, needs, extra = output.size_bytes, _NEEDS_PLAIN, b""
    if size >= _MAX_32:
        needs, extra = _NEEDS_ZIP64, struct.pack("<HHQQ", 1, 16, size, size)
        size = _MAX_32
    record = struct.pack(
        "<4s5H3I2H",
        *(b"PK\3\4", needs, flags, _STORED, clock, date, crc, size, size, len(name), len(extra)),
    )
    return record + name + extra


def _central_header(output: Output, crc: int, offset: int) -> bytes:
    name, flags = _zip_name(output.name)
    date, clock = _dos_time(output.mtime_s)
    size, needs, extra = output.size_bytes, _NEEDS_PLAIN, b""
    if size >= _MAX_32 or offset >= _MAX_32:
        # Write all three numbers, even if one is enough: after a file of exactly 0xFFFFFFFF bytes, Info-ZIP 6.0 reads a
        # single offset as a size.
        needs, extra = _NEEDS_ZIP64, struct.pack("<HHQQQ", 1, 24, size, size, offset)
        size = offset = _MAX_32
    mode = stat.S_IFREG | stat.S_IMODE(output.mode)
    record = struct.pack(
        "<4s6H3I5H2I",
        *(b"PK\1\2", _MADE_ON_UNIX | needs, needs, flags, _STORED, clock, date, crc, size, size),
        *(len(name), len(extra), 0, 0, 0, mode << 16, offset),
    )
    return record + name + extra


def _end_of_zip(count: int, start: int, size: int) -> bytes:
    """Return the end record. ``start`` and ``size``: the offset and the size of the central directory, in bytes."""
    zip64 = b""
    if count >= _MAX_16 or start >= _MAX_32 or size >= _MAX_32:
        made, needs = _MADE_ON_UNIX | _NEEDS_ZIP64, _NEEDS_ZIP64
        zip64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, made, needs, 0, 0, count, count, size, start) + struct.pack(
            "<4sIQI", b"PK\6\7", 0, start + size, 1
        )
    count, start, size = min(count, _MAX_16), min(start, _MAX_32), min(size, _MAX_32)
    return zip64 + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)


def _zip_name(name: str) -> tuple[bytes, int]:
    """Return the bytes and the flags of a name. A name that is not UTF-8 keeps its bytes and has no flag."""
    raw = os.fsencode(name)
    if raw.isascii():
        return raw, 0
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw, 0
    return raw, _UTF8_NAME


def _dos_time(mtime_s: float) -> tuple[int, int]:
    """Return the date and the time of day as the format has them: local, in steps of two seconds, from 1980 to 2107."""
    local = time.localtime(min(max(mtime_s, 0.0), _LAST_TIME_S))
    if local.tm_year < 1980:
        return 1 << 5 | 1, 0
    if local.tm_year > 2107:
        return 127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29
    date = (local.tm_year - 1980) << 9 | local.tm_mon << 5 | local.tm_mday
    return date, local.tm_hour << 11 | local.tm_min << 5 | min(local.tm_sec, 59) // 2
