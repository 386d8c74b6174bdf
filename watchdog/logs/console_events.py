"""Describe the events of the server for people: one short text for each event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import readable
from .text import as_text, printable, printable_lines

_MOST_NAMED = 3
# The outcomes that are green and have no exit code or signal. All other outcomes have the colour of their level.
_GOOD = ("ok", "skipped")
# All wildcard addresses: the server listens on every interface, so also on localhost.
_EVERY_INTERFACE = ("", "::", "0.0.0.0")
# Fields that are shown elsewhere, or that say nothing to a person.
_NOT_LISTED = frozenset({"event", "logger", "call_id", "reason", "exception", "stack", "trace_id", "traceparent"})


class Worded(NamedTuple):
    """The text of an event. It may have several lines.

    ``lead``: the beginning of the text that gets the colour. ``is_good``: the colour is green, not that of the level.
    """

    lead: str
    rest: str = ""
    is_good: bool = False


def worded(level: str, fields: Mapping[str, Any], *, is_reason_said: bool) -> Worded:
    """Return the text of an event.

    Args:
        is_reason_said: an earlier event of the same call had the same reason.
    """
    special = _SPECIAL.get((fields.get("logger"), fields["event"]))
    if is_reason_said:
        fields = {name: value for name, value in fields.items() if name != "reason"}
    return _plain(level, fields) if special is None else special(fields)


def _plain(level: str, fields: Mapping[str, Any]) -> Worded:
    text = printable_lines(as_text(fields["event"]))
    exception = fields.get("exception")
    # The last line of a traceback is the reason.
    if fields.get("reason") is not None and exception is None:
        text += f": {printable_lines(as_text(fields['reason']))}"
    more = ", ".join(_shown(name, value) for name, value in fields.items() if name not in _NOT_LISTED)
    if more:
        text += f" ({more})"
    for trace in (exception, fields.get("stack")):
        if trace is not None:
            text += "\n" + printable_lines(as_text(trace))
    return Worded("", text) if level == "info" else Worded(f"{level}: ", text)


def _shown(name: str, value: object) -> str:
    """Return a field as words: ``load_s=0.31`` becomes ``load 0.31 s``."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is not None and name.endswith("_s"):
        return f"{_words(name[:-2])} {readable.seconds(number)}"
    if number is not None and name.endswith("_bytes"):
        return f"{_words(name[:-6])} {readable.size(int(number))}"
    if isinstance(value, list | tuple):
        return f"{_words(name)} {', '.join(printable(as_text(each)) for each in value)}"
    return f"{_words(name)} {printable(as_text(value))}"


def _words(name: str) -> str:
    return printable(name.replace("_", " "))


def _listening(fields: Mapping[str, Any]) -> Worded:
    url = _url(fields.get("address"), fields["port"])
    if "script" in fields:
        function = printable(as_text(fields["script"]))
        # The server shows the variable's name if the script is the text of this variable.
        runs = "the script in the variable SCRIPT" if function == "SCRIPT" else function
    else:
        runs = f"the command {printable(as_text(fields.get('fprocess')))}"
    inflight, queue = fields.get("max_inflight"), fields.get("max_queue")
    limits = [f"{_count(inflight, 'call')} at a time, {queue} may wait" if inflight else "no limit of calls"]
    if fields.get("metrics_port"):
        limits.append(f"metrics on port {fields['metrics_port']}")
    return Worded(f"listening on {url}", f", runs {runs} ({'; '.join(limits)})", is_good=True)


def _url(address: object, port: object) -> str:
    host = printable(as_text(address))
    if host in _EVERY_INTERFACE:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _draining(fields: Mapping[str, Any]) -> Worded:
    running = _count(fields.get("running"), "call")
    text = f" ({fields.get('signal')}): {running} running, {fields.get('waiting')} waiting"
    longest_s = fields.get("longest_s")
    return Worded("stopping", text if longest_s is None else f"{text}; at most {readable.seconds(longest_s)}")


def _waits(fields: Mapping[str, Any]) -> Worded:
    return Worded("", f"wait  position {fields.get('position')} in the queue")


def _starts(fields: Mapping[str, Any]) -> Worded:
    parts = ["start", *_input(fields)]
    if fields.get("queue_wait_s"):
        parts.append(f"after {readable.seconds(fields['queue_wait_s'])} in the queue")
    if fields.get("is_loading"):
        parts.append("as soon as a worker has loaded")
    return Worded("", "  ".join(parts))


def _progress(fields: Mapping[str, Any]) -> Worded:
    text = printable(as_text(fields.get("text", "")))
    return Worded("", f"progress  {fields['fraction']:.0%}  {text}".rstrip())


def _ended(fields: Mapping[str, Any]) -> Worded:
    """Return the summary of a call: ``ok  0.02 s  photo.jpg 1.1 kB -> gray.jpg 585 B``."""
    outcome = as_text(fields.get("outcome"))
    reason = fields.get("reason")
    how = _how_it_ended(fields) if outcome not in _GOOD else ""
    # Without a hint, the reason of a script that failed says only how the script ended.
    is_short = reason is not None and bool(how) and as_text(reason).endswith(how)
    parts = [how] if how and (reason is None or is_short) else []
    time_s = fields.get("duration_s", fields.get("total_s"))
    if time_s is not None:
        parts.append(readable.seconds(time_s))
    files = "  ".join(_input(fields))
    if outcome == "ok" and "outputs" in fields:
        files = f"{files or 'no input'} -> {_results(fields)}"
    if files:
        parts.append(files)
    text = "".join(f"  {part}" for part in parts)
    if reason is not None and not is_short:
        text += "\n" + printable_lines(as_text(reason))
    return Worded(printable(outcome.replace("_", " ")), text, is_good=outcome in _GOOD)


def _how_it_ended(fields: Mapping[str, Any]) -> str:
    if fields.get("signal") is not None:
        return printable(as_text(fields["signal"]))
    return f"exit code {fields['exit_code']}" if fields.get("exit_code") else ""


def _input(fields: Mapping[str, Any]) -> list[str]:
    count = fields.get("input_bytes")
    name = fields.get("input_name")
    if count is None or (not count and not name):
        return []
    return [f"{printable(as_text(name))} {readable.size(count)}" if name else readable.size(count)]


def _results(fields: Mapping[str, Any]) -> str:
    """Return the names and sizes of the outputs, or the size of what the script printed."""
    outputs = fields["outputs"]
    if not outputs:
        printed = fields.get("printed_bytes")
        return f"{readable.size(printed)} printed" if printed else "nothing"
    if len(outputs) <= _MOST_NAMED:
        return ", ".join(f"{printable(name)} {readable.size(count)}" for name, count in outputs)
    return f"{len(outputs)} files {readable.size(sum(count for _, count in outputs))}"


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# By logger and event. A script's line has another logger, so no script can print such an event.
_SPECIAL: Mapping[tuple[object, object], Callable[[Mapping[str, Any]], Worded]] = {
    ("server", "listening"): _listening,
    ("server", "draining"): _draining,
    ("invocation", "call waits"): _waits,
    ("invocation", "call started"): _starts,
    ("invocation", "progress"): _progress,
    ("invocation", "invocation ended"): _ended,
}
