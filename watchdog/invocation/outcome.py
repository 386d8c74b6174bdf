"""Name the outcome of a call in one word."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ..errors import (
    AnswerNotAvailable,
    BadInput,
    BadScriptResponse,
    CallerGone,
    CallerSilent,
    Draining,
    InputTooLarge,
    NoSpace,
    NotAdmitted,
    ObjectMissing,
    OutOfResources,
    OutputError,
    ScriptFailed,
    ScriptKilled,
    ScriptOutOfMemory,
    ScriptOutOfSpace,
    ScriptTimedOut,
    ScriptUnavailable,
    StorageError,
    StoreFailed,
    WorkerBroken,
    WorkerNotLoaded,
)

# The outcome in log events and metrics for each error. The first row whose type matches is used.
_OUTCOME_OF_ERROR: tuple[tuple[type[BaseException], str], ...] = (
    (asyncio.CancelledError, "caller_gone"),
    (CallerGone, "caller_gone"),
    (ConnectionError, "caller_gone"),
    (CallerSilent, "caller_silent"),
    (InputTooLarge, "bad_input"),
    (BadInput, "bad_input"),
    (AnswerNotAvailable, "not_available"),
    (Draining, "drained"),
    (NotAdmitted, "overloaded"),
    (ScriptUnavailable, "no_script"),
    (ScriptTimedOut, "timeout"),
    (WorkerNotLoaded, "not_loaded"),
    (WorkerBroken, "bad_worker"),
    (ScriptOutOfSpace, "no_space"),
    (ScriptFailed, "failed"),
    (ScriptOutOfMemory, "out_of_memory"),
    (ScriptKilled, "killed"),
    (OutputError, "bad_output"),
    (BadScriptResponse, "bad_output"),
    (StoreFailed, "store_failed"),
    (ObjectMissing, "no_object"),
    (StorageError, "fetch_failed"),
    (NoSpace, "no_space"),
    (OutOfResources, "no_resources"),
)
# The outcome of an event without an object to process: the script did not run.
SKIPPED = "skipped"
# The cause and the meaning of each outcome, for the docs (`make docs`).
MEANINGS: Mapping[str, tuple[str, str]] = {
    "ok": ("success", "The function succeeded, and the server sent the whole answer."),
    SKIPPED: ("success", "A storage event reported no object for the script, so the script did not run."),
    "failed": ("the function", "The exit code was not 0."),
    "killed": ("the function", "A signal ended the function."),
    "out_of_memory": ("the function", "The kernel killed the function because the container had no memory left."),
    "timeout": ("the function", "The function ran for longer than `exec_timeout` or `X-Timeout`."),
    "not_loaded": ("the function", "No worker of a warm function could be loaded."),
    "bad_worker": ("the function", "The worker of a warm function did not keep to the protocol."),
    "no_script": ("the function", "There is no script or command, it cannot be read, or its interpreter is missing."),
    "bad_output": (
        "the function",
        "The outputs are larger than `max_output_size` or cannot be read, or `HTTP_RESPONSE_FILE` has a wrong line.",
    ),
    "bad_input": ("the caller", "The body cannot be decoded or is too large, or a form, name or header is malformed."),
    "not_available": ("the caller", "The caller accepts no form that the outputs can have."),
    "caller_silent": ("the caller", "The body came too slowly, or no more of it came."),
    "caller_gone": ("the caller", "The caller disconnected, or did not take the answer."),
    "no_object": ("the caller", "A storage event reported an object, version, bucket or space that does not exist."),
    "overloaded": (
        "the container",
        "The queue was full, `queue_timeout` passed, or another call got the place of a slow caller.",
    ),
    "drained": ("the container", "The server was stopping."),
    "no_space": ("the container", "The disk had no space for the input, for stdout, or for the files of the function."),
    "no_resources": ("the container", "The system refused a descriptor, memory, a process or a directory."),
    "fetch_failed": ("a storage", "The object of the event could not be fetched."),
    "store_failed": ("a storage", "Some outputs could not be stored."),
    "error": ("the server", "An error that the server does not know, with its traceback in the log. Please report it."),
}
OUTCOMES = tuple(MEANINGS)


def outcome_of(error: BaseException) -> str:
    return next((name for kind, name in _OUTCOME_OF_ERROR if isinstance(error, kind)), "error")
