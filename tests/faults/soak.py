"""Many callers, good, bad, slow and vanishing, at one real server for a while: nothing may be lost, nothing may stay.

::

    python tests/faults/soak.py --seconds 600

It starts a server with small limits and sends it a random mixture of calls, each under an id of its own and with a body
that tells whether the answer is the right one. In the end it waits until the server is at rest, looks for all that may
have been left, stops the server, and prints a table. The exit code is 0 if no answer was lost and nothing leaked.

The same ``--seed`` makes the same calls; how they interleave is up to the machine.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import gzip
import http.client
import io
import json
import os
import random
import re
import secrets
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lifeline import Lifeline
from running_server import Answer, RunningServer, free_port, is_guardian

from watchdog.system.threads import METRICS, OUTPUTS, PROCESSES, REMOVALS, Threads

MAX_INFLIGHT = 8
MAX_INPUT_BYTES = 6 << 20
MAX_OUTPUT_BYTES = 8 << 20
TIMEOUT_S = 4.0  # exec_timeout, read_timeout and write_timeout
MOST_CALLS = 200_000
MOST_PRINTED = 20
# Calls until the server has made what it makes only once, and its allocator keeps what it will keep.
WARM_CALLS = 1000
# Of the memory at rest, between two moments. The server under test has one arena of the C library, and no caches of
# freed memory for each thread. So what may remain is small: 12 KiB for the stack of each thread that was started
# meanwhile, and a few of Python's arenas of 1 MiB, each of which is given back only if it is wholly free. In 16,000
# calls the memory in use grew by 0.0 MiB in the C library and by 0.01 MiB in Python. The whole grew by 1.2 MiB in
# 12,500 calls.
MOST_GROWTH_MIB = 4.0
# Pieces of memory that Python has handed out: an object has one or more. 400 more were seen in 12,500 calls, and up to
# 1,300 in short runs: cancelled timers that asyncio still keeps, and what is made only once. So a leak of one object in
# each call shows after 4,000 calls, and a leak of the call's headers after a few hundred.
MOST_NEW_BLOCKS = 4000
# glibc keeps up to 0.2 MiB of freed memory for each thread. These caches fill slowly, and would look like a leak.
NO_THREAD_CACHES = "glibc.malloc.tcache_count=0"
PATIENCE_S = 60.0

# What a script does, by `do=WHAT.ARGUMENT` in the query. Whatever should survive its call by mistake ends by itself.
SCRIPT = r"""
do=${Http_Query#*do=}; do=${do%%&*}; argument=${do#*.}
copy() { cp "$TMP_INPUT_DIR"/* "$TMP_OUTPUT_DIR"/; }
last_words() { echo "last words of $CALL_ID" >&2; }
link() { [ "$1" -eq 0 ] || { (link $(($1 - 1))) & }; }
case ${do%%.*} in
    copy) copy ;;
    stdout) cat "$INPUT_FILE_PATH" ;;
    status) printf 'Status: 203\nX-Soak: %s\n' "$CALL_ID" > "$HTTP_RESPONSE_FILE"; copy ;;
    nothing) ;;
    pause) sleep 0.2 ;;
    response) echo "no header" > "$HTTP_RESPONSE_FILE" ;;
    two) echo 1 > "$TMP_OUTPUT_DIR/1"; echo 2 > "$TMP_OUTPUT_DIR/2" ;;
    large) truncate -s "$argument" "$TMP_OUTPUT_DIR/large" ;;
    exit) last_words; exit "$argument" ;;
    signal) last_words; kill -"$argument" $$; sleep 60 ;;
    hang) last_words; sleep 60 ;;
    stubborn) trap '' TERM; last_words; sleep 60 ;;
    noise)
        i=0
        while [ $i -lt 4000 ]; do echo "$i: noise that nobody wants to have, of $CALL_ID"; i=$((i + 1)); done >&2
        last_words; exit "$argument" ;;
    background) sleep 60 & copy ;;
    deaf) (trap '' TERM; sleep 60; sleep 60) & copy ;;
    setsid) setsid sleep 60 & copy ;;
    daemon) (setsid sh -c 'sleep 60 & sleep 60 & exit' > /dev/null 2>&1 &); copy ;;
    nameless) env -i setsid sleep 60 & copy ;;
    silent) env -i setsid sleep 20 > /dev/null 2>&1 & copy ;;
    chain) link 150; copy ;;
    leaping)
        setsid sh -c 'link() { [ "$1" -eq 0 ] || { (link $(($1 - 1))) & }; }; link 150' > /dev/null 2>&1 &
        copy ;;
    tell) : > "$MARKS/$CALL_ID"; sleep 60 ;;
    *) echo "unknown: $do" >&2; exit 99 ;;
esac
"""


# ---------------------------------------------------------------------------- what an answer must be


class Lost(Exception):
    """A call that should have got an answer got none (``none``) or a part of it (``cut``)."""

    def __init__(self, how: str, detail: str) -> None:
        super().__init__(detail)
        self.how = how


Check = Callable[[Answer], str | None]


def _anything(_: Answer) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the answer to a call must be, and the event in which its invocation must end.

    ``outcomes``: those that the event may tell; empty for a call that is refused before it becomes an invocation.
    ``check``: tells what is wrong with an answer of the right status, or None. ``is_named``: the answer has the call's
    id; one to incomplete headers cannot.
    """

    status: int
    outcomes: frozenset[str]
    check: Check = _anything
    is_named: bool = True


def fault(wanted: Wanted, call_id: str, answer: Answer) -> str | None:
    """What is wrong with the answer, or None."""
    if answer.status != wanted.status:
        return f"status {answer.status} instead of {wanted.status}: {answer.body[:300]!r}"
    if wanted.is_named and answer.headers["X-Call-Id"] != call_id:
        return f"it is the answer to {answer.headers['X-Call-Id']}"
    if wanted.status >= 400:
        try:
            document = answer.json
        except ValueError:
            return f"no problem document: {answer.body[:300]!r}"
        if document.get("status") != wanted.status or (wanted.is_named and document.get("call_id") != call_id):
            return f"a problem document of another call: {answer.body[:300]!r}"
    return wanted.check(answer)


def files_fault(form: str, files: Mapping[str | None, bytes], body: bytes) -> str | None:
    """What is wrong with a body that should bring these files in this form, or None. The name None is any name."""
    try:
        if form == "stdout":
            return _difference(files[None], body)
        if form == "json":
            outputs = json.loads(body)["outputs"]
            found = {output["name"]: base64.b64decode(output["data"], validate=True) for output in outputs}
            return _files_difference(files, found)
        if form == "base64":
            text, body = body, base64.b64decode(body.removesuffix(b"\n"), validate=True)
            if not text.endswith(b"\n") or base64.b64encode(body) + b"\n" != text:
                return "base64 without its line end, or of another shape"
        if form == "zip" or len(files) > 1:
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                return _files_difference(files, {name: archive.read(name) for name in archive.namelist()})
        (data,) = files.values()
        return _difference(data, body)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        return f"no {form}: {error!r}: {body[:100]!r}"


def _files_difference(files: Mapping[str | None, bytes], found: Mapping[str, bytes]) -> str | None:
    if None in files and len(found) == 1:
        return _difference(files[None], *found.values())
    if set(files) != set(found):
        return f"the files {sorted(found)} instead of {sorted(map(str, files))}"
    differences = (_difference(files[name], data) for name, data in found.items())
    return next(filter(None, differences), None)


def _difference(wanted: bytes, got: bytes) -> str | None:
    if wanted == got:
        return None
    at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
    return f"{len(got)} bytes instead of {len(wanted)}, from byte {at} on others: {got[at : at + 20]!r}"


# ---------------------------------------------------------------------------- what must not stay


def processes_with(*marks: bytes) -> list[int]:
    """The pids of living processes that have all of this in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if all(mark in environment for mark in marks):
                found.append(int(pid))
    return found


def children(pid: int) -> list[str]:
    """The children of a process, dead or alive, its guardian aside: each as ``PID name state``."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{child}/stat").read_text()
                name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
                if name != "watchdog-guard":
                    found.append(f"{child} {name} {state}")
    return found


def descriptors(pid: int) -> list[str]:
    """What the descriptors of a process point to."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


# The main thread, the log's, and those of each group: it starts one when all others are busy, up to a maximum.
MOST_THREADS = 2 + sum(group.most for group in (OUTPUTS, REMOVALS, PROCESSES, METRICS, Threads("files")))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


# ---------------------------------------------------------------------------- the books


@dataclass(frozen=True, slots=True)
class Note:
    """What must be in the log of a call: how many ends (``least`` to ``most``), with which outcome."""

    outcomes: frozenset[str]
    least: int
    most: int


@dataclass
class Ledger:
    """What callers saw and what the server logged; all threads write here."""

    answers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    lost_lines: list[str] = field(default_factory=list)
    lost_ids: set[str] = field(default_factory=set)
    survivors: list[str] = field(default_factory=list)
    notes: dict[str, Note] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    ends_by_outcome: Counter[str] = field(default_factory=Counter)
    twice: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    script_lines: int = 0
    bad_events: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, kind: str) -> None:
        with self.lock:
            self.kinds[kind] += 1

    def answered(self, call_id: str, result: str, outcomes: frozenset[str]) -> None:
        """A call is over whose caller waited for its end."""
        with self.lock:
            self.answers[result] += 1
            self.notes[call_id] = Note(outcomes, 1, 1) if outcomes else Note(outcomes, 0, 0)

    def left(self, call_id: str, note: Note) -> None:
        """A caller went away."""
        with self.lock:
            self.answers["none: the caller left"] += 1
            self.notes[call_id] = note

    def lose(self, call_id: str, how: str, detail: str) -> None:
        """An answer is lost, which is told: its events are not looked at any more."""
        with self.lock:
            self.notes.pop(call_id, None)
            self.lost_ids.add(call_id)
            self.lost[how] += 1
            if len(self.lost_lines) < MOST_PRINTED:
                self.lost_lines.append(f"{call_id}: {how}: {detail}")

    def survived(self, call_id: str, pids: Sequence[int]) -> None:
        with self.lock:
            self.survivors.append(f"{call_id}: {', '.join(map(described, pids))} lived when the call was answered")

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of the server's own, in the order of the log."""
        name, call_id = event["event"], event.get("call_id", "")
        with self.lock:
            if name == "invocation ended":
                self.ends_by_outcome[event["outcome"]] += 1
                if call_id in self.ends:
                    self.twice.append(call_id)
                self.ends[call_id] = sys.intern(event["outcome"])
            elif name == "call refused":
                self.refused[call_id] += 1
            elif event.get("level") in ("error", "critical") or "logger" not in event:
                what = event.get("reason") or event.get("text") or call_id
                self.bad_events[f"{name}: {what}"[:300]] += 1

    def misfits(self) -> list[str]:
        """Calls whose events in the log do not fit what their callers saw."""
        found = [f"{call_id}: ended twice in the log" for call_id in self.twice]
        for call_id, note in self.notes.items():
            count = int(call_id in self.ends)
            if not note.least <= count <= note.most:
                found.append(f"{call_id}: {count} ends in the log, {note.least} to {note.most} would fit")
            elif count and self.ends[call_id] not in note.outcomes:
                wanted = " or ".join(sorted(note.outcomes))
                found.append(f"{call_id}: ended {self.ends[call_id]!r} in the log, but its caller saw {wanted}")
            elif not note.most and self.refused[call_id] != 1 and not call_id.endswith("-unnamed"):
                found.append(f"{call_id}: {self.refused[call_id]} refusals in the log instead of one")
        unknown = self.ends.keys() - self.notes.keys() - self.lost_ids
        found += [f"{call_id}: ended in the log, but nobody called" for call_id in unknown]
        return found


def described(pid: int) -> str:
    """Return the pid with what is known of the process."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return f"{pid} ({b' '.join(words).decode(errors='replace').strip()[:100]})"
    return f"{pid} (gone by now)"


class SoakedServer(RunningServer):
    """A server whose events go into the books as they come: those of hours would not fit into memory."""

    patience_s = PATIENCE_S

    def __init__(self, ledger: Ledger, program: tuple[str, ...], directory: Path, script: str, **environ: Any) -> None:
        self._ledger = ledger
        super().__init__(directory, script, program=program, **environ)
        self.metrics_port = int(self.logs[-1]["metrics_port"])

    def _read_logs(self) -> None:
        assert self.process.stderr is not None
        is_listening = False
        for line in self.process.stderr:
            if b'"logger":"script"' in line:
                self._ledger.script_lines += 1
                continue
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "not json", "text": line.decode("utf-8", "replace")}
            if event["event"] == "inspected":
                self._news.put(event)
                continue
            self._ledger.event(event)
            if not is_listening:
                self._news.put(event)
                is_listening = event["event"] == "listening"
        self._news.put(None)

    def ask(self, path: str, port: int | None = None) -> bytes:
        """The body of a probe, which must be answered 200. Raises Lost."""
        with self.connection(port=port) as sock:
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n" % path.encode())
            answer = receive(sock, "GET")
        if answer.status != 200:
            raise Lost("wrong", f"{path}: {answer.status} {answer.body[:200]!r}")
        return answer.body

    def connection(self, receive_bytes: int = 0, port: int | None = None) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(self.patience_s)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.connect(("127.0.0.1", port or self.port))
        return sock


# ---------------------------------------------------------------------------- one call on the wire


def head(
    call_id: str,
    query: str,
    headers: Mapping[str, str],
    length: int | None,
) -> bytes:
    """A request's head; without a length its body comes in chunks."""
    lines = [f"POST /?{query} HTTP/1.1", "Host: soak", f"X-Call-Id: {call_id}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


def send(sock: socket.socket, data: bytes) -> None:
    """Send, unless the server hangs up: it may have answered already, which is looked at next."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


def receive(sock: socket.socket, method: str = "POST", pause: Callable[[], None] | None = None) -> Answer:
    """The answer. Raises Lost if it does not come, or not to its end."""
    response = http.client.HTTPResponse(sock, method=method)
    with contextlib.closing(response):
        try:
            response.begin()
        except (http.client.HTTPException, OSError) as error:
            raise Lost("none", repr(error)) from error
        pieces = []
        try:
            while piece := response.read(65536):
                pieces.append(piece)
                if pause is not None:
                    pause()
        except (http.client.HTTPException, OSError) as error:
            raise Lost("cut", f"status {response.status}, {len(b''.join(pieces))} bytes, then {error!r}") from error
        body = b"".join(pieces)
        if (announced := response.headers["Content-Length"]) != str(len(body)):
            raise Lost("cut", f"status {response.status}, {len(body)} bytes of {announced}")
        return Answer(response.status, response.headers, body)


def hang_up(sock: socket.socket, *, hard: bool) -> None:
    if hard:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---------------------------------------------------------------------------- callers

_OK = frozenset({"ok"})
_CROWD = 16
_OVERLOADED = Wanted(
    429,
    frozenset({"overloaded"}),
    lambda answer: None if answer.headers["Retry-After"] else "no Retry-After",
)


class Caller:
    """One who calls again and again, each time as the dice fall."""

    def __init__(self, number: int, seed: int, server: SoakedServer, ledger: Ledger, marks: Path) -> None:
        self._number = number
        self._dice = random.Random(f"{seed}/{number}")
        self._server = server
        self._ledger = ledger
        self._marks = marks
        self._serial = 0
        self._kept: socket.socket | None = None  # a connection kept alive
        self._longest_gap_s = 0.0
        self._last_s = 0.0
        self._behaviours: dict[Callable[[], None], float] = {
            self.good: 48,
            self.bad_input: 8,
            self.failing: 8,
            self.timing_out: 2.5,
            self.straggling: 9,
            self.sends_slowly: 2.5,
            self.reads_slowly: 2.5,
            self.falls_silent: 1,
            self.leaves_while_sending: 3,
            self.leaves_soon: 4,
            self.leaves_while_running: 3,
            self.leaves_while_reading: 3,
            self.stops_reading: 0.7,
            self.crowd: 0.3,
            self.probe: 4,
        }

    def call_until(self, is_over: Callable[[], bool]) -> None:
        behaviours, weights = list(self._behaviours), list(self._behaviours.values())
        while not is_over():
            behaviour = self._dice.choices(behaviours, weights)[0]
            try:
                behaviour()
            except Exception as error:
                # Whatever happens to a caller (a refused connection, say): an answer did not come.
                self._ledger.lose(f"caller {self._number}", "none", f"{behaviour.__name__}: {error!r}")
                time.sleep(0.1)  # if the server is dead, so do all others
        self.hang_up()

    def hang_up(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    # ---- who wants an answer

    def good(self) -> None:
        dice = self._dice
        name = dice.choice([self._base64, self._raw, self._json, self._multipart, self._gzip])
        call_id = self._new_id(f"good{name.__name__}")
        headers, parameters, body, files = name(call_id)
        form = dice.choice(["base64", "raw", "zip", "json"] if len(files) == 1 else ["base64", "zip", "json"])
        if None not in files and len(files) == 1 and dice.random() < 0.1:
            do, form, headers["Accept"] = "status", "base64", "*/*"
        elif len(files) == 1 and dice.random() < 0.1 and len(next(iter(files.values()))) < 200_000:
            do, form, files = "stdout", "stdout", {None: next(iter(files.values()))}
        else:
            do = "copy"
            parameters += self._ask_for(form, headers)
        status = 203 if do == "status" else 200

        def check(answer: Answer) -> str | None:
            if do == "status" and answer.headers["X-Soak"] != call_id:
                return f"the script's header is {answer.headers['X-Soak']}"
            return files_fault(form, files, answer.body)

        self._ask(call_id, f"do={do}{parameters}", headers, body, Wanted(status, _OK, check))

    def bad_input(self) -> None:
        # Each with its status, and whether the headers alone tell it: then there is no invocation.
        big = MAX_INPUT_BYTES + 4096
        boundary = {"Content-Type": "multipart/form-data; boundary=x"}
        cut = gzip.compress(self._dice.randbytes(3000))[:-20]
        kinds: dict[str, tuple[int, bool, str, dict[str, str], Callable[[], bytes]]] = {
            "no-base64": (400, False, "", {}, lambda: b"QUJD!"),
            "odd-base64": (400, False, "", {}, lambda: b"QUJDR"),
            "late-no-base64": (400, False, "", {}, lambda: b"QUJD" * 50_000 + b"*" + b"QUJD" * 50_000),
            "no-form": (400, False, "", boundary, lambda: b"no form at all"),
            "cut-form": (
                400,
                False,
                "",
                boundary,
                lambda: b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n12',
            ),
            "cut-gzip": (400, False, "&input=raw", {"Content-Encoding": "gzip"}, lambda: cut),
            "encoding": (400, True, "&input=rot13", {}, lambda: b"QUJD"),
            "timeout": (400, True, "", {"X-Timeout": "soon"}, lambda: b"QUJD" * 100_000),
            "expect": (400, True, "", {"Expect": "the-unexpected"}, lambda: b"QUJD" * 100),
            "accept": (406, True, "", {"Accept": "*/*;q=0"}, lambda: b"QUJD"),
            "too-large": (413, False, "&input=raw", {}, lambda: bytes(big)),
            "too-large-base64": (413, False, "", {}, lambda: b"QUJD" * (big // 3)),
            "bomb": (413, False, "&input=raw", {"Content-Encoding": "gzip"}, lambda: gzip.compress(bytes(big), 1)),
        }
        kind = self._dice.choice(list(kinds))
        status, is_early, parameters, headers, body = kinds[kind]
        outcomes = frozenset[str]() if is_early else frozenset({"bad_input"})
        call_id = self._new_id(f"bad-{kind}")
        self._ask(call_id, f"do=copy{parameters}", headers, body(), Wanted(status, outcomes))

    def failing(self) -> None:
        dice = self._dice
        kind = dice.choice(["exit", "signal", "noise", "nothing", "large", "two", "response"])
        call_id = self._new_id(f"failing-{kind}")
        wanted = Wanted(200, _OK, lambda answer: _difference(b"", answer.body))
        do, parameters = kind, ""
        if kind in ("exit", "noise"):
            code = dice.randint(1, 120)
            do, wanted = f"{kind}.{code}", Wanted(500, frozenset({"failed"}), _told(call_id, exit_code=code))
        elif kind == "signal":
            name = dice.choice(["KILL", "TERM", "SEGV", "ABRT"])
            do = f"signal.{name}"
            wanted = Wanted(500, frozenset({"killed"}), _told(call_id, signal=f"SIG{name}", out_of_memory=False))
        elif kind == "large":
            do, wanted = f"large.{MAX_OUTPUT_BYTES + 1}", Wanted(500, frozenset({"bad_output"}))
        elif kind == "two":
            parameters = "&output=raw"
            wanted = Wanted(406, frozenset({"not_available"}))
        elif kind == "response":
            wanted = Wanted(500, frozenset({"bad_output"}))
        self._ask(call_id, f"do={do}{parameters}", {}, b"QUJD", wanted)
        self._look_for_survivors(call_id)

    def timing_out(self) -> None:
        kind = self._dice.choice(["hang", "hang", "stubborn"])
        call_id = self._new_id(f"failing-{kind}")
        headers = {} if self._dice.random() < 0.2 else {"X-Timeout": f"{self._dice.randint(200, 500)}ms"}
        wanted = Wanted(504, frozenset({"timeout"}), _told(call_id))
        self._ask(call_id, f"do={kind}", headers, b"QUJD", wanted)
        self._look_for_survivors(call_id)

    def straggling(self) -> None:
        kinds = ["background", "deaf", "setsid", "daemon", "nameless", "chain", "leaping", "silent"]
        kind = self._dice.choices(kinds, [8, 4, 8, 8, 4, 4, 4, 1])[0]
        call_id = self._new_id(f"straggling-{kind}")
        data = self._data(call_id, 2000)
        wanted = Wanted(200, _OK, lambda answer: files_fault("raw", {None: data}, answer.body))
        self._ask(call_id, f"do={kind}&input=raw&output=raw", {}, data, wanted)
        self._look_for_survivors(call_id)

    def sends_slowly(self) -> None:
        call_id = self._new_id("slow-sender")
        data = self._data(call_id, 300_000)
        pieces = _cut_up(base64.b64encode(data), self._dice.randint(5, 15))
        is_chunked = self._dice.random() < 0.5
        length = None if is_chunked else sum(map(len, pieces))
        with self._server.connection() as sock:
            self._start_gaps()
            send(sock, head(call_id, "do=copy", {}, length))
            for piece in filter(None, pieces):
                time.sleep(self._dice.uniform(0, 0.25))
                send(sock, b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                self._gap()
            if is_chunked:
                send(sock, b"0\r\n\r\n")
            wanted = Wanted(200, _OK, lambda answer: files_fault("base64", {None: data}, answer.body))
            self._settle(call_id, wanted, lambda: receive(sock))

    def reads_slowly(self) -> None:
        call_id = self._new_id("slow-reader")
        data = self._data(call_id, 3_000_000)

        def pause() -> None:
            time.sleep(self._dice.uniform(0, 0.08))
            self._gap()

        with self._server.connection(receive_bytes=16384) as sock:
            send(sock, head(call_id, "do=copy&output=raw", {"Content-Type": "image/soak"}, len(data)) + data)
            self._start_gaps()
            wanted = Wanted(200, _OK, lambda answer: files_fault("raw", {None: data}, answer.body))
            self._settle(call_id, wanted, lambda: receive(sock, pause=pause))

    def falls_silent(self) -> None:
        with self._server.connection() as sock:
            if self._dice.random() < 0.3:
                call_id = self._new_id("silent-in-head-unnamed")
                send(sock, head(call_id, "do=copy", {}, 4)[: self._dice.randint(1, 60)])
                wanted = Wanted(408, frozenset(), is_named=False)
            else:
                call_id = self._new_id("silent-in-body")
                send(sock, head(call_id, "do=copy", {}, 4000) + b"QUJD" * self._dice.randint(0, 900))
                wanted = Wanted(408, frozenset({"caller_silent"}))
            self._settle(call_id, wanted, lambda: receive(sock))

    def crowd(self) -> None:
        """More at once than there is room for: each is served or told to come again."""
        calls = []
        with contextlib.ExitStack() as stack:
            for _ in range(_CROWD):
                sock = stack.enter_context(self._server.connection())
                call_id = self._new_id("crowd")
                send(sock, head(call_id, "do=pause", {}, 4) + b"QUJD")
                calls.append((sock, call_id))
            for sock, call_id in calls:
                wanted = Wanted(200, _OK, lambda answer: _difference(b"", answer.body))
                self._settle(call_id, wanted, functools.partial(receive, sock))

    def probe(self) -> None:
        path, port = self._dice.choice([("/_/health", None), ("/metrics", self._server.metrics_port)])
        self._ledger.sent("probe")
        try:
            self._server.ask(path, port)
        except Lost as lost:
            self._ledger.lose(path, lost.how, str(lost))
        else:
            with self._ledger.lock:
                self._ledger.answers["200 to a probe"] += 1

    # ---- who goes away

    def leaves_while_sending(self) -> None:
        call_id = self._new_id("gone-sending")
        data = head(call_id, "do=copy", {}, 400_000) + b"QUJD" * 100_000
        sock = self._server.connection()
        sent = data[: self._dice.choice([self._dice.randint(1, 400), self._dice.randint(1, len(data) - 1)])]
        send(sock, sent)
        hang_up(sock, hard=self._dice.random() < 0.5)
        self._ledger.left(call_id, Note(frozenset({"caller_gone", "overloaded"}), 0, 1))

    def leaves_soon(self) -> None:
        """All is sent; the call waits in the queue, or runs, or is just answered."""
        call_id = self._new_id("gone-soon")
        sock = self._server.connection()
        send(sock, head(call_id, self._dice.choice(["do=copy", "do=pause", "do=daemon"]), {}, 4) + b"QUJD")
        time.sleep(self._dice.choice([0, self._dice.uniform(0, 0.1)]))
        if self._dice.random() < 0.3:
            # Half closed, as `nc -N` does: that counts as gone.
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                sock.recv(65536)
        hang_up(sock, hard=self._dice.random() < 0.5)
        self._ledger.left(call_id, Note(frozenset({"caller_gone", "overloaded", "ok"}), 0, 1))

    def leaves_while_running(self) -> None:
        call_id = self._new_id("gone-running")
        mark = self._marks / call_id
        sock = self._server.connection()
        sent_s = time.monotonic()
        send(sock, head(call_id, "do=tell", {}, 4) + b"QUJD")
        sock.setblocking(False)
        while not mark.exists():
            with contextlib.suppress(BlockingIOError):
                sock.recv(1, socket.MSG_PEEK)
                # Answered before it ran, or before it was seen to run: there is nothing to leave any more.
                sock.settimeout(self._server.patience_s)
                wanted = Wanted(504, frozenset({"timeout"}))
                self._settle(call_id, wanted, lambda: receive(sock))
                sock.close()
                mark.unlink(missing_ok=True)
                return
            if time.monotonic() - sent_s > PATIENCE_S:
                self._ledger.lose(call_id, "none", "it neither ran nor was it answered")
                sock.close()
                return
            time.sleep(0.005)
        mark.unlink()
        hang_up(sock, hard=self._dice.random() < 0.5)
        # After long in the queue, or on a slow machine, its time may have been over just before.
        may_be_late = time.monotonic() - sent_s > TIMEOUT_S / 2
        self._ledger.left(call_id, Note(frozenset({"caller_gone", *(["timeout"] if may_be_late else [])}), 1, 1))

    def leaves_while_reading(self) -> None:
        call_id = self._new_id("gone-reading")
        sock = self._server.connection(receive_bytes=16384)
        send(sock, head(call_id, f"do=large.{self._dice.randint(1, MAX_OUTPUT_BYTES)}&output=raw", {}, 4) + b"QUJD")
        first = sock.recv(4096)
        hang_up(sock, hard=self._dice.random() < 0.5)
        if first.startswith(b"HTTP/1.1 200 "):
            self._ledger.left(call_id, Note(frozenset({"ok", "caller_gone"}), 1, 1))
        elif first.startswith(b"HTTP/1.1 429 "):
            self._ledger.left(call_id, Note(frozenset({"overloaded"}), 1, 1))
        else:
            self._ledger.lose(call_id, "wrong" if first else "none", repr(first[:300]))

    def stops_reading(self) -> None:
        """A caller that takes nothing more, and does not go: it is let go after write_timeout."""
        call_id = self._new_id("silent-reader")
        with self._server.connection(receive_bytes=16384) as sock:
            send(sock, head(call_id, f"do=large.{MAX_OUTPUT_BYTES}&output=raw", {}, 4) + b"QUJD")
            first = sock.recv(64, socket.MSG_PEEK)
            if not first.startswith(b"HTTP/1.1 200 "):
                self._settle(call_id, Wanted(200, _OK), lambda: receive(sock))
                return
            deadline_s = time.monotonic() + PATIENCE_S
            # A connection whose window is shut is dropped without a word: only the log tells.
            while call_id not in self._ledger.ends and time.monotonic() < deadline_s:
                time.sleep(0.05)
            try:
                receive(sock)
            except Lost:
                self._ledger.left(call_id, Note(frozenset({"caller_gone"}), 1, 1))
            else:
                self._ledger.lose(call_id, "wrong", "it could take its answer after all")

    # ---- bodies: headers, parameters, the body, and the files that the script must get

    def _base64(self, call_id: str) -> tuple[dict[str, str], str, bytes, dict[str | None, bytes]]:
        data = self._data(call_id)
        text = self._dice.choice(
            [
                base64.b64encode(data),
                base64.encodebytes(data),
                base64.urlsafe_b64encode(data),
                base64.b64encode(data).rstrip(b"="),
                b'="' + base64.b64encode(data) + b'"',
                b"data:image/soak;base64," + base64.b64encode(data),
            ]
        )
        headers, name = self._named()
        return headers, "", text, {name: data}

    def _raw(self, call_id: str) -> tuple[dict[str, str], str, bytes, dict[str | None, bytes]]:
        data = self._data(call_id)
        headers, name = self._named()
        if self._dice.random() < 0.5:
            return headers, "&input=raw", data, {name: data}
        return headers | {"Content-Type": "image/soak"}, "", data, {name: data}

    def _json(self, call_id: str) -> tuple[dict[str, str], str, bytes, dict[str | None, bytes]]:
        data = json.dumps({"call_id": call_id, "data": self._data(call_id, 50_000).hex()}).encode()
        headers, name = self._named()
        return headers | {"Content-Type": "application/json"}, "", data, {name: data}

    def _multipart(self, call_id: str) -> tuple[dict[str, str], str, bytes, dict[str | None, bytes]]:
        count = self._dice.randint(1, 3)
        most = MAX_INPUT_BYTES // count - 1000  # a good call is not over the limit
        files: dict[str | None, bytes] = {
            f"{number}.bin": self._data(f"{call_id}/{number}", most) for number in range(count)
        }
        boundary = f"soak{self._dice.getrandbits(64):x}"
        body = b""
        for name, data in files.items():
            body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode()
            body += data + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        return {"Content-Type": f"multipart/form-data; boundary={boundary}"}, "", body, files

    def _gzip(self, call_id: str) -> tuple[dict[str, str], str, bytes, dict[str | None, bytes]]:
        data = self._data(call_id, 1_000_000)
        headers, name = self._named()
        headers["Content-Encoding"] = "gzip"
        if self._dice.random() < 0.5:
            return headers, "", gzip.compress(base64.b64encode(data), 1), {name: data}
        return headers, "&input=raw", gzip.compress(data, 1), {name: data}

    def _named(self) -> tuple[dict[str, str], str | None]:
        if self._dice.random() < 0.5:
            return {}, None
        return {"X-Filename": "soak.bin"}, "soak.bin"

    def _data(self, call_id: str, most: int = 3_000_000) -> bytes:
        size = self._dice.choices([0, 2_000, 100_000, most], [1, 6, 2, 1])[0]
        size = self._dice.randint(0, min(size, most))
        return f"{call_id} ".encode() + self._dice.randbytes(size) if size else b""

    def _ask_for(self, form: str, headers: dict[str, str]) -> str:
        types = {"base64": "*/*", "raw": "application/octet-stream", "zip": "application/zip"}
        if form == "base64" and self._dice.random() < 0.5:
            return ""
        if self._dice.random() < 0.5:
            headers["Accept"] = types.get(form, "application/json")
            return ""
        return f"&output={form}"

    # ---- what all of them do

    def _new_id(self, kind: str) -> str:
        self._serial += 1
        self._longest_gap_s = 0.0
        self._ledger.sent(kind)
        return f"c{self._number}-{self._serial}-{kind}"

    def _ask(self, call_id: str, query: str, headers: Mapping[str, str], body: bytes, wanted: Wanted) -> None:
        """Send all at once on the connection that is kept alive, and look at the answer."""
        if self._kept is None:
            self._kept = self._server.connection()
        sock = self._kept
        send(sock, head(call_id, query, headers, len(body)) + body)
        answer = self._settle(call_id, wanted, lambda: receive(sock))
        if answer is None or answer.headers["Connection"] == "close" or self._dice.random() < 0.1:
            self.hang_up()

    def _settle(self, call_id: str, wanted: Wanted, take: Callable[[], Answer]) -> Answer | None:
        """Take an answer and enter it in the books."""
        try:
            answer = take()
        except Lost as lost:
            if self._was_late():
                self._ledger.left(call_id, Note(frozenset({"caller_gone", "caller_silent", "ok"}), 1, 1))
                return None
            self._ledger.lose(call_id, lost.how, str(lost))
            return None
        if answer.status == 429 and wanted.outcomes:
            wanted = _OVERLOADED
        if answer.status == 408 and self._was_late():
            wanted = Wanted(408, frozenset({"caller_silent"}))
        if text := fault(wanted, call_id, answer):
            self._ledger.lose(call_id, "wrong", text)
            return None
        self._ledger.answered(call_id, str(answer.status), wanted.outcomes)
        return answer

    def _look_for_survivors(self, call_id: str) -> None:
        # Another soak on this machine has the same ids.
        if pids := processes_with(f"CALL_ID={call_id}\0".encode(), f"MARKS={self._marks}\0".encode()):
            self._ledger.survived(call_id, pids)

    # A machine that stalls makes a steady caller one that fell silent. Then the server is right.

    def _start_gaps(self) -> None:
        self._last_s, self._longest_gap_s = time.monotonic(), 0.0

    def _gap(self) -> None:
        now_s = time.monotonic()
        self._last_s, self._longest_gap_s = now_s, max(self._longest_gap_s, now_s - self._last_s)

    def _was_late(self) -> bool:
        return self._longest_gap_s > TIMEOUT_S / 2


def _told(call_id: str, **members: object) -> Check:
    """The problem document has these members and the script's last words."""

    def check(answer: Answer) -> str | None:
        document = answer.json
        for name, value in members.items():
            if document.get(name) != value:
                return f"{name} is {document.get(name)!r} instead of {value!r}"
        if not document.get("stderr", "").endswith(f"last words of {call_id}\n"):
            return f"other last words: {document.get('stderr', '')[-200:]!r}"
        return None

    return check


def _cut_up(data: bytes, count: int) -> list[bytes]:
    step = max(1, -(-len(data) // count))
    return [data[at : at + step] for at in range(0, len(data), step)]


# ---------------------------------------------------------------------------- the whole


@dataclass(frozen=True, slots=True)
class State:
    """What a server at rest has."""

    descriptors: Counter[str]
    threads: int
    tasks: list[str]
    memory_mib: float
    blocks: int
    objects: Mapping[str, int]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long to call (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=24, help="how many call at once (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=MOST_CALLS, help="end after so many calls (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the dice (default: a new one, which is printed)")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for rest (default: %(default)s)")
    parser.add_argument("--without", metavar="GUARD", help="take a guard of guards.py out: this must be noticed")
    options = parser.parse_args(arguments)
    program: tuple[str, ...] = (str(Path(__file__).resolve().parent / "inspected_server.py"),)
    if options.without is not None:
        program += ("--without", options.without)
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    print(f"seed {seed}, {options.callers} callers, {options.seconds:g} seconds", flush=True)
    # Whoever ends it early must not be left with a server.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        lost, leaks = soak(Path(directory), program, options, seed)
    print(f"lost answers: {lost}")
    print(f"leaks: {leaks}")
    return 1 if lost or leaks else 0


def soak(directory: Path, program: tuple[str, ...], options: argparse.Namespace, seed: int) -> tuple[int, int]:
    """Do it all and print the table; return the counts of lost answers and of leaks."""
    ledger = Ledger()
    marks = directory / "marks"
    marks.mkdir()
    lifeline = Lifeline(directory / "lifeline")
    mark = f"SOAK_MARK={secrets.token_hex(8)}"
    server = SoakedServer(
        ledger,
        program,
        directory,
        lifeline.script_line + SCRIPT,
        SOAK_MARK=mark.partition("=")[2],
        GLIBC_TUNABLES=NO_THREAD_CACHES,
        MARKS=str(marks),
        WATCHDOG_METRICS_PORT=str(free_port()),
        WATCHDOG_MAX_INFLIGHT=str(MAX_INFLIGHT),
        WATCHDOG_MAX_QUEUE=str(max(4, options.callers - MAX_INFLIGHT)),
        WATCHDOG_QUEUE_TIMEOUT="5s",
        WATCHDOG_EXEC_TIMEOUT=f"{TIMEOUT_S}s",
        WATCHDOG_READ_TIMEOUT=f"{TIMEOUT_S}s",
        WATCHDOG_WRITE_TIMEOUT=f"{TIMEOUT_S}s",
        WATCHDOG_KILL_GRACE="1s",
        WATCHDOG_HEALTHCHECK_INTERVAL="200ms",
        WATCHDOG_MAX_INPUT_SIZE=str(MAX_INPUT_BYTES),
        WATCHDOG_MAX_OUTPUT_SIZE=str(MAX_OUTPUT_BYTES),
    )
    try:
        started_s = time.monotonic()
        everyone = [Caller(number, seed, server, ledger, marks) for number in range(options.callers)]
        idle = _sockets(server)
        memory_mib: list[float] = []

        def now_and_then() -> None:
            # Each script writes into it: full, it would hold them up.
            lifeline.was_held()
            memory_mib.append(server.memory_mib("VmRSS"))

        def part_done() -> float:
            part: float = max((time.monotonic() - started_s) / options.seconds, ledger.kinds.total() / options.calls)
            return part

        def is_warm() -> bool:
            part = part_done()
            return part >= 0.5 or (part >= 0.1 and ledger.kinds.total() >= WARM_CALLS)

        _drive(everyone, is_warm, now_and_then)
        _await_rest(server, lifeline, idle, None, options.patience)
        before = _state(server)
        _drive(everyone, lambda: part_done() >= 1, now_and_then)
        took_s = time.monotonic() - started_s
        unrest = _await_rest(server, lifeline, idle, before, options.patience)
        after = _state(server)
        now_and_then()
        metrics = _metrics(server)
        alive = {*processes_with(mark.encode()), *lifeline.holders()} - {server.process.pid}
        # The guardian is a fork of the server, and so has its environment.
        alive = {pid for pid in alive if not is_guardian(pid, of=server.process.pid)}
        exit_code = server.stop()
        stopped = [f"exit code {exit_code}"] if exit_code else []
        stopped += [f"left in tmp: {path}" for path in server.leftovers()]
        leaks = _leaks(ledger, unrest, before, after, metrics, alive, stopped)
    finally:
        server.kill()
        lifeline.close()
    _print_table(ledger, took_s, memory_mib, before, after, leaks)
    return ledger.lost.total(), sum(len(found) for found in leaks.values())


def _drive(everyone: list[Caller], is_over: Callable[[], bool], now_and_then: Callable[[], None]) -> None:
    crew = [threading.Thread(target=caller.call_until, args=(is_over,), daemon=True) for caller in everyone]
    for thread in crew:
        thread.start()
    while any(thread.is_alive() for thread in crew):
        now_and_then()
        time.sleep(0.1)


def _await_rest(
    server: SoakedServer, lifeline: Lifeline, idle: int, before: State | None, patience_s: float
) -> dict[str, list[str]]:
    """Wait until the server has nothing to do; return what there still is after a while, by the rows of the table."""
    deadline_s = time.monotonic() + patience_s
    while True:
        unrest = _unrest(server, lifeline, idle, before)
        if not any(unrest.values()) or time.monotonic() > deadline_s:
            return unrest
        time.sleep(0.05)


def _unrest(server: SoakedServer, lifeline: Lifeline, idle: int, before: State | None) -> dict[str, list[str]]:
    metrics = _metrics(server)
    gauges = ("http_requests_in_flight", "watchdog_places_taken", "watchdog_calls_waiting")
    more_descriptors = _kinds_of_descriptors(server) - (before.descriptors if before else Counter())
    sockets = max(0, _sockets(server) - idle)
    return {
        "calls that never ended": [f"{name} is {metrics[name]:g}" for name in gauges if metrics[name]],
        "children and zombies": children(server.process.pid),
        "directories in tmp": [str(path) for path in server.tmp.glob("watchdog-*/[0-9]*")],
        "surviving processes": [described(pid) for pid in lifeline.holders()] if lifeline.is_held() else [],
        "descriptors": ["socket"] * sockets
        + [name for name in more_descriptors.elements() if name != "socket" and before is not None],
    }


def _sockets(server: SoakedServer) -> int:
    return sum(name.startswith("socket:") for name in descriptors(server.process.pid))


def _kinds_of_descriptors(server: SoakedServer) -> Counter[str]:
    return Counter(name.partition(":[")[0] for name in descriptors(server.process.pid))


def _state(server: SoakedServer) -> State:
    """A look at a server at rest, from outside and, by a signal, from inside."""
    kinds = _kinds_of_descriptors(server), threads(server.process.pid)
    server.signal(signal.SIGUSR2)
    inside = server.event("inspected")
    return State(*kinds, inside["names"], inside["memory_kib"] / 1024, inside["blocks"], inside["objects"])


def _metrics(server: SoakedServer) -> dict[str, float]:
    text = server.ask("/metrics", server.metrics_port).decode()
    return {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE)}


def _leaks(
    ledger: Ledger,
    unrest: Mapping[str, list[str]],
    before: State,
    after: State,
    metrics: Mapping[str, float],
    alive: Iterable[int],
    stopped: list[str],
) -> dict[str, list[str]]:
    """All that should not be, under the names of the table's rows."""
    growth_mib = after.memory_mib - before.memory_mib
    more_blocks = after.blocks - before.blocks
    counted = {
        outcome: metrics.get(f'watchdog_invocations_total{{outcome="{outcome}"}}', 0)
        for outcome in ledger.ends_by_outcome
    }
    return {
        **unrest,
        "surviving processes": ledger.survivors + [f"{described(pid)} lives after all calls" for pid in alive],
        "threads": [f"{after.threads}, {before.threads} before"]
        if after.threads > max(before.threads, MOST_THREADS)
        else [],
        "tasks": list((Counter(after.tasks) - Counter(before.tasks)).elements()),
        "memory": [f"{growth_mib:.1f} MiB more: {before.objects}, {after.objects}"]
        if growth_mib > MOST_GROWTH_MIB
        else [],
        "objects": [f"{more_blocks} more blocks of memory: {before.objects}, {after.objects}"]
        if more_blocks > MOST_NEW_BLOCKS
        else [],
        "errors in the log": [f"{count} x {text}" for text, count in ledger.bad_events.items()],
        "ends that do not fit the calls": ledger.misfits()
        + [
            f"{ledger.ends_by_outcome[outcome]} ends {outcome!r} in the log, {count:g} in the metrics"
            for outcome, count in counted.items()
            if count != ledger.ends_by_outcome[outcome]
        ],
        "after SIGTERM": stopped,
    }


def _print_table(
    ledger: Ledger,
    took_s: float,
    memory_mib: list[float],
    before: State,
    after: State,
    leaks: Mapping[str, list[str]],
) -> None:
    calls = ledger.kinds.total()
    faults = sum(count for kind, count in ledger.kinds.items() if not kind.startswith(("good", "probe")))
    rows: list[tuple[str, object]] = [
        ("seconds", f"{took_s:.1f}"),
        ("calls", calls),
        ("calls per second", f"{calls / took_s:.1f}"),
        ("faults injected", faults),
        ("script lines in the log", ledger.script_lines),
        ("memory at rest, once warm and at the end", f"{before.memory_mib:.1f} MiB, {after.memory_mib:.1f} MiB"),
        ("Python's blocks, once warm and at the end", f"{before.blocks}, {after.blocks}"),
        (
            "memory at each tenth",
            " ".join(f"{each:.0f}" for each in memory_mib[:: len(memory_mib) // 10 or 1]) + " MiB",
        ),
        ("threads once warm, at the end", f"{before.threads}, {after.threads}"),
        ("descriptors once warm, at the end", f"{before.descriptors.total()}, {after.descriptors.total()}"),
    ]
    print_rows("", rows)
    print_rows("calls by kind", sorted(ledger.kinds.items()))
    print_rows("answers by status", sorted(ledger.answers.items()))
    print_rows("invocations by outcome in the log", sorted(ledger.ends_by_outcome.items()))
    print_rows("lost answers", [(how, ledger.lost[how]) for how in ("none", "cut", "wrong")])
    for line in ledger.lost_lines:
        print(f"    {line}")
    print_rows("leaks", [(name, len(found)) for name, found in leaks.items()])
    for name, found in leaks.items():
        for line in found[:MOST_PRINTED]:
            print(f"    {name}: {line}")


def print_rows(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Print a part of a table."""
    if title:
        print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<40} {value}")


if __name__ == "__main__":
    sys.exit(main())
