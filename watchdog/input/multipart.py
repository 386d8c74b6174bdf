"""Write the files of a multipart form into input files."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from ..errors import BadInput, quoted
from ..system.base64_reader import Base64Reader, ByteSink
from ..system.pattern import pattern
from ..workspace.file_name import new_file_name, safe_file_name
from .content_disposition import decoded_name
from .files import Files
from .readers import Raw, Reader

_MOST_FIELDS = 10_000
_EXTENDED_FILENAME = pattern(r";\s*filename\*\s*=\s*([\w-]+)'[\w-]*'([^;\s\"]+)", re.IGNORECASE | re.ASCII)


class Multipart:
    """Reads ``multipart/form-data``. Each part becomes a file with the part's file name, or else its field name."""

    def __init__(self, files: Files, boundary: str) -> None:
        if not boundary:
            raise BadInput("the content type multipart/form-data has no boundary; let the client set it (curl -F)")
        if not boundary.isascii():
            raise BadInput(f"the boundary {quoted(boundary)} of the form is not ASCII; let the client set it (curl -F)")
        self._files = files
        self._parser = PushMultipartParser(
            boundary, max_header_size=8192, max_header_count=32, max_segment_count=_MOST_FIELDS
        )
        self._part: Reader | None = None

    def feed(self, data: bytes) -> None:
        try:
            # Bytes after the last boundary are ignored. The parser would raise an error for them.
            if data and not self._parser.closed:
                for event in self._parser.parse(data):
                    self._take(event)
        except MultipartError as error:
            raise BadInput(f"the multipart form is malformed: {error}") from None

    def finish(self) -> None:
        try:
            if not self._parser.closed:
                self._parser.close()
        except MultipartError as error:
            raise BadInput(f"the multipart form is malformed or cut off: {error}") from None

    def _take(self, event: MultipartSegment | bytearray | bytes | None) -> None:
        if event is None:
            if self._part is not None:
                self._part.finish()
            self._part = None
        elif isinstance(event, MultipartSegment):
            self._part = self._open(event)
        elif self._part is not None:
            self._part.feed(bytes(event))

    def _open(self, part: MultipartSegment) -> Reader | None:
        filename = _extended_filename(part.header("Content-Disposition") or "")
        filename = part.filename if filename is None else filename
        is_file = filename is not None
        name = safe_file_name(filename or ("" if is_file else part.name) or "") or new_file_name()
        if filename == "":
            return _UnlessEmpty(lambda: Raw(self._files.create(name)))
        file = self._files.create(name, is_field=not is_file)
        transfer_encoding = (part.header("Content-Transfer-Encoding") or "binary").strip().lower()
        if transfer_encoding == "base64":
            return _Base64Part(file, f"the part {name!r}")
        if transfer_encoding in ("7bit", "8bit", "binary"):
            return Raw(file)
        raise BadInput(
            f"the part {name!r} has the transfer encoding {quoted(transfer_encoding)}; use binary, 8bit, 7bit or base64"
        )


class _Base64Part:
    """Reads base64 in a part of a form. A byte order mark at the start is skipped, as in a body."""

    def __init__(self, file: ByteSink, where: str) -> None:
        self._file = file
        self._where = where
        self._start = b""
        self._reader: Base64Reader | None = None

    def feed(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(data)
            return
        self._start += data
        if len(self._start) >= len(BOM_UTF8):
            self._open().feed(self._start.removeprefix(BOM_UTF8))

    def finish(self) -> None:
        reader = self._reader
        if reader is None:
            reader = self._open()
            reader.feed(self._start)
        reader.finish()

    def _open(self) -> Base64Reader:
        offset = len(BOM_UTF8) if self._start.startswith(BOM_UTF8) else 0
        self._reader = Base64Reader(self._file, offset, where=self._where)
        return self._reader


class _UnlessEmpty:
    """Creates a file only if a byte arrives: a browser sends an empty file field if the user chose no file."""

    def __init__(self, make: Callable[[], Reader]) -> None:
        self._make = make
        self._reader: Reader | None = None

    def feed(self, data: bytes) -> None:
        if self._reader is None:
            self._reader = self._make()
        self._reader.feed(data)

    def finish(self) -> None:
        if self._reader is not None:
            self._reader.finish()


def _extended_filename(disposition: str) -> str | None:
    """Return the ``filename*`` of a part (RFC 8187); None if there is none.

    .NET and older Python clients send it for names that are not ASCII.
    """
    if not (found := _EXTENDED_FILENAME.search(disposition)):
        return None
    charset, encoded = found.groups()
    return decoded_name(charset, encoded, disposition)
