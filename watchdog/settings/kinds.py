"""Read the text of a value: durations, sizes, paths and the other kinds of settings."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import quoted
from ..system.pattern import pattern

# A larger value is certainly a mistake. It would overflow timers and file sizes of libraries or the kernel.
_MOST_COUNT = 1_000_000_000
_MOST_SECONDS = 1_000_000_000
_MOST_BYTES = (1 << 63) - 1


class Kind(NamedTuple):
    """A kind of value, and how to read one from text.

    ``parse`` raises ``ValueError``. ``unit`` is the end of the attribute's name.
    """

    parse: Callable[[str], Any]
    accepts: str
    metavar: str
    unit: str = ""


def parse_duration_s(text: str) -> float:
    """Return the seconds of ``90``, ``1.5`` or a Go duration like ``1m30s`` (``time.ParseDuration``, without a minus).

    Raise ``ValueError`` for any other text and for more than 10**9 seconds.
    """
    text = text.strip()
    if _PLAIN_SECONDS.fullmatch(text):
        seconds = float(text)
    elif _GO_DURATION.fullmatch(text):
        # The sum is in nanoseconds and divided once, so that 100ms is exactly 0.1.
        parts = _GO_PART.findall(text)
        seconds = sum(float(number) * _GO_UNIT_NS[unit] for number, unit in parts) / 1e9
    else:
        raise ValueError(f"not a duration: {quoted(text)}")
    if seconds > _MOST_SECONDS:
        raise ValueError(f"over {_MOST_SECONDS} seconds: {quoted(text)}")
    return seconds


def _parse_positive_duration_s(text: str) -> float:
    seconds = parse_duration_s(text)
    if not seconds:
        raise ValueError(text)
    return seconds


_GO_UNIT_NS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
# The quantifiers are possessive. An X-Timeout may have 60,000 digits, and backtracking over them took half a minute.
_NUMBER = r"(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)"
_PLAIN_SECONDS = pattern(rf"\+?{_NUMBER}")
_UNIT = "(ns|us|µs|μs|ms|s|m|h)"
_GO_PART = pattern(rf"({_NUMBER}){_UNIT}")
_GO_DURATION = pattern(rf"\+?(?:({_NUMBER}){_UNIT})+")


def parse_size_bytes(text: str) -> int:
    """Return the bytes of ``1048576``, ``64Ki``, ``10MiB``, ``2G`` or ``2GB``. With ``i`` the units are powers of 1024.

    Raise ``ValueError`` for any other text and for more than 2**63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a size: {text!r}")
    number, prefix = match.groups()
    size_bytes = int(number) * _SIZE_UNIT_BYTES[prefix]
    if size_bytes > _MOST_BYTES:
        raise ValueError(f"over {_MOST_BYTES} bytes: {text!r}")
    return size_bytes


_SIZE_UNIT_BYTES = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_SIZE_UNIT_BYTES |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_SIZE = pattern(r"([0-9]{1,20})([KMGT]i|[kKMGT]|)B?")


def _parse_whole(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would also read "1_000", and digits of other writing systems.
        if not re.fullmatch("[0-9]{1,20}", text.strip()) or int(text) > most:
            raise ValueError(text)
        return int(text)

    return parse


def _parse_truth(text: str) -> bool:
    word = text.strip().lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError(text)


_LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LEVEL_ALIASES = {"TRACE": "DEBUG", "WARN": "WARNING", "FATAL": "CRITICAL"}


def _parse_level(text: str) -> str:
    word = text.strip().upper()
    word = _LEVEL_ALIASES.get(word, word)
    if word not in _LEVELS:
        raise ValueError(text)
    return word


def _parse_log_format(text: str) -> str:
    word = text.strip().lower()
    if word not in ("auto", "json", "console"):
        raise ValueError(text)
    return word


def _parse_address(text: str) -> str:
    text = text.strip()
    address = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in address:
        try:
            socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
        except OSError as error:
            raise ValueError(text) from error
    elif not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*)", address):
        raise ValueError(text)
    return address


def _parse_path(text: str) -> str:
    if b"\0" in os.fsencode(text):
        raise ValueError(text)
    return text


def _parse_directory(text: str) -> str:
    # Absolute, because scripts get paths below it and may change their working directory.
    return os.path.abspath(_parse_path(text))


def _parse_command(text: str) -> str:
    # Quotes work as in a shell. (The classic watchdog splits at each space.)
    if "\0" in text or not shlex.split(text):
        raise ValueError(text)
    return text


def _parse_media_type(text: str) -> str:
    text = text.strip()
    if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+/[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*;[ -~]*)?", text):
        raise ValueError(text)
    return text


def _parse_origins(text: str) -> Sequence[str]:
    from .origins import parse_origins  # a server without this setting does not need it

    return parse_origins(text)


def parse_token(text: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("token")
    return token


PORT = Kind(_parse_whole(65535), "a port number from 0 to 65535", "PORT")
COUNT = Kind(_parse_whole(_MOST_COUNT), f"a whole number from 0 to {_MOST_COUNT}", "N")
DURATION = Kind(
    parse_duration_s,
    f"seconds like 90 or 1.5, or a duration like 1m30s or 500ms, at most {_MOST_SECONDS}s",
    "DURATION",
    "_s",
)
POSITIVE_DURATION = Kind(
    _parse_positive_duration_s, f"more than 0: {DURATION.accepts}", DURATION.metavar, DURATION.unit
)
SIZE = Kind(parse_size_bytes, "bytes like 1048576, or a size like 64Ki, 10Mi or 2G", "SIZE", "_bytes")
TRUTH = Kind(_parse_truth, "true, false, 1, 0, yes, no, on or off", "BOOL")
LEVEL = Kind(_parse_level, f"{', '.join(_LEVELS[:-1])} or {_LEVELS[-1]}", "LEVEL")
LOG_FORMAT = Kind(_parse_log_format, "auto, json or console", "FORMAT")
ADDRESS = Kind(_parse_address, "an IPv4 or IPv6 address or a host name, without a port", "ADDRESS")
PATH = Kind(_parse_path, "a path", "PATH")
DIRECTORY = Kind(_parse_directory, "a path", "PATH")
COMMAND = Kind(_parse_command, "a command and its arguments, quoted as for a shell", "COMMAND")
MEDIA_TYPE = Kind(_parse_media_type, "a media type like text/plain; charset=utf-8", "TYPE")
ORIGINS = Kind(_parse_origins, "origins like https://a.example, http://localhost:3000, or *", "ORIGINS")
TOKEN = Kind(parse_token, "ASCII characters without white space, at least one", "TOKEN")
