"""Read the list of origins whose web pages may call the function.

A browser names the origin of a page in the header ``Origin``, in exactly one form (WHATWG HTML, "serialization of an
origin"): scheme and host in lower case, the host in ASCII, and no default port. The server compares origins as texts.
So an origin in any other form would never match, and is an error.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from .text import Correctable

ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(?i:(https?)://)(\[[^\s/?#@\[\]]+\]|[^\s/?#@:\[\]]+)(?::([0-9]{1,9}))?(?:[/?#].*)?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


def parse_origins(text: str) -> Sequence[str]:
    """Return the origins of a list that is separated by commas, without duplicates; or only ``*``.

    Raises:
        Correctable: one of them is not an origin in the form that browsers send. The message says what to write.
    """
    origins = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not origins:
        raise Correctable("it names no origin")
    if ANY in origins and len(origins) > 1:
        raise Correctable(f"{ANY} already allows the pages of all origins; write only {ANY}, or only the origins")
    for origin in origins:
        if origin != ANY:
            _check(origin)
    return origins


def _check(origin: str) -> None:
    if origin.lower() == "null":
        raise Correctable(
            f"null is the origin of local files and of sandboxed frames of any site, so it cannot be allowed alone; "
            f"serve the page from a web server, or write {ANY} to allow the pages of all origins"
        )
    found = _URL.fullmatch(origin)
    if found is None:
        raise Correctable(f"{origin!r} is not an origin; write one like https://a.example or http://localhost:3000")
    scheme, host, port = found[1].lower(), found[2], found[3]
    if ANY in host:
        raise Correctable(f"{origin!r} has a {ANY}; write each origin in full, or only {ANY} to allow all origins")
    right = f"{scheme}://{_host(origin, host)}"
    if port is not None:
        number = int(port)
        if not 0 < number < 65536:
            raise Correctable(f"{origin!r} has the port {port}; a port is a number from 1 to 65535")
        if number != _DEFAULT_PORTS[scheme]:
            right += f":{number}"
    if origin != right:
        raise Correctable(f"browsers write the origin {origin!r} in another form; write {right}")


def _host(origin: str, host: str) -> str:
    """Return a host as browsers write it."""
    if not host.isascii():
        raise Correctable(f"{origin!r} has characters that are not ASCII; write the host as browsers send it (xn--…)")
    if host.startswith("["):
        try:
            return f"[{_ipv6(host[1:-1])}]"
        except ValueError:
            raise Correctable(f"{origin!r} has a host that is not an IPv6 address") from None
    host = host.lower()
    labels = host.removesuffix(".").split(".")
    try:
        if _NUMBER.fullmatch(labels[-1]):  # browsers read a host that ends in a number as an IPv4 address
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise Correctable(f"{origin!r} has a host that is not an IPv4 address") from None
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise Correctable(f"{origin!r} has a host that is not a host name")
    return host


def _ipv6(text: str) -> str:
    """Return an IPv6 address as browsers write it: without a zone, and never with the dots of IPv4.

    Raises:
        ValueError: it is not an address, or it has a zone.
    """
    address = ipaddress.IPv6Address(text)
    if address.scope_id is not None:
        raise ValueError("zone")
    if address.ipv4_mapped is None:
        return address.compressed
    number = int(address.ipv4_mapped)  # Python 3.13 writes such an address with dots
    return f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}"
