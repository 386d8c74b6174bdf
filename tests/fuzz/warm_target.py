"""The fuzz target ``warm_answer``: the bytes that a warm worker writes to fd 4."""

from __future__ import annotations

import re
from unittest import mock

from watchdog.logs.progress_line import Progress
from watchdog.logs.text import decode, printable
from watchdog.warm import protocol
from watchdog.warm.protocol import Answer, AnswerLines, Done, ProtocolError, Ready

_SMALL_LINE_BYTES = 32
_KIND: dict[bytes, Answer] = {
    b"ready": Ready(),
    b"ready sh": Ready("sh"),
    b"ready fork": Ready(forks=True),
    b"done": Done(),
}


def check_warm_answer(data: bytes) -> None:
    """Wherever the bytes are cut, the answers follow the simplest form of the rules, and few bytes are kept.

    The first byte chooses the length of a piece, and the second the longest line.
    """
    head, output = data[:2].ljust(2, b"a"), data[2:]
    piece_bytes = 1 + (head[0] - ord("a") & 0xFF)
    # With a short limit, even a few bytes make a line over the limit.
    limit_bytes = (4096, _SMALL_LINE_BYTES)[(head[1] - ord("a")) % 2]
    pieces = [output[at : at + piece_bytes] for at in range(0, len(output), piece_bytes)]
    with mock.patch.object(protocol, "LONGEST_LINE_BYTES", limit_bytes):
        whole = _read([output], limit_bytes)
        cut = _read(pieces, limit_bytes)
    assert whole == cut, f"whole: {whole}, cut: {cut}"
    expected = _reference(output, limit_bytes)
    assert [answer for answer in whole if not isinstance(answer, str)] == expected[0]
    assert isinstance(whole[-1] if whole else None, str) == expected[1], f"{whole}, but an error: {expected[1]}"


def _read(pieces: list[bytes], limit_bytes: int) -> list[Answer | str]:
    """Return the answers, and the text of an error as the last one."""
    lines = AnswerLines()
    found: list[Answer | str] = []
    for piece in pieces:
        for answer in lines.feed(piece):
            assert not found or not isinstance(found[-1], str), f"{answer} comes after an error"
            found.append(_checked(answer, limit_bytes))
        kept_bytes = len(lines._line)
        assert kept_bytes < limit_bytes, f"{kept_bytes} bytes are kept of a line of {limit_bytes}"
    if (error := lines.end()) is not None:
        assert not found or not isinstance(found[-1], str), f"{error} comes after an error"
        found.append(_checked(error, limit_bytes))
    return found


def _checked(answer: Answer | ProtocolError, limit_bytes: int) -> Answer | str:
    shown = ""
    match answer:
        case ProtocolError():
            shown = str(answer)
            assert len(shown) < 2000, f"an error of {len(shown)} characters"
        case Progress(fraction, shown):
            assert 0 <= fraction <= 1
            assert len(shown) <= 6 * limit_bytes
        case Done(exit_code):
            assert 0 <= exit_code <= 255
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", shown), f"{shown!r} moves a terminal's cursor"
    shown.encode()  # raises an error for a lone surrogate
    return shown if isinstance(answer, ProtocolError) else answer


def _reference(output: bytes, limit_bytes: int) -> tuple[list[Answer], bool]:
    """Return the answers and whether there is an error. The text of a progress is compared only between cuts."""
    answers: list[Answer] = []
    while output:
        line, newline, output = output.partition(b"\n")
        answer = _reference_answer(line.removesuffix(b"\r"))
        if not newline or len(line) >= limit_bytes or answer is None:
            return answers, True
        answers.append(answer)
    return answers, False


def _reference_answer(line: bytes) -> Answer | None:
    if line in _KIND:
        return _KIND[line]
    word, _, rest = line.partition(b" ")
    first, blank, text = rest.partition(b" ")
    if word == b"done" and first.isdigit() and len(first) <= 3 and int(first) < 256 and not blank:
        return Done(int(first))
    if word == b"progress" and re.fullmatch(rb"[0-9.][0-9.eE+-]*", first):
        try:
            fraction = float(first)
        except ValueError:
            return None
        if fraction <= 1:
            return Progress(fraction, printable(decode(text)))
    return None
