"""The facts about one server that its document contains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The settings whose values the document contains. For those in the second set, 0 means no limit.
LIMITS = (
    "max_inflight",
    "max_queue",
    "queue_timeout_s",
    "exec_timeout_s",
    "read_timeout_s",
    "write_timeout_s",
    "max_input_size_bytes",
    "max_output_size_bytes",
)
_NONE_IF_0 = frozenset(LIMITS) - {"max_queue", "queue_timeout_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The facts about a server that its document describes.

    Args:
        service_name: the name of the service on its platform or in its service definition.
        is_classic: the function is a command that reads the body from stdin, not a script with files.
        is_warm: the function is a script that stays alive between calls.
        has_token: calls must have a bearer token.
        is_token_for_all: requests for this document and for the metrics must have the token, too.
        has_storage: the server fetches the objects of storage events, or stores outputs.
        methods: the methods that call the function.
        errors: the status and the title of each problem.
        encodings: the values of ``?input=``.
        forms: the values of ``?output=`` for scripts.
        content_type: the content type of a classic function's answers, if it is always the same.
        metrics_port: the port of the metrics, or None if they are off.
        limits: the current value of each limit in ``LIMITS``.
    """

    service_name: str
    is_classic: bool
    is_warm: bool
    has_token: bool
    is_token_for_all: bool
    has_storage: bool
    methods: Sequence[str]
    errors: Sequence[tuple[int, str]]
    encodings: Sequence[str]
    forms: Sequence[str]
    content_type: str | None
    metrics_port: int | None
    limits: Mapping[str, float]


def limit_text(interface: Interface, name: str) -> str:
    """Return the name and the value of a limit, as a user would write them."""
    value = interface.limits[name]
    setting, unit = name, ""
    for suffix, word in (("_s", " s"), ("_bytes", " bytes")):
        if name.endswith(suffix):
            setting, unit = name.removesuffix(suffix), word
    text = "none" if not value and name in _NONE_IF_0 else f"{value}{unit}".replace(".0 s", " s")
    return f"`{setting}`: {text}"
