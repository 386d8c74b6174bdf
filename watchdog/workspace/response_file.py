"""Read the status and headers that a script chose in ``$HTTP_RESPONSE_FILE``.

Its lines are as in a CGI answer (RFC 3875, section 6.3)::

    Status: 404 Not Found
    X-Reason: no plant

A script may write data from a caller into this file. So a line cannot split the response, and cannot set the headers
that frame the response or name the call.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

import msgspec

from ..errors import BadScriptResponse
from ..system.files import raise_if_no_descriptor
from ..system.pattern import pattern

_LARGEST_BYTES = 64 * 1024
_NAME = pattern(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_STATUS = pattern(r"([2-5][0-9][0-9])(?:\s.*)?")
_SET_BY_SERVER = frozenset(
    "connection content-length content-encoding date expect host keep-alive proxy-authenticate proxy-connection "
    "server te trailer transfer-encoding upgrade x-call-id x-exit-code x-duration-seconds x-input-encoding".split()
)


class ResponseOverrides(msgspec.Struct, frozen=True):
    """The status and headers that a script chose.

    ``status``: None if the script chose no status. ``headers``: names and values, in the order of the file.
    """

    status: int | None = None
    headers: Sequence[tuple[str, str]] = ()


NO_OVERRIDES = ResponseOverrides()


def read_response_file(path: str) -> ResponseOverrides:
    """Return what the script chose; ``NO_OVERRIDES`` if there is no file.

    Raises:
        BadScriptResponse: the file cannot be read or is too large, a line is not ``Name: value``, or a line sets a
            header that scripts must not set.
        OutOfResources: no descriptor is free.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return NO_OVERRIDES
    except OSError as error:
        raise_if_no_descriptor(error, "$HTTP_RESPONSE_FILE cannot be read")
        raise BadScriptResponse(f"$HTTP_RESPONSE_FILE cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadScriptResponse("$HTTP_RESPONSE_FILE is not a regular file any more; write lines into it")
        data = os.read(fd, _LARGEST_BYTES + 1)
    except OSError as error:
        raise BadScriptResponse(f"$HTTP_RESPONSE_FILE cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(data) > _LARGEST_BYTES:
        raise BadScriptResponse(f"$HTTP_RESPONSE_FILE has over {_LARGEST_BYTES} bytes; write fewer headers")
    return _parse(data.decode("utf-8", "surrogateescape"))


def _parse(text: str) -> ResponseOverrides:
    status: int | None = None
    headers: list[tuple[str, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _NAME.fullmatch(name):
            raise _bad(number, line, "is not `Name: value`")
        if re.search("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]", value):
            raise _bad(number, line, "has a control character or is not UTF-8")
        if name.lower() == "status":
            if not (match := _STATUS.fullmatch(value)):
                raise _bad(number, line, "is not a status from 200 to 599")
            status = int(match[1])
        elif name.lower() in _SET_BY_SERVER:
            raise _bad(number, line, "is a header that the server sets itself")
        else:
            headers.append((name, value))
    return ResponseOverrides(status, tuple(headers))


def _bad(number: int, line: str, why: str) -> BadScriptResponse:
    return BadScriptResponse(f"line {number} of $HTTP_RESPONSE_FILE, {line[:200]!r}, {why}")
