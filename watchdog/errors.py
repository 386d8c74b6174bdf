"""The types of all errors, as one tree.

::

    WatchdogError
    ├── ConfigError                  a setting, the service definition or the script is wrong at start
    ├── ListenError                  the server cannot listen on its address
    ├── InputError                   the caller sent something wrong
    │   ├── BadInput                 the body, a name, a form or a header is malformed
    │   ├── InputTooLarge            the input is larger than ``max_input_size``
    │   ├── CallerSilent             no byte arrived for ``read_timeout``, or fewer than ``min_data_rate``
    │   └── CallerGone               the connection ended before the body was complete
    │       └── StdoutClosed         the reader of this process's stdout has closed it
    ├── Unauthorized                 the token is missing or wrong
    │   └── TooManyWrongTokens       the token is wrong, and many other calls had a wrong token, too
    ├── AnswerNotAvailable           the outputs cannot be sent in the form that the caller wants
    ├── NotAdmitted                  the call is not allowed to start now
    │   ├── Overloaded               the queue is full, ``queue_timeout`` passed, or the caller was too slow
    │   └── Draining                 the server is stopping
    ├── ScriptError                  the script could not be run, or it failed
    │   ├── ScriptUnavailable        the script or its interpreter is missing, or the script cannot be read
    │   ├── ScriptFailed             the exit code is not 0
    │   │   └── ScriptOutOfSpace     the script failed, and ``tmp_dir`` is full
    │   ├── ScriptKilled             a signal ended the script
    │   │   └── ScriptOutOfMemory    the kernel killed the script because the container had no memory left
    │   ├── ScriptTimedOut           ``exec_timeout`` or ``X-Timeout`` passed
    │   ├── WorkerNotLoaded          no worker of a warm function could be loaded
    │   ├── WorkerBroken             the worker of a warm function did not keep to the protocol
    │   └── BadScriptResponse        ``$HTTP_RESPONSE_FILE`` is malformed
    ├── OutputError                  the outputs cannot be sent
    │   ├── StdoutUnwritable         this process cannot write to its stdout
    │   ├── OutputTooLarge           the outputs are larger than ``max_output_size``
    │   └── OutputUnreadable         an output changed or could not be read
    ├── StorageError                 a storage could not be reached, refused a request, or did not finish it
    │   ├── ObjectMissing            the object, bucket or space does not exist
    │   └── StoreFailed              some outputs could not be stored
    ├── NoSpace                      ``tmp_dir`` is full
    ├── ServiceError                 `watchdog invoke`: the service gave no answer that can be used
    │   ├── ServiceUnreachable       nothing at the URL answers as a service does
    │   ├── RefusedForNow            the service refuses the call, and may accept it later
    │   ├── CallTookTooLong          the time of ``--timeout`` passed
    │   └── AnswerBroken             the answer was cut off, is malformed, or does not fit its checksum
    ├── FileUnreadable               `watchdog invoke`: an input file cannot be read
    ├── AnswerNotKept                `watchdog invoke`: the answer cannot be written to stdout or to its file
    └── OutOfResources               the system refused something else: a descriptor, memory, a directory

No type contains a status or an exit code. The table of statuses is in ``http/problems.py``. The table of exit codes is
in ``cli.py``. The text of an error says what happened, what it happened to, and what the reader can do.
"""

from __future__ import annotations

# In characters. The reason of a rejected call is in the log, and may quote a header, which can have 64 KiB.
_MOST_QUOTED = 100


def quoted(text: str) -> str:
    """Return a text in quotes, for an error message. If the text is longer than 100 characters, shorten it."""
    return repr(text) if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]!r}..."


class WatchdogError(Exception):
    """The root of the tree."""


class ConfigError(WatchdogError):
    """The program cannot start with this configuration. ``problems``: one line of text for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ListenError(WatchdogError):
    """The server cannot listen on its address, or cannot write its lock file."""


class InputError(WatchdogError):
    """The caller's request or body cannot be used."""


class BadInput(InputError):
    """The body, a form, a name or a header is malformed."""


class InputTooLarge(InputError):
    """The decoded input is larger than ``max_input_size``."""


class CallerSilent(InputError):
    """No byte arrived from the caller for ``read_timeout``, or the bytes arrived more slowly than ``min_data_rate``."""


class CallerGone(InputError):
    """The caller's connection ended before the body was complete."""


class StdoutClosed(CallerGone):
    """The reader of this process's stdout has closed it."""


class Unauthorized(WatchdogError):
    """The bearer token is missing or wrong."""


class TooManyWrongTokens(Unauthorized):
    """The bearer token is wrong, and the answers to many other wrong tokens are already being delayed."""


class AnswerNotAvailable(WatchdogError):
    """The outputs cannot be sent in the form that the caller accepts."""


class NotAdmitted(WatchdogError):
    """The call is not allowed to start now. ``retry_after_s``: the caller may try again after this many seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(NotAdmitted):
    """The queue is full, ``queue_timeout`` passed, or the caller was so slow that its place went to another call."""


class Draining(NotAdmitted):
    """The server is stopping and starts no more calls."""


class ScriptError(WatchdogError):
    """The script could not be run, or it failed. ``stderr``: the last 4 KiB of its stderr, as text."""

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


class ScriptUnavailable(ScriptError):
    """The script is missing or cannot be read, or its interpreter is not in the image."""


class ScriptFailed(ScriptError):
    """The script exited with a code other than 0."""

    def __init__(self, message: str, *, exit_code: int, stderr: str = "") -> None:
        super().__init__(message, stderr=stderr)
        self.exit_code = exit_code


class ScriptOutOfSpace(ScriptFailed):
    """The script failed, and ``tmp_dir`` has no space left."""


class ScriptKilled(ScriptError):
    """A signal ended the script. ``signal``: the name of the signal, such as ``SIGSEGV``."""

    def __init__(self, message: str, *, signal: str, stderr: str = "") -> None:
        super().__init__(message, stderr=stderr)
        self.signal = signal


class ScriptOutOfMemory(ScriptKilled):
    """The kernel killed the script because no memory was left in its control group."""


class ScriptTimedOut(ScriptError):
    """The script ran for longer than ``exec_timeout`` or ``X-Timeout``, and the server ended it."""


class WorkerNotLoaded(ScriptError):
    """No worker of a warm function could be loaded, and none is loading now.

    ``exit_code``: the exit code of the worker that was loaded last; None if it did not exit by itself.
    ``retry_after_s``: the next worker is loaded after this number of seconds.
    """

    def __init__(self, message: str, *, exit_code: int | None, retry_after_s: int, stderr: str = "") -> None:
        super().__init__(message, stderr=stderr)
        self.exit_code = exit_code
        self.retry_after_s = retry_after_s


class WorkerBroken(ScriptError):
    """The worker of a warm function did not keep to the protocol, so the server ended it."""


class BadScriptResponse(ScriptError):
    """A line of ``$HTTP_RESPONSE_FILE`` is not ``Name: value``, or no script is allowed to set this header."""


class OutputError(WatchdogError):
    """The outputs of the script cannot be sent."""


class StdoutUnwritable(OutputError):
    """This process cannot write to its stdout."""


class OutputTooLarge(OutputError):
    """The outputs are larger than ``max_output_size``, or there are too many."""


class OutputUnreadable(OutputError):
    """An output could not be read, or it changed while it was sent."""


class StorageError(WatchdogError):
    """A storage could not be reached, refused a request, or did not finish it.

    The text of this error never contains a credential. ``is_given_up``: the request was repeated for the whole time
    limit, so a further request would probably fail, too.
    """

    is_given_up = False


class ObjectMissing(StorageError):
    """The object, bucket or space does not exist."""


class StoreFailed(StorageError):
    """Some outputs could not be stored.

    ``stored``: the outputs that were stored, as ``provider:location``. ``not_stored``: the other outputs, in the same
    form, each with the reason.
    """

    def __init__(self, message: str, *, stored: list[str], not_stored: dict[str, str]) -> None:
        super().__init__(message)
        self.stored = stored
        self.not_stored = not_stored


class NoSpace(WatchdogError):
    """``tmp_dir`` has no space left."""


class ServiceError(WatchdogError):
    """The service that `watchdog invoke` called gave no answer that can be used."""


class ServiceUnreachable(ServiceError):
    """No connection could be made, or the server at the URL does not answer calls."""


class RefusedForNow(ServiceError):
    """The service refuses the call, and may accept it later (408, 429, 503).

    ``is_sent_again``: the service did not run the script. ``retry_after_s``: the service accepts the call after this
    many seconds at the earliest; None if that is not known.
    """

    is_sent_again = False
    retry_after_s: float | None = None


class CallTookTooLong(ServiceError):
    """The whole call took longer than ``--timeout``, so the client has ended it."""


class AnswerBroken(ServiceError):
    """The answer was cut off, is malformed, or does not fit its checksum. The script may have run."""


class FileUnreadable(WatchdogError):
    """A file that `watchdog invoke` should send cannot be read."""


class AnswerNotKept(WatchdogError):
    """The answer of a service cannot be written to the place that the user named."""


class OutOfResources(WatchdogError):
    """The system refused something that a call needs: a descriptor, memory, or a directory in ``tmp_dir``."""
