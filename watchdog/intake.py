"""A request's body becomes the input file.

The body passes four rooms, none of which waits for anything or grows with the body::

    bytes -> _Inflater (gzip, deflate) -> _decide (the first 4 KiB) -> Base64Reader | _Raw | Form | _Multipart -> file

:class:`Receiver` consists of these rooms. Feed it bytes: it reads nothing itself, and writes only the file.
:func:`take_in` feeds it from a stream, small bodies at once, large ones in a thread.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from .base64_reader import ARMOUR, Base64Reader, Sink, armour_error
from .content_disposition import decoded_name
from .errors import BadInput, InputTooLarge, quoted
from .form import Form, FormText
from .held_input import HeldFile, HeldInput
from .threads import settled, to_its_end
from .workspace import safe_file_name

_T = TypeVar("_T")

ENCODINGS = ("base64", "raw", "json")

_HEAD_BYTES = 4096
# Below this the hand-over to a thread costs more than the work.
_INLINE_BYTES = 64 * 1024
_BATCH_BYTES = 1024 * 1024
_MOST_FIELDS = 10_000

_BOM = b"\xef\xbb\xbf"
_DATA_URL = re.compile(rb"\s*data:[^,\"]{0,500};base64,", re.IGNORECASE)
_QUOTE = re.compile(rb'\s*="')
_EXTENDED_FILENAME = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[\w-]*'([^;\s\"]+)", re.IGNORECASE | re.ASCII)
_JSON_START = re.compile(rb"\s*[{\[]")
_FORM_START = re.compile(rb"(?!#!)[^=&\x00-\x1f\"<]+=")

# Types that clients send whatever the body is. Any other type says what the body is, so the body is raw bytes.
_BASE64_TYPES = frozenset(
    {"", "text/plain", "application/x-www-form-urlencoded", "application/json", "application/octet-stream"}
)
_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "application/json"})


@dataclass(frozen=True, slots=True)
class Said:
    """What the caller says of the body.

    ``content_type``: the whole header value. ``content_encoding``: its value or "". ``encoding``: what
    ``?input=`` or ``X-Input-Encoding`` ask for. ``file_name``: as given, not yet safe.
    """

    content_type: str = ""
    content_encoding: str = ""
    encoding: str | None = None
    file_name: str | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """What the script gets.

    ``name``: of the file, or "" if a form had several. ``size_bytes``: of all.
    ``encoding``: how the body was read: ``base64``, ``raw``, ``json``, ``form`` or ``multipart``.
    """

    name: str
    size_bytes: int
    encoding: str = "raw"


async def take_in(body: AsyncIterator[bytes], said: Said, held: HeldInput, max_size_bytes: int = 0) -> Input:
    """Read a body into the files of ``held``.

    Args:
        body: pieces of any size.
        max_size_bytes: of the decoded input; 0 is no limit.

    Raises:
        BadInput: it cannot be decoded, or a name in it is malformed.
        InputTooLarge: there is more than ``max_size_bytes``.
        NoSpace: the disk is full.
    """
    receiver = Receiver(said, held, max_size_bytes)
    # A few bytes of gzip may be many megabytes.
    inline_bytes = _INLINE_BYTES if receiver.is_plain else 0
    received = 0
    batch: list[bytes] = []
    batch_bytes = 0
    job: asyncio.Future[Any] | None = None
    try:
        async for piece in body:
            received += len(piece)
            batch.append(piece)
            batch_bytes += len(piece)
            # The next batch is received while the one before is decoded and written.
            if received > inline_bytes and (job is None or job.done() or batch_bytes >= _BATCH_BYTES):
                if job is not None:
                    await to_its_end(job)
                job = asyncio.get_running_loop().run_in_executor(None, receiver.feed_all, batch)
                batch, batch_bytes = [], 0
        if job is None:
            receiver.feed_all(batch)
            return receiver.finish()
        await to_its_end(job)
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(None, receiver.feed_all, batch)
        await to_its_end(job)
        last_job = loop.run_in_executor(None, receiver.finish)
        job = last_job
        return await to_its_end(last_job)
    finally:
        # Whoever ends the call may remove the directory next: nothing may still write into it.
        if job is not None:
            await settled(job)
        receiver.close()


class Receiver:
    """The way from a body's bytes to the input file, without waiting. Feed it, then finish it; always close it."""

    def __init__(self, said: Said, held: HeldInput, max_size_bytes: int = 0) -> None:
        self._said = said
        self._inflater = _inflater(said.content_encoding)
        self._limit = _Limit(max_size_bytes)
        self._head = bytearray()
        self._reader: _Reader | None = None
        self._files = _Files(held, self._limit)
        self._form_text = FormText(held.directory)
        media_type, self._boundary = _media_type(said.content_type)
        self._media_type = media_type
        self._encoding = "multipart"
        if said.encoding is None and media_type == "multipart/form-data":
            self._reader = _Multipart(self._files, self._boundary)

    @property
    def is_plain(self) -> bool:
        """Whether the body is about as large as what it holds."""
        return self._inflater is None

    def feed_all(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.feed(piece)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body. Raises as :func:`take_in` does."""
        if self._inflater is None:
            self._feed_decoded(data)
            return
        for piece in self._inflater.feed(data):
            self._feed_decoded(piece)

    def finish(self) -> Input:
        """The body is complete: complete the file. Raises as :func:`take_in` does."""
        if self._inflater is not None:
            self._inflater.finish()
        if self._reader is None:
            self._start(complete=True)
        assert self._reader is not None
        self._reader.finish()
        return Input(self._files.input_name(), self._limit.taken, self._encoding)

    def close(self) -> None:
        """Close what is open, except the files of the input."""
        self._form_text.close()

    def _feed_decoded(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(data)
            return
        self._head += data
        if len(self._head) >= _HEAD_BYTES:
            self._start(complete=False)

    def _start(self, *, complete: bool) -> None:
        head, self._head = bytes(self._head), bytearray()
        given = self._said.file_name
        name = (safe_file_name(given) if given else None) or f"event-file-{uuid.uuid4()}"
        # Not all the bytes that are there: the decision must not depend on how the network cut the body.
        is_all = complete and len(head) <= _HEAD_BYTES
        decided = _decide(head[:_HEAD_BYTES], is_all, self._said.encoding, self._media_type, self._new_form)
        self._encoding = decided.encoding
        self._reader = decided.reader(self._files.create(name))
        if rest := head[decided.skip :]:
            self._reader.feed(rest)

    def _new_form(self, file: Sink, offset: int, fault: BadInput) -> Form:
        return Form(self._form_text, file, self._limit.check, offset, fault)


class _Reader(Protocol):
    def feed(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


class _Decided(NamedTuple):
    """How a body is read: ``reader`` returns what reads it into a file, from the byte ``skip`` on."""

    encoding: str
    reader: Callable[[Sink], _Reader]
    skip: int = 0


def _decide(
    head: bytes, complete: bool, asked: str | None, media_type: str, new_form: Callable[[Sink, int, BadInput], _Reader]
) -> _Decided:
    """Decide how the body is read, from its first 4 KiB (or all of it).

    Args:
        new_form: returns the reader of a form, from the file, the form's offset and why the body is not base64.

    Raises:
        BadInput: the body should be base64, JSON or a form, and is none of these.
    """
    if asked in ("raw", "json"):
        return _Decided(asked, _Raw)
    if asked is None and (media_type not in _BASE64_TYPES or (complete and not head)):
        return _Decided("raw", _Raw)
    start = len(_BOM) if head.startswith(_BOM) else 0
    if asked is None and _JSON_START.match(head, start) and not _wide_characters(head):
        return _Decided("json", _Raw)

    prefix = _DATA_URL.match(head, start) or _QUOTE.match(head, start)
    skip = prefix.end() if prefix else start
    quoted = prefix is not None and prefix.re is _QUOTE

    # Only reading the body shows whether it is base64. The bytes decoded here are not decoded a second time.
    held = _Held()
    base64_reader = Base64Reader(held, skip, quoted)
    fault = _fault(base64_reader, head[skip:], complete)

    def go_on(file: Sink) -> Base64Reader:
        held.release(file)
        return base64_reader

    if asked is not None:
        if fault is not None:
            raise _reason(head, fault)
        return _Decided("base64", go_on, len(head))
    # `true` and `null` would decode to three bytes that nobody means under a JSON type.
    is_literal = media_type == "application/json" and complete and head[start:].strip() in (b"true", b"null")
    if fault is None and not is_literal:
        return _Decided("base64", go_on, len(head))
    if media_type == "application/octet-stream":
        return _Decided("raw", _Raw)
    if not _wide_characters(head):
        if media_type in _FORM_TYPES and prefix is None and _FORM_START.match(head, start):
            assert fault is not None, "a literal has no `=`"
            why = fault
            return _Decided("form", lambda file: new_form(file, start, why), start)
        if media_type == "application/json" and _is_json_scalar(head[start:], complete):
            return _Decided("json", _Raw)
    assert fault is not None, "a literal is a scalar"
    raise _reason(head, fault)


def _fault(reader: Base64Reader, text: bytes, complete: bool) -> BadInput | None:
    try:
        reader.feed(text)
        if complete:
            reader.check_end()
    except BadInput as fault:
        return fault
    return None


def _reason(head: bytes, fault: BadInput) -> BadInput:
    """Return the error for a body that is not base64, with what it is, if that is clear, or else its first fault."""
    if (encoding := _wide_characters(head)) is not None:
        return BadInput(
            f"the body is {encoding} text, but base64, JSON and forms are read as UTF-8; convert it first "
            f"(iconv -f {encoding} -t UTF-8), or send it as it is with ?input=raw"
        )
    if (armour := ARMOUR.search(head)) is not None:
        return armour_error(armour[0].decode("latin-1"), armour.start())
    return fault


def _wide_characters(head: bytes) -> str | None:
    """Return ``UTF-16`` or ``UTF-32`` if a byte order mark, or NULs in the first two characters, show that encoding.

    Base64, JSON and forms begin with two characters of ASCII (RFC 4627, section 3, detects JSON's encoding by that).
    """
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    nul = bytes(not byte for byte in head[:4])
    if nul in (b"\0\1\1\1", b"\1\1\1\0"):
        return "UTF-32"
    return "UTF-16" if nul in (b"\0\1\0\1", b"\1\0\1\0", b"\0\1", b"\1\0") else None


def _is_json_scalar(head: bytes, complete: bool) -> bool:
    if head.lstrip().startswith(b'"'):
        return True
    if not complete:
        return False
    try:
        msgspec.json.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


class _Raw:
    """The bytes as they are."""

    def __init__(self, file: Sink) -> None:
        self._file = file

    def feed(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        self._file.close()


class _Multipart:
    """``multipart/form-data``: each part becomes a file, named as the part's file or else as its field."""

    def __init__(self, files: _Files, boundary: str) -> None:
        if not boundary:
            raise BadInput("the content type multipart/form-data has no boundary; let the client set it (curl -F)")
        if not boundary.isascii():
            raise BadInput(f"the boundary {quoted(boundary)} of the form is not ASCII; let the client set it (curl -F)")
        self._files = files
        self._parser = PushMultipartParser(
            boundary, max_header_size=8192, max_header_count=32, max_segment_count=_MOST_FIELDS
        )
        self._part: _Reader | None = None

    def feed(self, data: bytes) -> None:
        try:
            # The parser has no use for what comes after the last boundary, and refuses it.
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

    def _open(self, part: MultipartSegment) -> _Reader | None:
        filename = _extended_filename(part.header("Content-Disposition") or "")
        filename = part.filename if filename is None else filename
        is_file = filename is not None
        name = safe_file_name(filename or ("" if is_file else part.name) or "") or f"event-file-{uuid.uuid4()}"
        if filename == "":
            return _UnlessEmpty(lambda: _Raw(self._files.create(name)))
        file = self._files.create(name, is_field=not is_file)
        transfer_encoding = (part.header("Content-Transfer-Encoding") or "binary").strip().lower()
        if transfer_encoding == "base64":
            return _Base64Part(file, f"the part {name!r}")
        if transfer_encoding in ("7bit", "8bit", "binary"):
            return _Raw(file)
        raise BadInput(
            f"the part {name!r} has the transfer encoding {quoted(transfer_encoding)}; "
            "known are binary, 8bit, 7bit, base64"
        )


class _Base64Part:
    """base64 in a part of a form. A byte order mark before it is skipped, as before a body."""

    def __init__(self, file: Sink, where: str) -> None:
        self._file = file
        self._where = where
        self._start = b""
        self._reader: Base64Reader | None = None

    def feed(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(data)
            return
        self._start += data
        if len(self._start) >= len(_BOM):
            self._open().feed(self._start.removeprefix(_BOM))

    def finish(self) -> None:
        reader = self._reader
        if reader is None:
            reader = self._open()
            reader.feed(self._start)
        reader.finish()

    def _open(self) -> Base64Reader:
        offset = len(_BOM) if self._start.startswith(_BOM) else 0
        self._reader = Base64Reader(self._file, offset, where=self._where)
        return self._reader


class _UnlessEmpty:
    """A file that is made only if something comes: a browser sends an empty file field where none was chosen."""

    def __init__(self, make: Callable[[], _Reader]) -> None:
        self._make = make
        self._reader: _Reader | None = None

    def feed(self, data: bytes) -> None:
        if self._reader is None:
            self._reader = self._make()
        self._reader.feed(data)

    def finish(self) -> None:
        if self._reader is not None:
            self._reader.finish()


def _extended_filename(disposition: str) -> str | None:
    """The ``filename*`` of a part (RFC 8187), which .NET and older Python clients send for a name outside ASCII."""
    if not (found := _EXTENDED_FILENAME.search(disposition)):
        return None
    charset, encoded = found.groups()
    return decoded_name(charset, encoded, disposition)


class _Inflater:
    """gzip or deflate, decoded in bounded pieces: a bomb meets ``max_input_size`` before it grows."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._decoder = self._new()
        self._empty = True

    def _new(self) -> zlib._Decompress:
        return zlib.decompressobj(zlib.MAX_WBITS | 16 if self._coding == "gzip" else zlib.MAX_WBITS)

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._empty and data and self._coding == "deflate" and data[0] & 0x0F != 8:
            # Many clients send raw deflate without the zlib header that RFC 9110 asks for.
            self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
        self._empty = self._empty and not data
        while data:
            if self._decoder.eof:
                if self._coding == "gzip" and not (data := data.lstrip(b"\0")):
                    return  # padding, as gzip(1) ignores it
                # gzip may have several members one after another (RFC 1952, section 2.2).
                if self._coding != "gzip":
                    raise BadInput("bytes follow the end of the deflate stream")
                self._decoder = self._new()
            piece = self._inflate(data)
            yield piece
            while len(piece) == _BATCH_BYTES and not self._decoder.unconsumed_tail:
                # All input is taken, but the bound may have left output in the decoder.
                piece = self._inflate(b"")
                yield piece
            data = self._decoder.unconsumed_tail or self._decoder.unused_data

    def finish(self) -> None:
        if not self._empty and not self._decoder.eof:
            raise BadInput(f"the {self._coding} stream is cut off before its end")

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._decoder.decompress(data, _BATCH_BYTES)
        except zlib.error as error:
            raise BadInput(f"the body is not {self._coding}, as its Content-Encoding says: {error}") from None


def _inflater(content_encoding: str) -> _Inflater | None:
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return None
    if codings in (["gzip"], ["x-gzip"]):
        return _Inflater("gzip")
    if codings == ["deflate"]:
        return _Inflater("deflate")
    raise BadInput(f"the Content-Encoding {quoted(content_encoding)} is not known; send one of gzip and deflate, once")


def _media_type(content_type: str) -> tuple[str, str]:
    """Media type in lower case, and the boundary or ""."""
    if not content_type:
        return "", ""
    try:
        media_type, options = parse_options_header(content_type)
    except MultipartError as error:
        raise BadInput(f"the Content-Type {quoted(content_type)} is malformed: {error}") from None
    return media_type.strip().lower(), options.get("boundary", "")


class _Limit:
    """How much may be written, over all files of one call. 0 is no limit."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.taken = 0

    def take(self, count: int) -> None:
        self.taken += count
        self.check(self.taken)

    def check(self, count: int) -> None:
        """Raise InputTooLarge if so many bytes are too many."""
        if self.max_bytes and count > self.max_bytes:
            raise InputTooLarge(f"the decoded input is over {self.max_bytes} bytes (max_input_size)")


class _Held:
    """Hold what is written until the target file is known."""

    def __init__(self) -> None:
        self._data = b""
        self._file: Sink | None = None

    def release(self, file: Sink) -> None:
        """Write what is held to ``file``, and everything from now on."""
        self._file = file
        self._file.write(self._data)

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._data += data
        else:
            self._file.write(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _File:
    """A file that counts what is written to it."""

    def __init__(self, file: HeldFile, limit: _Limit) -> None:
        self._file = file
        self._limit = limit

    def write(self, data: bytes) -> None:
        self._limit.take(len(data))
        self._file.write(data)

    def close(self) -> None:
        """Do nothing: the owner of the file closes it."""


class _Files:
    """The files of one input, each under its own name."""

    def __init__(self, held: HeldInput, limit: _Limit) -> None:
        self._held = held
        self._limit = limit
        self._files: list[str] = []
        self._fields: list[str] = []
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}

    def create(self, name: str, *, is_field: bool = False) -> _File:
        name = self._unused(name)
        (self._fields if is_field else self._files).append(name)
        return _File(self._held.create(name), self._limit)

    def input_name(self) -> str:
        names = self._files or self._fields
        if not names:
            raise BadInput("the form has no part; send at least one file (curl -F file=@FILE)")
        return names[0] if len(names) == 1 else ""

    def _unused(self, name: str) -> str:
        stem, extension = os.path.splitext(name)
        unused = name
        while unused in self._names:
            self._counts[name] = count = self._counts.get(name, 1) + 1
            unused = f"{stem}-{count}{extension}"
        self._names.add(unused)
        return unused
