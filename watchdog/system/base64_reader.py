"""Decode strict base64 (RFC 4648) piece by piece: only what an encoder produces is accepted.

::

    text    = line *( line-end line )           line-end: LF, CRLF or CR, after any number of characters
    line    = *blank *character *blank          blank: space or tab
    all     = the characters of one alphabet, then the right padding or none

The reader refuses a blank inside a line (a ``+`` that a form turned into a space, or an ordinary sentence), characters
of both alphabets, the armour of PEM, wrong padding, and a last character with bits that no encoder sets. For each of
these, a lenient decoder would return other bytes than the caller sent.

The result does not depend on how the network cuts the body into pieces. Between two pieces, the reader keeps only the
state that ``Base64Reader.__init__`` sets. It decodes each piece with C code first, and searches for the fault only if
the C code fails.
"""

from __future__ import annotations

import binascii
import enum
import re
from typing import Protocol

import pybase64

from ..errors import BadInput
from .pattern import pattern

HOW_TO_SEND_RAW = (
    "send base64, or the bytes themselves with their own content type (curl -H 'Content-Type: image/jpeg' "
    "--data-binary @FILE), with ?input=raw, or as a form (curl -F file=@FILE)"
)
# RFC 7468 (certificates, keys), RFC 9580 (OpenPGP), RFC 4716 (SSH, with four hyphens and a space).
ARMOUR = pattern(rb"-----BEGIN [^\r\n-]{1,80}-----|---- BEGIN [^\r\n-]{1,80} ----")

_BLANKS = b" \t"
_LINE_ENDS = b"\r\n"
_WHITE = _BLANKS + _LINE_ENDS
_RUN = pattern(rb"[A-Za-z0-9+/_\-]+|[ \t\r\n]+|.", re.DOTALL)
_NOT_WHITE = pattern(rb"[^ \t\r\n]")
_ARMOUR_BEFORE_BLANK = (b"-----BEGIN", b"-----END")
_MOST_BEFORE_BYTES = max(map(len, _ARMOUR_BEFORE_BLANK))
_HOW_PEM = "send the file as it is with ?input=raw, or send the base64 without the armour lines"
_HOW_PEM_IN_A_PART = (
    "to send the file as it is, leave out the part's Content-Transfer-Encoding, or send the base64 without the armour"
)
# The bits of the last character that belong to no byte, by the number of characters in the last group.
_UNUSED_BITS = {2: 0b1111, 3: 0b11}
_STANDARD_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_URL_SAFE_CHARACTERS = _STANDARD_CHARACTERS[:-2] + b"-_"
_VALUES = {
    byte: value for characters in (_STANDARD_CHARACTERS, _URL_SAFE_CHARACTERS) for value, byte in enumerate(characters)
}


class ByteSink(Protocol):
    """The target of the decoded bytes."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class _Alphabet(enum.Enum):
    """An alphabet of base64. ``value``: the two characters that only this alphabet has."""

    STANDARD = b"+/"
    URL_SAFE = b"-_"

    @property
    def title(self) -> str:
        return "standard" if self is _Alphabet.STANDARD else "URL-safe"


class Base64Reader:
    """Decodes one base64 text, and writes the bytes to ``file``.

    Args:
        offset: the position of the first byte of the text, for error messages.
        quoted: whether a ``"`` ends the text.
        where: the data in which positions are counted, for error messages.
    """

    def __init__(self, file: ByteSink, offset: int = 0, quoted: bool = False, where: str = "the body") -> None:
        self._file = file
        self._offset = offset  # position of the next byte
        self._quoted = quoted
        self._where = where
        # The line ends and blanks that occurred so far. They are removed from each later piece before its decoding.
        self._line_ends = b""
        self._has_blanks = False
        # The state of the text.
        self._alphabet: _Alphabet | None = None  # None until a character shows it
        self._carry = b""  # up to 3 characters of an incomplete group
        self._last_at = offset  # offset of the last character of the carry
        self._in_line = False  # the current line has a character
        self._blank_at: int | None = None  # offset of the first blank after the characters of the current line
        self._blank = b""  # that blank
        self._before = b""  # the end of the current line before that blank, to recognise the armour of PEM
        self._end: bytes | None = None  # the `=` and `"` after the characters; None before the first of them

    def feed(self, data: bytes) -> None:
        """Decode the next bytes of the text.

        Raises:
            BadInput: no encoder writes such a text.
        """
        end = 0 if self._end is not None else self._end_of_characters(data)
        if end:
            self._take_characters(data[:end])
        if end < len(data):
            self._take_end(data[end:])

    def check_end(self) -> None:
        """Check that the text may end here. Raises the same errors as :meth:`feed`."""
        end = self._end or b""
        if self._quoted and b'"' not in end:
            raise BadInput(
                f'the base64 begins with =" but no " closes it before the end of {self._where} at byte {self._offset}'
            )
        characters = len(self._carry)
        if characters == 1:
            raise BadInput(
                f"the base64 ends at byte {self._offset} of {self._where} in the middle of a group of four "
                f"characters: a part of it is missing, or it is not base64; {HOW_TO_SEND_RAW}"
            )
        padding = end.count(b"=") if end else 0
        if padding and characters + padding != 4:
            raise BadInput(
                f"the base64 ends at byte {self._offset} of {self._where} in the middle of its padding: "
                f"it has {padding} of {4 - characters} `=`; {HOW_TO_SEND_RAW}"
            )
        if characters and _VALUES[self._carry[-1]] & _UNUSED_BITS[characters]:
            raise BadInput(
                f"the last character of the base64, {_shown(self._carry[-1])} at offset {self._last_at} of "
                f"{self._where}, has bits that no encoder sets: was the body cut off or changed? {HOW_TO_SEND_RAW}"
            )

    def finish(self) -> None:
        """Check and write the end of the text, and close the file. Raises the same errors as :meth:`feed`."""
        self.check_end()
        if self._carry:
            padded = self._carry + b"=" * (4 - len(self._carry))
            self._file.write(pybase64.b64decode(padded, altchars=_altchars(self._alphabet), validate=True))
        self._file.close()

    def _end_of_characters(self, data: bytes) -> int:
        end = data.find(b"=")
        if self._quoted:
            quote = data.find(b'"', 0, end if end >= 0 else None)
            end = quote if quote >= 0 else end
        return end if end >= 0 else len(data)

    # ---- characters, line ends and blanks

    def _take_characters(self, data: bytes) -> None:
        alphabet = self._alphabet
        decoded = self._decoded(data, alphabet)
        if decoded is None:
            alphabet = self._adapted_to(data)
            decoded = self._decoded(data, alphabet)
        if decoded is None:
            raise self._fault_in(data)
        if alphabet is None and (b"+" in data or b"/" in data):
            alphabet = _Alphabet.STANDARD
        self._alphabet = alphabet
        written, self._carry = decoded
        self._file.write(written)
        self._advance(data)

    def _adapted_to(self, data: bytes) -> _Alphabet | None:
        """Note what must be removed from ``data`` and all later pieces, and return the alphabet to try."""
        self._line_ends = b"".join(end for end in (b"\n", b"\r") if end in self._line_ends or end in data)
        self._has_blanks = self._has_blanks or b" " in data or b"\t" in data
        if self._alphabet is None and (b"-" in data or b"_" in data):
            return _Alphabet.URL_SAFE
        return self._alphabet

    def _decoded(self, data: bytes, alphabet: _Alphabet | None) -> tuple[bytes, bytes] | None:
        """Return the decoded whole groups, and the characters after them; None if something is wrong."""
        text = self._cleaned(data)
        if text is None:
            return None
        # The decoder accepts `+` and `/` even if the alphabet has other characters in their place.
        if alphabet is _Alphabet.URL_SAFE and (b"+" in text or b"/" in text):
            return None
        altchars = _altchars(alphabet)
        left = len(text) & 3
        # Check the remaining characters now: later their offsets are no longer known.
        carry = text[len(text) - left :]
        if carry.translate(None, _URL_SAFE_CHARACTERS if altchars else _STANDARD_CHARACTERS):
            return None
        try:
            groups = memoryview(text)[:-left] if left else text
            return pybase64.b64decode(groups, altchars=altchars, validate=True), carry
        except binascii.Error:
            return None

    def _cleaned(self, data: bytes) -> bytes | None:
        """Return the characters of the incomplete group and of ``data``; None if a blank is inside a line."""
        if self._has_blanks:
            return self._without_blanks(data)
        text = self._carry + data if self._carry else data
        if self._line_ends == b"\n":
            return text.replace(b"\n", b"")
        return text.translate(None, self._line_ends) if self._line_ends else text

    def _without_blanks(self, data: bytes) -> bytes | None:
        lines = data.splitlines()
        stripped = [line.strip(_BLANKS) for line in lines]
        if stripped[0] and self._in_line and (self._blank_at is not None or lines[0][:1] in (b" ", b"\t")):
            return None
        text = b"".join([self._carry, *stripped])
        return None if b" " in text or b"\t" in text else text

    def _advance(self, data: bytes) -> None:
        """Update the position in the current line after ``data``, which has no fault."""
        characters = data.rstrip(_WHITE)
        length, before_white = len(data), len(characters)
        if characters:
            self._last_at = self._offset + before_white - 1
            self._in_line, self._blank_at = True, None
            self._before = (self._before + characters[-_MOST_BEFORE_BYTES:])[-_MOST_BEFORE_BYTES:]
        if before_white < length:
            self._advance_over_white(data[before_white:], self._offset + before_white)
        self._offset += length

    def _advance_over_white(self, white: bytes, offset: int) -> None:
        if b"\n" in white or b"\r" in white:
            self._in_line, self._blank_at, self._before = False, None, b""
        elif self._in_line and self._blank_at is None:
            self._blank_at, self._blank = offset, white[:1]

    # ---- padding and the closing quote

    def _take_end(self, data: bytes) -> None:
        if self._end is None:
            self._end = b""
        start = 0
        for found in _NOT_WHITE.finditer(data):
            if found.start() > start:
                self._advance_over_white(data[start : found.start()], self._offset + start)
            self._take_end_byte(found[0], self._offset + found.start())
            start = found.end()
        if start < len(data):
            self._advance_over_white(data[start:], self._offset + start)
        self._offset += len(data)

    def _take_end_byte(self, byte: bytes, offset: int) -> None:
        assert self._end is not None
        is_closed = self._end.endswith(b'"')
        if byte == b'"' and self._quoted and not is_closed:
            self._end += byte
            return
        if byte != b"=" or is_closed:
            raise self._bad_byte(byte, offset, "comes after the end of the base64")
        if self._blank_at is not None:
            raise self._blank_inside(b"")
        missing = 4 - len(self._carry) - len(self._end)
        if missing == 0:
            raise self._bad_byte(byte, offset, "comes after the end of the base64")
        if missing > 2:
            raise self._bad_byte(byte, offset, "is padding that does not fit the number of characters before it")
        self._end += byte
        self._in_line = True

    # ---- the reason why a text is wrong

    def _fault_in(self, data: bytes) -> BadInput:
        """Return the error for the first fault in ``data``. The state does not include ``data`` yet."""
        for run in _RUN.finditer(data):
            offset = self._offset + run.start()
            if run[0][0] in _WHITE:
                self._advance_over_white(run[0], offset)
                continue
            if self._blank_at is not None:
                return self._blank_inside(data[: run.start()])
            if run[0][0] not in _VALUES:
                return self._bad_byte(run[0], offset, "is not base64")
            for at, byte in enumerate(run[0], offset):
                if byte not in b"+/-_":
                    continue
                if self._alphabet is None:
                    self._alphabet = _Alphabet.STANDARD if byte in _Alphabet.STANDARD.value else _Alphabet.URL_SAFE
                elif byte not in self._alphabet.value:
                    return self._mixed(byte, at, starts_line=at == offset and not self._in_line)
            self._in_line = True
        raise AssertionError("only a fault makes the decoder fail")

    def _blank_inside(self, before: bytes) -> BadInput:
        """Return the error for a blank inside a line. ``before``: the piece up to the first byte after the blank."""
        assert self._blank_at is not None
        line = self._before + before.rstrip(_BLANKS)
        armour = next((start for start in _ARMOUR_BEFORE_BLANK if line.endswith(start)), None)
        if armour is not None:
            return armour_error(armour.decode() + " …", self._blank_at - len(armour), self._where)
        if self._blank == b"\t":
            return BadInput(
                f"a tab at offset {self._blank_at} of {self._where}, inside a line of base64; {HOW_TO_SEND_RAW}"
            )
        return BadInput(
            f"a space at offset {self._blank_at}; was a `+` lost in a form? In the base64 of {self._where}, spaces may "
            "be only at the start or the end of a line (a shell turns line ends into spaces unless "
            f'"$(base64 FILE)" is quoted); {HOW_TO_SEND_RAW}'
        )

    def _mixed(self, byte: int, offset: int, *, starts_line: bool) -> BadInput:
        assert self._alphabet is not None
        other = _Alphabet.STANDARD if self._alphabet is _Alphabet.URL_SAFE else _Alphabet.URL_SAFE
        return BadInput(
            f"the byte {_shown(byte)} at offset {offset} of {self._where} belongs to the {other.title} alphabet of "
            f"base64, but the characters before it belong to the {self._alphabet.title} one; no encoder mixes them: "
            f"{_or_armour(byte, starts_line, self._where)}{HOW_TO_SEND_RAW}"
        )

    def _bad_byte(self, byte: bytes, offset: int, what: str) -> BadInput:
        hint = _or_armour(byte[0], not self._in_line, self._where)
        return BadInput(
            f"the byte {_shown(byte[0])} at offset {offset} of {self._where} {what}; {hint}{HOW_TO_SEND_RAW}"
        )


def decoded_text(text: bytes) -> bytes | None:
    """Decode a short text in base64 and return its bytes; None if it is not base64.

    It may have white space anywhere. The padding may be missing.
    """
    compact = b"".join(text.split()).rstrip(b"=")
    altchars = b"-_" if b"-" in compact or b"_" in compact else None
    if altchars and (b"+" in compact or b"/" in compact):
        return None
    try:
        data = pybase64.b64decode(compact + b"=" * (-len(compact) % 4), altchars=altchars, validate=True)
    except binascii.Error:
        return None
    # An encoder does not set the bits of the last character that belong to no byte.
    return data if pybase64.b64encode(data, altchars=altchars).rstrip(b"=") == compact else None


def _altchars(alphabet: _Alphabet | None) -> bytes | None:
    return alphabet.value if alphabet is _Alphabet.URL_SAFE else None


def armour_error(armour: str, offset: int, where: str = "the body") -> BadInput:
    """Return the error for the armour of PEM."""
    return BadInput(
        f"the armour of PEM ({armour}) is at offset {offset} of {where}, so it is not bare base64; {_how_pem(where)}"
    )


def _how_pem(where: str) -> str:
    return _HOW_PEM if where == "the body" else _HOW_PEM_IN_A_PART


def _or_armour(byte: int, starts_line: bool, where: str) -> str:
    """Return a hint if the byte is a hyphen at the start of a line. The rest of an armour may still be on its way."""
    if byte != ord("-") or not starts_line:
        return ""
    return f"if this is the armour of PEM (-----BEGIN …), {_how_pem(where)}; else "


def _shown(byte: int) -> str:
    return repr(chr(byte)) if 0x20 < byte < 0x7F else f"0x{byte:02x}"
