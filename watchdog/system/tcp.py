"""Query the state of sockets, and reset connections."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import sys
import termios

_BYTES_ACKED_AT = 120  # offset in struct tcp_info (linux/tcp.h, since Linux 4.1)


def is_readable(sock: socket.socket) -> bool:
    """Return whether bytes or connections wait in a socket."""
    return _has_event(sock, select.POLLIN)


def has_ended(sock: socket.socket) -> bool:
    """Return whether the other side has closed its side, even if bytes wait to be read (poll(2), POLLRDHUP)."""
    return _has_event(sock, select.POLLRDHUP)


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Return the number of bytes that the other side has not acknowledged yet (tcp(7), SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def acknowledged_bytes(sock: socket.socket) -> int:
    """Return the number of bytes that the other side has acknowledged so far (tcp(7), TCP_INFO)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[_BYTES_ACKED_AT : _BYTES_ACKED_AT + 8], sys.byteorder)


def reset(sock: socket.socket | None, transport: asyncio.Transport) -> None:
    """End a connection at once, and discard all bytes that the kernel still has for it."""
    if sock is not None:
        reset_at_close(sock)
    transport.abort()


def reset_at_close(sock: socket.socket) -> None:
    """When the socket is closed, reset its connection and discard all bytes that wait to be sent (socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _has_event(sock: socket.socket, event: int) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), event)
    return bool(poll.poll(0))
