"""The reason for a connection that could not be made, as users read it."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from watchdog.system.connect_error import why_not_connected


class TwoAddresses(AbstractResolver):
    """A name with an address on which nothing listens, and the broadcast address, which TCP cannot use."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = ((socket.AF_INET6, "::1"), (socket.AF_INET, "255.255.255.255"))
        return [
            ResolveResult(hostname=host, host=address, port=port, family=each, proto=0, flags=0)
            for each, address in addresses
        ]

    async def close(self) -> None: ...


async def test_two_addresses_that_fail_for_different_reasons_give_both() -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=TwoAddresses())) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.get("http://two.example:9/")
    assert caught.value.os_error.errno is None, "aiohttp gives one reason"
    assert why_not_connected(caught.value.os_error).count("[Errno ") == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(111, "Connect call failed ('127.0.0.1', 9)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("a\nb"), "'a\\nb'"),
        (OSError(), "OSError"),
    ],
)
def test_the_reason_is_one_line(error: OSError, text: str) -> None:
    assert why_not_connected(error) == text
