r"""Recognise stack traces of the Java virtual machine, line by line (``Throwable.printStackTrace``).

::

    ERROR: java.lang.IllegalStateException: cannot read x      begins, perhaps after a level or a thread's name
      more of the message                                      indented
    \tat Main.read(Main.java:4)                                a frame
    Caused by: java.lang.NumberFormatException: x              a further exception, with frames of its own
    \t... 2 more

A first line looks the same whether a trace follows or not.
"""

from __future__ import annotations

from ..system.pattern import pattern

_EXCEPTION = pattern(r"(?<![\w.$/])(?>(?:[a-z_][\w$]*+\.)+)(?=[A-Z])[\w$]*(?:Exception|Error)(?=:|$)")
_FRAME = pattern(r"\s+(?:at [\w.$/@<>-]+\(|\.\.\. \d+ (?:more|common frames omitted))")
_FURTHER = pattern(r"\s*(?:Caused by|Suppressed|Wrapped by): ")
_SEARCHED = 300  # characters; in a first line, the class comes before the message


def may_begin(line: str) -> bool:
    """Return whether a line needs a closer look. This is quick, because it is called for each line."""
    return "Exception" in line or "Error" in line or line.startswith("\tat ")


def begins(line: str) -> bool:
    """Return whether a line may be the first one of a trace, or is a frame of a trace whose first line is missing."""
    return _EXCEPTION.search(line[:_SEARCHED]) is not None or _FRAME.match(line) is not None


def goes_on(line: str, *, in_message: bool) -> bool:
    """Return whether a line belongs to the trace before it.

    Args:
        in_message: whether the trace has no frame yet, only its first line and lines of its message.
    """
    return is_frame(line) or is_further(line) or (in_message and line[:1] in (" ", "\t"))


def is_frame(line: str) -> bool:
    return _FRAME.match(line) is not None


def is_further(line: str) -> bool:
    """Return whether a line begins the next exception of the same trace."""
    return _FURTHER.match(line) is not None
