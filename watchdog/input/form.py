"""Turn a form of ``key=value`` pairs, as ``curl -d`` and oscar-python send it, into one JSON object.

The text of a form is kept until its end, because a key may appear again at any place. Then it becomes JSON. Memory does
not grow with the form: text beyond 64 KiB is in a file, a field is decoded in pieces, and memory holds only a digest of
each key.
"""

from __future__ import annotations

import codecs
import os
import re
from array import array
from collections.abc import Callable, Iterator
from itertools import chain

import msgspec

from ..errors import BadInput
from ..system.base64_reader import ARMOUR, HOW_TO_SEND_RAW, ByteSink, armour_error
from ..system.nameless_file import open_nameless, write_all
from ..system.pattern import pattern
from ..workspace.space import raise_if_no_space

_IN_MEMORY_BYTES = 64 * 1024
_WRITTEN_BYTES = 64 * 1024
# Text is decoded in pieces of this size. Python makes an object for each escape. For 16 KiB of escapes these
# objects take 0.5 MiB.
_STEP_BYTES = 16 * 1024
_MOST_FIELDS = 10_000
_HEAD_BYTES = 4096
# The search in a piece begins this number of bytes before the piece, because an armour line of PEM or an escape may be
# cut in two. Both are shorter than this.
_OVERLAP_BYTES = 100
_DIGEST_BYTES = 16
_WHITESPACE = b" \t\n\r\x0b\x0c"

_OF_BASE64 = pattern(rb"[A-Za-z0-9+/_\-]")
# A word is in lower case, Capitalised, inCamelCase, or ends in CAPITALS or digits. There are no possessive quantifiers,
# because in Python 3.11.2 they match too much. The words are matched one by one, because a pattern for a whole key of
# many short words would take extremely long.
_WORD = pattern(r"(?:[A-Z](?![A-Z]))?[^\W_A-Z]*(?:[A-Z][^\W\d_A-Z]+)*(?:[A-Z]{2,}\d*)?")
_BETWEEN_WORDS = pattern(r"[ _.:/+\-\[\]]")
_LONGEST_NAME = 64
_FEWEST_OF_JOINED = 16
# Percent-encoded base64 has escapes only for line ends, blanks, `=`, `+` and `/`. With any other escape, a text is a
# form.
_ESCAPE_OF_FORM = pattern(rb"%(?!0[9AD]|20|3D|2[BF])[0-9A-F]{2}", re.IGNORECASE)
_WRITTEN_LINE_END = pattern(rb"\\[nr]")  # a backslash and a letter in place of a line end


class FormText:
    """The text of one form. If it exceeds 64 KiB, it is moved from memory to a nameless file in ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._memory = bytearray()
        self._fd = -1
        self.size_bytes = 0

    def append(self, data: bytes) -> None:
        """Append to the text. Raises ``NoSpace`` if the disk is full."""
        self._memory += data
        self.size_bytes += len(data)
        if self.size_bytes <= _IN_MEMORY_BYTES:
            return
        try:
            if self._fd < 0:
                self._fd = open_nameless(self._directory)
            write_all(self._fd, self._memory)
        except OSError as error:
            raise_if_no_space(error, "the form")
            raise
        self._memory = bytearray()

    def read(self, start: int, stop: int) -> bytes:
        if self._fd < 0:
            return bytes(self._memory[start:stop])
        return os.pread(self._fd, stop - start, start)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class KeyValueForm:
    """Reads the text of a form, and writes JSON to ``file`` at the end.

    Args:
        text: keeps the form. The caller closes it.
        file: gets the JSON.
        check_size: is called with the smallest possible size of the decoded form. It raises an error if this is too
            much.
        offset: the offset of the form in the body.
        fault: the reason why the body is not base64.
    """

    def __init__(
        self, text: FormText, file: ByteSink, check_size: Callable[[int], None], offset: int, fault: BadInput
    ) -> None:
        self._text = text
        self._file = file
        self._check_size = check_size
        self._offset = offset
        self._fault = fault
        self._overlap = b""
        self._start = 0  # the form without the whitespace around it begins here
        self._stop = 0  # and ends here
        self._separators = array("Q")
        self._percent_signs = 0
        self._has_escape = False

    def feed(self, data: bytes) -> None:
        """Keep the next bytes of the form.

        Raises:
            BadInput: the form has too many fields, or contains the armour of PEM.
            InputTooLarge: the form is too large.
            NoSpace: the disk is full.
        """
        at = self._text.size_bytes
        self._percent_signs += data.count(b"%")
        self._check_size(at + len(data) - 2 * self._percent_signs)
        self._text.append(data)
        if stripped := data.rstrip(_WHITESPACE):
            if not self._stop:
                self._start = at + len(data) - len(data.lstrip(_WHITESPACE))
            self._stop = at + len(stripped)
        self._find_separators(data, at)
        window = self._overlap + data
        # In a form each `+` means a space, so the text between the armour lines would lose each `+`.
        if (armour := ARMOUR.search(window)) is not None:
            start = self._offset + at - len(self._overlap) + armour.start()
            raise armour_error(armour[0].decode("latin-1"), start)
        self._has_escape = self._has_escape or _ESCAPE_OF_FORM.search(window) is not None
        self._overlap = window[-_OVERLAP_BYTES:]

    def _find_separators(self, data: bytes, at: int) -> None:
        found = data.find(b"&")
        while found >= 0:
            self._separators.append(at + found)
            if len(self._separators) >= _MOST_FIELDS:
                raise BadInput(f"the form has over {_MOST_FIELDS} fields; send files with curl -F file=@FILE")
            found = data.find(b"&", found + 1)

    def finish(self) -> None:
        """Write the JSON of the complete form.

        Raises:
            BadInput: the caller probably meant base64, or the text is not UTF-8.
            InputTooLarge: the JSON is too large.
            NoSpace: the disk is full.
        """
        if not self._separators and not self._has_escape:
            head = self._text.read(self._start, min(self._stop, self._start + 2 * _HEAD_BYTES))
            if _is_meant_as_base64(head):
                raise BadInput(f"{self._fault} (if it is a form of one field, end it with &)")
        waiting = bytearray()
        for piece in self._json():
            waiting += piece
            if len(waiting) >= _WRITTEN_BYTES:
                self._file.write(bytes(waiting))
                waiting.clear()
        self._file.write(bytes(waiting))
        self._file.close()

    def _json(self) -> Iterator[bytes]:
        """Yield the form as one JSON object, in pieces. A key that appears more than once gets a list of its values."""
        import hashlib

        fields: dict[bytes, list[_Field]] = {}
        for field in self._fields():
            digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
            for text in self._decoded(field.start, field.equals_sign):
                digest.update(text.encode())
            fields.setdefault(digest.digest(), []).append(field)
        yield b"{"
        is_first = True
        for same in fields.values():
            yield b'"' if is_first else b',"'
            is_first = False
            yield from self._json_text(same[0].start, same[0].equals_sign)
            yield b'":"' if len(same) == 1 else b'":["'
            yield from self._json_text(same[0].equals_sign + 1, same[0].stop)
            for field in same[1:]:
                yield b'","'
                yield from self._json_text(field.equals_sign + 1, field.stop)
            yield b'"' if len(same) == 1 else b'"]'
        yield b"}"

    def _fields(self) -> Iterator[_Field]:
        start = self._start
        for separator in chain(self._separators, [self._stop]):
            stop = min(separator, self._stop)
            if start < stop:
                yield _Field(start, self._equals_sign(start, stop), stop)
            start = separator + 1

    def _equals_sign(self, start: int, stop: int) -> int:
        """Return the position of the first `=` of a field, or the end of the field if it has none."""
        while start < stop:
            piece = self._text.read(start, min(start + _STEP_BYTES, stop))
            if (found := piece.find(b"=")) >= 0:
                return start + found
            start += len(piece)
        return stop

    def _json_text(self, start: int, stop: int) -> Iterator[bytes]:
        for text in self._decoded(start, stop):
            yield msgspec.json.encode(text)[1:-1]

    def _decoded(self, start: int, stop: int) -> Iterator[str]:
        """Yield the decoded text of a key or value, in pieces.

        The URL standard defines this as application/x-www-form-urlencoded.
        """
        from urllib.parse import unquote_to_bytes

        decoder = codecs.getincrementaldecoder("utf-8")()
        at = start
        while at < stop:
            piece = self._text.read(at, min(at + _STEP_BYTES, stop))
            # Do not cut an escape into two pieces.
            if at + len(piece) < stop and (escape := piece.rfind(b"%", len(piece) - 2)) > 0:
                piece = piece[:escape]
            at += len(piece)
            try:
                yield decoder.decode(unquote_to_bytes(piece.replace(b"+", b" ")), final=at == stop)
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"the form of key=value pairs is not UTF-8: {error.reason} in the text at offset "
                    f"{self._offset + start} of the body; {HOW_TO_SEND_RAW}"
                ) from None


class _Field:
    """The position of a field in the text."""

    __slots__ = ("equals_sign", "start", "stop")

    def __init__(self, start: int, equals_sign: int, stop: int) -> None:
        self.start = start
        self.equals_sign = equals_sign
        self.stop = stop


def _is_meant_as_base64(text: bytes) -> bool:
    """Return whether a form of one field is probably base64 with some wrong characters.

    Then its key is not a name, and its `=` are padding.

    Args:
        text: the start of the form: its key and 4 KiB of its value. ``_ESCAPE_OF_FORM`` matches nothing in it.
    """
    from urllib.parse import unquote_to_bytes

    before, _, after = text.partition(b"=")
    # `curl --data-urlencode` does not encode the text before the first `=`.
    key, value = unquote_to_bytes(before), unquote_to_bytes(after[:_HEAD_BYTES])
    value = _WRITTEN_LINE_END.sub(b"", value)
    has_value = _OF_BASE64.search(value) is not None
    characters = len(_OF_BASE64.findall(key))
    padding = 1 + len(value) - len(value.lstrip(b"="))
    fills_groups = characters == len(key) and padding <= 2 and (characters + padding) % 4 == 0
    if _is_name(key):
        # A body like `message=` may be base64; `message=?` is a form.
        return fills_groups and not has_value and (not value.strip(b"=\r\n") or not key.islower())
    # Two base64 texts may have been joined, with or without a line end between them.
    is_joined = value.startswith((b"=", b"\n", b"\r")) or (fills_groups and characters >= _FEWEST_OF_JOINED)
    return not has_value or is_joined or len(key) > _LONGEST_NAME


def _is_name(key: bytes) -> bool:
    """Return whether the key of a form consists of words. Base64 text almost never does."""
    try:
        return len(key) <= _LONGEST_NAME and all(map(_WORD.fullmatch, _BETWEEN_WORDS.split(key.decode())))
    except UnicodeDecodeError:
        return False
