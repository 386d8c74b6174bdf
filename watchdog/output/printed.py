"""Recognise what a script prints: text, or binary data of a type that its first bytes show.

Most scripts print text. Some print a picture or an archive instead of leaving a file. Then the answer needs the right
content type, and "lines" of binary data do not belong in the log.
"""

from __future__ import annotations

import codecs
import re

from ..system.pattern import pattern
from .media_type import BYTES_TYPE, PLAIN_TYPE

# The first bytes of file formats as regular expressions, and the media type of each format. It is the type that
# media_type.guessed_type returns for the file names of this format. A text could also begin with letters such as "BM".
# The patterns of such formats include later bytes of the header that do not occur in texts.
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (rb"\x89PNG\r\n\x1a\n", "image/png"),
    (rb"\xff\xd8\xff", "image/jpeg"),
    (rb"GIF8[79]a.{6}\0", "image/gif"),
    (rb"RIFF....WEBPVP8", "image/webp"),
    (rb"II[*+]\0|MM\0[*+]", "image/tiff"),
    (rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}", "image/bmp"),
    (rb"\0\0\0\x0cjP  ", "image/jp2"),
    (rb"\0\0..ftyp(?:avif|avis)", "image/avif"),
    (rb"\0\0..ftyp(?:heic|heix|mif1)", "image/heic"),
    (rb"\0\0..ftypM4A ", "audio/mp4"),
    (rb"\0\0..ftypqt  ", "video/quicktime"),
    (rb"\0\0..ftyp", "video/mp4"),
    (rb"\x1a\x45\xdf\xa3.{0,60}webm", "video/webm"),
    (rb"\x1a\x45\xdf\xa3", "video/x-matroska"),
    (rb"RIFF....AVI ", "video/x-msvideo"),
    (rb"RIFF....WAVE", "audio/wav"),
    (rb"fLaC[\0\x80]\0\0\x22", "audio/flac"),
    (rb"ID3[\2-\4]\0|\xff[\xf2\xf3\xfa\xfb][\x10-\xef]", "audio/mpeg"),
    (rb"OggS\0", "audio/ogg"),
    (rb"%PDF-\d", "application/pdf"),
    (rb"PK(?:\x03\x04|\x05\x06)", "application/zip"),
    (rb"\x1f\x8b\x08", "application/gzip"),
    (rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", "application/x-bzip2"),
    (rb"\xfd7zXZ\0", "application/x-xz"),
    (rb"\x28\xb5\x2f\xfd", "application/zstd"),
    (rb"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (rb"\x89HDF\r\n\x1a\n", "application/x-hdf5"),  # NetCDF 4 as well
    (rb"CDF[\1\2\5]", "application/x-netcdf"),
    (rb"SIMPLE  = {20}T", "application/fits"),
    (rb".{128}DICM", "application/dicom"),
    (rb"PAR1\x15", "application/vnd.apache.parquet"),
    (rb"ARROW1\0\0", "application/vnd.apache.arrow.file"),
    (rb"SQLite format 3\0", "application/vnd.sqlite3"),
    (rb".{257}ustar(?:\0|  \0)", "application/x-tar"),
)
_starts_as = pattern(b"|".join(b"(%b)" % start for start, _ in _FORMATS), re.DOTALL)
# The offset at which tar's mark ends. All other marks end before it.
_START_BYTES = 265
# Characters that do not occur in a text of any encoding, according to file(1): control characters except those for
# lines, tabs and terminals.
_has_control_character = pattern(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


def type_of_start(start: bytes) -> str | None:
    """Return the media type that the first bytes of a file show; None if they show none.

    Args:
        start: at least 265 bytes, or the whole file if it is shorter.
    """
    match = _starts_as.match(start)
    return None if match is None else _FORMATS[(match.lastindex or 1) - 1][1]


class Printed:
    """One stream, checked piece by piece while it arrives. Only its first bytes are kept."""

    __slots__ = ("_decoder", "_is_left_out", "_is_text", "_start")

    def __init__(self) -> None:
        self._start = b""
        self._is_left_out = False
        self._is_text = True  # UTF-8 without NUL, so far
        self._decoder: codecs.IncrementalDecoder | None = None

    def take(self, piece: bytes) -> bool:
        """Check the next piece, and return whether it is binary data.

        After one piece of binary data the rest of the stream is binary data, too. A tar contains texts, and a script
        may print small pieces, some of which look like text. A piece with a NUL is binary data. A piece that is not
        UTF-8 is binary data only if it has control characters that are in no text. Without them it may be text in
        another encoding, such as ISO 8859-1.
        """
        # All pieces are checked, because the media type is that of the whole stream.
        is_binary = self._is_binary(piece)
        if len(self._start) < _START_BYTES:
            self._start += piece[: _START_BYTES - len(self._start)]
            is_binary = is_binary or type_of_start(self._start) is not None
        self._is_left_out = self._is_left_out or is_binary
        return self._is_left_out

    @property
    def media_type(self) -> str:
        """Return the type of the whole stream, which must have ended. UTF-8 without NUL is ``text/plain``."""
        ends_inside_a_character = self._decoder is not None and bool(self._decoder.getstate()[0])
        is_text = self._is_text and not ends_inside_a_character
        return type_of_start(self._start) or (PLAIN_TYPE if is_text else BYTES_TYPE)

    def _is_binary(self, piece: bytes) -> bool:
        if b"\0" in piece:
            self._is_text = False
            return True
        if self._decoder is None:
            if piece.isascii():
                return False
            self._decoder = _utf8_decoder()
        if self._is_text:
            try:
                # A character may be cut in two at the end of a piece.
                self._decoder.decode(piece)
            except UnicodeDecodeError:
                self._is_text = False
        return not self._is_text and not piece.isascii() and _has_control_character.search(piece) is not None


def joined_type(streams: list[tuple[int, str]]) -> str:
    """Return the type of several streams in a row, from the size and the type of each."""
    types = [media_type for size_bytes, media_type in streams if size_bytes]
    if len(types) == 1:
        return types[0]
    return PLAIN_TYPE if all(media_type == PLAIN_TYPE for media_type in types) else BYTES_TYPE
