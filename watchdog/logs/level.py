"""Find the level that a line of a script shows."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import Any

import msgspec

from ..system.pattern import pattern

LINE_BYTES = 64 * 1024
LEVEL_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}
_WORDS = {
    logging.DEBUG: "TRACE VERBOSE DEBUG DBG",
    logging.INFO: "INFO INFORMATION NOTICE SUCCESS DEFAULT",
    logging.WARNING: "WARNING WARN",
    logging.ERROR: "ERROR ERR SEVERE",
    logging.CRITICAL: "CRITICAL CRIT FATAL ALERT EMERGENCY EMERG PANIC",
}
_LEVELS = {word: level for level, words in _WORDS.items() for word in words.split()}
_SYSLOG = (50, 50, 50, 40, 30, 20, 20, 10)  # emerg, alert, crit, err, warning, notice, info, debug
_LETTERS = {"D": 10, "I": 20, "W": 30, "E": 40, "F": 50}
# Longer words first: WARN must not win over WARNING.
_UPPER = "(?:" + "|".join(sorted(_LEVELS, key=len, reverse=True)) + ")"
# Character classes, such as "[Ee][Rr][Rr]", are faster than the flag "(?i:".
_ANY = "".join(f"[{each}{each.lower()}]" if each.isupper() else each for each in _UPPER)
# The end of the line, a space or a sign must follow the word of a level. "ERROR.log" shows no level.
_END = r"(?=[\s:|\]>!]|$)"
# If only a number or a switch follows the colon, the line shows a value or a setting: "error: 0.031", "Debug: False".
_COLON = r":(?=\s|$)(?!\s*(?:[-+]?\d[\d.,e+-]*\s*%?|(?i:true|false|yes|no|on|off|none|null))\s*$)"
_NAME = r"[\w.$/@#<>-]++"
_TIME = (
    r"(?=[\[\dMTWFSJADNO])(?=[^:]{2,32}+(?<=\d\d):\d\d)"
    r"(?>(?:\[?(?:\d[\d/:.,TZ+-]*+|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b"
    r"|[AP]M\b|UTC\b|[+-]\d{4}\b)[,:\]|]*+[ \t]*+)+)[|:\s-]*+"
)
_BRACKETS = r"(?:\[[^\[\]]*+\]|\([^()]*+\))[\s:|-]*+"
_NAMED = rf"{_NAME}(?:\[\d+\])?(?::(?!:)\s*|\s*\|\s*|\s+-\s+|:[\w<>]+:\d+\s+-\s+)"
_IN_BRACKETS = rf"\[\s*(?:[\w.]+:)?({_ANY})\s*\]"
# Each row is one way to show a level. The rows are tried in this order. The group that matched is the level.
_SHOWN_BY_WORD = pattern(
    "|".join(
        (
            # ERROR: x, ERROR x, WARNING:root:x, INFO     x, [warning] x, <error> x, Error: x
            rf"({_UPPER}){_END}|[\[<(]\s*({_ANY})\s*[\]>)]|({_ANY}){_COLON}",
            # error[E0425]: x, Warning message:, Error in f(): x, fatal error: x, Fatal Python error: x
            r"(error)\[\w+\]:|(?:During startup - )?(Warning) messages?:|(Error) in .+:|([Ff]atal)(?: \w+)? error: ",
            # npm error x, npm ERR! x, npm warn x
            r"npm (?i:(warn|err)(?:or)?\b)",
            # A time, then names, numbers and brackets, and the level among them.
            (
                rf"{_TIME}(?:{_BRACKETS}|{_NAMED}){{0,3}}?"
                rf"(?:(?!(?:no|not|an?|any|without)\b){_NAME}(?:\[\d+\])?:?\s+)?(?:{_BRACKETS}|{_NAMED}){{0,2}}?"
                rf"(?:{_IN_BRACKETS}|({_UPPER}){_END}|({_ANY})(?::(?:\s|$)|\t|\s*\|))"
            ),
            # [main] ERROR x, (MainThread) ERROR: x, (node:12) Warning: x, 8 [main] WARN x (milliseconds)
            rf"(?:\d++\s+)?(?:{_BRACKETS}){{1,4}}?(?:({_UPPER}){_END}|({_ANY}){_COLON}|{_IN_BRACKETS})",
            # name: ERROR: x, name - ERROR - x, main.c:3:5: warning: x, cc1: fatal error: x
            (
                rf"[\w.$/@#<>+-]++(?::\d+){{0,2}}(?::\s*|\s*\|\s*|\s+-\s+)"
                rf"(?:({_UPPER})(?:(?=\s*[:|\]])|\s+-\s|$)|([Ff]atal) error: |({_ANY}){_COLON})"
            ),
            # level=error msg="x"
            (
                r'(?:[\w.@-]+=(?:"(?>(?:[^"\\]|\\.)*)"|[^\s"]*+)\s+){0,8}'
                rf'(?:level|lvl|severity)="?({_ANY})"?(?=[\s,]|$)'
            ),
        )
    )
)
# Lines without a separate word for the level, or with a word that is a level only here (FINE of java.util.logging).
_OTHERS = (
    (pattern(r"[A-Za-z_][\w.]*(?:Error|Exception)(?:: |$)|Traceback \(most recent"), logging.ERROR),
    (pattern(r"Exception (?:in thread|ignored (?:in|while))\b"), logging.ERROR),
    (pattern(r"\S+:\d+: \w*Warning: "), logging.WARNING),
    (pattern(r"FINE(?:R|ST)?: "), logging.DEBUG),
)
_PRIORITY = pattern(r"<(\d{1,3})>")
# glog, absl and klog; TensorFlow's "2026-11-24 22:59:41.377: W tensorflow/"; apt's "E: ".
_LETTER = pattern(r"(?:([DIWEF])\d{4} \d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ([IWEF]) |([WE]): )")
_SHOWN_WITHIN = 300
_LEVEL_IN_JSON = pattern(r'"(?:level|severity|levelname|lvl)"\s*:\s*"(\w+)"')
# A text without any of these shows only the level INFO. The search in 64 KiB takes less than a millisecond. The
# examination of each line may take 20 ms.
_TELLING_WORD = pattern("trace|verbose|debug|dbg|fine|warn|err|severe|crit|fatal|alert|emerg|panic|exception")
_TELLING_START = pattern(
    r'(?m)^(?:[DIWEF]\d{4} |<\d|\{|\tat |[WE]: |  File "|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWEF] )'
)


def may_show_level(text: str) -> bool:
    return bool(_TELLING_WORD.search(text.lower()) or _TELLING_START.search(text))


# If a script prints very many lines, short lines are often equal.
SHORT_LINE = 32
classify_again = functools.lru_cache(maxsize=512)(lambda line: classify(line))


class _Shown(msgspec.Struct):
    """The fields in which JSON loggers put the level."""

    level: Any = None
    severity: Any = None
    levelname: Any = None
    lvl: Any = None
    ecs: Any = msgspec.field(default=None, name="log.level")


_shown = msgspec.json.Decoder(_Shown)


def classify(line: str) -> int | None:
    """Return the level that a line shows, as a number of :mod:`logging`; None if it shows none."""
    if line.startswith("{"):
        return _json_level(line)
    line = line[:_SHOWN_WITHIN]
    if match := _PRIORITY.match(line):
        return _SYSLOG[int(match[1]) & 7]
    if match := _LETTER.match(line):
        return _LETTERS[match[match.lastindex or 1]]
    if match := _SHOWN_BY_WORD.match(line):
        return _LEVELS[match[match.lastindex or 1].upper()]
    for shown, level in _OTHERS:
        if shown.match(line):
            return level
    return None


def _json_level(line: str) -> int | None:
    with contextlib.suppress(msgspec.DecodeError, ValueError, RecursionError):
        shown = _shown.decode(line)
        for value in (shown.level, shown.severity, shown.levelname, shown.lvl, shown.ecs):
            level = _value_level(value)
            if level is not None:
                return level
        return None
    # A line that was cut is not JSON any more, but the level is usually near the beginning.
    match = _LEVEL_IN_JSON.search(line[:_SHOWN_WITHIN]) if len(line) >= LINE_BYTES // 4 else None
    return _LEVELS.get(match[1].upper()) if match else None


def _value_level(value: object) -> int | None:
    """Return the level of a word, a syslog severity (0 to 7), or a number of pino and bunyan (10 trace to 60 fatal)."""
    if isinstance(value, str):
        return _LEVELS.get(value.strip().upper()) or (_value_level(int(value)) if value.isdecimal() else None)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if 0 <= value <= 7:
        return _SYSLOG[value]
    if 10 <= value <= 69:
        return max(10, min(value // 10 * 10 - 10, 50))
    return None
