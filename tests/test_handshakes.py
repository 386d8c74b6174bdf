"""A half-open connection is seen, through netlink and in the table of proc(5)."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from running_server import until

from watchdog.system import handshakes
from watchdog.system.handshakes import has_half_open, has_half_open_by_netlink, has_half_open_by_table

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
READERS = [has_half_open, has_half_open_by_netlink, has_half_open_by_table]


@pytest.fixture(params=["127.0.0.1", "::1", "mapped"])
def addresses(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The address on which the server listens, and the address to which the caller connects."""
    if request.param != "127.0.0.1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    return ("::", "127.0.0.1") if request.param == "mapped" else (request.param, request.param)


@pytest.fixture
def listening(addresses: tuple[str, str]) -> Iterator[socket.socket]:
    is_ipv6 = ":" in addresses[0]
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    with socket.create_server((addresses[0], 0), family=family, dualstack_ipv6=is_ipv6) as sock:
        yield sock


@pytest.mark.parametrize("reader", READERS)
def test_a_handshake_is_half_open_until_the_caller_gets_the_answer_of_the_server(
    listening: socket.socket, addresses: tuple[str, str], reader: Callable[[int], bool]
) -> None:
    port = listening.getsockname()[1]
    assert not reader(port)
    with socket.socket(socket.AF_INET6 if ":" in addresses[1] else socket.AF_INET) as caller:
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # all packets (linux/bpf_common.h)
        caller.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop)))
        caller.setblocking(False)
        caller.connect_ex((addresses[1], port))
        until(lambda: reader(port), "the handshake to begin")
        assert not reader(port - 1)
        caller.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        until(lambda: not reader(port), "the handshake to be complete")
        accepted, _ = listening.accept()
        with accepted:
            assert not reader(port)


def test_the_table_is_read_if_the_kernel_does_not_answer_through_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "_NETLINK_SOCK_DIAG", 31)  # no connection has this port
    with pytest.raises(OSError, match="Protocol not supported"):
        has_half_open_by_netlink(1)
    assert not has_half_open(1)


def test_an_error_as_answer_through_netlink_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "_SOCK_DIAG_BY_FAMILY", 0x7FFF)  # a question that the kernel does not know
    with pytest.raises(OSError, match="does not list sockets"):
        has_half_open_by_netlink(1)
    assert not has_half_open(1)
