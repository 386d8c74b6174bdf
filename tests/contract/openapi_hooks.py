"""What schemathesis must know of the server that no document can say; it loads this by ``SCHEMATHESIS_HOOKS``."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.core import NotSet

from watchdog.settings.kinds import parse_duration_s

LEAST_S = 30
SETTLED = ("base64", "raw", "json")


@schemathesis.hook
def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
    """A field without a name is refused only where it is the first, as then nothing shows that there is a form."""
    return not (isinstance(body, dict) and "" in body)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    leave_time_to_run(case)
    let_winners_be_alone(case)
    let_body_and_encoding_agree(case)


def leave_time_to_run(case: schemathesis.Case[Any]) -> None:
    """A caller may ask for a nanosecond, and 504 is the right answer then; hours may add up to more than is allowed."""
    try:
        is_enough = not 0 < parse_duration_s(str(case.headers.get("X-Timeout", ""))) < LEAST_S
    except ValueError as error:
        is_enough = not str(error).startswith("over")
    if not is_enough:
        case.headers["X-Timeout"] = "60s"


def let_winners_be_alone(case: schemathesis.Case[Any]) -> None:
    """What has no effect is not looked at, so that nothing in it can be wrong."""
    if "input" in case.query:
        case.headers.pop("X-Input-Encoding", None)
    if "X-Filename" in case.headers:
        case.query.pop("filename", None)


def let_body_and_encoding_agree(case: schemathesis.Case[Any]) -> None:
    """``base64`` said of other bytes is answered 400, and ``raw`` takes what the body's type would refuse.

    Both is right, and no schema of the body can tell it: what is said of one is left out, unless it is no encoding.
    """
    if isinstance(case.body, NotSet):
        return
    for place, name in ((case.query, "input"), (case.headers, "X-Input-Encoding")):
        if place.get(name) in SETTLED:
            del place[name]
