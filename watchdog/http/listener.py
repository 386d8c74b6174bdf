"""Open the listening socket of the server, and close it without resetting connections."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from ..errors import ListenError
from ..system.files import TOO_MANY_OPEN_FILES
from ..system.handshakes import has_half_open
from ..system.tcp import is_readable

BACKLOG = 1024
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# The server waits at least this time for callers that have begun their TCP handshake.
_HANDSHAKE_S = 0.05
_HANDSHAKE_CHECK_S = 0.01
# The longest time for which a stop accepts callers that have begun to connect.
_LONGEST_ACCEPT_S = 1.0
_TURNS_TO_CONNECTION = 3  # turns of the event loop from accept(2) until asyncio has made the connection


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
            setting: the name of the setting for the port, for the text of the error.

        Raises:
            ListenError: the server cannot listen on this address.
        """
        self._socket = sock = listening_socket(bind, port, setting)
        # asyncio accepts up to `backlog` connections in a row. If no descriptor is free, it logs an error for each.
        self._server = await self._loop.create_server(self._make_protocol, sock=sock, backlog=1)
        sock.listen(BACKLOG)

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that the server listens on."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def drain(self) -> None:
        """Accept all callers that have connected or begun to connect, and then close the listening socket.

        When a listening socket is closed, the kernel resets the connections that wait in it, and those whose handshake
        is not complete. So the socket first ignores new handshakes. It is closed when all earlier connections are
        accepted. Later callers then find a closed port.
        """
        if self._server is None or self._socket is None:
            return
        sockets = self._server.sockets
        for sock in sockets:
            ignore_new_connections(sock)
        await asyncio.sleep(_HANDSHAKE_S)
        until_s = self._loop.time() + _LONGEST_ACCEPT_S
        # No handshake begins from now on. So if none is incomplete now, none will be incomplete later.
        while has_half_open(self.address[1]) and self._loop.time() < until_s:
            await asyncio.sleep(_HANDSHAKE_CHECK_S)
        # asyncio accepts one connection in each turn of the loop, and completes it some turns later. If the listening
        # socket is closed before that, asyncio drops the connection.
        quiet_turns = 0
        while quiet_turns < _TURNS_TO_CONNECTION and self._loop.time() < until_s:
            quiet_turns = 0 if any(map(is_readable, sockets)) else quiet_turns + 1
            await asyncio.sleep(0)
        late = await self._accept_late(self._socket)
        self._server.close()
        for sock in late:
            await self._loop.connect_accepted_socket(self._make_protocol, sock)

    async def _accept_late(self, listening: socket.socket) -> list[socket.socket]:
        """Accept and return the last connections. The listening socket must be closed immediately after this.

        On some systems the socket of an ordinary user cannot ignore new handshakes. There, callers connect until the
        socket is closed.
        """
        self._loop.remove_reader(listening.fileno())
        for _ in range(_TURNS_TO_CONNECTION):
            await asyncio.sleep(0)
        late = []
        with contextlib.suppress(OSError):  # no connection waits, or no descriptor is free for it
            while True:
                late.append(listening.accept()[0])
        return late

    def close(self) -> None:
        """Close the listening socket at once."""
        if self._server is not None:
            self._server.close()


def listening_socket(bind: str | None, port: int, setting: str) -> socket.socket:
    """Return a listening socket. If ``bind`` is None or ``::``, it listens on all interfaces, for IPv4 and IPv6.

    Raises:
        ListenError: the socket cannot listen on this address.
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
        # Pass the host as bytes: for a host of type `str`, Python would import the tables of IDNA.
        family, _, _, _, address = socket.getaddrinfo(os.fsencode(bind), port, type=socket.SOCK_STREAM)[0]
        # For an address, unlike for None, Python would accept only IPv6 at `::`.
        is_for_both = address[0] == "::" and socket.has_dualstack_ipv6()
        # An address of one link is complete only with its last part, the number of the interface.
        return socket.create_server(address, family=family, dualstack_ipv6=is_for_both, backlog=BACKLOG)
    except OSError as error:
        where = f"{bind or '*'}:{port}"
        what = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ListenError(
            f"cannot listen on {where} ({setting}): {what}; choose another with {setting} or bind"
        ) from error


def ignore_new_connections(sock: socket.socket) -> None:
    """Let the kernel drop all packets that ask a listening socket for a new connection, and no others (socket(7))."""
    flags, syn, syn_or_ack = 13, 0x02, 0x12  # the offset of the flags in a TCP header, and two masks (RFC 9293, 3.1)
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, flags),  # load the byte with the flags (linux/bpf_common.h)
            (0x54, 0, 0, syn_or_ack),  # keep the bits SYN and ACK
            (0x15, 0, 1, syn),  # if only SYN is set, continue with the next instruction; otherwise skip it
            (0x06, 0, 0, 0),  # drop the packet
            (0x06, 0, 0, 0xFFFFFFFF),  # accept the packet
        )
    )
    buffer = ctypes.create_string_buffer(program)
    with contextlib.suppress(OSError):  # on a kernel without filters, a connection made at this moment may be reset
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 5, ctypes.addressof(buffer)))


def is_out_of_descriptors(context: dict[str, Any]) -> bool:
    """Return whether the event loop reports that no descriptor was free for a new connection."""
    error = context.get("exception")
    return isinstance(error, OSError) and error.errno in TOO_MANY_OPEN_FILES and "socket" in context
