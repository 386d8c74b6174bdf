"""Receive the body of a request as the input file.

The body passes through these steps. No step waits for anything, and none needs more memory for a larger body::

    bytes -> inflater (gzip, deflate) -> decide (first 4 KiB) -> Base64Reader | Raw | KeyValueForm | Multipart -> file

:class:`Receiver` consists of these steps. It gets bytes, reads nothing itself, and writes only the file.
:func:`take_in` feeds it from a stream: small bodies in the event loop, large ones in a thread.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import BadInput
from ..system.base64_reader import ByteSink
from ..system.threads import settled, to_its_end
from ..workspace.file_name import safe_file_name
from ..workspace.held_input import HeldInput
from .detect import HEAD_BYTES, BodyHints, decide, media_type_of
from .files import BATCH_BYTES, Files, Limit
from .form import FormText, KeyValueForm
from .inflate import inflater_for
from .multipart import Multipart
from .readers import Reader

_T = TypeVar("_T")
# Below this the hand-over to a thread costs more than the work.
_INLINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Input:
    """What the script gets.

    ``name``: of the file, or "" if a form had several. ``size_bytes``: of all.
    ``encoding``: how the body was read: ``base64``, ``raw``, ``json``, ``form`` or ``multipart``.
    """

    name: str
    size_bytes: int
    encoding: str = "raw"


async def take_in(body: AsyncIterator[bytes], said: BodyHints, held: HeldInput, max_size_bytes: int = 0) -> Input:
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
        # Whoever ends the call may remove the directory next: nothing may still write into it.
        if job is not None:
            await settled(job)
        receiver.close()


class Receiver:
    """The way from a body's bytes to the input file, without waiting. Feed it, then finish it; always close it."""

    def __init__(self, said: BodyHints, held: HeldInput, max_size_bytes: int = 0) -> None:
        self._said = said
        self._inflater = inflater_for(said.content_encoding)
        self._limit = Limit(max_size_bytes)
        self._head = bytearray()
        self._reader: Reader | None = None
        self._files = Files(held, self._limit)
        self._form_text = FormText(held.directory)
        media_type, self._boundary = media_type_of(said.content_type)
        self._media_type = media_type
        self._encoding = "multipart"
        if said.encoding is None and media_type == "multipart/form-data":
            self._reader = Multipart(self._files, self._boundary)

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
        if len(self._head) >= HEAD_BYTES:
            self._start(complete=False)

    def _start(self, *, complete: bool) -> None:
        head, self._head = bytes(self._head), bytearray()
        given = self._said.file_name
        name = (safe_file_name(given) if given else None) or f"event-file-{uuid.uuid4()}"
        # Not all the bytes that are there: the decision must not depend on how the network cut the body.
        is_all = complete and len(head) <= HEAD_BYTES
        decided = decide(head[:HEAD_BYTES], is_all, self._said.encoding, self._media_type, self._new_form)
        self._encoding = decided.encoding
        self._reader = decided.reader(self._files.create(name))
        if rest := head[decided.skip :]:
            self._reader.feed(rest)

    def _new_form(self, file: ByteSink, offset: int, fault: BadInput) -> KeyValueForm:
        return KeyValueForm(self._form_text, file, self._limit.check, offset, fault)
