"""Make the body of the answer from the outputs of a script.

::

    outputs -> AnswerPreference.resolve -> _Plan: parts (bytes and files) -> pieces -> Answer.chunks
                                       |
                                       +-- the length, known before the first byte is sent

There are four forms: base64 (of one file, or of a ZIP of several), raw, ZIP and JSON. The entries of a ZIP are stored,
not compressed, and a first pass over the files computes their checksums. So the length of each form is known,
programs that read the ZIP need no data descriptors, and a file that cannot be read is found before a status is sent.

Small answers are made at once. For larger ones a thread reads and encodes the files, one piece ahead of the caller.
Memory does not grow with the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence

import msgspec

from ..errors import AnswerNotAvailable, ScriptFailed, ScriptKilled
from ..logs.text import as_unicode
from ..system.threads import OUTPUTS, one_ahead
from ..workspace.outputs import Output, open_output, size_of
from ..workspace.spool import KeptStream
from .accept import AnswerForm, AnswerPreference, Offer
from .call_warning import CallWarning
from .encode import (
    Crc32,
    as_base64,
    base64_length,
    filled,
    read_output,
    read_stdout,
    regrouped,
    take_checksums,
)
from .media_type import JSON_TYPE, PLAIN_TYPE, ZIP_TYPE, encoded_name, guessed_type
from .zip_format import zip_parts

# If an answer exceeds neither limit, the switch to a thread costs more than the work.
_INLINE_BYTES = 64 * 1024
_INLINE_FILES = 16


class Result(msgspec.Struct, frozen=True):
    """The files that an invocation left, and its stdout.

    ``stdout_tail``, ``stderr_tail``: the ends of stdout and stderr as text. ``failure``: the failure of a classic
    function. ``printed_type``: the media type of ``stdout``. ``warnings``: why the result may be wrong although the
    script succeeded.
    """

    outputs: Sequence[Output]
    stdout: KeptStream
    exit_code: int | None
    duration_s: float
    stdout_tail: str = ""
    stderr_tail: str = ""
    failure: ScriptFailed | ScriptKilled | None = None
    printed_type: str = PLAIN_TYPE
    warnings: Sequence[CallWarning] = ()


class Answer(msgspec.Struct, frozen=True):
    """An answer that is ready to be sent.

    ``length``: the length of the body, in bytes. ``headers``: all headers except those for type and length, in ASCII.
    ``body``: the whole body if it is small, else None. ``pieces``: yields the body.
    """

    content_type: str
    length: int
    headers: dict[str, str]
    body: bytes | None
    pieces: Callable[[], Generator[bytes, None, None]]

    async def chunks(self, ahead: Callable[[], int] = lambda: 1) -> AsyncGenerator[bytes, None]:
        """Yield the body, exactly ``length`` bytes. Close the generator (``aclose``) if it is not read to its end.

        Args:
            ahead: returns, in any thread, how many pieces of at most 512 KiB are read at a time. The same number of
                earlier pieces may still wait to be sent. It takes longer to wake a thread for a piece than to read
                the piece.

        Raises:
            OutputUnreadable: an output changed or cannot be read, so that the rest of the body is missing.
        """
        if self.body is not None:
            if self.body:
                yield self.body
            return
        pieces = in_pieces(self.pieces(), ahead)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()


async def in_pieces(
    pieces: Generator[bytes, None, None], ahead: Callable[[], int] = lambda: 1
) -> AsyncGenerator[bytes, None]:
    """Run a generator in a thread, ``ahead()`` pieces at a time, and yield its pieces (:meth:`Answer.chunks`)."""
    batches = one_ahead(_batched(pieces, ahead), OUTPUTS)
    try:
        async for batch in batches:
            for piece in batch:
                yield piece
            # If this caller takes each piece without delay, the event loop must still serve the other callers.
            await asyncio.sleep(0)
    finally:
        await batches.aclose()


async def prepare(result: Result, preference: AnswerPreference) -> Answer:
    """Prepare the answer. Each file is opened before this returns. For a ZIP or JSON each file is also read.

    Raises:
        AnswerNotAvailable: the outputs do not have the form that the caller wants.
        OutputUnreadable: an output is gone, cannot be read, or has another size than before.
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
    """Return the answer of a classic function: what it printed, unchanged.

    If the function failed, its exit status or signal comes first, in the words of the classic watchdog. The end of its
    stderr comes last.
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
        yield from read_stdout(result.stdout)
        yield from (after,) if after else ()

    length = len(before) + result.stdout.size_bytes + len(after)
    body = b"".join(pieces()) if result.stdout.size_bytes <= _INLINE_BYTES else None
    return Answer(content_type, length, _headers_of_warnings(result.warnings), body, pieces)


def prepare_skipped(why: str, preference: AnswerPreference | None) -> Answer:
    """Return the answer to an event that did not run the script: ``why`` as text, or in JSON if the caller wants JSON.

    This raises no error if the form of answer that the caller wants is not available. After an error, the sender would
    send the event again.

    Args:
        preference: None for an answer without a body, because brokers accept only an empty answer or a CloudEvent.
    """
    body, content_type = b"", f"{PLAIN_TYPE}; charset=utf-8"
    if preference is not None and _wants_json(preference):
        nothing = {"exit_code": None, "duration_s": 0, "outputs": (), "stdout": "", "stderr": ""}
        nothing |= {"warnings": (), "skipped": why}
        body, content_type = msgspec.json.encode(nothing), JSON_TYPE
    elif preference is not None:
        body = why.encode("utf-8", "backslashreplace") + b"\n"
    return Answer(content_type, len(body), {}, body, lambda: (_ for _ in ()))


def _wants_json(preference: AnswerPreference) -> bool:
    try:
        return preference.resolve(()).form is AnswerForm.JSON
    except AnswerNotAvailable:
        return False


def _batched(pieces: Generator[bytes, None, None], count: Callable[[], int]) -> Generator[list[bytes], None, None]:
    with contextlib.closing(pieces):
        while batch := list(itertools.islice(pieces, count())):
            yield batch


class _Plan:
    """The plan of one answer.

    ``content_type`` and ``headers`` are known at once, ``length`` after :meth:`first_pass`. That method and
    :meth:`pieces` do not use the event loop, so they may run in any thread.
    """

    def __init__(self, result: Result, offer: Offer) -> None:
        self._result = result
        self._form = offer.form
        self._is_zip = offer.form is AnswerForm.ZIP or (offer.form is AnswerForm.BASE64 and len(result.outputs) > 1)
        self._is_base64 = offer.form is AnswerForm.BASE64 and bool(result.outputs)
        self._checksums: list[str] = []
        self.is_small = _is_small(result)
        self.length = 0
        self.content_type = offer.media_type
        if offer.form is AnswerForm.BASE64 and not result.outputs:
            self.content_type = result.printed_type
        if self.content_type == PLAIN_TYPE and (offer.form is AnswerForm.BASE64 or not result.outputs):
            self.content_type += "; charset=utf-8"
        self.headers = _headers(result.outputs, offer.form) | _headers_of_warnings(result.warnings)

    def first_pass(self) -> Generator[bool, None, None]:
        """Find out what must be known before the first byte is sent. Yield after each step."""
        outputs = self._result.outputs
        if self._is_zip:
            yield from take_checksums(outputs, Crc32, self._checksums)
        elif self._form is AnswerForm.JSON:
            import hashlib

            yield from take_checksums(outputs, hashlib.sha256, self._checksums)
        elif not self.is_small:
            for output in outputs:
                os.close(open_output(output))
        if self._form is AnswerForm.JSON:
            self.length = sum(
                base64_length(part.size_bytes) if isinstance(part, Output) else len(part) for part in self._json_parts()
            )
        elif self._is_zip:
            self.length = sum(part.size_bytes if isinstance(part, Output) else len(part) for part in self._zip_parts())
        else:
            self.length = outputs[0].size_bytes if outputs else self._result.stdout.size_bytes
        if self._is_base64:
            self.length = base64_length(self.length) + 1

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the body in pieces of ``_PIECE_BYTES``. A piece in base64 is longer: it encodes ``_PIECE_BYTES``."""
        outputs = self._result.outputs
        if self._form is AnswerForm.JSON:
            body = regrouped(filled(self._json_parts(), lambda file: as_base64(read_output(file))))
        elif self._is_zip:
            body = regrouped(filled(self._zip_parts(), read_output))
        elif outputs:
            body = read_output(outputs[0])
        else:
            body = read_stdout(self._result.stdout)
        if self._is_base64:
            yield from as_base64(body)
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
            about = {
                "name": name_in_json(output),
                "size": output.size_bytes,
                "content_type": guessed_type(output.name),
                "sha256": checksum,
            }
            yield separator + encode(about)[:-1] + b',"data":"'
            yield output
            yield b'"}'
            separator = b","
        yield b'],"stdout":%s,"stderr":%s,"warnings":%s}\n' % (
            encode(result.stdout_tail),
            encode(result.stderr_tail),
            encode(warnings_in_json(result.warnings)),
        )


def name_in_json(output: Output) -> str:
    r"""Return the name of an output. Bytes that are not UTF-8 are escapes such as ``\xff``, because of JSON."""
    return os.fsencode(output.name).decode("utf-8", "backslashreplace")


def warnings_in_json(warnings: Sequence[CallWarning]) -> list[dict[str, str]]:
    """Return the name and the detail of each warning."""
    return [{"name": each.name, "detail": as_unicode(each.detail)} for each in warnings]


def _is_small(result: Result) -> bool:
    outputs = result.outputs
    if not outputs:
        return result.stdout.size_bytes <= _INLINE_BYTES
    return len(outputs) <= _INLINE_FILES and size_of(outputs) <= _INLINE_BYTES


def _headers(outputs: Sequence[Output], form: AnswerForm) -> dict[str, str]:
    headers = {}
    if len(outputs) == 1:
        name = outputs[0].name
        headers["X-Output-Name"] = encoded_name(name)
        headers["X-Output-Content-Type"] = guessed_type(name)
        if form is AnswerForm.RAW:
            headers["Content-Disposition"] = _attachment(name.rpartition("/")[2])
    if form is AnswerForm.ZIP:
        headers["Content-Disposition"] = _attachment("outputs.zip")
    elif form is AnswerForm.BASE64 and len(outputs) > 1:
        # Only this shows a client that the text is base64 of a ZIP, and not a text that the script printed.
        headers["X-Output-Content-Type"] = ZIP_TYPE
    return headers


def _headers_of_warnings(warnings: Sequence[CallWarning]) -> dict[str, str]:
    # Several runs of one call may have the same warning.
    return {"X-Warning": ", ".join(dict.fromkeys(each.name for each in warnings))} if warnings else {}


def _attachment(name: str) -> str:
    """Return a ``Content-Disposition`` with a plain name (RFC 6266), and the exact name if it differs (RFC 8187)."""
    # In the plain name, some clients read %XX as an escape, and others read a backslash as an escape. So neither is
    # sent.
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    if plain == name:
        return f'attachment; filename="{plain}"'
    from urllib.parse import quote

    # Without `replace`, a name that is not UTF-8 would be a malformed value, and clients ignore such a value.
    text = os.fsencode(name).decode("utf-8", "replace")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='!#$&+-.^_`|~')}"
