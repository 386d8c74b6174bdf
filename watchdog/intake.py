"""A request's body becomes the input file.

The body passes four rooms, none of which waits for anything or grows with the body::

    bytes -> _Inflater (gzip, deflate) -> _decide (the first 4 KiB) -> _Base64 | _Raw | _Form | _Multipart -> file

:class:`Receiver` is those rooms without any input or output of its own but the file: feed it bytes.
:func:`take_in` feeds it from a stream, small bodies at once, large ones in a thread.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import enum
import os
import re
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
import pybase64
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from .errors import BadInput, InputTooLarge
from .workspace import raise_if_no_space, safe_file_name

_T = TypeVar("_T")

ENCODINGS = ("base64", "raw", "json")

_HEAD_BYTES = 4096
# A piece and what it decodes to stay in a core's cache.
_PIECE_BYTES = 128 * 1024
# Below this the hand-over to a thread costs more than the work.
_INLINE_BYTES = 64 * 1024
_BATCH_BYTES = 1024 * 1024
_LARGEST_FORM_BYTES = 16 * 1024 * 1024
_MOST_FIELDS = 10_000
_FORM_STEP_BYTES = 64 * 1024

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITE = b" \t\r\n\v\f"
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/_\-\s]")
_LOOKS_LIKE_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]*(?:=\s*){0,2}\Z")
_LOOKS_LIKE_QUOTED_BASE64 = re.compile(rb'[A-Za-z0-9+/_\-\s]*(?:=\s*){0,2}(?:"\s*)?\Z')
_DATA_URL = re.compile(rb"\s*data:[^,\"]{0,500};base64,", re.IGNORECASE)
_QUOTE = re.compile(rb'\s*="')
_NOT_WHITE = re.compile(rb"\S")
_END = re.compile(rb"={0,2}\Z")
_END_OF_QUOTED = re.compile(rb'={0,2}"?\Z')
_EXTENDED_FILENAME = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[\w-]*'([^;\s\"]+)", re.IGNORECASE | re.ASCII)
# RFC 8187 has UTF-8, RFC 5987 had Latin-1 too. Python's other codecs make half characters, or fail in their own ways.
_NAME_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "iso-8859-1"})
_JSON_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*[{\[]")
_FORM_START = re.compile(rb"[^=&\x00-\x1f\"]+=")

_BASE64_TYPES = frozenset({"", "application/x-www-form-urlencoded", "application/json", "application/octet-stream"})
_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "application/json"})
_HOW_RAW = (
    "send base64, or the bytes themselves with their own content type (curl -H 'Content-Type: image/jpeg' "
    "--data-binary @FILE), with ?input=raw, or as a form (curl -F file=@FILE)"
)


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
    """What the script gets. ``path``: a file, or the directory if a form had several. ``size_bytes``: of all."""

    path: str
    size_bytes: int


async def take_in(body: AsyncIterator[bytes], said: Said, directory: str, max_size_bytes: int = 0) -> Input:
    """Write a body to a file in ``directory``.

    Args:
        body: pieces of any size.
        max_size_bytes: of the decoded input; 0 is no limit.

    Raises:
        BadInput: it cannot be decoded, or a name in it is malformed.
        InputTooLarge: there is more than ``max_size_bytes``.
        NoSpace: the disk is full.
    """
    loop = asyncio.get_running_loop()
    receiver = Receiver(said, directory, max_size_bytes)
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
                    await _done(job)
                job = loop.run_in_executor(None, receiver.feed_all, batch)
                batch, batch_bytes = [], 0
        if job is None:
            receiver.feed_all(batch)
            return receiver.finish()
        await _done(job)
        job = loop.run_in_executor(None, receiver.feed_all, batch)
        await _done(job)
        last_job = loop.run_in_executor(None, receiver.finish)
        job = last_job
        return await _done(last_job)
    finally:
        # Whoever ends the call may remove the directory next: nothing may still write into it.
        if job is not None:
            await _settled(job)
        receiver.close()


async def _done(job: asyncio.Future[_T]) -> _T:
    """Await a thread's job. To await it directly would cancel the future while the thread goes on."""
    await asyncio.wait([job])
    return job.result()


async def _settled(job: asyncio.Future[Any]) -> None:
    """Wait for a thread's job to end, through any number of cancellations."""
    while not job.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([job])
    job.exception()


class Receiver:
    """The way from a body's bytes to the input file, without waiting. Feed it, then finish it; always close it."""

    def __init__(self, said: Said, directory: str, max_size_bytes: int = 0) -> None:
        self._said = said
        self._directory = directory
        self._inflater = _inflater(said.content_encoding)
        self._limit = _Limit(max_size_bytes)
        self._head = bytearray()
        self._reader: _Reader | None = None
        self._files = _Files(directory, self._limit)
        media_type, self._boundary = _media_type(said.content_type)
        self._media_type = media_type
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
        return Input(self._files.input_path(), self._limit.taken)

    def close(self) -> None:
        """Close what is open."""
        self._files.close()

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
        self._reader, skip = _decide(
            # Not all that is there: the verdict must not depend on how the network cut the body.
            head[:_HEAD_BYTES],
            complete and len(head) <= _HEAD_BYTES,
            self._said.encoding,
            self._media_type,
            lambda: self._files.create(name),
        )
        self._reader.feed(head[skip:])


class _Reader(Protocol):
    def feed(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


def _decide(
    head: bytes, complete: bool, encoding: str | None, media_type: str, file: Callable[[], _Sink]
) -> tuple[_Reader, int]:
    """How the body is to be read, from its first 4 KiB (or all of it), and how many bytes of it to skip."""
    if encoding in ("raw", "json"):
        return _Raw(file()), 0
    skip, quoted = 0, False
    if prefix := _DATA_URL.match(head):
        skip = prefix.end()
    elif prefix := _QUOTE.match(head):
        skip, quoted = prefix.end(), True
    if encoding == "base64":
        return _Base64(file(), skip, quoted), skip
    if _JSON_START.match(head):
        return _Raw(file()), 0
    if media_type not in _BASE64_TYPES and not media_type.startswith("text/"):
        return _Raw(file()), 0

    text = head[skip:]
    pattern = _LOOKS_LIKE_QUOTED_BASE64 if quoted else _LOOKS_LIKE_BASE64
    # `true` and `null` would decode to three bytes that nobody means under a JSON type.
    is_literal = media_type == "application/json" and complete and text.strip() in (b"true", b"null")
    if pattern.match(text) and not is_literal and not (complete and _is_incomplete(text)):
        return _Base64(file(), skip, quoted), skip
    if media_type == "application/octet-stream":
        return _Raw(file()), 0
    if media_type in _FORM_TYPES and not skip and _FORM_START.match(head):
        return _Form(file()), 0
    if media_type == "application/json" and _is_json_scalar(head, complete):
        return _Raw(file()), 0
    raise _why_not_base64(text, skip, quoted)


def _is_incomplete(text: bytes) -> bool:
    """Whether characters and padding do not make whole groups: `name=` is a form's empty field, not base64."""
    text = text.translate(None, _WHITE + b'"')
    characters = len(text.rstrip(b"="))
    padding = len(text) - characters
    return characters % 4 == 1 or (padding > 0 and (not characters or len(text) % 4 != 0))


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

    def __init__(self, file: _Sink) -> None:
        self._file = file

    def feed(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        self._file.close()


class _Base64:
    """base64 of either alphabet, with white space anywhere and the padding present or not.

    Args:
        offset: where in the body the first byte fed stands.
        quoted: whether a ``"`` ends it.
    """

    def __init__(self, file: _Sink, offset: int = 0, quoted: bool = False) -> None:
        self._file = file
        self._offset = offset
        self._quoted = quoted
        self._cleaning = _Cleaning.NONE
        self._carry = b""  # up to 3 characters of a group that is not complete yet
        self._end: bytes | None = None  # what came from the first `=` or `"` on, without white space

    def feed(self, data: bytes) -> None:
        end = 0 if self._end is not None else self._end_of_characters(data)
        if end:
            self._decode(data[:end])
        if end < len(data):
            self._take_end(data[end:], self._offset + end)
        self._offset += len(data)

    def finish(self) -> None:
        if self._quoted and b'"' not in (self._end or b""):
            raise BadInput(f'the base64 begins with =" but no " closes it before the body ends at byte {self._offset}')
        last = self._carry.translate(_TO_STANDARD, _WHITE)
        padding = (self._end or b"").count(b"=")
        if padding and (len(last) + padding) % 4:
            raise BadInput(f"the base64 has {padding} padding characters, which does not fit its length; {_HOW_RAW}")
        if len(last) == 1:
            raise BadInput(
                f"the base64 ends at byte {self._offset} in the middle of a group of four characters: "
                f"a part of it is missing, or it is no base64; {_HOW_RAW}"
            )
        if last:
            self._file.write(pybase64.b64decode(last + b"=" * (4 - len(last)), validate=True))
        self._file.close()

    def _end_of_characters(self, data: bytes) -> int:
        ends = [data.find(b"="), data.find(b'"') if self._quoted else -1]
        return min((at for at in ends if at >= 0), default=len(data))

    def _decode(self, data: bytes) -> None:
        text = self._carry + data if self._carry else data
        while True:
            text = self._cleaned(text)
            whole = len(text) & ~3
            failed = self._decode_groups(text, whole)
            if failed is None:
                break
            if self._cleaning is _Cleaning.ALL:
                raise self._bad_byte_in(data)
            # Once a body is seen to have lines, all of it is taken to: trying first is time lost.
            lines_only = self._cleaning is _Cleaning.NONE and b"\n" in text
            self._cleaning = _Cleaning.LINES if lines_only else _Cleaning.ALL
            text = text[failed:]
        self._carry = text[whole:]
        if _NOT_BASE64.search(self._carry):
            # Not left for the next feed, which would no longer know its offset.
            raise self._bad_byte_in(data)

    def _cleaned(self, text: bytes) -> bytes:
        if self._cleaning is _Cleaning.ALL:
            return text.translate(_TO_STANDARD, _WHITE)
        if self._cleaning is _Cleaning.LINES:
            return text.replace(b"\n", b"")
        return text

    def _decode_groups(self, text: bytes, whole: int) -> int | None:
        """Decode and write piece after piece; return where the one that failed begins."""
        view = memoryview(text)
        for start in range(0, whole, _PIECE_BYTES):
            try:
                decoded = pybase64.b64decode(view[start : min(start + _PIECE_BYTES, whole)], validate=True)
            except binascii.Error:
                return start
            self._file.write(decoded)
        return None

    def _bad_byte_in(self, data: bytes) -> BadInput:
        found = _NOT_BASE64.search(data)
        assert found is not None, "only a byte that is no base64 makes the decoder fail"
        return _bad_byte(found[0], self._offset + found.start(), "is no base64")

    def _take_end(self, data: bytes, offset: int) -> None:
        allowed = _END_OF_QUOTED if self._quoted else _END
        self._end = self._end or b""
        for found in _NOT_WHITE.finditer(data):
            self._end += found[0]
            if not allowed.match(self._end):
                raise _bad_byte(found[0], offset + found.start(), "comes after the end of the base64")


class _Cleaning(enum.Enum):
    """What is taken out of base64 text before it is decoded, the quickest first."""

    NONE = enum.auto()
    LINES = enum.auto()
    ALL = enum.auto()


def _bad_byte(byte: bytes, offset: int, what: str) -> BadInput:
    shown = repr(byte.decode("latin-1")) if 0x20 < byte[0] < 0x7F else f"0x{byte[0]:02x}"
    return BadInput(f"the byte {shown} at offset {offset} of the body {what}; {_HOW_RAW}")


def _why_not_base64(text: bytes, offset: int, quoted: bool) -> BadInput:
    try:
        decoder = _Base64(_Nowhere(), offset, quoted)
        decoder.feed(text)
        decoder.finish()
    except BadInput as error:
        return error
    return BadInput(f"the body is neither base64 nor JSON; {_HOW_RAW}")


class _Form:
    """``key=value`` pairs, as ``curl -d`` and oscar-python send them, kept as one JSON object."""

    def __init__(self, file: _Sink) -> None:
        self._file = file
        self._text = bytearray()

    def feed(self, data: bytes) -> None:
        self._text += data
        if len(self._text) > _LARGEST_FORM_BYTES:
            raise InputTooLarge(
                f"a form of key=value pairs may have {_LARGEST_FORM_BYTES} bytes; send files with curl -F file=@FILE"
            )

    def finish(self) -> None:
        fields = bytes(self._text).strip().split(b"&", _MOST_FIELDS)
        if len(fields) > _MOST_FIELDS:
            raise BadInput(f"the form has over {_MOST_FIELDS} fields; send files with curl -F file=@FILE")
        form: dict[str, str | list[str]] = {}
        for field in filter(None, fields):
            name, _, text = field.partition(b"=")
            key, value = _unquoted(name), _unquoted(text)
            if key not in form:
                form[key] = value
            elif isinstance(values := form[key], list):
                values.append(value)
            else:
                form[key] = [values, value]
        self._file.write(msgspec.json.encode(form))
        self._file.close()


def _unquoted(text: bytes) -> str:
    """Text of a form's name or value (the URL standard's application/x-www-form-urlencoded)."""
    text = text.replace(b"+", b" ")
    decoded = bytearray()
    start = 0
    while start < len(text):
        stop = start + _FORM_STEP_BYTES
        # The library's function makes an object for each escape: a few at a time, and none cut in two.
        if (escape := text.rfind(b"%", stop - 2, stop)) >= 0:
            stop = escape
        decoded += unquote_to_bytes(text[start:stop])
        start = stop
    try:
        return decoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"the form of key=value pairs is not UTF-8: {error}; {_HOW_RAW}") from None


class _Multipart:
    """``multipart/form-data``: each part becomes a file, named as the part's file or else as its field."""

    def __init__(self, files: _Files, boundary: str) -> None:
        if not boundary:
            raise BadInput("the content type multipart/form-data has no boundary; let the client set it (curl -F)")
        if not boundary.isascii():
            raise BadInput(f"the boundary {boundary!r} of the form is not ASCII; let the client set it (curl -F)")
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
            return _Base64(file)
        if transfer_encoding in ("7bit", "8bit", "binary"):
            return _Raw(file)
        raise BadInput(
            f"the part {name!r} has the transfer encoding {transfer_encoding!r}; known are binary, 8bit, 7bit, base64"
        )


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
    try:
        if charset.lower() not in _NAME_CHARSETS:
            raise LookupError(charset)
        return unquote_to_bytes(encoded).decode(charset)
    except (LookupError, UnicodeDecodeError):
        raise BadInput(f"the file name in {disposition!r} is not what it says it is: {charset}") from None


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
    coding = content_encoding.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip"):
        return _Inflater("gzip")
    if coding == "deflate":
        return _Inflater("deflate")
    raise BadInput(f"the Content-Encoding {content_encoding!r} is not known; known are gzip and deflate")


def _media_type(content_type: str) -> tuple[str, str]:
    """Media type in lower case, and the boundary or ""."""
    if not content_type:
        return "", ""
    try:
        media_type, options = parse_options_header(content_type)
    except MultipartError as error:
        raise BadInput(f"the Content-Type {content_type!r} is malformed: {error}") from None
    return media_type.strip().lower(), options.get("boundary", "")


class _Limit:
    """How much may be written, over all files of one call. 0 is no limit."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.taken = 0

    def take(self, count: int) -> None:
        self.taken += count
        if self.max_bytes and self.taken > self.max_bytes:
            raise InputTooLarge(f"the decoded input is over {self.max_bytes} bytes (max_input_size)")


class _Sink(Protocol):
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class _Nowhere:
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class _File:
    """A new file that is written once."""

    def __init__(self, path: str, limit: _Limit) -> None:
        self._path = path
        self._limit = limit
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise_if_no_space(error, f"the input file {path}")
            raise

    def write(self, data: bytes) -> None:
        self._limit.take(len(data))
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise_if_no_space(error, f"the input file {self._path}")
            raise

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class _Files:
    """The files of one input, each under its own name in one directory."""

    def __init__(self, directory: str, limit: _Limit) -> None:
        self._directory = directory
        self._limit = limit
        self._open: _File | None = None
        self._files: list[str] = []
        self._fields: list[str] = []
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}

    def create(self, name: str, *, is_field: bool = False) -> _File:
        path = os.path.join(self._directory, self._unused(name))
        self.close()
        self._open = _File(path, self._limit)
        (self._fields if is_field else self._files).append(path)
        return self._open

    def input_path(self) -> str:
        paths = self._files or self._fields
        if not paths:
            raise BadInput("the form has no part; send at least one file (curl -F file=@FILE)")
        return paths[0] if len(paths) == 1 else self._directory

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    def _unused(self, name: str) -> str:
        stem, extension = os.path.splitext(name)
        unused = name
        while unused in self._names:
            self._counts[name] = count = self._counts.get(name, 1) + 1
            unused = f"{stem}-{count}{extension}"
        self._names.add(unused)
        return unused
