"""A script cannot read or change the server or its guardian, although all three run as the same user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from guards import changed_program
from running_server import WITHOUT_PRIVILEGES, StartServer

pytestmark = pytest.mark.executed
PROJECT = Path(__file__).parents[2]
USER = 1000
# Replaces the closed directories, in a mount namespace, by open ones that have only what the server needs.
OPEN = """
set -e
closed=$1; needed=$2; shift 2
set -f
for path in $needed; do mkdir -p "$PLACE$path"; mount --rbind "$path" "$PLACE$path"; done
for path in $closed; do mount -t tmpfs -o mode=755 none "$path"; done
for path in $needed; do
    if [ ! -e "$path" ]; then mkdir -p "$path"; mount --rbind "$PLACE$path" "$path"; fi
done
unset PLACE
exec "$@"
"""
ATTACK = """
import ctypes, errno, json, os, signal, sys

libc = ctypes.CDLL(None, use_errno=True)


def attach(pid):
    if libc.ptrace(16, pid, 0, 0) == 0:
        os.waitpid(pid, 0x40000000)
        libc.ptrace(17, pid, 0, 0)
        return True
    return False


def attempts(pid):
    yield "ptrace", lambda: attach(pid)
    yield "mem", lambda: open(f"/proc/{pid}/mem", "r+b")
    yield "environ", lambda: open(f"/proc/{pid}/environ", "rb").read(1)
    yield "fd", lambda: os.stat(f"/proc/{pid}/fd/0")
    yield "pidfd_getfd", lambda: libc.syscall(438, os.pidfd_open(pid), 0, 0) >= 0


def succeeded(pid):
    done = []
    for name, attempt in attempts(pid):
        try:
            if attempt():
                done.append(name)
        except OSError:
            pass
    return done


def guardian():
    server = os.getppid()
    while True:
        children = open(f"/proc/{server}/task/{server}/children").read().split()
        others = [int(each) for each in children if int(each) != os.getpid()]
        try:
            if others and open(f"/proc/{others[0]}/stat").read().rpartition(")")[2].split()[0] != "Z":
                return others[0]
        except OSError:  # it is reaped meanwhile
            pass
"""
TRY = """
print(json.dumps({"server": succeeded(os.getppid()), "guardian": succeeded(guardian())}))
"""
TRY_THE_NEXT = """
first = guardian()
os.kill(first, signal.SIGKILL)
while (second := guardian()) == first:
    pass
done = set()
while open(f"/proc/{second}/comm").read() != "watchdog-guard\\n":
    done |= {"ptrace"} if attach(second) else set()
print(json.dumps({"new": second != first, "guardian": sorted(done | set(succeeded(second)))}))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user may enter. Only one user may enter the directories of pytest."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    (path / "tmp").mkdir()
    (path / "tmp").chmod(0o1777)
    yield path
    shutil.rmtree(path)


def as_user(place: Path) -> tuple[str, ...]:
    """Return the beginning of a command. The rest then runs as an ordinary user without capabilities."""
    if os.geteuid() != 0:
        return WITHOUT_PRIVILEGES
    needed = [PROJECT, Path(sys.base_prefix)]
    closed = {next((each for each in reversed(path.parents) if not each.stat().st_mode & 1), None) for path in needed}
    paths = (" ".join(str(path) for path in some if path is not None) for some in (closed, needed))
    ids = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    return (
        *("env", f"PLACE={place}/kept", "unshare", "--mount", "sh", "-c", OPEN, "sh", *paths),
        *("setpriv", *ids, *WITHOUT_PRIVILEGES[1:]),
    )


@pytest.mark.guard("hidden-memory", "hidden-guardian")
@pytest.mark.parametrize("attack", [TRY, TRY_THE_NEXT], ids=["running", "next guardian"])
@pytest.mark.parametrize("user", ["ordinary user", "root without capabilities"])
def test_script_attacks_the_server_and_its_guardian(
    place: Path, start_server: StartServer, user: str, attack: str
) -> None:
    (place / "attack.py").write_text(ATTACK + attack)
    (place / "script.sh").write_text(f"exec {sys.executable} {place}/attack.py")
    server = start_server(
        has_closed_memory=True,
        prefix=as_user(place) if user == "ordinary user" else WITHOUT_PRIVILEGES,
        TMPDIR=str(place / "tmp"),
        WATCHDOG_SCRIPT_PATH=str(place / "script.sh"),
    )
    seen = json.loads(server.call(b"").body)
    assert seen.pop("new", True)
    assert not any(seen.values()), seen


TRACED = """
import ctypes, os, time
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: allowed to all (Yama)
open("pid.new", "w").write(str(os.getpid()))
os.rename("pid.new", "pid")
while not os.path.exists("traced"):
    time.sleep(0.02)
"""
TRACER = """
import ctypes, os, time
while not os.path.exists("pid"):
    time.sleep(0.02)
assert ctypes.CDLL(None).ptrace(0x4206, int(open("pid").read()), 0, 0) == 0  # PTRACE_SEIZE
open("traced", "w").close()
while not os.path.exists("go"):
    time.sleep(0.02)
"""


# With this, the server gives up a traced command much sooner than the test without the guard stops waiting for it.
HASTY = "from watchdog.process import child; replace(child, '_TRACED_S', 0.5)"


@pytest.mark.guard("traced-command", never="no answer came to POST /traced", never_s=5)
def test_script_that_traces_that_of_another_call_delays_no_call(
    start_server: StartServer, tmp_path: Path, removed_guard: str | None
) -> None:
    (tmp_path / "traced.py").write_text(TRACED)
    (tmp_path / "tracer.py").write_text(TRACER)
    script = f'cd {tmp_path}; exec {sys.executable} "${{Http_Path#/}}.py"'
    server = start_server(script, program=changed_program(HASTY, removed_guard), WATCHDOG_MAX_INFLIGHT="2")
    with ThreadPoolExecutor() as pool:
        try:
            tracer = pool.submit(server.call, b"", "/tracer")
            traced = pool.submit(server.call, b"", "/traced")
            # The server cannot read its status while it is traced.
            assert traced.result().status == 500
            assert server.call(None, "/_/health", "GET").status == 200
        finally:
            (tmp_path / "go").touch()
        assert tracer.result().status == 200


@pytest.mark.parametrize("words", [("run", "/dev/null"), ("job",)], ids=["run", "job"])
def test_script_attacks_a_run_or_a_job(place: Path, words: tuple[str, ...]) -> None:
    (place / "attack.py").write_text(ATTACK + TRY)
    (place / "script.sh").write_text(f"exec {sys.executable} {place}/attack.py >{place}/tmp/seen")
    environ = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(place / "tmp"),
        "WATCHDOG_SCRIPT_PATH": str(place / "script.sh"),
        "EVENT": "QUJD",
    }
    command = [*as_user(place), sys.executable, "-m", "watchdog", *words]
    subprocess.run(command, env=environ, cwd=PROJECT, stdin=subprocess.DEVNULL, check=True, timeout=50)
    assert json.loads((place / "tmp" / "seen").read_text()) == {"server": [], "guardian": []}


@pytest.mark.guard("oom-preference")
def test_ordinary_user_with_closed_memory_has_the_script_chosen_first(place: Path, start_server: StartServer) -> None:
    """The server can still change its own oom_score_adj. So the script inherits the right value from its start."""
    (place / "script.sh").write_text("cat /proc/self/oom_score_adj; echo $PPID; ls /proc/self/fd >&2")
    server = start_server(
        has_closed_memory=True,
        prefix=as_user(place),
        TMPDIR=str(place / "tmp"),
        WATCHDOG_SCRIPT_PATH=str(place / "script.sh"),
    )
    of_script, server_pid = map(int, server.call(b"").body.split())
    # Read this after the call, because the server has the value of scripts while it starts a script.
    of_server = int(Path(f"/proc/{server_pid}/oom_score_adj").read_text())
    assert of_script == min(1000, of_server + 500)
