"""Callers of the soak: good, bad, slow and disconnecting ones."""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import json
import random
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ledger import Ledger, Note
from leftovers import processes_with
from running_server import Answer
from soaked_server import MAX_INPUT_BYTES, MAX_OUTPUT_BYTES, PATIENCE_S, TIMEOUT_S, SoakedServer
from wanted import Check, Wanted, difference, fault, files_fault
from wire import Lost, hang_up, head, receive, send

_OK = frozenset({"ok"})
_CROWD = 16
_OVERLOADED = Wanted(
    429,
    frozenset({"overloaded"}),
    lambda answer: None if answer.headers["Retry-After"] else "no Retry-After",
)


class Caller:
    """A caller that makes random calls, one after the other."""

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
                # Any error of a caller, such as a refused connection, means that an answer did not come.
                self._ledger.lose(f"caller {self._number}", "none", f"{behaviour.__name__}: {error!r}")
                time.sleep(0.1)  # if the server is dead, all other calls fail, too
        self.hang_up()

    def hang_up(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    # ---- callers that wait for an answer

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
        # Each has its status, and whether the headers alone show the fault. In that case there is no invocation.
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
        wanted = Wanted(200, _OK, lambda answer: difference(b"", answer.body))
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
        """Make more calls at once than the server has room for. Each is served, or refused with Retry-After."""
        calls = []
        with contextlib.ExitStack() as stack:
            for _ in range(_CROWD):
                sock = stack.enter_context(self._server.connection())
                call_id = self._new_id("crowd")
                send(sock, head(call_id, "do=pause", {}, 4) + b"QUJD")
                calls.append((sock, call_id))
            for sock, call_id in calls:
                wanted = Wanted(200, _OK, lambda answer: difference(b"", answer.body))
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

    # ---- callers that disconnect

    def leaves_while_sending(self) -> None:
        call_id = self._new_id("gone-sending")
        data = head(call_id, "do=copy", {}, 400_000) + b"QUJD" * 100_000
        sock = self._server.connection()
        sent = data[: self._dice.choice([self._dice.randint(1, 400), self._dice.randint(1, len(data) - 1)])]
        send(sock, sent)
        hang_up(sock, hard=self._dice.random() < 0.5)
        self._ledger.left(call_id, Note(frozenset({"caller_gone", "overloaded"}), 0, 1))

    def leaves_soon(self) -> None:
        """Disconnect after all is sent. The call waits in the queue, runs, or is just being answered."""
        call_id = self._new_id("gone-soon")
        sock = self._server.connection()
        send(sock, head(call_id, self._dice.choice(["do=copy", "do=pause", "do=daemon"]), {}, 4) + b"QUJD")
        time.sleep(self._dice.choice([0, self._dice.uniform(0, 0.1)]))
        if self._dice.random() < 0.3:
            # Close only the sending side, as `nc -N` does. For the server, this caller has disconnected.
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
                # The call was answered before the test saw it run, so the caller cannot leave it any more.
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
        # After a long wait in the queue, or on a slow machine, the time of the call may have been over just before.
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
        """A caller stops reading, but does not disconnect. The server disconnects it after write_timeout."""
        call_id = self._new_id("silent-reader")
        with self._server.connection(receive_bytes=16384) as sock:
            send(sock, head(call_id, f"do=large.{MAX_OUTPUT_BYTES}&output=raw", {}, 4) + b"QUJD")
            first = sock.recv(64, socket.MSG_PEEK)
            if not first.startswith(b"HTTP/1.1 200 "):
                self._settle(call_id, Wanted(200, _OK), lambda: receive(sock))
                return
            deadline_s = time.monotonic() + PATIENCE_S
            # The server resets a connection with a full window, and only the log shows it.
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

    # ---- the common parts of all callers

    def _new_id(self, kind: str) -> str:
        self._serial += 1
        self._longest_gap_s = 0.0
        self._ledger.sent(kind)
        return f"c{self._number}-{self._serial}-{kind}"

    def _ask(self, call_id: str, query: str, headers: Mapping[str, str], body: bytes, wanted: Wanted) -> None:
        """Send the whole call at once on the kept connection, and check the answer."""
        if self._kept is None:
            self._kept = self._server.connection()
        sock = self._kept
        send(sock, head(call_id, query, headers, len(body)) + body)
        answer = self._settle(call_id, wanted, lambda: receive(sock))
        if answer is None or answer.headers["Connection"] == "close" or self._dice.random() < 0.1:
            self.hang_up()

    def _settle(self, call_id: str, wanted: Wanted, take: Callable[[], Answer]) -> Answer | None:
        """Receive an answer and note it in the ledger."""
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
        # Another soak on this machine uses the same ids.
        if pids := processes_with(f"CALL_ID={call_id}\0".encode(), f"MARKS={self._marks}\0".encode()):
            self._ledger.survived(call_id, pids)

    # If the machine stalls, a steady caller becomes a silent one. Then the server is right.

    def _start_gaps(self) -> None:
        self._last_s, self._longest_gap_s = time.monotonic(), 0.0

    def _gap(self) -> None:
        now_s = time.monotonic()
        self._last_s, self._longest_gap_s = now_s, max(self._longest_gap_s, now_s - self._last_s)

    def _was_late(self) -> bool:
        return self._longest_gap_s > TIMEOUT_S / 2


def _told(call_id: str, **members: object) -> Check:
    """Check that the problem document has these members and the end of the script's stderr."""

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
