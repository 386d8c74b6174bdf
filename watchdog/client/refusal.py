"""Turn an answer that reports an error into one of the program's errors.

The server reports an error as a problem document (RFC 9457). The last event of a live call contains the same document.
A proxy or another server may answer with something else, such as a page of HTML.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import (
    BadInput,
    RefusedForNow,
    ScriptFailed,
    ScriptKilled,
    ScriptTimedOut,
    ServiceError,
    ServiceUnreachable,
    Unauthorized,
    WatchdogError,
)
from ..logs.text import printable, printable_lines
from ..system.pattern import pattern
from ..system.proc import signal_number
from .verdict import exit_code_in, status_line

_PROBLEM_TYPE = "application/problem+json"
_MOST_SHOWN = 300  # characters of a page that is not a problem document
_MOST_SEARCHED_BYTES = 8192  # the time of the search grows with the square of the number of bytes
_MARKUP = pattern(r"(?s)<(?:style|script|head)\b.*?</(?:style|script|head)>|<[^>]*>")
_REFUSED = frozenset({408, 429, 503})
_BAD_INPUT = frozenset({400, 406, 413, 414, 415, 422, 431})
_NO_SERVICE = frozenset({404, 405, 410, 502})


def is_refused_for_now(status: int, retry_after_s: float | None, *, has_run: bool) -> bool:
    """Return whether the service did not run the script, so that the same call may be sent again.

    A proxy also answers 503 if it lost the connection to the service while the script was running (Envoy does). Such an
    answer has no Retry-After.

    Args:
        has_run: the answer says how long the script ran. The script may have chosen the status itself, or the service
            has ended it because the service is stopping.
    """
    return not has_run and (status == 429 or (status == 503 and retry_after_s is not None))


def is_answer_of_script(headers: Mapping[str, str]) -> bool:
    """Return whether the answer is that of a script that succeeded. If the status is an error, the script chose it.

    The server itself reports errors as problem documents, also if the script ended with exit code 0.
    """
    return exit_code_in(headers.get("X-Exit-Code", "")) == 0 and _media_type(headers) != _PROBLEM_TYPE


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> WatchdogError:
    """Return the error that an answer reports."""
    error = _error_of(status, headers, body)
    if isinstance(error, RefusedForNow):
        note_retry(error, status, _retry_after_s(headers), has_run=_has_run(headers))
    return error


def note_retry(error: RefusedForNow, status: int, retry_after_s: float | None, *, has_run: bool) -> None:
    """Note in an error whether and when the call is sent again. The arguments are as in :func:`is_refused_for_now`."""
    error.retry_after_s = retry_after_s
    error.is_sent_again = is_refused_for_now(status, retry_after_s, has_run=has_run)


def _error_of(status: int, headers: Mapping[str, str], body: bytes) -> WatchdogError:
    if 300 <= status < 400:
        return _redirect(status, headers)
    exit_code, has_run = headers.get("X-Exit-Code", ""), _has_run(headers)
    if _media_type(headers) == _PROBLEM_TYPE:
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            document = None
        if isinstance(document, dict):
            return error_of_document(status, document, exit_code, has_run=has_run)
    text = f"the server answered {status_line(status)}{_excerpt(body)}"
    return _of_kind(status, text, {"exit_code": exit_code_in(exit_code)}, has_run=has_run)


def error_of_document(status: int, document: dict[str, Any], exit_code: str = "", *, has_run: bool) -> WatchdogError:
    """Return the error that a problem document reports.

    Args:
        exit_code: the header X-Exit-Code, if the answer has it.
        has_run: the answer says how long the script ran.
    """
    title, detail = _text(document, "title") or status_line(status), _text(document, "detail")
    text = f"{title}: {detail}" if detail else title
    if stderr := _text(document, "stderr").strip("\n"):
        lines = printable_lines(stderr).split("\n")
        text += "\n" + "\n".join(f"  {line}" for line in lines)
    members = dict(document)
    if (code := exit_code_in(exit_code)) is not None:
        members["exit_code"] = code
    elif status == 503:
        # The exit code of a worker that could not be loaded. The call itself did not run.
        members.pop("exit_code", None)
    return _of_kind(status, text, members, has_run=has_run)


def _of_kind(status: int, text: str, members: dict[str, Any], *, has_run: bool) -> WatchdogError:
    """Return the error for this status, with this text. If the script ran, the token and the URL are right."""
    exit_code, signal = members.get("exit_code"), members.get("signal")
    if isinstance(exit_code, int) and 0 < exit_code < 256:
        return ScriptFailed(text, exit_code=exit_code)
    if isinstance(signal, str) and signal_number(signal) is not None:
        return ScriptKilled(text, signal=signal)
    if status == 504:
        return ScriptTimedOut(text)
    if status in (401, 403) and not has_run:
        return Unauthorized(f"{text}; give the token of the service with --token-file")
    if status in _REFUSED:
        return RefusedForNow(text)
    if status in _BAD_INPUT:
        return BadInput(text)
    if status in _NO_SERVICE and not has_run:
        return ServiceUnreachable(f"{text}\ncheck the URL, and that the service runs")
    return ServiceError(text)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, which are a number or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    date = email.utils.parsedate_tz(value)
    try:
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
    except (ValueError, OverflowError):  # the date is out of range: for example, its year has five digits
        return None


def _redirect(status: int, headers: Mapping[str, str]) -> ServiceUnreachable:
    location = printable(headers.get("Location", ""))[:_MOST_SHOWN]
    where = f" to {location}; if you trust this address, use it as the URL" if location else ""
    return ServiceUnreachable(f"the server redirects the call ({status_line(status)}){where}")


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _has_run(headers: Mapping[str, str]) -> bool:
    return "X-Duration-Seconds" in headers


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    return printable_lines(value) if isinstance(value, str) else ""


def _excerpt(body: bytes) -> str:
    """Return the beginning of a page as text, without its markup."""
    text = " ".join(_MARKUP.sub(" ", body[:_MOST_SEARCHED_BYTES].decode("utf-8", "replace")).split())
    return f": {printable(text[:_MOST_SHOWN])}{' …' if len(text) > _MOST_SHOWN else ''}" if text else ""
