"""What the script left becomes the body of the answer.

::

    outputs -> Preference.resolve -> _Plan: parts (bytes and files) -> pieces -> Answer.chunks
                                       |
                                       +-- the length, known before the first byte is sent

Four forms: base64 (of the one file, or of a ZIP of several), raw, ZIP and JSON. A ZIP's entries are stored,
not compressed, and a first pass over the files takes their checksums: so the length of each form is known,
no reader needs data descriptors, and a file that cannot be read is found before a status is sent.

Small answers are made at once. For all others files are read and encoded in a thread, one piece ahead of
the caller; memory does not grow with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import hashlib
import itertools
import mimetypes
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, quote_from_bytes

import msgspec
import pybase64

from .call_warning import CallWarning
from .errors import AnswerNotAvailable, BadInput, OutputUnreadable, ScriptFailed, ScriptKilled, quoted
from .printed import TEXT
from .threads import OUTPUTS, one_ahead
from .workspace import Output, open_output, raise_if_changed

# A multiple of 3: base64 of one piece ends where that of the next begins.
_PIECE_BYTES = 384 * 1024
# Below both of these the hand-over to a thread costs more than the work.
_INLINE_BYTES = 64 * 1024
_INLINE_FILES = 16
# What a thread reads of the first pass before it looks up whether the caller is still there.
_STEP_BYTES = 4 * 1024 * 1024
_OPEN_COST_BYTES = 16 * 1024
_NAMED_FILES = 5
_LONGEST_KEPT = 256  # characters of a header whose meaning is kept for the next call

_PLAIN = TEXT
_ZIP = "application/zip"
_JSON = "application/json"
_BYTES = "application/octet-stream"


class Form(enum.Enum):
    """How outputs are answered; the values are those of ``?output=``."""

    BASE64 = "base64"
    RAW = "raw"
    ZIP = "zip"
    JSON = "json"


class StdoutSource(Protocol):
    """The script's standard output, which is the answer if it left no file."""

    @property
    def size_bytes(self) -> int: ...

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """All of it, in pieces of at most ``piece_bytes``. Called in a thread if it is not small."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an invocation left.

    ``stdout_tail`` and ``stderr_tail``: the ends of both, as text. ``failure``: how a classic function failed.
    ``printed_type``: the media type of ``stdout``. ``warnings``: why the result may be wrong although
    the script succeeded.
    """

    outputs: Sequence[Output]
    stdout: StdoutSource
    exit_code: int | None
    duration_s: float
    stdout_tail: str = ""
    stderr_tail: str = ""
    failure: ScriptFailed | ScriptKilled | None = None
    printed_type: str = TEXT
    warnings: Sequence[CallWarning] = ()


# -------------------------------------------------------------------------------------------- which form


@dataclass(frozen=True, slots=True)
class _Offer:
    """One form that the outputs can be given in, and its media type without parameters."""

    form: Form
    media_type: str


@dataclass(frozen=True, slots=True)
class _Range:
    """One media range of ``Accept``, in lower case, with its weight. Parameters of the type do not count."""

    type: str
    subtype: str
    quality: float

    @property
    def specificity(self) -> int:
        return (self.type != "*") + (self.subtype != "*")

    def includes(self, media_type: str) -> bool:
        own_type, _, own_subtype = media_type.partition("/")
        return self.type in ("*", own_type) and self.subtype in ("*", own_subtype)


@dataclass(frozen=True, slots=True)
class Preference:
    """What the caller wants, as far as it can be known before the script has run."""

    form: Form | None
    accept: str = ""
    ranges: tuple[_Range, ...] = ()

    def resolve(self, outputs: Sequence[Output], printed_type: str = TEXT) -> _Offer:
        """Choose among the forms that these outputs have, or what was printed if there are none.

        Raises:
            AnswerNotAvailable: the caller wants none of these forms.
        """
        offers = _offers(outputs, printed_type)
        if self.form is not None:
            for offer in offers:
                if offer.form is self.form:
                    return offer
            raise AnswerNotAvailable(_not_available(f"?output={self.form.value}", outputs, printed_type, offers))
        any_quality = max((r.quality for r in self.ranges if r.specificity == 0), default=0.0)
        best, best_rank = None, (0.0, 0)
        for offer in offers:
            quality, specificity = self._weight(offer.media_type)
            if specificity == 2 and _means_another_form(offer, offers):
                continue
            if quality <= any_quality:
                # Many clients send types and `*/*` with the same weight, unasked: "application/json, text/plain, */*"
                # of axios. They want nothing in particular, and our own order decides.
                specificity = 0
            if quality > 0 and (quality, specificity) > best_rank:
                best, best_rank = offer, (quality, specificity)
        if best is None:
            raise AnswerNotAvailable(_not_available(f"Accept: {self.accept}", outputs, printed_type, offers))
        return best

    def _weight(self, media_type: str) -> tuple[float, int]:
        """The weight of a type is that of the most specific range that includes it (RFC 9110, 12.5.1)."""
        fitting = [(r.specificity, r.quality) for r in self.ranges if r.includes(media_type)]
        specificity, quality = max(fitting, default=(0, 0.0))
        return quality, specificity


_BASE64_PREFERENCE = Preference(Form.BASE64)

# Atomic groups where a possessive group would do: CPython 3.11.2, which Debian 12 has, gets those wrong.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*+=[ \t]*+({_TOKEN}|"(?>(?:[^"\\]|\\.)*)")')
_MEDIA_RANGE = re.compile(
    rf"[ \t]*+({_TOKEN})(?>(?:/({_TOKEN}))?)((?>(?:[ \t]*+;[ \t]*+(?>(?:{_PARAMETER.pattern})?))*))[ \t]*+(?:,|\Z)"
)
_QUALITY = re.compile(r"(?:0?\.\d+|0\.?|1(?:\.0*)?)\Z", re.ASCII)
_EMPTY_ELEMENT = re.compile(r"[ \t]*+,")


def choose_form(accept: str | None, output_param: str | None) -> Preference:
    """What the caller wants, from the ``Accept`` header (several joined by commas) and ``?output=``.

    ``?output=`` wins. No ``Accept`` at all, ``*/*`` and ``text/plain`` mean base64; ``application/zip`` and
    ``application/json`` mean those forms, even if the one output is itself such a file; any other type means
    the one output's own bytes, if it is of that type or the type is ``application/octet-stream``. The greatest weight
    wins, then the more specific range; but types that weigh no more than ``*/*`` beside them count as ``*/*``.

    Raises:
        BadInput: ``?output=`` is not one of the forms, or ``Accept`` is malformed.
        AnswerNotAvailable: ``Accept`` refuses everything.
    """
    if output_param is not None:
        try:
            return Preference(Form(output_param.lower()))
        except ValueError:
            known = ", ".join(form.value for form in Form)
            raise BadInput(f"?output={quoted(output_param)} is not known; it may be one of {known}") from None
    if accept is None or accept == "*/*" or not accept.strip(" \t,"):
        return _BASE64_PREFERENCE
    return _preference_of(accept) if len(accept) <= _LONGEST_KEPT else _preference_of.__wrapped__(accept)


@functools.lru_cache(maxsize=64)
def _preference_of(accept: str) -> Preference:
    ranges = []
    at = 0
    while at < len(accept):
        if empty := _EMPTY_ELEMENT.match(accept, at):
            at = empty.end()
            continue
        if not accept[at:].strip(" \t"):
            break
        found = _MEDIA_RANGE.match(accept, at)
        if found is None:
            raise BadInput(_malformed_accept(accept, at))
        type_, subtype = found[1].lower(), (found[2] or "").lower()
        if type_ == "*" and not subtype:
            # Java's HttpURLConnection sends "*; q=.2" unasked.
            subtype = "*"
        if not subtype or (type_ == "*" and subtype != "*"):
            raise BadInput(_malformed_accept(accept, at))
        quality = 1.0
        for name, value in _PARAMETER.findall(found[3]):
            if name in ("q", "Q"):
                if not _QUALITY.match(value):
                    raise BadInput(_malformed_accept(accept, at))
                quality = float(value)
        ranges.append(_Range(type_, subtype, quality))
        at = found.end()
    if not any(r.quality > 0 for r in ranges):
        raise AnswerNotAvailable(
            f"the Accept header {quoted(accept)} refuses every form of answer; accept at least one of "
            f"{_PLAIN} (base64), {_BYTES} (raw), {_ZIP}, {_JSON}"
        )
    return Preference(None, accept, tuple(ranges))


def _malformed_accept(accept: str, at: int) -> str:
    return (
        f"the Accept header is malformed at {accept[at : at + 40].strip()!r}; it is a list such as "
        f"'{_ZIP}, {_PLAIN};q=0.5' with weights from 0 to 1"
    )


def _offers(outputs: Sequence[Output], printed_type: str) -> list[_Offer]:
    """The forms that these outputs have, the one that we like best first."""
    if len(outputs) > 1:
        return [_Offer(Form.BASE64, _PLAIN), _Offer(Form.ZIP, _ZIP), _Offer(Form.JSON, _JSON)]
    own_type = guessed_type(outputs[0].name) if outputs else printed_type
    offers = [_Offer(Form.BASE64, _PLAIN), _Offer(Form.RAW, own_type), _Offer(Form.RAW, _BYTES)]
    if outputs:
        offers.append(_Offer(Form.ZIP, _ZIP))
    return [*offers, _Offer(Form.JSON, _JSON)]


def _means_another_form(offer: _Offer, offers: list[_Offer]) -> bool:
    """Return whether this offer's type, asked for by name, asks for another form than the raw bytes.

    ``text/plain`` asks for base64, ``application/zip`` for a ZIP and ``application/json`` for JSON, where these forms
    are offered.
    """
    if offer.form is not Form.RAW or offer.media_type not in (_PLAIN, _ZIP, _JSON):
        return False
    return any(other.form is not Form.RAW and other.media_type == offer.media_type for other in offers)


def _not_available(wish: str, outputs: Sequence[Output], printed_type: str, offers: list[_Offer]) -> str:
    if not outputs:
        there = f"no file in TMP_OUTPUT_DIR, only its stdout, of type {printed_type}"
    elif len(outputs) == 1:
        there = f"one file, {outputs[0].name!r}, of type {guessed_type(outputs[0].name)}"
    else:
        names = ", ".join(repr(output.name) for output in outputs[:_NAMED_FILES])
        there = f"{len(outputs)} files: {names}{', …' if len(outputs) > _NAMED_FILES else ''}"
    by_form: dict[Form, list[str]] = {}
    for offer in offers:
        types = by_form.setdefault(offer.form, [])
        # A type that, asked for by name, would give another form is no advice.
        if offer.media_type not in types and not _means_another_form(offer, offers):
            types.append(offer.media_type)
    ways = "; ".join(f"{' or '.join(types)} (?output={form.value})" for form, types in by_form.items())
    return f"{wish} cannot be answered, because the script left {there}. Accept one of these: {ways}"


# -------------------------------------------------------------------------------------------- the answer


@dataclass(frozen=True, slots=True)
class Answer:
    """A body that is ready to be sent.

    ``length``: in bytes. ``headers``: ASCII, without type and length. ``body``: the whole of it if it is
    small, else None.
    """

    content_type: str
    length: int
    headers: dict[str, str]
    body: bytes | None
    _pieces: Callable[[], Generator[bytes, None, None]]

    async def chunks(self, ahead: Callable[[], int] = lambda: 1) -> AsyncGenerator[bytes, None]:
        """The body: exactly ``length`` bytes. Close it (``aclose``) if it is not read to its end.

        Args:
            ahead: tells, from any thread, how many pieces of at most 512 KiB are read at once; as many again may wait
                to be sent. A thread that is woken for each piece takes longer than the piece.

        Raises:
            OutputUnreadable: an output changed or cannot be read; what was sent is not the whole.
        """
        if self.body is not None:
            if self.body:
                yield self.body
            return
        batches = one_ahead(_batched(self._pieces(), ahead), OUTPUTS)
        try:
            async for batch in batches:
                for piece in batch:
                    yield piece
                # A caller who takes all at once must not keep the event loop from the others.
                await asyncio.sleep(0)
        finally:
            await batches.aclose()


async def prepare(result: Result, preference: Preference) -> Answer:
    """Make the answer ready. Each file is opened, and for a ZIP or JSON read, before this returns.

    Raises:
        AnswerNotAvailable: the outputs do not have the form that is wanted.
        OutputUnreadable: an output is gone, not readable or of another size than it was.
    """
    offer = preference.resolve(result.outputs, result.printed_type)
    plan = _Plan(result, offer)
    if plan.is_small:
        for _ in plan.first_pass():
            pass
        body = b"".join(plan.pieces())
        return Answer(plan.content_type, len(body), plan.headers, body, plan.pieces)
    steps = one_ahead(plan.first_pass(), OUTPUTS)
    try:
        async for _ in steps:
            pass
    finally:
        await steps.aclose()
    return Answer(plan.content_type, plan.length, plan.headers, None, plan.pieces)


def prepare_printed(result: Result, content_type: str) -> Answer:
    """The answer of a classic function: what it printed, as it is.

    If it failed: how, in the words of the classic watchdog, then what it printed, then its last words to stderr.
    """
    before = after = b""
    failure = result.failure
    if failure is not None:
        end = f"exit status {failure.exit_code}" if isinstance(failure, ScriptFailed) else f"signal: {failure.signal}"
        before = end.encode() + b"\n"
        if failure.stderr:
            separator = "" if not result.stdout_tail or result.stdout_tail.endswith("\n") else "\n"
            after = (separator + failure.stderr).encode("utf-8", "backslashreplace")

    def pieces() -> Generator[bytes, None, None]:
        yield from (before,) if before else ()
        yield from _read_stdout(result.stdout)
        yield from (after,) if after else ()

    length = len(before) + result.stdout.size_bytes + len(after)
    body = b"".join(pieces()) if result.stdout.size_bytes <= _INLINE_BYTES else None
    return Answer(content_type, length, _headers_of_warnings(result.warnings), body, pieces)


def prepare_skipped(why: str, preference: Preference | None) -> Answer:
    """Return the answer to an event that did not run the script: ``why`` as text, or in JSON if the caller wants JSON.

    Never raises: if a form of answer that is not available were an error, the sender would send the event again.

    Args:
        preference: None for an answer without a body: brokers accept no other answer that is not a CloudEvent.
    """
    body, content_type = b"", f"{_PLAIN}; charset=utf-8"
    if preference is not None and _wants_json(preference):
        nothing = {"exit_code": None, "duration_s": 0, "outputs": (), "stdout": "", "stderr": ""}
        nothing |= {"warnings": (), "skipped": why}
        body, content_type = msgspec.json.encode(nothing), _JSON
    elif preference is not None:
        body = why.encode("utf-8", "backslashreplace") + b"\n"
    return Answer(content_type, len(body), {}, body, lambda: (_ for _ in ()))


def _wants_json(preference: Preference) -> bool:
    try:
        return preference.resolve(()).form is Form.JSON
    except AnswerNotAvailable:
        return False


def _batched(pieces: Generator[bytes, None, None], count: Callable[[], int]) -> Generator[list[bytes], None, None]:
    with contextlib.closing(pieces):
        while batch := list(itertools.islice(pieces, count())):
            yield batch


class _Plan:
    """How one answer is put together.

    ``content_type`` and ``headers`` are known at once, ``length`` after :meth:`first_pass`. Neither that nor
    :meth:`pieces` knows of the event loop: they may run in any thread.
    """

    def __init__(self, result: Result, offer: _Offer) -> None:
        self._result = result
        self._form = offer.form
        self._is_zip = offer.form is Form.ZIP or (offer.form is Form.BASE64 and len(result.outputs) > 1)
        self._is_base64 = offer.form is Form.BASE64 and bool(result.outputs)
        self._checksums: list[str] = []
        self.length = 0
        self.content_type = offer.media_type
        if offer.form is Form.BASE64 and not result.outputs:
            self.content_type = result.printed_type
        if self.content_type == _PLAIN and (offer.form is Form.BASE64 or not result.outputs):
            self.content_type += "; charset=utf-8"
        self.headers = _headers(result.outputs, offer.form) | _headers_of_warnings(result.warnings)

    @property
    def is_small(self) -> bool:
        outputs = self._result.outputs
        if not outputs:
            return self._result.stdout.size_bytes <= _INLINE_BYTES
        if len(outputs) > _INLINE_FILES:
            return False
        return sum(output.size_bytes for output in outputs) <= _INLINE_BYTES

    def first_pass(self) -> Generator[bool, None, None]:
        """Find out what must be known before the first byte is sent; yield now and then."""
        outputs = self._result.outputs
        if self._is_zip:
            yield from _take_checksums(outputs, _Crc32, self._checksums)
        elif self._form is Form.JSON:
            yield from _take_checksums(outputs, hashlib.sha256, self._checksums)
        elif not self.is_small:
            for output in outputs:
                os.close(open_output(output))
        if self._form is Form.JSON:
            self.length = sum(
                _base64_length(part.size_bytes) if isinstance(part, Output) else len(part)
                for part in self._json_parts()
            )
        elif self._is_zip:
            self.length = sum(part.size_bytes if isinstance(part, Output) else len(part) for part in self._zip_parts())
        else:
            self.length = outputs[0].size_bytes if outputs else self._result.stdout.size_bytes
        if self._is_base64:
            self.length = _base64_length(self.length) + 1

    def pieces(self) -> Generator[bytes, None, None]:
        """The body, in pieces of ``_PIECE_BYTES`` or what base64 makes of that."""
        outputs = self._result.outputs
        if self._form is Form.JSON:
            body = _regrouped(_filled(self._json_parts(), lambda file: _base64(_regrouped(_read(file)))))
        elif self._is_zip:
            body = _regrouped(_filled(self._zip_parts(), _read))
        elif outputs:
            body = _regrouped(_read(outputs[0]))
        else:
            body = _read_stdout(self._result.stdout)
        if self._is_base64:
            yield from _base64(body)
            yield b"\n"
        else:
            yield from body

    def _zip_parts(self) -> Iterator[bytes | Output]:
        return zip_parts(self._result.outputs, (int(checksum, 16) for checksum in self._checksums))

    def _json_parts(self) -> Iterator[bytes | Output]:
        result, encode = self._result, msgspec.json.encode
        yield b'{"exit_code":%s,"duration_s":%s,"outputs":[' % (
            encode(result.exit_code),
            encode(round(result.duration_s, 6)),
        )
        separator = b""
        for output, checksum in zip(result.outputs, self._checksums, strict=True):
            # Bytes of a name that are not UTF-8 are shown as \xff: JSON has no other place for them.
            about = {
                "name": os.fsencode(output.name).decode("utf-8", "backslashreplace"),
                "size": output.size_bytes,
                "content_type": guessed_type(output.name),
                "sha256": checksum,
            }
            yield separator + encode(about)[:-1] + b',"data":"'
            yield output
            yield b'"}'
            separator = b","
        yield b'],"stdout":%s,"stderr":%s,"warnings":%s}\n' % (
            encode(_without_surrogates(result.stdout_tail)),
            encode(_without_surrogates(result.stderr_tail)),
            encode([{"name": each.name, "detail": _without_surrogates(each.detail)} for each in result.warnings]),
        )


# -------------------------------------------------------------------------------------- bytes on their way


def _read(output: Output) -> Generator[bytes, None, None]:
    """The bytes of a file: as many as it had when it was listed."""
    is_held = output.fd >= 0
    fd = output.fd if is_held else open_output(output)
    try:
        at = 0
        while at < output.size_bytes:
            piece = _read_some(fd, min(_PIECE_BYTES, output.size_bytes - at), at, output)
            if not piece:
                raise OutputUnreadable(f"the output {output.name!r} became shorter after the script had ended")
            at += len(piece)
            if at == output.size_bytes:
                # Before the last piece goes out: until then the answer can be cut, and is not taken for whole.
                raise_if_changed(fd, output)
            yield piece
    finally:
        if not is_held:
            os.close(fd)


def _read_some(fd: int, size_bytes: int, at: int, output: Output) -> bytes:
    try:
        return os.pread(fd, size_bytes, at)
    except OSError as error:
        raise OutputUnreadable(f"cannot read the output {output.name!r}: {error.strerror}") from error


def _read_stdout(stdout: StdoutSource) -> Generator[bytes, None, None]:
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


def _filled(parts: Iterable[bytes | Output], read: Callable[[Output], Iterator[bytes]]) -> Generator[bytes, None, None]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            yield from read(part)


def _regrouped(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """The same bytes in pieces of exactly ``_PIECE_BYTES``; only the last may be shorter."""
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


def _base64(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """base64 of pieces of ``_PIECE_BYTES``, on which no padding falls but at the end."""
    for piece in pieces:
        yield pybase64.b64encode(piece)


def _base64_length(size_bytes: int) -> int:
    return (size_bytes + 2) // 3 * 4


class _Checksum(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _take_checksums(
    outputs: Iterable[Output], kind: Callable[[], _Checksum], checksums: list[str]
) -> Generator[bool, None, None]:
    step_bytes = 0
    for output in outputs:
        checksum = kind()
        for piece in _read(output):
            checksum.update(piece)
            step_bytes += len(piece)
            if step_bytes >= _STEP_BYTES:
                step_bytes = 0
                yield True
        # To open and close a file costs about as much as to read this much of it.
        step_bytes += _OPEN_COST_BYTES
        checksums.append(checksum.hexdigest())


# --------------------------------------------------------------------------------------------------- ZIP

_STORED = 0
_UTF8_NAME = 0x800
_MADE_ON_UNIX = 3 << 8
_NEEDS_PLAIN, _NEEDS_ZIP64 = 20, 45
# These values say "see the Zip64 record" where a field holds them, so they are too large already.
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
# Wider than what a DOS date can hold, and narrow enough for localtime(3) everywhere.
_LAST_TIME_S = 4_500_000_000.0


def zip_parts(outputs: Iterable[Output], crcs: Iterable[int]) -> Iterator[bytes | Output]:
    """A ZIP as records, between which stand the files whose bytes belong there.

    Field by field as in PKWARE's APPNOTE 6.3.10. Zip64 records appear only where a number needs them. Sizes
    and CRC-32 stand before the data: Java's ZipInputStream refuses stored entries that have them after it.
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
        # All three, even if one would do: after a file of exactly 0xFFFFFFFF bytes Info-ZIP 6.0 takes a lone
        # offset for a size.
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
    """The end record; ``start`` and ``size``, in bytes, are the central directory's."""
    zip64 = b""
    if count >= _MAX_16 or start >= _MAX_32 or size >= _MAX_32:
        made, needs = _MADE_ON_UNIX | _NEEDS_ZIP64, _NEEDS_ZIP64
        zip64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, made, needs, 0, 0, count, count, size, start) + struct.pack(
            "<4sIQI", b"PK\6\7", 0, start + size, 1
        )
    count, start, size = min(count, _MAX_16), min(start, _MAX_32), min(size, _MAX_32)
    return zip64 + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)


def _zip_name(name: str) -> tuple[bytes, int]:
    """A name's bytes and the flags for it: a name that is not UTF-8 keeps its bytes, without the flag."""
    raw = os.fsencode(name)
    if raw.isascii():
        return raw, 0
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw, 0
    return raw, _UTF8_NAME


def _dos_time(mtime_s: float) -> tuple[int, int]:
    """Date and time of day, local and to two seconds, as the format has no other; 1980 to 2107."""
    local = time.localtime(min(max(mtime_s, 0.0), _LAST_TIME_S))
    if local.tm_year < 1980:
        return 1 << 5 | 1, 0
    if local.tm_year > 2107:
        return 127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29
    date = (local.tm_year - 1980) << 9 | local.tm_mon << 5 | local.tm_mday
    return date, local.tm_hour << 11 | local.tm_min << 5 | min(local.tm_sec, 59) // 2


# ----------------------------------------------------------------------------------- names, types, headers

# Of a file that is packed, the packing is the type: its bytes are not unpacked on the way.
_TYPES_OF_PACKINGS = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
}
# Common ones that Python does not know, and all that differ between Python 3.11 and 3.14: an answer has the same type
# on each Python.
_MORE_TYPES = {
    ".7z": "application/x-7z-compressed",
    ".arrow": "application/vnd.apache.arrow.file",
    ".avi": "video/x-msvideo",
    ".avif": "image/avif",
    ".dcm": "application/dicom",
    ".deb": "application/x-debian-package",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".emf": "image/emf",
    ".eot": "application/vnd.ms-fontobject",
    ".epub": "application/epub+zip",
    ".fits": "application/fits",
    ".flac": "audio/flac",
    ".g3": "image/g3fax",
    ".geojson": "application/geo+json",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".gz": "application/gzip",
    ".hdf5": "application/x-hdf5",
    ".jp2": "image/jp2",
    ".jpm": "image/jpm",
    ".jpx": "image/jpx",
    ".js": "text/javascript",
    ".jsonl": "application/jsonl",
    ".m4a": "audio/mp4",
    ".m4v": "video/x-m4v",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mk3d": "video/matroska-3d",
    ".mka": "audio/matroska",
    ".mkv": "video/x-matroska",
    ".odg": "application/vnd.oasis.opendocument.graphics",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".ogx": "application/ogg",
    ".otf": "font/otf",
    ".parquet": "application/vnd.apache.parquet",
    ".php": "application/x-httpd-php",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".rar": "application/vnd.rar",
    ".rpm": "application/x-rpm",
    ".rst": "text/x-rst",
    ".rtf": "text/rtf",
    ".sqlite": "application/vnd.sqlite3",
    ".sqlite3": "application/vnd.sqlite3",
    ".stl": "model/stl",
    ".t38": "image/t38",
    ".tfx": "image/tiff-fx",
    ".ttf": "font/ttf",
    ".wav": "audio/wav",
    ".weba": "audio/webm",
    ".webp": "image/webp",
    ".wmf": "image/wmf",
    ".wmv": "video/x-ms-wmv",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]+")
_VISIBLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def guessed_type(name: str) -> str:
    """The media type that a file name's ending tells, else ``application/octet-stream``.

    Python's own table only, not ``/etc/mime.types``: answers do not depend on what is installed.
    """
    if "." not in name:
        return _BYTES
    # The "./" keeps names such as "data:x" from being read as URLs.
    media_type, packing = _mime_types().guess_type("./" + name.rpartition("/")[2])
    if packing is not None:
        return _TYPES_OF_PACKINGS.get(packing, _BYTES)
    return media_type or _BYTES


@functools.cache
def _mime_types() -> mimetypes.MimeTypes:
    types = mimetypes.MimeTypes()
    for ending, media_type in _MORE_TYPES.items():
        types.add_type(media_type, ending)
    return types


def encoded_name(name: str) -> str:
    """A name as a header value: visible ASCII as it is, the bytes of all else and of ``%`` as ``%XX``.

    ``urllib.parse.unquote_to_bytes`` gives back the name's bytes, be they UTF-8 or not.
    """
    if _PLAIN_NAME.fullmatch(name):
        return name
    return quote_from_bytes(os.fsencode(name), safe=_VISIBLE_ASCII.replace("%", ""))


def _headers(outputs: Sequence[Output], form: Form) -> dict[str, str]:
    headers = {}
    if len(outputs) == 1:
        name = outputs[0].name
        headers["X-Output-Name"] = encoded_name(name)
        headers["X-Output-Content-Type"] = guessed_type(name)
        if form is Form.RAW:
            headers["Content-Disposition"] = _attachment(name.rpartition("/")[2])
    if form is Form.ZIP:
        headers["Content-Disposition"] = _attachment("outputs.zip")
    return headers


def _headers_of_warnings(warnings: Sequence[CallWarning]) -> dict[str, str]:
    # Several runs of one call may have the same warning.
    return {"X-Warning": ", ".join(dict.fromkeys(each.name for each in warnings))} if warnings else {}


def _attachment(name: str) -> str:
    """RFC 6266: a plain name for all, and where it is not the whole truth the true one (RFC 8187)."""
    # Some readers take %XX in the plain name for an escape, others a backslash: neither is sent.
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    if plain == name:
        return f'attachment; filename="{plain}"'
    # Without `replace` a name that is not UTF-8 would be a malformed value, which readers drop as a whole.
    text = os.fsencode(name).decode("utf-8", "replace")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='!#$&+-.^_`|~')}"


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
