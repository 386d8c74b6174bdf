"""A proxy that adds a path in front of a server, as an ingress does, and can cut an answer."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from types import TracebackType


class PathProxy:
    """Passes requests below ``prefix`` to a server on the loopback interface, without the prefix.

    Args:
        prefix: a path, or a regular expression for several paths.
        cut_after: the connection is closed in the middle of an answer, as soon as the answer has this text.
    """

    def __init__(self, port: int, prefix: str, cut_after: bytes | None = None) -> None:
        self._port = port
        self._prefix = prefix.encode()
        self._cut_after = cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{prefix}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> PathProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        """Pass on one request of a connection and its answer."""
        with caller, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = caller.recv(65536)
                if not piece:
                    return
                head += piece
            head = re.sub(rb"^(\w+) " + self._prefix, rb"\1 ", head, count=1)
            head = re.sub(rb"\r\nConnection: [^\r]*", b"", head, count=1, flags=re.IGNORECASE)
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                threading.Thread(target=_pass_on, args=(caller, server), daemon=True).start()
                self._pass_answer(server, caller)

    def _pass_answer(self, server: socket.socket, caller: socket.socket) -> None:
        # A socket that another thread reads is closed only by `shutdown`.
        answer = b""
        while piece := server.recv(65536):
            answer += piece
            if self._cut_after is not None and self._cut_after in answer:
                end = answer.index(self._cut_after) + len(self._cut_after) - (len(answer) - len(piece))
                caller.sendall(piece[: max(0, end)])
                caller.shutdown(socket.SHUT_RDWR)
                return
            caller.sendall(piece)
        caller.shutdown(socket.SHUT_RDWR)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass on the body, until the caller or the server closes. If the caller disconnects, the server must notice it."""
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
