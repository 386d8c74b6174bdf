"""Make the body of an answer that reports a problem (RFC 9457)."""

from __future__ import annotations

import msgspec

PROBLEM_TYPE = "application/problem+json"


def problem_document(status: int, title: str, detail: str, **members: object) -> bytes:
    """Return the document as JSON. ``members``: further members, which are not in the standard."""
    # The detail may contain bytes of a header that are not UTF-8.
    detail = detail.encode("utf-8", "backslashreplace").decode()
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    return msgspec.json.encode(document) + b"\n"
