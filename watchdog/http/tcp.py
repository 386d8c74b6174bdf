"""What the system knows of a TCP connection, and how to reset one."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import sys
import termios

_BYTES_ACKED_AT = 120  # of struct tcp_info in linux/tcp.h, since Linux 4.1


def has_ended(sock: socket.socket) -> bool:
    """Whether the other side sends no more, be there bytes of it to be read or not (poll(2), POLLRDHUP)."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Sent, not yet acknowledged (tcp(7), SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def acknowledged_bytes(sock: socket.socket) -> int:
    """Acknowledged by the caller since the connection was made (tcp(7), TCP_INFO)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[_BYTES_ACKED_AT : _BYTES_ACKED_AT + 8], sys.byteorder)


def reset(sock: socket.socket | None, transport: asyncio.Transport) -> None:
    """End a connection at once, with whatever the system still holds of it."""
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
