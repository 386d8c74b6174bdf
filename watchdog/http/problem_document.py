"""Make the body of an answer that reports a problem (RFC 9457)."""

from __future__ import annotations

import msgspec

from ..logs.text import as_unicode

PROBLEM_TYPE = "application/problem+json"


def problem_document(status: int, title: str, detail: str, **members: object) -> bytes:
    """Return the document as JSON. ``members``: further members, which are not in the standard."""
    # The detail may contain bytes of a header that are not UTF-8.
    document = {"type": "about:blank", "title": title, "status": status, "detail": as_unicode(detail), **members}
    return msgspec.json.encode(document) + b"\n"
