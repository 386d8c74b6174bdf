"""The targets of the fuzzer: each is a pure function of bytes that raises AssertionError if a promise is broken.

Errors that the code documents are ignored. Any other exception is a finding. The checks do not use atheris, so the
tests can replay the seeds on every Python.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import functools
import gzip
import json
import logging
import os
import re
import shutil
import tempfile
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from unittest import mock
from urllib.parse import unquote_to_bytes

import msgspec
from request_target import check_request
from warm_target import check_warm_answer

from watchdog.errors import AnswerNotAvailable, BadInput, BadScriptResponse, InputError, InputTooLarge
from watchdog.input import form as form_module
from watchdog.input import receive
from watchdog.input.detect import BodyHints
from watchdog.input.receive import Receiver
from watchdog.logs import console as console_module
from watchdog.logs import formats
from watchdog.logs import level as level_module
from watchdog.logs import script_log as script_log_module
from watchdog.logs import sink as sink_module
from watchdog.logs import traceback as traceback_module
from watchdog.output.accept import AnswerForm, choose_form
from watchdog.settings.service_definition import holds_secrets, parse
from watchdog.storage import event as event_module
from watchdog.storage import job_event as job_event_module
from watchdog.workspace.held_input import HeldInput
from watchdog.workspace.outputs import Output
from watchdog.workspace.response_file import read_response_file

_T = TypeVar("_T")


def _chosen(choices: Sequence[_T], byte: int) -> _T:
    """Return one of the choices. The letter ``a`` of a seed is the first one, so people can read and write seeds."""
    return choices[(byte - ord("a")) % len(choices)]


def _first_line(data: bytes) -> tuple[str, bytes]:
    """Return the value of a header as the HTTP server passes it on, and the rest."""
    line, _, rest = data.partition(b"\n")
    return line.decode("utf-8", "surrogateescape").strip(), rest


@functools.cache
def _scratch() -> str:
    """Return one directory for all runs. A new directory for each run would take longer than most checks."""
    directory = tempfile.mkdtemp(prefix="watchdog-fuzz-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


# ---- intake ----

_FREE = "(the next line)"
_MADE = "(a multipart form that is made of the body)"
_CONTENT_TYPES = (
    "",
    "application/x-www-form-urlencoded",
    "application/json",
    "application/octet-stream",
    "text/plain; charset=utf-8",
    "image/jpeg",
    "multipart/form-data; boundary=B",
    'Multipart/Form-Data; boundary="----b c"',
    _FREE,
    _MADE,
    "text/csv",
)
_AS_IT_IS = ("", "identity", "gzip", "X-Gzip", "deflate", "br")
# The check compresses the body itself, because no mutation finds the checksum of a changed body.
_PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "one gzip member": ("gzip", lambda body: gzip.compress(body, 1, mtime=0)),
    "two gzip members and padding": (
        "gzip",
        lambda body: b"".join(gzip.compress(half, 1, mtime=0) for half in (body[:7], body[7:])) + b"\0\0",
    ),
    "zlib": ("deflate", lambda body: zlib.compress(body, 1)),
    "raw deflate": ("deflate", lambda body: zlib.compress(body, 1)[2:-4]),
}
_CONTENT_ENCODINGS = (*_AS_IT_IS, *_PACKERS)
_ENCODINGS = (None, "base64", "raw", "json")
_FILE_NAMES = (None, "photo.jpg", "../../etc/passwd", ".hidden", "ñandú\u202egpj.exe", "", _FREE)
_SIZES = (0, 0, 1, 3, 16, 100, 3000)

_HEAD_BYTES = 4096
_MALFORMED = ("the multipart form is malformed", "the form has no part")
_BASE64_TYPES = (
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "application/json",
    "application/octet-stream",
)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class _Request:
    """``packed``: the body as it is sent. ``plain``: its content; None if only the tested code can know it.

    ``parts``: file names ("" for a field) and contents, if the check itself made a multipart form of them.
    """

    said: BodyHints
    max_size_bytes: int
    packed: bytes
    plain: bytes | None
    first_piece_bytes: int
    piece_bytes: int
    parts: list[tuple[bytes, bytes]]

    def pieces(self) -> Iterator[bytes]:
        yield self.packed[: self.first_piece_bytes]
        for at in range(self.first_piece_bytes, len(self.packed), self.piece_bytes):
            yield self.packed[at : at + self.piece_bytes]


@dataclass(frozen=True)
class _Outcome:
    """``files``: names, without their random parts, and contents."""

    error: InputError | None
    input: str | None
    files: list[tuple[str, bytes]]
    encoding: str | None = None


def check_intake(data: bytes) -> None:
    """Wherever a body is cut, its file is the same, has the right bytes and a safe name, and is not too large."""
    request = _request(data)
    whole = _received(request, [request.packed])
    # With small buffers, even a body of a few bytes crosses the end of a buffer.
    with (
        mock.patch.object(receive, "BATCH_BYTES", 16),
        mock.patch.multiple(form_module, _STEP_BYTES=8, _IN_MEMORY_BYTES=16),
    ):
        cut = _received(request, request.pieces())

    if not request.parts and any(str(outcome.error).startswith(_MALFORMED) for outcome in (whole, cut)):
        # multipart 2.0.1 finds some faults (a bare line feed in a header, bytes before the first boundary) only with
        # some cuts. A form without faults gives the same result with all cuts, which _MADE checks.
        return
    if whole.error is None or cut.error is None:
        assert whole == cut, f"whole: {whole}, cut: {cut}"
    elif not request.max_size_bytes:
        # If the body exceeds the limit and has another fault, the error names the first one that was found. The first
        # fault of base64, and its offset, must not depend on the cut.
        assert type(whole.error) is type(cut.error), f"whole: {whole.error!r}, cut: {cut.error!r}"
        if "base64" in str(whole.error):
            assert _without_serial(str(whole.error)) == _without_serial(str(cut.error))
    _check_against_reference(request, whole)


def _request(data: bytes) -> _Request:
    head, body = data[:7].ljust(7, b"a"), data[7:]
    content_type = _chosen(_CONTENT_TYPES, head[0])
    if content_type is _FREE:
        content_type, body = _first_line(body)
    parts: list[tuple[bytes, bytes]] = []
    if content_type is _MADE:
        content_type = "multipart/form-data; boundary=B"
        parts = _parts(body)
        body = _multipart(parts)
    file_name = _chosen(_FILE_NAMES, head[3])
    if file_name is _FREE and not parts:
        file_name, body = _first_line(body)
    content_encoding = _chosen(_CONTENT_ENCODINGS, head[1])
    packed: bytes = body
    plain: bytes | None = body
    if content_encoding in _PACKERS:
        content_encoding, pack = _PACKERS[content_encoding]
        packed = pack(body)
    elif content_encoding not in ("", "identity"):
        plain = None
    said = BodyHints(content_type, content_encoding, _chosen(_ENCODINGS, head[2]), file_name)
    first_piece_bytes, piece_bytes = head[5] - ord("a") & 0xFF, 1 + (head[6] - ord("a") & 0xFF)
    return _Request(said, _chosen(_SIZES, head[4]), packed, plain, first_piece_bytes, piece_bytes, parts)


def _parts(body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the parts between ``|``. Each has a line with the name of the file, and the content."""
    parts = []
    for part in body.split(b"|")[:10]:
        name, _, content = part.partition(b"\n")
        parts.append((re.sub(rb'[\r"\\%]', b"", name), content.replace(b"--B", b"--b")))
    return parts


def _multipart(parts: list[tuple[bytes, bytes]]) -> bytes:
    form = b""
    for name, content in parts:
        filename = b'; filename="' + name + b'"' if name else b""
        form += b'--B\r\nContent-Disposition: form-data; name="field"' + filename + b"\r\n\r\n" + content + b"\r\n"
    return form + b"--B--\r\n"


def _received(request: _Request, pieces: Iterator[bytes] | list[bytes]) -> _Outcome:
    above = os.path.join(_scratch(), "intake")
    directory = os.path.join(above, "input")
    os.makedirs(directory, exist_ok=True)
    error, taken = None, None
    try:
        held = HeldInput(directory)
        receiver = Receiver(request.said, held, request.max_size_bytes)
        try:
            for piece in pieces:
                receiver.feed(piece)
            taken = receiver.finish()
            held.give_names(directory)
        finally:
            receiver.close()
            held.close()
    except (BadInput, InputTooLarge) as caught:
        error = caught
    try:
        assert os.listdir(above) == ["input"], f"something was written beside the directory: {os.listdir(above)}"
        files = _files_in(directory)
    finally:
        shutil.rmtree(above) if os.listdir(above) != ["input"] else _empty(directory)

    size_bytes = sum(len(content) for _, content in files)
    if request.max_size_bytes:
        assert size_bytes <= request.max_size_bytes, f"{size_bytes} bytes were written"
    if taken is None:
        return _Outcome(error, None, sorted((_without_serial(name), content) for name, content in files))
    assert taken.size_bytes == size_bytes, f"{taken.size_bytes} bytes are told, {size_bytes} are in the directory"
    names = ["", *(name for name, _ in files)]
    assert taken.name in names, f"the input {taken.name!r} is none of {names}"
    return _Outcome(
        None,
        _without_serial(taken.name),
        sorted((_without_serial(name), content) for name, content in files),
        taken.encoding,
    )


def _without_serial(name: str) -> str:
    return re.sub(r"event-file-[0-9a-f-]{36}", "event-file", name)


def _files_in(directory: str) -> list[tuple[str, bytes]]:
    files = []
    for entry in list(os.scandir(directory)):
        assert entry.is_file(follow_symlinks=False), f"{entry.name!r} is no regular file"
        assert not entry.name.startswith("."), f"{entry.name!r} is hidden"
        assert len(os.fsencode(entry.name)) <= 255
        bad = [c for c in entry.name if unicodedata.category(c) in ("Cc", "Cf", "Cs") or c in "/\\"]
        assert not bad, f"{entry.name!r} has {bad}"
        with open(entry.path, "rb") as file:
            files.append((entry.name, file.read()))
    return files


def _empty(directory: str) -> None:
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _check_against_reference(request: _Request, outcome: _Outcome) -> None:
    said = request.said
    body = request.plain
    if body is None:
        if outcome.error is not None:
            return
        try:
            body = _unpacked(said.content_encoding, request.packed)
        except (OSError, EOFError, zlib.error) as error:
            raise AssertionError(f"{said.content_encoding} that Python refuses was accepted: {error}") from error
    media_type = said.content_type.partition(";")[0].strip().lower()
    if said.encoding is None and media_type == "multipart/form-data":
        if request.parts:
            _check_made_parts(request, outcome)
        elif outcome.error is None:
            _check_parts(body, outcome)
        return

    expected = _reference(body, said.encoding, media_type)
    if outcome.error is not None:
        if isinstance(outcome.error, InputTooLarge):
            assert request.max_size_bytes, "there is no limit that it could be over"
            sizes = [len(content) for content in expected.values() if content is not None]
            # A body that would be refused at its end may be too large before that.
            assert None in expected.values() or max(sizes) > request.max_size_bytes
        else:
            # A name with a control character is refused before the body is read.
            is_name_bad = re.search(r"[\x00-\x1f\x7f]", said.file_name or "")
            assert None in expected.values() or is_name_bad, f"{outcome.error} but it is {expected}"
        return
    ((_, content),) = outcome.files
    was_expected = (outcome.encoding, content) in expected.items()
    assert was_expected, f"{content!r} was written as {outcome.encoding}, expected {expected}"


def _reference(body: bytes, encoding: str | None, media_type: str) -> dict[str, bytes | None]:
    """Return the possible contents of a body by encoding, by the rules of the docs. None means that it is refused."""
    if encoding in ("raw", "json"):
        return {encoding: body}
    if encoding == "base64":
        return {"base64": _base64_reference(body)}
    if media_type not in _BASE64_TYPES or not body:
        return {"raw": body}
    # If the first 4 KiB of a body are base64, the whole body must be base64.
    may_be_raw = media_type == "application/octet-stream"
    if re.match(rb"(\xef\xbb\xbf)?\s*[{\[]", body[:_HEAD_BYTES]):
        if not _is_wide(body):
            return {"json": body}
        return {"raw": body} if may_be_raw else {"base64": None}
    as_base64 = _base64_reference(body)
    is_literal = media_type == "application/json" and body.removeprefix(_BOM).strip() in (b"true", b"null")
    if as_base64 is not None and not is_literal:
        return {"base64": as_base64}
    if may_be_raw:
        return {"base64": None, "raw": body} if len(body) > _HEAD_BYTES else {"raw": body}
    expected: dict[str, bytes | None] = {"base64": None}
    if _is_wide(body) or media_type == "text/plain" or not media_type:
        return expected
    if _may_be_form(body):
        expected["form"] = _form_reference(body.removeprefix(_BOM))
    if media_type == "application/json" and _is_json_scalar(body.removeprefix(_BOM)):
        expected["json"] = body
    return expected


def _is_wide(body: bytes) -> bool:
    """Return whether a byte order mark, or NULs in the first four bytes, show UTF-16 or UTF-32."""
    zero = [not byte for byte in body[:4]]
    by_zeros = zero in ([False, True] * 2, [True, False] * 2, [False, True], [True, False])
    by_zeros = by_zeros or zero in ([True] * 3 + [False], [False] + [True] * 3)
    return by_zeros or body.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))


def _may_be_form(body: bytes) -> bool:
    """Return whether a body may be a form by the rules of the docs, without the rule for the words of a name."""
    text = body.removeprefix(_BOM)
    before, _, after = text.strip().partition(b"=")
    has_stray = re.search(rb"[^A-Za-z0-9_.:/+\[\] %\x80-\xff-]", before) is not None
    if b"&" not in text and has_stray and not re.search(rb"[A-Za-z0-9+/_-]", after):
        return False
    if re.search(rb'[&\x00-\x1f"<]', before.split(b"&")[0]) or before.startswith(b"#!"):
        return False
    return re.search(rb"-----BEGIN [^\r\n-]{1,80}-----|---- BEGIN [^\r\n-]{1,80} ----", text) is None


def _base64_reference(body: bytes) -> bytes | None:
    """Return the decoded body if one of Python's encoders writes this base64, apart from wrapping and white space."""
    body = body.removeprefix(_BOM)
    head = body[:_HEAD_BYTES]
    if found := re.match(rb'\s*data:[^,"]{0,500};base64,', head, re.IGNORECASE):
        body = body[found.end() :]
    elif found := re.match(rb'\s*="', head):
        body, quote, rest = body[found.end() :].partition(b'"')
        if not quote or rest.strip(b" \t\r\n"):
            return None
    text = b"".join(line.strip(b" \t") for line in re.split(rb"\r\n|\r|\n", body))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        characters = text.replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
        try:
            data = base64.b64decode(characters + b"=" * (-len(characters) % 4), validate=True)
        except binascii.Error:
            return None
        if text in (encode(data), encode(data).rstrip(b"=")):
            return data
    return None


def _form_reference(body: bytes) -> bytes | None:
    form: dict[str, list[str]] = {}
    try:
        for field in filter(None, body.strip().split(b"&")):
            name, _, value = (unquote_to_bytes(part.replace(b"+", b" ")).decode() for part in _parted(field))
            form.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        return None
    flat = {name: values[0] if len(values) == 1 else values for name, values in form.items()}
    return json.dumps(flat, ensure_ascii=False, separators=(",", ":")).encode()


def _parted(field: bytes) -> tuple[bytes, bytes, bytes]:
    return field.partition(b"=")


def _is_json_scalar(body: bytes) -> bool:
    if body.lstrip().startswith(b'"'):
        return True
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _unpacked(content_encoding: str, packed: bytes) -> bytes:
    """Return the content of an accepted body, decompressed by Python's own code."""
    if not packed:
        return b""
    if "gzip" in content_encoding.lower():
        return gzip.decompress(packed)
    is_raw = packed[0] & 0x0F != 8
    return zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS).decompress(packed)


def _check_parts(body: bytes, outcome: _Outcome) -> None:
    as_base64 = b"content-transfer-encoding" in body.lower()
    for name, content in outcome.files:
        assert as_base64 or content in body, f"the file {name!r} has bytes that no part has: {content!r}"


def _check_made_parts(request: _Request, outcome: _Outcome) -> None:
    contents = sorted(content for _, content in request.parts)
    if outcome.error is None:
        assert sorted(content for _, content in outcome.files) == contents
    elif isinstance(outcome.error, InputTooLarge):
        assert sum(map(len, contents)) > request.max_size_bytes > 0
    else:
        assert any(_may_be_refused(name) for name, _ in request.parts), f"{outcome.error}: {request.parts}"


def _may_be_refused(name: bytes) -> bool:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return True
    return len(name) > 4096 or "filename*" in text.lower() or re.search(r"[\x00-\x1f\x7f]", text) is not None


# ---- response_file ----

# Headers that frame an answer or name the call. A script must not set them (RFC 9110, 7.6.1, and the docs).
_FRAMING = {"connection", "content-length", "content-encoding", "keep-alive", "te", "trailer", "transfer-encoding"}
_FRAMING |= {"upgrade", "proxy-authenticate", "proxy-connection", "x-call-id", "x-exit-code", "x-duration-seconds"}
_FRAMING |= {"x-input-encoding"}


def check_response_file(data: bytes) -> None:
    """No accepted line of ``$HTTP_RESPONSE_FILE`` splits the answer or sets a header that frames it."""
    path = os.path.join(_scratch(), "response")
    with open(path, "wb") as file:
        file.write(data)
    try:
        chosen = read_response_file(path)
    except BadScriptResponse:
        return
    assert chosen.status is None or 200 <= chosen.status <= 599, f"status {chosen.status}"
    for name, value in chosen.headers:
        assert re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name), f"the name {name!r} is no token"
        assert name.lower() not in _FRAMING, f"{name} is not the script's"
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value), f"{name}: {value!r} has a control character"
        assert value == value.strip(" \t")
        # This raises an error for a lone surrogate, which no server can send.
        line = f"{name}: {value}".encode()
        assert line in data or value.encode() in data, f"{line!r} was not in the file"


# ---- accept ----

_OUTPUT_LISTS: tuple[list[str], ...] = (
    [],
    ["photo.jpg"],
    ["notes.txt"],
    ["all.zip"],
    ["table.json"],
    ["no-ending"],
    ["a/b.tar.gz"],
    ["a.jpg", "b.txt"],
    ["data:x,y", "\udcff", "ñ.png", "a", "b", "c", "d"],
)
_OUTPUT_PARAMETERS = (None, "base64", "RAW", "zip", "json", _FREE)
_MOST_ACCEPT_BYTES = 8 * 1024
_MOST_CPU_S = 1.0


def check_accept(data: bytes) -> None:
    """Any ``Accept`` gets a form that it includes, or is refused. The search needs little time for any text."""
    head, rest = data[:2].ljust(2, b"a"), data[2 : 2 + _MOST_ACCEPT_BYTES]
    outputs = [Output("/" + name, name, 1, 0.0, 0o100644) for name in _chosen(_OUTPUT_LISTS, head[0])]
    output_parameter = _chosen(_OUTPUT_PARAMETERS, head[1])
    if output_parameter is _FREE:
        output_parameter, rest = _first_line(rest)
    accept = rest.decode("utf-8", "surrogateescape")
    before_s = time.process_time()
    try:
        offer = choose_form(accept, output_parameter).resolve(outputs)
    except (BadInput, AnswerNotAvailable):
        offer = None
    took_s = time.process_time() - before_s
    assert took_s < _MOST_CPU_S, f"{took_s} s of processor time for {len(rest)} bytes"
    if offer is None:
        return
    assert isinstance(offer.form, AnswerForm)
    if output_parameter is not None:
        assert offer.form.value == output_parameter.lower()
    elif accept.strip(" \t,"):
        ranges = (offer.media_type, offer.media_type.partition("/")[0] + "/*", "*")
        assert any(each in accept.lower() for each in ranges), f"{accept!r} does not include {offer.media_type}"


# ---- script_log ----

_LEVELS = (20, 0, 10, 30, 40, 50)
_SMALL_LINE_BYTES = 48
# With these bytes, lines and events do not correspond one to one.
_SPECIAL = re.compile(rb"[\r\x1b]|Traceback|  File |Exception|Error|\tat ")


class _Collector(sink_module.LogWriter):
    """A sink that keeps its bytes, and has no thread."""

    def __init__(self, form: formats.LogFormat, level: int) -> None:
        super().__init__(-1, form, level=level)
        self.data = b""
        self.events = 0

    def put(self, data: bytes, events: int = 1) -> bool:
        self.data += data
        self.events += events
        return True


def check_script_log(data: bytes) -> None:
    """Wherever the output of a script is cut, its events are the same. Each is one line of JSON of bounded length."""
    head, output = data[:3].ljust(3, b"a"), data[3:]
    level = _chosen(_LEVELS, head[0])
    # With a small limit, even an output of a few bytes has lines over the limit.
    limit_bytes = _chosen((level_module.LINE_BYTES, _SMALL_LINE_BYTES), head[1])
    piece_bytes = 1 + (head[2] - ord("a") & 0xFF)
    pieces = [output[at : at + piece_bytes] for at in range(0, len(output), piece_bytes)]
    with (
        mock.patch.object(script_log_module, "LINE_BYTES", limit_bytes),
        mock.patch.object(traceback_module, "LINE_BYTES", limit_bytes),
    ):
        whole = _logged([output], formats.JsonFormat(), level)
        cut = _logged(pieces, formats.JsonFormat(), level)
        console = _logged(pieces, console_module.ConsoleFormat(colors=False), level)

    events = _events_in(whole, level, limit_bytes)
    cut_events = _events_in(cut, level, limit_bytes)
    assert events == cut_events, f"whole: {events}, cut: {cut_events}"
    lines = output.split(b"\n")
    if level <= logging.DEBUG and not _SPECIAL.search(output) and max(map(len, lines)) <= limit_bytes:
        texts = [line.decode("utf-8", "backslashreplace") for line in lines]
        assert [event["event"] for event in events] == [text for text in texts if text.strip()]
    shown = console.data.decode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown), f"{shown!r} moves a terminal's cursor"
    assert console.events == cut.events


def _logged(pieces: list[bytes], form: formats.LogFormat, level: int) -> _Collector:
    sink = _Collector(form, level)
    # The clock stands still, because this does not check anything that depends on time.
    script_log = script_log_module.ScriptLog(sink, stream="stdout", call_id="c", clock=lambda: 0.0)
    for piece in pieces:
        script_log.feed(piece)
    script_log.close()
    return sink


def _events_in(sink: _Collector, level: int, limit_bytes: int) -> list[dict[str, object]]:
    assert sink.data.count(b"\n") == sink.events, "a line for each event"
    events = []
    for line in sink.data.splitlines():
        try:
            event: dict[str, object] = json.loads(line)
        except ValueError as error:
            raise AssertionError(f"no JSON: {line!r}") from error
        events.append(event)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", str(event.pop("timestamp")))
        text = event["event"]
        assert isinstance(text, str)
        # The beginning of a long line may consist only of an escape sequence.
        assert text.strip() or event.get("truncated"), f"an event without text: {event}"
        number = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}[str(event["level"])]
        assert number >= level, f"{event} is below {level}"
        # A byte that is not UTF-8 becomes four characters, such as `\xff`.
        assert len(text.encode()) <= 4 * limit_bytes, f"an event of {len(text)} characters"
        assert event["logger"] == "script"
        line_bytes = event.get("line_bytes")
        assert line_bytes is None or (isinstance(line_bytes, int) and line_bytes > limit_bytes)
    return events


# ---- service_definition ----


def check_service_definition(data: bytes) -> None:
    """Any text is read, or each fault is reported in one line. The variables that are read fit into an environment."""
    origin = "/o.yaml"
    parsed = parse(data, origin)
    holds_secrets(data)
    assert (parsed.service is None) == bool(parsed.problems)
    for line in parsed.problems + parsed.warnings:
        assert line.startswith(f"service definition {origin}: "), line
        assert line.isprintable(), f"no line of text: {line!r}"
    service = parsed.service
    if service is None:
        return
    repr(service)
    for name, value in service.variables.items():
        assert name, "a variable without a name"
        assert "=" not in name
        assert "\0" not in name + value
        # This raises an error for text that no environment can contain.
        assert len(os.fsencode(name)) + len(os.fsencode(value)) + 2 <= 131_072
    for text in (service.name, service.log_level, service.script_path or ""):
        assert isinstance(text, str)
    for path in service.inputs + service.outputs:
        assert path.storage_provider


# ---- storage_event ----


def check_storage_event(data: bytes) -> None:
    """Any bytes are a complete event, or data. The input of a job is one of its two texts, or is refused."""
    for event in (event_module.read(data), event_module.read_data("com.amazonaws.s3.ObjectCreated:Put", data)):
        if event is None:
            continue
        assert event.objects or event.notices or event.data is not None, "an event of nothing"
        assert event.data is None or not (event.objects or event.notices), "an event and data"
        for notice in event.notices:
            assert notice.text
            (notice.text + notice.advice).encode()
        for stored in event.objects:
            assert stored.kind in ("minio", "s3", "ceph", "onedata", "webdav")
            assert stored.key
            assert stored.container or stored.kind == "webdav"
            text = stored.container + stored.key + stored.time
            assert "\0" not in text or stored.fault, "what no variable can carry"
            (text + stored.name + stored.version + stored.why_not_new).encode()
            assert stored.size_bytes is None or stored.kind in ("minio", "s3", "ceph")
            # Python has no number 1e999, but the text is kept as it is.
            msgspec.json.decode(stored.text, type=msgspec.Raw)
        for name, value in event.variables.items():
            assert name.startswith("CONT_VAR_")
            assert "=" not in name
            assert "\0" not in name + value
    stdin, _, variable = data.partition(b"\0")
    variable = variable.replace(b"\0", b"")  # a variable cannot contain a NUL
    for given in (None, variable.decode("utf-8", "surrogateescape")):
        try:
            # A random pattern could search through all files of the machine.
            with mock.patch("glob.glob", return_value=[]):
                text_of_job = job_event_module.job_text(stdin, given)
        except BadInput:
            continue
        if text_of_job.lstrip().startswith(b"{"):
            msgspec.json.decode(text_of_job, type=msgspec.Raw)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "accept": check_accept,
    "intake": check_intake,
    "request": check_request,
    "response_file": check_response_file,
    "script_log": check_script_log,
    "service_definition": check_service_definition,
    "storage_event": check_storage_event,
    "warm_answer": check_warm_answer,
}
