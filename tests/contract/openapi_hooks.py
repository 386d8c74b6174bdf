"""Facts about the server that no document can contain. schemathesis loads this file (``SCHEMATHESIS_HOOKS``)."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.core import NotSet

from watchdog.settings.kinds import parse_duration_s

LEAST_S = 30
SETTLED = ("base64", "raw", "json")


@schemathesis.hook
def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
    """Leave out fields without a name. The server refuses such a field only as the first field of a form."""
    return not (isinstance(body, dict) and "" in body)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    leave_time_to_run(case)
    let_winners_be_alone(case)
    let_body_and_encoding_agree(case)


def leave_time_to_run(case: schemathesis.Case[Any]) -> None:
    """Replace very short times, for which 504 is the right answer, and times over the largest duration."""
    try:
        is_enough = not 0 < parse_duration_s(str(case.headers.get("X-Timeout", ""))) < LEAST_S
    except ValueError as error:
        is_enough = not str(error).startswith("over")
    if not is_enough:
        case.headers["X-Timeout"] = "60s"


def let_winners_be_alone(case: schemathesis.Case[Any]) -> None:
    """Remove a parameter or header that has no effect, because the server does not check its value."""
    if "input" in case.query:
        case.headers.pop("X-Input-Encoding", None)
    if "X-Filename" in case.headers:
        case.query.pop("filename", None)


def let_body_and_encoding_agree(case: schemathesis.Case[Any]) -> None:
    """Remove the encoding of the body, unless it is not a known encoding.

    With ``base64``, other bodies are answered 400. With ``raw``, the server accepts bodies that it would refuse for
    their content type. Both are right, but a schema of the body cannot express this.
    """
    if isinstance(case.body, NotSet):
        return
    for place, name in ((case.query, "input"), (case.headers, "X-Input-Encoding")):
        if place.get(name) in SETTLED:
            del place[name]
