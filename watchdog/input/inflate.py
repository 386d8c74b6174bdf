"""Decompress a body piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ..errors import BadInput, quoted
from .files import BATCH_BYTES


class _Inflater:
    """Decodes gzip or deflate in pieces of limited size, so ``max_input_size`` stops a decompression bomb early."""

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
                    return  # zeros are padding; gzip(1) ignores them, too
                # A gzip file may have several members one after another (RFC 1952, section 2.2).
                if self._coding != "gzip":
                    raise BadInput("bytes follow the end of the deflate stream")
                self._decoder = self._new()
            piece = self._inflate(data)
            yield piece
            while len(piece) == BATCH_BYTES and not self._decoder.unconsumed_tail:
                # The decoder has taken all input, but it may still hold output, because each piece is limited.
                piece = self._inflate(b"")
                yield piece
            data = self._decoder.unconsumed_tail or self._decoder.unused_data

    def finish(self) -> None:
        if not self._empty and not self._decoder.eof:
            raise BadInput(f"the {self._coding} stream is cut off before its end")

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._decoder.decompress(data, BATCH_BYTES)
        except zlib.error as error:
            raise BadInput(f"the body is not {self._coding}, as its Content-Encoding says: {error}") from None


def inflater_for(content_encoding: str) -> _Inflater | None:
    """Return the decoder for a ``Content-Encoding``; None if the body is not compressed.

    Raises:
        BadInput: the server does not support this ``Content-Encoding``.
    """
    if not content_encoding:
        return None
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return None
    if codings in (["gzip"], ["x-gzip"]):
        return _Inflater("gzip")
    if codings == ["deflate"]:
        return _Inflater("deflate")
    raise BadInput(f"the Content-Encoding {quoted(content_encoding)} is not supported; send gzip or deflate, only once")
