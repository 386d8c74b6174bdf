"""Read the stream of events of a live call: show the log and the progress, and keep the outputs.

The outputs get their names only after the last event, ``completed``, has confirmed their sizes and checksums. A stream
that ends without this event was cut off.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

import aiohttp
import msgspec

from ..errors import AnswerBroken, AnswerNotKept, BadInput, RefusedForNow, WatchdogError
from ..logs.text import printable
from ..output.media_type import ZIP_TYPE
from ..system import standard_output
from ..system.base64_reader import Base64Reader
from .event_stream import EventReader
from .folder import Folder, KeptFile
from .names import name_for
from .progress import Display
from .refusal import error_of_document, note_retry
from .shown_text import ShownText, have_same_terminal
from .target import Target
from .verdict import Verdict, about_status, exit_code_from

# The server sends at least a comment every 15 s.
_SILENCE_S = 90.0
_HERE = "."
_COPY_BYTES = 256 * 1024


class CompletedOutput(msgspec.Struct):
    name: str | None
    size: int
    sha256: str


class Completed(msgspec.Struct):
    """The last event of a live call: its verdict.

    ``duration_s``: None if the script did not run. ``error``: a problem document if the call failed. ``skipped``: why
    the script did not run, for a storage event.
    """

    status: int
    exit_code: int | None = None
    duration_s: float | None = None
    outputs: list[CompletedOutput] = []
    warnings: list[dict[str, Any]] = []
    error: dict[str, Any] | None = None
    retry_after_s: float | None = None
    skipped: str | None = None


class _Received:
    """One output on its way to a file."""

    def __init__(self, name: str | None, content_type: str, size_bytes: int, file: KeptFile) -> None:
        self.name = name
        self.content_type = content_type
        self.size_bytes = size_bytes
        self.file = file
        self.sha256 = hashlib.sha256()
        self._reader = Base64Reader(self, where="an output")

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.sha256.update(data)

    def close(self) -> None:
        """Do nothing. The reader calls this at the end of the text."""

    def take(self, text: str) -> None:
        self._guarded(lambda: self._reader.feed(text.encode()))
        if self.file.size_bytes > self.size_bytes:
            raise AnswerBroken(f"the output {_shown(self.name)} is larger than its size of {self.size_bytes} bytes")

    def finish(self) -> None:
        self._guarded(self._reader.finish)
        if self.file.size_bytes != self.size_bytes:
            raise AnswerBroken(
                f"the output {_shown(self.name)} has {self.file.size_bytes} bytes and not {self.size_bytes}: it was "
                "cut off or damaged"
            )
        self.file.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BadInput as error:
            what = str(error).partition(";")[0]
            raise AnswerBroken(f"the output {_shown(self.name)} is damaged: {what}") from None


class LiveCall:
    """One call with ``--live``.

    Args:
        label: the name of the input, for an answer that has no name.
        scratch: the directory for outputs that go to stdout.
    """

    def __init__(self, label: str, target: Target, display: Display, scratch: str) -> None:
        self._label = label
        self._target = target
        self._display = display
        self._scratch = scratch
        self._outputs: dict[str | None, _Received] = {}
        self._current: _Received | None = None
        self._shown = ShownText()  # the lines of stdout in the log

    async def receive(self, response: aiohttp.ClientResponse) -> Verdict:
        """Read the whole stream, and keep the outputs.

        Raises:
            AnswerBroken: the stream was cut off or is malformed.
            AnswerNotKept, StdoutClosed, StdoutUnwritable: the outputs cannot be written.
            WatchdogError: the call failed.
        """
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "text/event-stream":
            raise AnswerBroken(
                f"the service answers without live events ({printable(content_type) or 'no content type'}); call it "
                "without --live"
            )
        room, target = self._waiting_room(), self._target
        has_hidden = target.directory is not None or room != _HERE
        with Folder(room, target.prefix, replaces=target.replaces, has_hidden=has_hidden) as folder:
            completed = await self._read(response, folder)
            if completed.error is not None:
                raise _error_of(completed)
            self._check(completed)
            if completed.skipped is not None:
                self._display.note(completed.skipped)
            warnings = [
                ": ".join(printable(str(each.get(key, ""))) for key in ("name", "detail"))
                for each in completed.warnings
            ] + about_status(completed.status)
            if self._place() is not None:
                return Verdict(folder.finish(), exit_code_from(completed.exit_code), warnings)
            self._display.end()
            if not self._is_answer_shown(folder):
                self._to_stdout(folder)
            return Verdict([], exit_code_from(completed.exit_code), warnings)

    def _waiting_room(self) -> str:
        """Return the directory in which outputs wait for the verdict. It is on the file system of their target."""
        if self._target.directory is not None:
            return self._target.directory
        return _HERE if sys.stdout.isatty() and not self._target.is_forced_to_stdout else self._scratch

    def _place(self) -> str | None:
        """Return the directory for the outputs; None means stdout."""
        if not self._outputs:
            return None
        types = [output.content_type for output in self._outputs.values()]
        return self._target.directory_for(types[0] if len(types) == 1 else ZIP_TYPE)

    async def _read(self, response: aiohttp.ClientResponse, folder: Folder) -> Completed:
        """Handle all events, and return the last one."""
        reader = EventReader()
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    piece = await response.content.readany()
            except TimeoutError:
                raise AnswerBroken(f"the service sent nothing for {_SILENCE_S:g} s: the connection is lost") from None
            if not piece:
                raise AnswerBroken("the stream of events was cut off: it ended without the verdict")
            for name, data in reader.feed(piece):
                if name == "completed":
                    return _decoded(name, data, Completed)
                self._take(name, data, folder)

    def _take(self, name: str, data: bytes, folder: Folder) -> None:
        """Handle one event. Unknown events are ignored, because a newer server may send more of them."""
        match name:
            case "queued":
                position = _decoded(name, data, _Queued).position
                self._display.status(f"waiting in the queue, position {position}")
            case "started":
                self._display.status("running")
            case "log":
                line = _decoded(name, data, _Log)
                if self._display.log(line.level, line.text) and line.stream == "stdout":
                    self._shown.take(line.text)
            case "dropped":
                lines = _decoded(name, data, _Dropped).lines
                self._display.note(f"({lines} lines of the log are missing here, because they came too fast)")
            case "progress":
                progress = _decoded(name, data, _Progress)
                self._display.status(progress.text, progress.fraction)
            case "output":
                self._take_output(_decoded(name, data, _Output), folder)

    def _take_output(self, event: _Output, folder: Folder) -> None:
        output = self._current
        if output is None or output.name != event.name:
            if output is not None:
                output.finish()
            if event.name in self._outputs:
                raise AnswerBroken(f"the output {_shown(event.name)} comes twice")
            is_own = event.name is None
            name = name_for(self._label, event.content_type) if event.name is None else event.name
            file = folder.create(name, is_own=is_own)
            output = self._current = _Received(event.name, event.content_type, event.size, file)
            self._outputs[event.name] = output
            self._display.begin("receiving", event.size)
        if event.offset != output.file.size_bytes:
            raise AnswerBroken(
                f"a piece of the output {_shown(event.name)} is missing at byte {output.file.size_bytes}"
            )
        output.take(event.data)
        self._display.moved(len(event.data) // 4 * 3)

    def _check(self, completed: Completed) -> None:
        """Compare the outputs with the verdict. Raise ``AnswerBroken`` if they differ."""
        if self._current is not None:
            self._current.finish()
        listed = {each.name: each for each in completed.outputs if each.name is not None}
        if listed.keys() != self._outputs.keys() - {None}:
            raise AnswerBroken("the outputs are not those that the verdict of the service lists")
        for name, each in listed.items():
            received = self._outputs[name]
            if (each.size, each.sha256) != (received.size_bytes, received.sha256.hexdigest()):
                raise AnswerBroken(f"the output {_shown(name)} is damaged: its checksum is wrong")

    def _is_answer_shown(self, folder: Folder) -> bool:
        """Return whether the answer is what the script printed, and the log has shown it on the same terminal."""
        if list(self._outputs) != [None] or not have_same_terminal():
            return False
        with folder.reopened(self._outputs[None].file) as printed:
            return self._shown.is_all_of(printed) and self._display.is_written()

    def _to_stdout(self, folder: Folder) -> None:
        """Write the outputs to stdout: one as it is, several as a ZIP."""
        try:
            if len(self._outputs) > 1:
                with zipfile.ZipFile(cast(BinaryIO, _Stdout()), "w", zipfile.ZIP_STORED) as archive:
                    for output in self._outputs.values():
                        entry = zipfile.ZipInfo(str(output.name))
                        entry.file_size = output.size_bytes
                        with folder.reopened(output.file) as source, archive.open(entry, "w") as target:
                            _copy(source, target.write)
                return
            for output in self._outputs.values():
                with folder.reopened(output.file) as source:
                    _copy(source, standard_output.write)
        except OSError as error:
            raise AnswerNotKept(f"the answer cannot be read back: {error.strerror}") from None


class _Stdout:
    """Stdout for zipfile. It has no ``seek``, so zipfile writes the ZIP from its beginning to its end."""

    def write(self, data: bytes) -> int:
        return standard_output.write(data)

    def flush(self) -> None:
        standard_output.flush()


class _Queued(msgspec.Struct):
    position: int = 0


class _Log(msgspec.Struct):
    text: str
    level: str = "info"
    stream: str = ""


class _Dropped(msgspec.Struct):
    lines: int = 0


class _Progress(msgspec.Struct):
    fraction: float | None = None
    text: str = ""


class _Output(msgspec.Struct):
    name: str | None
    data: str
    size: int
    offset: int = 0
    content_type: str = ""


_Event = TypeVar("_Event", bound=msgspec.Struct)


def _decoded(name: str, data: bytes, kind: type[_Event]) -> _Event:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AnswerBroken(
            f"the service sent an event {name!r} that this client cannot read: {printable(str(error))}"
        ) from None


def _copy(source: BinaryIO, write: Callable[[bytes], int]) -> None:
    while piece := source.read(_COPY_BYTES):
        write(piece)


def _error_of(completed: Completed) -> WatchdogError:
    exit_code = "" if completed.exit_code is None else str(completed.exit_code)
    has_run = completed.duration_s is not None
    error = error_of_document(completed.status, completed.error or {}, exit_code, has_run=has_run)
    if isinstance(error, RefusedForNow):
        note_retry(error, completed.status, completed.retry_after_s, has_run=has_run)
    return error


def _shown(name: str | None) -> str:
    return "of the script's stdout" if name is None else repr(printable(name))
