"""Name how a call ended, in one word."""

from __future__ import annotations

import asyncio

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
)

# What a log event and the metrics call the end of an invocation; the first type that fits.
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
# The outcome of a call that had nothing to do: an event without an object to process.
SKIPPED = "skipped"
OUTCOMES = ("ok", SKIPPED, *dict.fromkeys(name for _, name in _OUTCOME_OF_ERROR), "error")


def outcome_of(error: BaseException) -> str:
    return next((name for kind, name in _OUTCOME_OF_ERROR if isinstance(error, kind)), "error")
