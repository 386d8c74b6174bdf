"""A Ceph cluster of one monitor, one OSD in memory and one radosgw, as children of the test on the loopback interface.

Its S3 is strict, it lists multipart uploads correctly, and it pushes bucket events over HTTP.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from running_server import free_port

from storage.servers import ACCESS_KEY, SECRET_KEY, S3Server, running

_PATIENCE_S = 120.0
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_CONFIGURATION = """[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{mon_port}]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = false
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {directory}
log file = {directory}/$name.log
admin socket = {directory}/$name.asok
pid file =
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail warn = 1
mon data avail crit = 1
osd objectstore = memstore
memstore device bytes = 1073741824
osd data = {directory}/osd
mon data = {directory}/mon
setuser match path =
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw data = {directory}/rgw
rgw enable usage log = false
"""


def missing_program() -> str | None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not here: {', '.join(missing)} (Debian: ceph-mon, ceph-osd, radosgw, ceph-common)" if missing else None


@contextlib.contextmanager
def ceph(directory: Path) -> Iterator[S3Server]:
    """Run an S3 server of Ceph with one bucket, ``bucket``. Nothing of it is left after the context."""
    directory.mkdir(parents=True, exist_ok=True)
    mon_port, rgw_port = free_port(), free_port()
    fsid, osd_uuid = str(uuid.uuid4()), str(uuid.uuid4())
    configuration = directory / "ceph.conf"
    configuration.write_text(
        _CONFIGURATION.format(fsid=fsid, mon_port=mon_port, rgw_port=rgw_port, directory=directory)
    )
    for name in ("mon", "osd", "rgw"):
        (directory / name).mkdir()

    def run(program: str, *words: str) -> None:
        done = subprocess.run(
            [program, "-c", configuration, *words], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
        assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stderr}"

    monmap = str(directory / "monmap")
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", monmap)
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(["ceph-mon", "-c", configuration, "-f", "-i", "a"], mon_port))
        run("ceph", "--connect-timeout", "60", "osd", "new", osd_uuid, "0")
        run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost")
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        _start_osd(configuration, stack)
        keys = ("--access-key", ACCESS_KEY, "--secret", SECRET_KEY)
        run("radosgw-admin", "user", "create", "--uid", "tests", "--display-name", "tests", *keys)
        command: list[str | Path] = ["radosgw", "-c", configuration, "-f", "-n", "client.rgw"]
        stack.enter_context(running(command, rgw_port, patience_s=_PATIENCE_S))
        server = S3Server(f"http://127.0.0.1:{rgw_port}", ACCESS_KEY, SECRET_KEY)
        server.client().create_bucket(Bucket="bucket")
        yield server


def _start_osd(configuration: Path, stack: contextlib.ExitStack) -> None:
    """Start the OSD, and return when the monitor says that it is up; the stack ends it.

    Raises AssertionError: it is not up after _PATIENCE_S seconds.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    osd = None
    while True:
        # An OSD sometimes ends at its start: if it asks the monitor before it has the monitor's map, the answer is
        # "wrong fsid". Then start it again, as an init system does.
        if osd is None or osd.poll() is not None:
            osd = stack.enter_context(running(["ceph-osd", "-c", configuration, "-f", "-i", "0"], None))
        command = ["ceph", "-c", str(configuration), "osd", "stat"]
        # On a busy machine, the monitor sometimes does not answer the first requests.
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        if "1 up" in done.stdout and "1 in" in done.stdout:
            return
        assert time.monotonic() < deadline_s, f"the OSD does not come up: {done.stdout}{done.stderr}"
        time.sleep(0.1)
