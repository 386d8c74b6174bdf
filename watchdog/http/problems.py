"""Map each error to its status and to the problem document that the caller gets (RFC 9457)."""

from __future__ import annotations

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
    ScriptOutOfSpace,
    ScriptTimedOut,
    StorageError,
    StoreFailed,
    TooManyWrongTokens,
    Unauthorized,
    WatchdogError,
)

# The one table from error to status; the first type that fits.
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
