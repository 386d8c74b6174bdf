"""The file name in a Content-Disposition header."""

from __future__ import annotations

import contextlib

import pytest

from watchdog.errors import BadInput
from watchdog.input.content_disposition import file_name


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("attachment", None),
        ("attachment;", None),
        ("attachment; filename=a.png", "a.png"),
        ("form-data; name=f; filename=a.png", "a.png"),
        ('attachment; filename="a b;c.png"', "a b;c.png"),
        (r'attachment; filename="a \"b\" \\.png"', 'a "b" \\.png'),
        ('Attachment ; FileName = "a.png" ; ', "a.png"),
        ('attachment;; filename="";', ""),
        ('attachment; filename="\u00e9.png"', "\u00e9.png"),
        ("attachment; filename*=UTF-8''%C3%A9.png", "\u00e9.png"),
        ("attachment; filename=e.png; filename*=utf-8'en'%C3%A9.png", "\u00e9.png"),
        ("attachment; filename*=iso-8859-1''%e9.png; filename=e.png", "\u00e9.png"),
    ],
)
def test_name_of_a_valid_header(header: str, name: str | None) -> None:
    assert file_name(header) == name


@pytest.mark.parametrize(
    "header",
    [
        "",
        ";",
        "@@@",
        "; filename=a",
        "attachment filename=a",
        "attachment; filename",
        "attachment; filename=",
        "attachment; filename=a b",
        'attachment; filename="a',
        'attachment; filename="a"b',
        'attachment; filename="a\\"',
        "attachment; filename=a; filename=b",
        "attachment; filename=a; FILENAME=a",
        "attachment; filename*=a",
        "attachment; filename*=utf-8''%ff",
        "attachment; filename*=utf-16''a",
    ],
)
def test_malformed_header_is_refused(header: str) -> None:
    with pytest.raises(BadInput, match=r"Content-Disposition|cannot be decoded as"):
        file_name(header)


@pytest.mark.parametrize("part", [";", "; ", ';"', "; a", "; a=", '; a="', '; a="\\', "; a ", "=", "\\", " "])
def test_header_of_64_kib_is_read_in_a_moment(part: str) -> None:
    """A search that goes back over each part would take minutes."""
    for header in ("a" + part * (65536 // len(part)), part * (65536 // len(part)), 'a; b="' + part * 20_000):
        with contextlib.suppress(BadInput):
            file_name(header)
