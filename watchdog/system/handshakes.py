"""Ask the kernel whether a TCP handshake has begun and is not complete.

The kernel looks through its table of connections, which has hundreds of thousands of rows on a large machine. Through
netlink (sock_diag(7)) this takes 0.2 ms. Reading the table as text takes 10 to 40 ms of processor time, and more if
thousands of connections have just ended. So the text is read only if the kernel has no netlink for this.
"""

from __future__ import annotations

import contextlib
import socket
import struct

_SYN_RECV = 3  # net/tcp_states.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20  # linux/netlink.h, linux/sock_diag.h
_NLMSG_DONE = 3
_REQUEST_ALL = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ANSWER_TIMEOUT_S = 1


def has_half_open(port: int) -> bool:
    """Return whether a caller has begun a TCP handshake with a port of this machine, and has not completed it."""
    try:
        return has_half_open_by_netlink(port)
    except OSError:
        return has_half_open_by_table(port)


def has_half_open_by_netlink(port: int) -> bool:
    """Do what :func:`has_half_open` does, through netlink.

    Raises:
        OSError: the kernel cannot answer, or a sandbox forbids the question.
    """
    return any(_first_message(family, port) != _NLMSG_DONE for family in (socket.AF_INET, socket.AF_INET6))


def _first_message(family: int, port: int) -> int:
    """Ask for all half-open connections of a port, and return the type of the first message of the answer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_ANSWER_TIMEOUT_S)
        # struct inet_diag_req_v2 (linux/inet_diag.h) with the family, the protocol, the state and the local port
        question = struct.pack("=BBxxI", family, socket.IPPROTO_TCP, 1 << _SYN_RECV) + struct.pack("!H46x", port)
        sock.send(struct.pack("=IHHII", 16 + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST_ALL, 0, 0) + question)
        answer = sock.recv(4096)
    kind: int = struct.unpack_from("=IH", answer)[1]
    if kind not in (_SOCK_DIAG_BY_FAMILY, _NLMSG_DONE):
        raise OSError("the kernel does not list sockets through netlink")
    return kind


def has_half_open_by_table(port: int) -> bool:
    """Do what :func:`has_half_open` does, with the tables of proc(5). Return False if there are no tables."""
    end = b":%04X" % port
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{name}", "rb") as table:
            for _, local_address, _, state, *_ in map(bytes.split, table):
                if state == b"%02X" % _SYN_RECV and local_address.endswith(end):
                    return True
    return False
