"""Name everything that can go wrong, as one tree of types.

::

    WatchdogError
    ├── ConfigError                  settings, service definition or script are wrong at start
    ├── ListenError                  the server's address cannot be bound
    ├── InputError                   the caller sent something wrong
    │   ├── BadInput                 body, name, form or header malformed
    │   ├── InputTooLarge            over ``max_input_size``
    │   ├── CallerSilent             nothing came for ``read_timeout``, or less than ``min_data_rate``
    │   └── CallerGone               the connection ended while the body was sent
    │       └── StdoutClosed         nobody reads this process's stdout any more
    ├── Unauthorized                 the token is missing or wrong
    │   └── TooManyWrongTokens       and too many wrong ones came before it
    ├── AnswerNotAvailable           the form of answer that the caller wants cannot be given
    ├── NotAdmitted
    │   ├── Overloaded               there is no room, ``queue_timeout`` passed, or a slow caller had to make room
    │   └── Draining                 the server is ending
    ├── ScriptError
    │   ├── ScriptUnavailable        no script, not readable, no interpreter
    │   ├── ScriptFailed             exit code other than 0
    │   │   └── ScriptOutOfSpace     and ``tmp_dir`` is full
    │   ├── ScriptKilled             ended by a signal
    │   │   └── ScriptOutOfMemory    because the container had no memory left
    │   ├── ScriptTimedOut           ``exec_timeout`` or ``X-Timeout`` passed
    │   └── BadScriptResponse        ``$HTTP_RESPONSE_FILE`` is malformed
    ├── OutputError
    │   ├── OutputTooLarge           over ``max_output_size``
    │   └── OutputUnreadable         an output changed or could not be read
    ├── StorageError                 a storage cannot be reached, refuses, is silent or breaks off
    │   ├── ObjectMissing            there is no such object, bucket or space
    │   └── StoreFailed              outputs could not be stored
    ├── NoSpace                      ``tmp_dir`` is full
    └── OutOfResources               the system refuses something else: descriptors, memory, a directory

No type contains a status or an exit code: ``http/problems.py`` and ``cli.py`` each have one table for that.
The text of an error says what happened, to what, and what to do.
"""

from __future__ import annotations

# A header may have 64 KiB. The log keeps the reason of each refused call.
_MOST_QUOTED = 100


def quoted(text: str) -> str:
    """Return a foreign text as an error shows it: in quotes, at most 100 characters of it."""
    return repr(text) if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]!r}..."


class WatchdogError(Exception):
    """Root of the tree."""


class ConfigError(WatchdogError):
    """The start is refused. ``problems``: one line of text for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ListenError(WatchdogError):
    """The address cannot be listened on."""


class InputError(WatchdogError):
    """What the caller sent cannot be used."""


class BadInput(InputError):
    """Body, form, name or header malformed."""


class InputTooLarge(InputError):
    """The decoded input is over ``max_input_size``."""


class CallerSilent(InputError):
    """Nothing came from the caller for ``read_timeout``, or less than ``min_data_rate``."""


class CallerGone(InputError):
    """The caller's connection ended before the body did."""


class StdoutClosed(CallerGone):
    """The reader of this process's stdout has closed it."""


class Unauthorized(WatchdogError):
    """The bearer token is missing or wrong."""


class TooManyWrongTokens(Unauthorized):
    """The bearer token is wrong, and the answers to many others that are wrong wait already."""


class AnswerNotAvailable(WatchdogError):
    """The outputs cannot be given in the form that the caller accepts."""


class NotAdmitted(WatchdogError):
    """The call may not start now. ``retry_after_s``: whole seconds after which to try again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(NotAdmitted):
    """There is no room, the call waited for ``queue_timeout``, or it was slow and had to make room for another."""


class Draining(NotAdmitted):
    """The server is ending and starts nothing new."""


class ScriptError(WatchdogError):
    """The script did not do its work. ``stderr``: its last 4 KiB, as text."""

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


class ScriptUnavailable(ScriptError):
    """There is no script, it cannot be read, or its interpreter is not in the image."""


class ScriptFailed(ScriptError):
    """The script ended with an exit code other than 0."""

    def __init__(self, message: str, *, exit_code: int, stderr: str = "") -> None:
        super().__init__(message, stderr=stderr)
        self.exit_code = exit_code


class ScriptOutOfSpace(ScriptFailed):
    """The script failed, and nothing more can be written to ``tmp_dir``."""


class ScriptKilled(ScriptError):
    """The script was ended by a signal. ``signal``: its name, ``SIGSEGV``."""

    def __init__(self, message: str, *, signal: str, stderr: str = "") -> None:
        super().__init__(message, stderr=stderr)
        self.signal = signal


class ScriptOutOfMemory(ScriptKilled):
    """The kernel ended the script because the memory of its control group had ended."""


class ScriptTimedOut(ScriptError):
    """The script ran for longer than ``exec_timeout`` or ``X-Timeout`` and was ended."""


class BadScriptResponse(ScriptError):
    """A line of ``$HTTP_RESPONSE_FILE`` is not ``Name: value`` or may not be set by a script."""


class OutputError(WatchdogError):
    """What the script left cannot be sent."""


class StdoutUnwritable(OutputError):
    """This process's stdout cannot be written."""


class OutputTooLarge(OutputError):
    """The outputs are over ``max_output_size``."""


class OutputUnreadable(OutputError):
    """An output could not be read, or changed while it was sent."""


class StorageError(WatchdogError):
    """A storage could not be reached, refused, was silent or broke off. No text of it holds a credential."""


class ObjectMissing(StorageError):
    """There is no such object, bucket or space."""


class StoreFailed(StorageError):
    """Not every output could be stored.

    ``stored``: what is where it should be, as ``provider:location``. ``not_stored``: the same of what is not, with the
    reason.
    """

    def __init__(self, message: str, *, stored: list[str], not_stored: dict[str, str]) -> None:
        super().__init__(message)
        self.stored = stored
        self.not_stored = not_stored


class NoSpace(WatchdogError):
    """No space is left in ``tmp_dir``."""


class OutOfResources(WatchdogError):
    """The system refused what a call needs: a descriptor, memory, a place in ``tmp_dir``."""
