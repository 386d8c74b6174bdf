"""Check the trace context of a caller: W3C Trace Context, sections 3.2 (``traceparent``) and 3.3 (``tracestate``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..system.pattern import pattern

if TYPE_CHECKING:
    from multidict import MultiMapping

# Version 00 has exactly four fields. Later versions may have more (section 4.3). ff is not a version (section 3.2.2).
TRACEPARENT = pattern(
    r"(?:(00)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?(1)|(?:-[!-~]*)?)"
)
_TRACESTATE_MEMBER = pattern(
    r"(?:[a-z0-9][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
)
_MOST_TRACESTATE_MEMBERS = 32


def caller_context(headers: MultiMapping[str]) -> tuple[str, str]:
    """Return the caller's ``traceparent`` and ``tracestate``. Both are "" without a valid ``traceparent``."""
    parents = headers.getall("traceparent", ())
    # If there are two, it is not certain which one is right.
    if len(parents) != 1 or not TRACEPARENT.fullmatch(parents[0]):
        return "", ""
    return parents[0], _tracestate(headers.getall("tracestate", ()))


def _tracestate(values: Sequence[str]) -> str:
    """Return the members of all headers as one list; "" if any part of it is not valid."""
    members = [member for value in values for each in value.split(",") if (member := each.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MOST_TRACESTATE_MEMBERS or len(keys) != len(members):
        return ""
    return ",".join(members) if all(map(_TRACESTATE_MEMBER.fullmatch, members)) else ""
