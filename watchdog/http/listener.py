"""Open the socket that the server listens on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct

from ..errors import ListenError

BACKLOG = 1024
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


def listening_socket(bind: str | None, port: int, setting: str) -> socket.socket:
    """A socket that listens; on all interfaces, IPv4 and IPv6, if ``bind`` is None.

    Raises:
        ListenError: it cannot be had.
    """
    try:
        if bind is None and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        if bind is None:
            return socket.create_server(("", port), backlog=BACKLOG)
        family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"{bind or '*'}:{port}"
        what = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ListenError(
            f"cannot listen on {where} ({setting}): {what}; choose another with {setting} or bind"
        ) from error


def ignore_new_connections(sock: socket.socket) -> None:
    """Have the kernel drop each packet that asks a listening socket for a connection, and no other (socket(7))."""
    flags, syn, syn_or_ack = 13, 0x02, 0x12  # where a TCP header has its flags, and two of them (RFC 9293, 3.1)
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, flags),  # load that byte (linux/bpf_common.h)
            (0x54, 0, 0, syn_or_ack),  # keep these bits of it
            (0x15, 0, 1, syn),  # only SYN: the next instruction, else the one after
            (0x06, 0, 0, 0),  # drop
            (0x06, 0, 0, 0xFFFFFFFF),  # take
        )
    )
    buffer = ctypes.create_string_buffer(program)
    with contextlib.suppress(OSError):  # a kernel without it: a connection made in this very moment may be reset
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 5, ctypes.addressof(buffer)))


def is_readable(sock: socket.socket) -> bool:
    """Whether bytes, or connections, wait in a socket."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
