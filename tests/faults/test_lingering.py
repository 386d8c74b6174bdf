"""Working processes that a script left may finish, and the answer has their last byte. All others are ended."""

from __future__ import annotations

import functools
import gzip
import hashlib
import platform
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from control_groups import ControlGroup, joining, made_control_group
from counted_checks import CountedChecks
from lifeline import Lifeline
from running_server import AS_PID_1, WITHOUT_PRIVILEGES, StartServer, problem, read_answer, until

from watchdog.system import proc

# Longer than any machine needs for the work of these filters.
PATIENT = {"WATCHDOG_LINGER_TIMEOUT": "300"}
PREFIXES = {"plain": (), "pid 1": AS_PID_1, "no privileges": WITHOUT_PRIVILEGES}
PR_SET_DUMPABLE = 4  # linux/prctl.h
LEFT = "processes that the script left were ended"
CUT_OFF = LEFT + " while they still worked"

SORT = "#!/bin/bash\nexec > >(sort -rn)\nseq 1 200000\n"
SORTED = b"".join(b"%d\n" % n for n in range(200_000, 0, -1))
GZIP = '#!/bin/bash\nseq 1 300000 | tee >(gzip -9 > "$TMP_OUTPUT_DIR/all.gz") >/dev/null\n'
COUNTED = b"".join(b"%d\n" % n for n in range(1, 300_001))
LOGGER = '#!/bin/bash\nexec > >(while read -r line; do echo "seen $line"; done)\nseq 1 20000\n'
SEEN = b"".join(b"seen %d\n" % n for n in range(1, 20_001))


@pytest.mark.parametrize("mode", PREFIXES)
def test_a_filter_behind_stdout_prints_its_last_byte(start_server: StartServer, mode: str) -> None:
    server = start_server(SORT, prefix=PREFIXES[mode], **PATIENT)
    assert server.call(b"").body == SORTED
    server.script.write_text(LOGGER)
    assert server.call(b"").body == SEEN


def test_a_filter_before_an_output_file_writes_its_last_byte(start_server: StartServer) -> None:
    server = start_server(GZIP, **PATIENT)
    for _ in range(3):
        answer = server.call(b"", "/?output=raw")
        assert answer.status == 200
        assert gzip.decompress(answer.body) == COUNTED
    assert not [event for event in server.logs if event["event"].startswith(LEFT)]


@pytest.fixture
def worker(tmp_path: Path, checks: CountedChecks) -> str:
    """Return a command that copies its stdin after work. The server would end an idle process before that."""
    program = tmp_path / "worker.py"
    copy = "import sys\ndata = sys.stdin.buffer.read()\nawait_checks()\nsys.stdout.buffer.write(data)\n"
    program.write_text(checks.awaiting + copy)
    return f"{sys.executable} -S {program}"


@pytest.fixture
def start_counting(start_server: StartServer, checks: CountedChecks, removed_guard: str | None) -> StartServer:
    """Start servers that count their checks."""
    return functools.partial(start_server, program=checks.program(removed_guard), **PATIENT)


@pytest.mark.guard("linger")
@pytest.mark.parametrize("mode", PREFIXES)
def test_work_on_stdout_is_awaited(start_counting: StartServer, worker: str, mode: str) -> None:
    server = start_counting(f"#!/bin/bash\nexec > >({worker})\necho said\n", prefix=PREFIXES[mode])
    assert server.call(b"").body == b"said\n"


@pytest.mark.guard("linger")
def test_work_on_an_output_file_is_awaited(start_counting: StartServer, worker: str) -> None:
    server = start_counting(f"(echo said | {worker} > $TMP_OUTPUT_DIR/it) &\n")
    answer = server.call(b"", "/?output=raw")
    assert (answer.headers["X-Output-Name"], answer.body) == ("it", b"said\n")


@pytest.mark.guard("linger")
def test_a_response_file_may_be_written_after_the_exit(start_counting: StartServer, worker: str) -> None:
    server = start_counting(f"(echo Status: 404 | {worker} > $HTTP_RESPONSE_FILE) &\n")
    assert server.call(b"").status == 404


@pytest.mark.guard("linger")
def test_a_classic_function_may_leave_a_filter(start_counting: StartServer, worker: str, tmp_path: Path) -> None:
    (tmp_path / "function.sh").write_text(f"exec > >({worker})\ncat\n")
    server = start_counting(None, WATCHDOG_FPROCESS=f"bash {tmp_path}/function.sh")
    assert server.call(b"said").body == b"said"


@pytest.mark.guard("linger")
def test_what_a_classic_function_left_reads_the_whole_body(start_server: StartServer, tmp_path: Path) -> None:
    """Its stdin stays open, and ends only at the end of the body, which comes after the exit."""
    (tmp_path / "function.sh").write_text(f"exec 3<&0\nsha256sum <&3 &\necho $$ > {tmp_path}/pid\n")
    server = start_server(None, WATCHDOG_FPROCESS=f"bash {tmp_path}/function.sh", **PATIENT)
    body = bytes(5_000_000)
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:1000])
        until(lambda: has_exited(tmp_path / "pid"), "the function's exit")
        sock.sendall(body[1000:])
        answer = read_answer(sock)
    assert answer.partition(b"\r\n\r\n")[2].split() == [hashlib.sha256(body).hexdigest().encode(), b"-"]


@pytest.mark.slow
def test_fifty_filters_at_once(start_server: StartServer) -> None:
    server = start_server(SORT, WATCHDOG_MAX_INFLIGHT="50", **PATIENT)
    with ThreadPoolExecutor(50) as pool:
        for answer in pool.map(lambda _: server.call(b""), range(50)):
            assert answer.body == SORTED


@pytest.fixture
def fifth_of_a_cpu() -> Iterator[ControlGroup]:
    """The CPU that OSCAR gives to a service by default."""
    with made_control_group("cpu", ("cpu.cfs_quota_us", "cpu.max"), "20000") as group:
        yield group


def test_a_filter_finishes_under_a_quota_of_a_fifth_of_a_cpu(
    start_counting: StartServer, worker: str, fifth_of_a_cpu: ControlGroup
) -> None:
    """Most of the time nothing in the group runs: a process that waits for its turn is not idle."""
    server = start_counting(SORT, prefix=joining(fifth_of_a_cpu))
    assert server.call(b"").body == SORTED
    server.script.write_text(f"#!/bin/bash\nexec > >({worker})\necho said\n")
    assert server.call(b"").body == b"said\n"


@pytest.mark.guard("straggler-search")
@pytest.mark.parametrize("mode", PREFIXES)
def test_an_idle_process_is_ended_and_named(start_server: StartServer, lifeline: Lifeline, mode: str) -> None:
    server = start_server(f"{lifeline.script_line}setsid sleep 60 &\necho said", prefix=PREFIXES[mode], **PATIENT)
    assert server.call(b"", headers={"X-Call-Id": "idle"}).body == b"said\n"
    assert lifeline.was_held()
    assert not lifeline.is_held()
    event = server.event(LEFT, call_id="idle")
    assert (event["level"], event["count"], event["names"]) == ("warning", 1, ["sleep"])


def test_a_busy_process_is_ended_after_linger_timeout(start_server: StartServer, lifeline: Lifeline) -> None:
    server = start_server(f"{lifeline.script_line}(while :; do :; done) &\necho said", WATCHDOG_LINGER_TIMEOUT="300ms")
    answer = server.call(b"", headers={"X-Call-Id": "busy"})
    assert (answer.body, answer.headers["X-Warning"]) == (b"said\n", "still-working")
    assert lifeline.was_held()
    assert not lifeline.is_held()
    event = server.event(CUT_OFF, call_id="busy")
    assert event["count"] == 1
    assert "raise linger_timeout" in event["reason"]


def test_a_linger_timeout_of_zero_ends_all_at_once(start_server: StartServer, lifeline: Lifeline) -> None:
    server = start_server(f"{lifeline.script_line}(while :; do :; done) &\necho said", WATCHDOG_LINGER_TIMEOUT="0")
    assert server.call(b"").body == b"said\n"
    assert not lifeline.is_held()
    server.event(LEFT, count=1)


@pytest.mark.guard("schedstat")
def test_a_process_that_sleeps_between_steps_is_at_work(
    start_counting: StartServer, tmp_path: Path, checks: CountedChecks
) -> None:
    """Its CPU time is less than /proc/PID/stat can show.

    On a busy machine, a check may find that it waits for a processor. So there are many checks, and long sleeps.
    """
    steps = "await_checks(40, lambda: time.sleep(0.05))\nprint('done', flush=True)\n"
    (tmp_path / "steps.py").write_text(checks.awaiting + steps)
    server = start_counting(f"{sys.executable} -S {tmp_path}/steps.py &")
    assert server.call(b"").body == b"done\n"


def test_work_that_is_handed_over_is_awaited(start_server: StartServer, tmp_path: Path) -> None:
    """Each step starts the next one and exits: a list of all processes may have neither of the two."""
    for step in range(5):
        after = f"nohup sh {tmp_path}/{step + 1}.sh &" if step < 4 else "echo done > $TMP_OUTPUT_DIR/done"
        (tmp_path / f"{step}.sh").write_text(f"head -c 300000 /dev/zero | sha256sum > /dev/null\n{after}\n")
    server = start_server(f"sh {tmp_path}/0.sh &", **PATIENT)
    for _ in range(30):
        assert server.call(b"", "/?output=raw").body == b"done\n"


EXIT_OF_ONE_THREAD = {"x86_64": 60, "aarch64": 93}.get(platform.machine())  # SYS_exit
SECOND_THREAD = f"""
import ctypes, sys, threading

def work():
    while state_of_first_thread() != "Z":
        pass
    await_checks()
    os.write(1, b"done\\n")
    os._exit(0)

def state_of_first_thread():
    with open(f"/proc/self/task/{{os.getpid()}}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]

threading.Thread(target=work).start()
if sys.argv[1:]:
    os.setsid()
ctypes.CDLL(None).syscall({EXIT_OF_ONE_THREAD}, 0)
"""


@pytest.mark.skipif(EXIT_OF_ONE_THREAD is None, reason="the number of SYS_exit is not known for this processor")
@pytest.mark.guard("zombie-leader")
@pytest.mark.parametrize("setsid", ["", "setsid"])
@pytest.mark.parametrize("mode", ["plain", "pid 1"])
def test_a_program_whose_first_thread_has_ended_is_at_work(
    start_counting: StartServer, tmp_path: Path, checks: CountedChecks, mode: str, setsid: str
) -> None:
    """/proc shows a zombie without memory and files; its other threads go on."""
    (tmp_path / "work.py").write_text(checks.awaiting + SECOND_THREAD)
    script = f"{sys.executable} -S {tmp_path}/work.py {setsid} &\necho said"
    server = start_counting(script, prefix=PREFIXES[mode])
    assert server.call(b"").body == b"said\ndone\n"


HIDDEN = f"""
import ctypes, os, sys, time
os.setsid()
if "undumpable" in sys.argv:
    ctypes.CDLL(None).prctl({PR_SET_DUMPABLE}, 0)  # its environment and its files cannot be read any more
open(os.environ["UP"], "w").close()
ends_s = time.monotonic() + 90  # also if nothing ends it: it must not outlive the tests
while not os.path.exists(os.environ["GO"]):
    if time.monotonic() > ends_s:
        sys.exit()
    time.sleep(0.02)
for name in ("leak", "/proc/self/fd/1"):
    try:
        with open(name, "w") as file:
            file.write("it")
    except OSError:
        pass
open(os.environ["TRIED"], "w").close()
"""
HIDES = {
    "without environment": "env -i UP=$UP GO=$GO TRIED=$TRIED {python} -S {hidden} >/dev/null 2>&1 &",
    "undumpable, with the script's stdout": "{python} -S {hidden} undumpable &",
}


def hider(directory: Path, hide: str) -> str:
    """A script that leaves a hidden process if the query asks for it. Otherwise it asks that process to write."""
    (directory / "hidden.py").write_text(HIDDEN)
    return f"""#!/bin/bash
export UP={directory}/up GO={directory}/go TRIED={directory}/tried
if [ $Http_X_Kind = leave ]; then
    cd $TMP_OUTPUT_DIR
    {hide.format(python=sys.executable, hidden=directory / "hidden.py")}
    until [ -e $UP ]; do sleep 0.02; done
    echo $!
elif [ $Http_X_Kind = hold ]; then
    echo held > {directory}/held
    until [ -e {directory}/enough ]; do sleep 0.02; done
else
    touch $GO
    while [ -e /proc/$Http_X_Pid ] && ! [ -e $TRIED ]; do sleep 0.02; done
    echo mine
fi
"""


@pytest.mark.guard("limit-mark", never="the event 'processes that the script left were ended'")
@pytest.mark.parametrize("hide", HIDES)
def test_a_hidden_process_is_ended_with_its_call(start_server: StartServer, tmp_path: Path, hide: str) -> None:
    """It has left its session and its parent, and shows neither the environment nor the pipes of its call."""
    hide_and_look(start_server, tmp_path, hide, "no privileges")


@pytest.mark.parametrize("mode", ["plain", "pid 1"])
@pytest.mark.parametrize("hide", HIDES)
def test_a_hidden_process_is_ended_wherever_it_runs(
    start_server: StartServer, tmp_path: Path, hide: str, mode: str
) -> None:
    hide_and_look(start_server, tmp_path, hide, mode)


def hide_and_look(start_server: StartServer, tmp_path: Path, hide: str, mode: str) -> None:
    tmp_path.chmod(0o777)
    server = start_server(hider(tmp_path, HIDES[hide]), prefix=PREFIXES[mode], WATCHDOG_LINGER_TIMEOUT="0")
    with ThreadPoolExecutor() as pool:
        # Another call runs at the same time. A single call would end all processes that became children since its
        # start.
        other = pool.submit(server.call, b"", headers={"X-Kind": "hold"})
        try:
            until((tmp_path / "held").exists, "the other call")
            pid = server.call(b"", headers={"X-Kind": "leave"}).body.decode().strip()
            assert int(server.event(LEFT)["count"]) == 1
            assert server.call(b"", headers={"X-Kind": "look", "X-Pid": pid}).body == b"mine\n"
            assert not (tmp_path / "tried").exists()
        finally:
            (tmp_path / "enough").touch()
        assert other.result().status == 200


def test_a_hidden_process_whose_origin_is_unknown_reaches_no_other_call(
    start_server: StartServer, tmp_path: Path, free_port: int
) -> None:
    """The server is PID 1, and scripts may raise their limits. So such a process may come from `docker exec`."""
    program = (str(Path(__file__).resolve().parent.parent / "guards.py"), "limit-mark")
    server = start_server(
        hider(tmp_path, HIDES["without environment"]),
        prefix=AS_PID_1,
        program=program,
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    pid = server.call(b"", headers={"X-Kind": "leave"}).body.decode().strip()
    metrics = server.call(None, "/metrics", "GET", port=free_port).body.decode()
    assert "\nwatchdog_unattributed_processes 1.0\n" in metrics
    assert server.call(b"", headers={"X-Kind": "look", "X-Pid": pid}).body == b"mine\n"
    assert (tmp_path / "tried").exists()
    assert server.event("a process that belongs to no call is left alone")["name"].startswith("python")


def test_idle_processes_are_ended_though_no_descriptor_is_free(start_server: StartServer, lifeline: Lifeline) -> None:
    """Calls that wait for a check of their processes hold all descriptors. One descriptor is reserved for the check."""
    server = start_server(
        f"{lifeline.script_line}sleep 60 & echo said",
        prefix=("prlimit", "--nofile=48"),
        WATCHDOG_MAX_INFLIGHT="8",
        **PATIENT,
    )
    with ThreadPoolExecutor(8) as pool:
        statuses = {answer.status for answer in pool.map(lambda _: server.call(b""), range(24))}
    assert 200 in statuses
    assert statuses <= {200, 500}
    assert not lifeline.is_held()


# ---- limits that end working processes


AT_WORK = "#!/bin/bash\n{line}(while :; do :; done) &\necho $$ > {pid}; exit 0\n"


def has_exited(pid: Path) -> bool:
    """Whether the script that wrote this file has exited. If what it left is at work, it is a zombie."""
    text = pid.read_text() if pid.exists() else ""
    found = proc.process(int(text)) if text else None
    return bool(text) and (found is None or not found.is_alive)


def test_exec_timeout_ends_what_is_at_work(start_server: StartServer, lifeline: Lifeline, tmp_path: Path) -> None:
    server = start_server(AT_WORK.format(line=lifeline.script_line, pid=tmp_path / "pid"), **PATIENT)
    document = problem(server.call(b"", headers={"X-Timeout": "2s"}), 504)
    assert document["exit_code"] == 0
    assert document["detail"] == "a process that the script left ran for longer than 2 s, so the server ended it"
    assert not lifeline.is_held()


def test_exec_timeout_does_not_fail_a_script_that_left_only_idle_processes(
    start_server: StartServer, lifeline: Lifeline
) -> None:
    server = start_server(f"{lifeline.script_line}sleep 60 &\necho said", WATCHDOG_EXEC_TIMEOUT="60", **PATIENT)
    assert server.call(b"").body == b"said\n"


def test_what_is_at_work_ends_with_its_caller(start_server: StartServer, lifeline: Lifeline, tmp_path: Path) -> None:
    server = start_server(AT_WORK.format(line=lifeline.script_line, pid=tmp_path / "pid"), **PATIENT)
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(lambda: has_exited(tmp_path / "pid"), "the script's exit")
        assert lifeline.is_held()
    server.event("invocation ended", outcome="caller_gone")
    assert not lifeline.is_held()


def test_a_drain_ends_what_is_at_work(start_server: StartServer, lifeline: Lifeline, tmp_path: Path) -> None:
    script = AT_WORK.format(line=lifeline.script_line, pid=tmp_path / "pid")
    server = start_server(script, WATCHDOG_WRITE_TIMEOUT="500ms", **PATIENT)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.call, b"")
        until(lambda: has_exited(tmp_path / "pid"), "the script's exit")
        server.signal(signal.SIGTERM)
        problem(call.result(), 503)
    assert server.wait() == 0
    assert not lifeline.is_held()


# ---- many

KINDS = """#!/bin/bash
case $Http_X_Kind in
nothing) echo nothing;;
idle) sleep 60 & echo idle;;
filter) exec > >(sort -rn); seq 1 2000;;
packer) seq 1 2000 | tee >(gzip > $TMP_OUTPUT_DIR/gz) > /dev/null;;
busy) (while :; do :; done) & echo busy;;
esac
"""
RIGHT = {
    "nothing": b"nothing\n",
    "idle": b"idle\n",
    "filter": b"".join(b"%d\n" % n for n in range(2000, 0, -1)),
    "packer": b"".join(b"%d\n" % n for n in range(1, 2001)),
    "busy": b"busy\n",
}
ENDING = ["nothing", "idle", "filter", "packer"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kinds", "count", "linger_timeout"),
    [
        (ENDING, 900, "300"),
        (["busy"], 100, "50ms"),
        pytest.param(ENDING, 9_000, "300", marks=pytest.mark.nightly),
        pytest.param(["busy"], 1_000, "50ms", marks=pytest.mark.nightly),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_thousands_of_calls_leave_nothing_and_have_the_right_bytes(
    start_server: StartServer, kinds: list[str], count: int, linger_timeout: str
) -> None:
    server = start_server(
        KINDS,
        WATCHDOG_MAX_INFLIGHT="16",
        WATCHDOG_MAX_QUEUE="100",
        WATCHDOG_LOG_LEVEL="ERROR",
        WATCHDOG_LINGER_TIMEOUT=linger_timeout,
    )

    def call(n: int) -> None:
        kind = kinds[n % len(kinds)]
        answer = server.call(b"", "/?output=raw", headers={"X-Kind": kind})
        assert answer.status == 200
        assert (gzip.decompress(answer.body) if kind == "packer" else answer.body) == RIGHT[kind]

    descriptors = server.descriptors_at_rest()
    with ThreadPoolExecutor(32) as pool:
        for _ in pool.map(call, range(count)):
            pass
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    until(lambda: len(children.read_text().split()) == 1, "nothing but the guardian to be left")
    assert server.descriptors_at_rest() <= descriptors
    assert server.leftovers_of_calls() == []
