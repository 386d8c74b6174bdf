"""Open the socket that the server listens on, and close it without a reset of any connection."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from ..errors import ListenError

BACKLOG = 1024
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SYN_RECV = b"03"  # net/tcp_states.h
_HANDSHAKE_S = 0.05  # a handshake may be half done
_HANDSHAKE_LOOK_S = 0.01
_LETTING_IN_S = 1.0
_TURNS_TO_CONNECTION = 3  # of the event loop, from accept(2) on


class Listener:
    """Accepts connections of one port.

    Args:
        make_protocol: makes the protocol of a connection.
    """

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    async def start(self, bind: str | None, port: int, setting: str) -> None:
        """Listen from now on.

        Args:
            setting: the name of the setting that has the port, for the error.

        Raises:
            ListenError: the address cannot be listened on.
        """
        self._socket = sock = listening_socket(bind, port, setting)
        # asyncio tries to accept as many at once as its backlog is, and logs as many errors without descriptors.
        self._server = await self._loop.create_server(self._make_protocol, sock=sock, backlog=1)
        sock.listen(BACKLOG)

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that the server listens on."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def drain(self) -> None:
        """Let in all callers that are connected or about to be, and then close.

        A listening socket that is closed resets the connections that wait in it, and those whose handshake is not over.
        So it is made deaf to new ones first, which then find it closed, and closed once those before them are let in.
        """
        if self._server is None or self._socket is None:
            return
        sockets = self._server.sockets
        for sock in sockets:
            ignore_new_connections(sock)
        await asyncio.sleep(_HANDSHAKE_S)
        until_s = self._loop.time() + _LETTING_IN_S
        quiet_turns = 0
        # One is accepted in each turn of the loop, and is a connection a turn later: asyncio drops what is not one yet.
        ports = {sock.getsockname()[1] for sock in sockets}
        while quiet_turns < _TURNS_TO_CONNECTION and self._loop.time() < until_s:
            if not any(map(is_readable, sockets)) and any(map(has_half_open, ports)):
                quiet_turns = 0
                await asyncio.sleep(_HANDSHAKE_LOOK_S)
                continue
            # A handshake may have ended meanwhile: look again.
            quiet_turns = 0 if any(map(is_readable, sockets)) else quiet_turns + 1
            await asyncio.sleep(0)
        late = await self._accept_late(self._socket)
        self._server.close()
        for sock in late:
            await self._loop.connect_accepted_socket(self._make_protocol, sock)

    async def _accept_late(self, listening: socket.socket) -> list[socket.socket]:
        """Return the connections of the last moment, after which the listening socket must be closed at once.

        Where it cannot be made deaf, as for an ordinary user on some systems, callers connect until it is closed.
        """
        self._loop.remove_reader(listening.fileno())
        for _ in range(_TURNS_TO_CONNECTION):
            await asyncio.sleep(0)
        late = []
        with contextlib.suppress(OSError):  # there is none, or no descriptor for it
            while True:
                late.append(listening.accept()[0])
        return late

    def close(self) -> None:
        """Close at once."""
        if self._server is not None:
            self._server.close()


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


def is_out_of_descriptors(context: dict[str, Any]) -> bool:
    """Return whether an error that the event loop reports is that there was no descriptor for a new connection."""
    error = context.get("exception")
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE) and "socket" in context


def is_readable(sock: socket.socket) -> bool:
    """Whether bytes, or connections, wait in a socket."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def has_half_open(port: int) -> bool:
    """Return whether a caller's handshake with a port of this machine has begun and is not over (proc(5), net/tcp)."""
    end = b":%04X" % port
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{name}", "rb") as table:
            for _, local_address, _, state, *_ in map(bytes.split, table):
                if state == _SYN_RECV and local_address.endswith(end):
                    return True
    return False
