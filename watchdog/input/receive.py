"""Receive the body of a request into input files.

The body passes through these steps. No step waits, and no step needs more memory for a larger body::

    bytes -> inflater (gzip, deflate) -> decide (first 4 KiB) -> Base64Reader | Raw | KeyValueForm | Multipart -> file

:class:`Receiver` consists of these steps. Its caller passes the bytes, and the receiver writes the files.
:func:`take_in` feeds it from a stream: small bodies in the event loop, large ones in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec

from ..errors import BadInput
from ..system.base64_reader import ByteSink
from ..system.threads import settled, to_its_end
from ..workspace.file_name import new_file_name, safe_file_name
from ..workspace.held_input import HeldInput
from .detect import HEAD_BYTES, BodyHints, decide, media_type_of
from .files import BATCH_BYTES, Files, Limit
from .form import FormText, KeyValueForm
from .inflate import inflater_for
from .readers import Reader

_T = TypeVar("_T")
# For a smaller body, a thread would cost more than the work itself.
_INLINE_BYTES = 64 * 1024


class Input(msgspec.Struct, frozen=True):
    """The input of a script.

    Attributes:
        name: the name of the file; "" if a form had several files.
        size_bytes: the size of all files.
        encoding: how the body was read: ``base64``, ``raw``, ``json``, ``form`` or ``multipart``.
    """

    name: str
    size_bytes: int
    encoding: str = "raw"


async def take_in(body: AsyncIterator[bytes], hints: BodyHints, held: HeldInput, max_size_bytes: int = 0) -> Input:
    """Read a body into the files of ``held``.

    Args:
        body: the pieces of the body, of any size.
        max_size_bytes: the limit for the decoded input; 0 means no limit.

    Raises:
        BadInput: the body cannot be decoded, or a name in it is malformed.
        InputTooLarge: the decoded input has more than ``max_size_bytes``.
        NoSpace: the disk is full.
    """
    receiver = Receiver(hints, held, max_size_bytes)
    # A few bytes of gzip may decode to many megabytes, so a compressed body is always decoded in a thread.
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
            # While one batch is decoded and written, the next one is received.
            if received > inline_bytes and (job is None or job.done() or batch_bytes >= BATCH_BYTES):
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
        # The caller may remove the directory after this, so no thread may still write into it.
        if job is not None:
            await settled(job)
        receiver.close()


class Receiver:
    """Decodes the bytes of a body and writes the input files, without waiting.

    Call ``feed`` for each piece, then ``finish``. Always call ``close`` at the end.
    """

    def __init__(self, hints: BodyHints, held: HeldInput, max_size_bytes: int = 0) -> None:
        self._hints = hints
        self._inflater = inflater_for(hints.content_encoding)
        self._limit = Limit(max_size_bytes)
        self._head = bytearray()
        self._reader: Reader | None = None
        self._files = Files(held, self._limit)
        self._directory = held.directory
        self._form_text: FormText | None = None
        media_type, self._boundary = media_type_of(hints.content_type)
        self._media_type = media_type
        self._encoding = "multipart"
        if hints.encoding is None and media_type == "multipart/form-data":
            from .multipart import Multipart

            self._reader = Multipart(self._files, self._boundary)

    @property
    def is_plain(self) -> bool:
        """Whether the body is not compressed, so the decoded input is not much larger than the body."""
        return self._inflater is None

    def feed_all(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.feed(piece)

    def feed(self, data: bytes) -> None:
        """Decode the next bytes of the body. Raises the same errors as :func:`take_in`."""
        if self._inflater is None:
            self._feed_decoded(data)
            return
        for piece in self._inflater.feed(data):
            self._feed_decoded(piece)

    def finish(self) -> Input:
        """Complete the files after the last piece of the body. Raises the same errors as :func:`take_in`."""
        if self._inflater is not None:
            self._inflater.finish()
        if self._reader is None:
            self._start(complete=True)
        assert self._reader is not None
        self._reader.finish()
        return Input(self._files.input_name(), self._limit.taken, self._encoding)

    def close(self) -> None:
        """Close the text of a form. The caller closes the files of the input."""
        if self._form_text is not None:
            self._form_text.close()

    def _feed_decoded(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(data)
            return
        self._head += data
        if len(self._head) >= HEAD_BYTES:
            self._start(complete=False)

    def _start(self, *, complete: bool) -> None:
        head, self._head = bytes(self._head), bytearray()
        given = self._hints.file_name
        name = (safe_file_name(given) if given else None) or new_file_name()
        # Always the first 4 KiB, even if more bytes are there: the decision must not depend on the sizes of the pieces.
        is_all = complete and len(head) <= HEAD_BYTES
        decided = decide(head[:HEAD_BYTES], is_all, self._hints.encoding, self._media_type, self._new_form)
        self._encoding = decided.encoding
        self._reader = decided.reader(self._files.create(name))
        if rest := head[decided.skip :]:
            self._reader.feed(rest)

    def _new_form(self, file: ByteSink, offset: int, fault: BadInput) -> KeyValueForm:
        self._form_text = FormText(self._directory)
        return KeyValueForm(self._form_text, file, self._limit.check, offset, fault)
