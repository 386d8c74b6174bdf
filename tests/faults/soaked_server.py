"""The server of the soak, with its limits and its script."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from ledger import Ledger
from running_server import RunningServer
from wire import Lost, receive

MAX_INFLIGHT = 8
MAX_INPUT_BYTES = 6 << 20
MAX_OUTPUT_BYTES = 8 << 20
TIMEOUT_S = 4.0  # exec_timeout, read_timeout and write_timeout
PATIENCE_S = 60.0

# `do=WHAT.ARGUMENT` in the query says what a script does. Processes that survive their call by mistake end by
# themselves.
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


class SoakedServer(RunningServer):
    """A server whose events go into the ledger as they arrive, because all events would not fit into memory."""

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
        """Return the answer to a probe, which must be 200. Raises Lost."""
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
