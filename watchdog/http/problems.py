"""Map each error to its status and to the problem document that the caller gets (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence

from multidict import CIMultiDict

from ..errors import (
    AnswerNotAvailable,
    BadInput,
    CallerGone,
    CallerSilent,
    Draining,
    InputTooLarge,
    NoSpace,
    NotAdmitted,
    ObjectMissing,
    OutOfResources,
    ScriptError,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfMemory,
    ScriptOutOfSpace,
    ScriptTimedOut,
    StorageError,
    StoreFailed,
    TooManyWrongTokens,
    Unauthorized,
    WatchdogError,
    WorkerBroken,
    WorkerNotLoaded,
    quoted,
)
from ..invocation.call import Record
from ..logs.setup import get_logger
from .connection import SHORT_LINGER_S
from .http_message import Request, Response
from .problem_document import PROBLEM_TYPE, problem_document
from .request import OWN_PATHS
from .response import headers_of
from .wrong_tokens import RETRY_AFTER_S

log = get_logger("server")
MOST_NAMED_FILES = 1000
# Only this number of characters of a wrong path is compared with the paths of the server.
_LONGEST_COMPARED = 64
# A path is suggested only if its similarity to the wrong path is at least this, from 0 to 1 (difflib). `/_/metrics` and
# `/_/try` have the similarity 0.62, because both have `/_/` and `tr`.
_LIKENESS_OF_PATHS = 0.7
# The status and the title of each error. The first row whose type matches is used.
STATUS_OF_ERROR: tuple[tuple[type[WatchdogError], int, str], ...] = (
    (BadInput, 400, "Bad input"),
    (CallerGone, 400, "Request cut off"),
    (CallerSilent, 408, "Request timed out"),
    (InputTooLarge, 413, "Input too large"),
    (TooManyWrongTokens, 429, "Too many wrong tokens"),
    (Unauthorized, 401, "Unauthorized"),
    (AnswerNotAvailable, 406, "Form of answer not available"),
    (Draining, 503, "Server is stopping"),
    (NotAdmitted, 429, "Too many calls"),
    (ScriptTimedOut, 504, "Script timed out"),
    (WorkerNotLoaded, 503, "Script not loaded"),
    (WorkerBroken, 500, "Worker broke the protocol"),
    (ScriptKilled, 500, "Script killed"),
    (ScriptOutOfSpace, 507, "No space left"),
    (ScriptFailed, 500, "Script failed"),
    (ScriptError, 500, "Script cannot be used"),
    (ObjectMissing, 422, "No such object"),
    (StoreFailed, 502, "Outputs not stored"),
    (StorageError, 502, "Input not fetched"),
    (NoSpace, 507, "No space left"),
    (OutOfResources, 500, "Out of resources"),
    (WatchdogError, 500, "Outputs cannot be sent"),
)


def problem(request: Request, call_id: str, record: Record, error: WatchdogError, *, is_draining: bool) -> Response:
    """Return the answer to a call that failed. If its invocation had not begun, also log that the call is refused."""
    status, title = next((code, text) for kind, code, text in STATUS_OF_ERROR if isinstance(error, kind))
    headers = headers_of(call_id, record)
    if isinstance(error, ScriptFailed) and (record.chosen.status or 0) >= 400:
        # The script has chosen the status for its failure.
        status = record.chosen.status or status
        headers.extend(record.chosen.headers)
    _add_headers(headers, error)
    _decide_on_connection(request, headers, error, is_draining=is_draining)
    # A caller that guesses tokens must not fill the log. The metrics count all calls.
    if not record.is_logged and not isinstance(error, TooManyWrongTokens):
        log.warning("call refused", call_id=call_id, status=status, reason=str(error))
    headers["Content-Type"] = PROBLEM_TYPE
    body = problem_document(status, title, _detail(error), **_members(call_id, record, error))
    # After too many wrong tokens, the next guess needs a new connection.
    return Response(status, headers, body, must_close=isinstance(error, TooManyWrongTokens))


def malformed(reason: str) -> Response:
    """Return the answer to a request that violates RFC 9112."""
    body = problem_document(400, "Bad request", f"the request is malformed: {reason}")
    return Response(400, [("Content-Type", PROBLEM_TYPE)], body)


def not_allowed(request: Request, methods: Sequence[str]) -> Response:
    """Return the answer to a request whose method is not one of ``methods``."""
    allowed = ", ".join(methods)
    detail = f"the method {request.method} is not answered at {request.path}; use one of {allowed}"
    body = problem_document(405, "Method not allowed", detail)
    return Response(405, [("Allow", allowed), ("Content-Type", PROBLEM_TYPE)], body)


def no_such_path(request: Request, path: str, known: Sequence[str]) -> Response:
    """Return the answer to a request for a path that belongs to the server, and that the server does not have.

    Args:
        path: the path without the base path.
        known: the paths that the server has.
    """
    import difflib  # imported only for a wrong path

    # A very long path is similar to none of them, and a comparison would take long.
    nearest = difflib.get_close_matches(path[:_LONGEST_COMPARED].lower(), known, n=1, cutoff=_LIKENESS_OF_PATHS)
    base_path = request.path.removesuffix(path)
    where = "the nearest path is " if nearest else "the server has "
    where += ", ".join(base_path + each for each in nearest or known)
    detail = f"there is no path {quoted(request.path)}; {where}; paths below {OWN_PATHS} never call the function"
    body = problem_document(404, "No such path", detail)
    return Response(404, [("Content-Type", PROBLEM_TYPE)], body)


def _detail(error: WatchdogError) -> str:
    if isinstance(error, WorkerNotLoaded):
        # Only a server loads workers again: a job and a local run end.
        return f"{error}; the server tries again in {error.retry_after_s} s"
    return str(error)


def _members(call_id: str, record: Record, error: WatchdogError) -> dict[str, object]:
    """Return the members of the document that are not in the standard. Some of them exist only for some errors."""
    members: dict[str, object] = {"call_id": call_id}
    if record.exit_code is not None:
        members["exit_code"] = record.exit_code
    elif isinstance(error, WorkerNotLoaded) and error.exit_code is not None:
        members["exit_code"] = error.exit_code
    if isinstance(error, ScriptKilled):
        members["signal"] = error.signal
        members["out_of_memory"] = isinstance(error, ScriptOutOfMemory)
    if isinstance(error, ScriptError) and error.stderr:
        members["stderr"] = error.stderr
    if isinstance(error, StoreFailed):
        members["stored"] = error.stored[:MOST_NAMED_FILES]
        members["not_stored"] = dict(list(error.not_stored.items())[:MOST_NAMED_FILES])
    return members


def _add_headers(headers: CIMultiDict[str], error: WatchdogError) -> None:
    """Add the headers that say when to try again, or how to authenticate."""
    if isinstance(error, (NotAdmitted, WorkerNotLoaded)):
        headers["Retry-After"] = str(error.retry_after_s)
        # With this header, OpenFaaS's queue-worker sends the call again for every status. Its own list of statuses does
        # not contain 503.
        headers["X-OpenFaaS-Internal"] = "oscar-watchdog"
    if isinstance(error, TooManyWrongTokens):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"


def _decide_on_connection(
    request: Request, headers: CIMultiDict[str], error: WatchdogError, *, is_draining: bool
) -> None:
    """Decide whether the connection is closed after the answer, and how long to wait for the rest of the body."""
    if isinstance(error, (Draining, CallerSilent, CallerGone)) or is_draining:
        headers["Connection"] = "close"
    if isinstance(error, CallerSilent):
        request.connection.linger(0.0)
    elif is_draining:
        request.connection.linger(SHORT_LINGER_S)
