"""Read the answer to an ordinary call, and keep it.

With ``?output=base64``, the headers say what the body is:

===========================  ================================================
X-Output-Content-Type        the body
===========================  ================================================
``application/zip``, no name base64 of a ZIP of several files
a type, and X-Output-Name    base64 of this file
missing                      what the script printed, as it is
===========================  ================================================
"""

from __future__ import annotations

import asyncio
import sys
import zipfile
import zlib
from typing import BinaryIO, Protocol

import aiohttp

from ..errors import AnswerBroken, AnswerNotKept, BadInput, quoted
from ..logs.text import printable
from ..output.media_type import ZIP_TYPE
from ..system import standard_output
from ..system.base64_reader import Base64Reader
from .folder import Folder, Kept, NameTaken
from .names import name_for, name_in_header
from .progress import Display
from .target import Target
from .verdict import Verdict, about_status, exit_code_from, exit_code_in

_WITHOUT_BODY = (204, 205, 304)
_COPY_BYTES = 256 * 1024
# This server does not compress the files of a ZIP. Another program may compress them with the usual method.
_COMPRESSIONS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


class _Sink(Protocol):
    def write(self, data: bytes) -> object: ...


class _ToStdout:
    def write(self, data: bytes) -> None:
        standard_output.write(data)


class _Decoded:
    """Decodes base64 on its way to a file."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._reader = Base64Reader(self, where="the answer")

    def write(self, data: bytes) -> None:
        self._sink.write(data)

    def close(self) -> None:
        """Do nothing. The reader calls this at the end of the text."""

    def feed(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except BadInput as error:
            raise _not_base64(error) from None

    def finish(self) -> None:
        try:
            self._reader.finish()
        except BadInput as error:
            raise _not_base64(error) from None


async def receive(response: aiohttp.ClientResponse, form: str, label: str, target: Target, display: Display) -> Verdict:
    """Keep the answer.

    Args:
        form: the form of the answer: ``base64``, ``raw``, ``zip`` or ``json``.
        label: the name of the input, for an answer that has no name.

    Raises:
        AnswerBroken: the answer is cut off or malformed.
        AnswerNotKept, StdoutClosed, StdoutUnwritable: the answer cannot be written.
    """
    headers = response.headers
    exit_code = exit_code_in(headers.get("X-Exit-Code", ""))
    warnings = [f"{name} (docs/reference/warnings.md)" for name in headers.get("X-Warning", "").split(", ") if name]
    warnings += about_status(response.status)
    kept = [] if response.status in _WITHOUT_BODY else await _kept(response, form, label, target, display)
    return Verdict(kept, exit_code_from(exit_code), warnings)


async def _kept(
    response: aiohttp.ClientResponse, form: str, label: str, target: Target, display: Display
) -> list[Kept]:
    """Keep the answer, and return the files. There are none if the answer went to stdout or is empty."""
    headers = response.headers
    if "Content-Length" not in headers and "chunked" not in headers.get("Transfer-Encoding", "").lower():
        raise AnswerBroken("the answer has no length, so it could be cut off without notice")
    name = headers.get("X-Output-Name")
    encoded_type = headers.get("X-Output-Content-Type") if form == "base64" else None
    content_type: str = encoded_type or headers.get("Content-Type") or ""
    directory = target.directory_for(content_type)
    display.begin("receiving", _size_bytes(headers.get("Content-Length"), is_base64=encoded_type is not None))
    if directory is None:
        if sys.stdout.isatty():
            display.end()
        await _copy(response, _ToStdout(), display, is_base64=encoded_type is not None)
        return []
    is_named = target.directory is not None
    with Folder(directory, target.prefix, replaces=target.replaces, has_hidden=is_named) as folder:
        if encoded_type is not None and name is None:
            archive = folder.create(name_for(label, ZIP_TYPE), is_own=True)
            await _copy(response, archive, display, is_base64=True)
            try:
                with archive.reader() as reader:
                    await _unpack(reader, folder)
                return folder.finish(without=archive)
            except NameTaken:
                raise
            except AnswerNotKept as error:
                kept = folder.keep_only(archive)
                raise AnswerNotKept(
                    f"{error}\nthe whole answer is kept as a ZIP in {printable(kept.path)}; unpack it elsewhere"
                ) from None
        if name is not None and form != "zip" and form != "json":
            file = folder.create(name_in_header(name), is_own=False)
            await _copy(response, file, display, is_base64=encoded_type is not None)
        else:
            file = folder.create(name_for(label, content_type), is_own=True)
            await _copy(response, file, display, is_base64=False)
            if not file.size_bytes:
                return []
        return folder.finish()


async def _copy(response: aiohttp.ClientResponse, sink: _Sink, display: Display, *, is_base64: bool) -> None:
    if not is_base64:
        while piece := await response.content.readany():
            sink.write(piece)
            display.moved(len(piece))
        return
    decoded = _Decoded(sink)
    while piece := await response.content.readany():
        decoded.feed(piece)
        display.moved(len(piece) // 4 * 3)
    decoded.finish()


async def _unpack(archive: BinaryIO, folder: Folder) -> None:
    """Write the files of a ZIP to the folder. Between two pieces, other calls continue, and Ctrl-C has an effect.

    The files in a small ZIP may be very large, so the sum of their sizes is compared with the free space first. If a
    file is larger than its size in the ZIP says, zipfile stops at this size, and reports that the checksum is wrong.

    Raises:
        AnswerBroken: the ZIP is damaged.
        AnswerNotKept: a file cannot be written, or the disk has no room for the files.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            folder.require_room(sum(entry.file_size for entry in opened.infolist()))
            for entry in opened.infolist():
                if entry.orig_filename.endswith("/"):  # a directory
                    continue
                if entry.compress_type not in _COMPRESSIONS:
                    raise AnswerBroken(
                        f"the ZIP in the answer has the file {quoted(entry.orig_filename)} with the compression method "
                        f"{entry.compress_type}, which this client does not read; use --output zip"
                    )
                file = folder.create(entry.orig_filename, is_own=False)
                with opened.open(entry) as source:
                    while piece := source.read(_COPY_BYTES):
                        file.write(piece)
                        await asyncio.sleep(0)
                file.close()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise AnswerBroken(f"the ZIP in the answer is damaged: {error}") from None
    except OSError as error:
        raise AnswerNotKept(f"the ZIP of the answer cannot be read back: {error.strerror}") from None


def _size_bytes(length: str | None, *, is_base64: bool) -> int | None:
    if length is None or not length.isdecimal():
        return None
    return int(length) // 4 * 3 if is_base64 else int(length)


def _not_base64(error: BadInput) -> AnswerBroken:
    what = str(error).partition(";")[0]
    return AnswerBroken(f"the answer is damaged: {what}")
