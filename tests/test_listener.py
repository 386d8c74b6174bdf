"""The addresses on which the server listens. The tests have a network of their own, in which no one else can call."""

from __future__ import annotations

import os
import subprocess
import sys

START_LOOPBACK = """
import fcntl, socket, struct, time
from watchdog.http.listener import listening_socket
SIOCSIFFLAGS, SIOCSIFADDR, IFA_F_TENTATIVE = 0x8914, 0x8916, 0x40
with socket.socket() as sock:
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", 1))
"""
ALL_INTERFACES = """
for bind in (None, "::", "0::0"):
    with listening_socket(bind, 0, "port") as listening:
        for caller in ("127.0.0.1", "::1"):
            socket.create_connection((caller, listening.getsockname()[1])).close()
"""
ONE_LINK = """
with socket.socket(socket.AF_INET6) as sock:
    address = socket.inet_pton(socket.AF_INET6, "fe80::1")
    fcntl.ioctl(sock, SIOCSIFADDR, struct.pack("16sIi", address, 64, socket.if_nametoindex("lo")))
while any(int(line.split()[4], 16) & IFA_F_TENTATIVE for line in open("/proc/net/if_inet6")):
    time.sleep(0.01)
with listening_socket("fe80::1%lo", 0, "port") as listening, socket.socket(socket.AF_INET6) as caller:
    caller.connect(listening.getsockname())
"""


def run_in_own_network(program: str) -> None:
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ["unshare", *as_root, "--net", sys.executable, "-c", START_LOOPBACK + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_all_interfaces_are_those_of_ipv4_and_ipv6() -> None:
    run_in_own_network(ALL_INTERFACES)


def test_address_of_one_link_names_its_interface() -> None:
    run_in_own_network(ONE_LINK)
