"""Process trees: nothing survives an invocation, and no status is lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from own_descriptors import free_descriptors
from own_events import logged_events
from running_server import AS_PID_1, RunningServer, is_guardian, until

from watchdog.errors import BadInput, OutOfResources, ScriptUnavailable
from watchdog.process import children as children_module
from watchdog.process import command as command_module
from watchdog.process import orphans as orphans_module
from watchdog.process import tree as tree_module
from watchdog.process.command import command_for, found_command
from watchdog.process.ended import Ended
from watchdog.process.limit_mark import LimitMark
from watchdog.process.orphans import Orphans
from watchdog.process.ownership import Ownership
from watchdog.process.pipes import READ_BYTES, Pipe
from watchdog.process.supervisor import Supervisor
from watchdog.process.tree import Tree
from watchdog.system import proc


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    one = Supervisor()
    # An earlier test may have left a child of this process. With such a child, it is not certain for any orphan that a
    # script started it.
    one._orphans.ownership._all_orphans_are_ours = True
    yield one
    one.close()


async def run_command(
    supervisor: Supervisor,
    command: list[str],
    environment: Mapping[str, str],
    *,
    timeout_s: float = 0.0,
    linger_timeout_s: float = 5.0,
    **options: Any,
) -> Ended:
    """Start a command, and return how it ended."""
    child = supervisor.start(command, environment, **options)
    return await supervisor.until_ended(child, timeout_s=timeout_s, linger_timeout_s=linger_timeout_s)


class Run:
    """One shell command under a supervisor, with what it printed."""

    def __init__(self, supervisor: Supervisor, script: str, **options: Any) -> None:
        self.mark = f"/mark/{uuid.uuid4()}"
        self.out = bytearray()
        self.err = bytearray()
        self._line = asyncio.Event()
        environment: Mapping[str, str] = {"PATH": os.environ["PATH"], "TMP_INPUT_DIR": self.mark}
        self.task = asyncio.ensure_future(
            run_command(
                supervisor,
                ["/bin/bash", "-c", script],
                environment,
                mark=self.mark,
                stdout=self._take,
                **{"stderr": self.err.extend, **options},
            )
        )

    def _take(self, data: bytes) -> None:
        self.out += data
        self._line.set()

    async def line(self, text: str) -> None:
        """Wait until the command has printed this text."""
        async with asyncio.timeout(RunningServer.patience_s):
            while text.encode() not in self.out:
                self._line.clear()
                await self._line.wait()

    async def ended(self) -> Ended:
        return await self.task

    def living(self) -> list[int]:
        """Return the living processes with the mark of this run in their environment."""
        return [
            each.pid
            for each in proc.processes()
            if each.is_alive and self.mark.encode() in proc.environment_of(each.pid)
        ]


def test_a_script_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    script = command_module.Script(str(path))
    with pytest.raises(ScriptUnavailable, match="there is no script"):
        script.command("/bin")
    path.write_text("#!/bin/sh\n")
    long_ago = time.time() - 60
    for shell in ("sh", "bash", "sh"):
        # The file has the same size and the same time as before. After a checkout or COPY, times may be equal.
        path.write_text(f"#!/bin/{shell}\n".ljust(20, "#"))
        os.utime(path, (long_ago, long_ago))
        for _ in range(2):
            assert script.command("/bin") == [f"/bin/{shell}", str(path)]
    path.unlink()
    with pytest.raises(ScriptUnavailable, match="there is no script"):
        script.command("/bin")


def test_a_script_that_is_known_still_wants_its_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_module, "_SETTLED_S", -1.0)
    interpreter = tmp_path / "interpreter"
    interpreter.touch(0o755)
    path = tmp_path / "script"
    path.write_text(f"#!{interpreter}\n")
    script = command_module.Script(str(path))
    for _ in range(2):
        assert script.command("/nowhere") == [str(interpreter), str(path)]
    interpreter.unlink()
    with pytest.raises(ScriptUnavailable, match="is not in this image"):
        script.command("/nowhere")


async def test_status_and_both_streams(supervisor: Supervisor) -> None:
    run = Run(supervisor, "echo out; echo err >&2; exit 7")
    ended = await run.ended()
    assert (ended.exit_code, ended.signal, ended.timed_out, ended.survivors) == (7, None, False, 0)
    assert (bytes(run.out), bytes(run.err)) == (b"out\n", b"err\n")


async def test_a_signal_is_reported_by_name(supervisor: Supervisor) -> None:
    ended = await Run(supervisor, "kill -SEGV $$").ended()
    assert (ended.exit_code, ended.signal) == (None, "SIGSEGV")


async def test_stdin_is_at_its_end_and_signals_are_the_default(supervisor: Supervisor) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # nohup or a shell may have done this
    run = Run(supervisor, "cat; grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2; ps -o sid= -p $$; echo $$")
    await run.ended()
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    blocked, ignored, session, pid = run.out.split()
    of_glibc = 1 << 31 | 1 << 32  # two real-time signals of glibc, which no program can set
    assert (int(blocked, 16), int(ignored, 16) & ~of_glibc) == (0, 0)
    assert session == pid


async def test_stdin_is_fed_as_it_comes(supervisor: Supervisor) -> None:
    goes_on = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"first\n"
        await goes_on.wait()  # the command has the first line by then
        yield b"second\n"

    run = Run(supervisor, "while read -r line; do echo got $line; done; echo end", stdin=source())
    await run.line("got first")
    goes_on.set()
    await run.ended()
    assert bytes(run.out) == b"got first\ngot second\nend\n"


async def test_a_source_that_breaks_ends_the_command_and_not_its_stdin(supervisor: Supervisor) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"half\n"
        await run.line("got half")
        raise BadInput("broken")

    run = Run(supervisor, "read -r line; echo got $line; read -r line || echo taken for the whole", stdin=source())
    with pytest.raises(BadInput, match="broken"):
        await run.ended()
    assert b"whole" not in run.out
    assert run.living() == []


@pytest.mark.parametrize("script", ["echo done", "exec <&-; echo done", "head -c 3 >/dev/null; echo done"])
async def test_a_command_that_does_not_read_is_not_waited_for(supervisor: Supervisor, script: str) -> None:
    async def source() -> AsyncIterator[bytes]:
        while True:
            yield bytes(100_000)

    run = Run(supervisor, script, stdin=source())
    ended = await run.ended()
    assert (ended.exit_code, bytes(run.out)) == (0, b"done\n")


async def test_a_source_that_waits_does_not_delay_the_end(supervisor: Supervisor) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    run = Run(supervisor, "head -c 1", stdin=source())
    assert (await run.ended()).exit_code == 0
    assert bytes(run.out) == b"x"


async def test_both_streams_are_one_without_a_consumer_of_stderr(supervisor: Supervisor) -> None:
    run = Run(supervisor, "echo 1; echo 2 >&2; echo 3", stderr=None)
    await run.ended()
    assert bytes(run.out) == b"1\n2\n3\n"


async def test_descriptors_are_closed_after_feeding(supervisor: Supervisor) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x"

    await Run(supervisor, "cat", stdin=source()).ended()
    before = os.listdir("/proc/self/fd")
    for script in ("cat", "true", "exec <&-", "kill -9 $$"):
        await Run(supervisor, script, stdin=source()).ended()
    with pytest.raises(ScriptUnavailable):
        await run_command(supervisor, ["/nowhere"], {}, mark="/m", stdout=print, stderr=None, stdin=source())
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("name", ["nowhere", "/nowhere", "./nowhere"])
def test_a_command_that_is_not_there(name: str) -> None:
    with pytest.raises(ScriptUnavailable, match=f"the command {name} of fprocess"):
        found_command([name], "/bin:/usr/bin")


def test_a_command_is_found_as_a_shell_would(tmp_path: Path) -> None:
    assert found_command(["sh", "-c", "x"], f"{tmp_path}:/bin") == ["/bin/sh", "-c", "x"]
    (tmp_path / "sh").write_text("not executable")
    assert found_command(["sh"], f"{tmp_path}:/bin") == ["/bin/sh"]
    with pytest.raises(ScriptUnavailable, match="is not an executable file"):
        found_command([str(tmp_path / "sh")], "/bin")


def children_since(before: set[int]) -> list[proc.Process]:
    """Return the new children of this process, dead or alive, without the supervisor's guardian."""
    return [
        each
        for each in proc.processes()
        if each.pid not in before and each.parent == os.getpid() and not is_guardian(each.pid, of=os.getpid())
    ]


STRAGGLERS = {
    "background": "sleep 60 & echo started; exit 3",
    "ignores SIGTERM": "(trap '' TERM; echo started; sleep 60; sleep 60) & sleep 0.1; exit 3",
    "nohup": "nohup sleep 60 >/dev/null 2>&1 & echo started; exit 3",
    "setsid": "setsid sleep 60 & sleep 0.1; echo started; exit 3",
    "daemon": "(setsid bash -c 'setsid sleep 60 >/dev/null 2>&1 & exit 0' &); sleep 0.2; echo started; exit 3",
    "own group": "set -m; sleep 60 & echo started; exit 3",
    "no environment": "env -i setsid sleep 60 & sleep 0.1; echo started; exit 3",
    "tree": "setsid bash -c 'sleep 60 & setsid sleep 60 & wait' & sleep 0.2; echo started; exit 3",
}


@pytest.mark.parametrize("script", STRAGGLERS.values(), ids=STRAGGLERS)
async def test_nothing_that_a_script_leaves_survives_it(supervisor: Supervisor, script: str) -> None:
    before = {each.pid for each in proc.processes()}
    run = Run(supervisor, script)
    ended = await run.ended()
    assert (ended.exit_code, ended.survivors) == (3, 0)
    assert b"started" in run.out
    assert run.living() == []
    assert children_since(before) == []


@pytest.mark.parametrize("name", ["setsid", "daemon", "no environment"])
async def test_the_guard_is_what_ends_them(supervisor: Supervisor, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the search for processes that left the session, they survive."""
    monkeypatch.setattr(Orphans, "certainly_nothing_left", lambda self, child: True)
    before = {each.pid for each in proc.processes()}
    await Run(supervisor, STRAGGLERS[name]).ended()
    left = [each for each in children_since(before) if each.is_alive]
    assert left
    for each in left:
        os.kill(each.pid, signal.SIGKILL)


async def test_a_child_that_holds_stdout_open_does_not_delay_the_answer(supervisor: Supervisor) -> None:
    run = Run(supervisor, "sleep 60 & echo done")
    async with asyncio.timeout(RunningServer.patience_s):  # without the guard, it would take the whole minute
        await run.ended()
    assert run.out == b"done\n"


async def test_all_output_is_read_after_the_exit(supervisor: Supervisor) -> None:
    run = Run(supervisor, "head -c 3000000 /dev/zero; head -c 65536 /dev/zero >&2")
    await run.ended()
    assert (len(run.out), len(run.err)) == (3_000_000, 65_536)


async def test_a_paused_stream_loses_nothing(supervisor: Supervisor) -> None:
    taken = bytearray()

    def slowly(data: bytes) -> asyncio.Future[None]:
        taken.extend(data)
        return asyncio.get_running_loop().run_in_executor(None, os.sched_yield)

    command = ["/bin/sh", "-c", "head -c 1000000 /dev/zero"]
    ended = await run_command(supervisor, command, {}, mark="/m", stdout=slowly, stderr=lambda data: None)
    assert (ended.exit_code, len(taken)) == (0, 1_000_000)


@pytest.mark.parametrize("how", ["drain", "finish"])
async def test_a_process_that_reads_stdout_may_take_the_rest_of_it(supervisor: Supervisor, how: str) -> None:
    """Any process of the command can open its own stdout for reading."""
    taken = []

    def take_while_another_reads(data: bytes) -> None:
        taken.append(len(data))
        os.read(other, 1 << 16)

    pipe = Pipe(supervisor._watch, take_while_another_reads)
    other = os.open(f"/proc/self/fd/{pipe.writing_fd}", os.O_RDONLY)
    try:
        os.write(pipe.writing_fd, bytes(READ_BYTES + 1))
        if how == "drain":
            assert pipe.drain()
        else:
            await pipe.finish()
        assert taken == [READ_BYTES]
    finally:
        os.close(other)
        pipe.close()


async def test_timeout_ends_politely_and_says_so(supervisor: Supervisor) -> None:
    run = Run(supervisor, "trap 'echo bye; exit 0' TERM; echo up; sleep 60 & wait", timeout_s=2)
    ended = await run.ended()
    assert ended.timed_out
    assert (ended.exit_code, bytes(run.out)) == (0, b"up\nbye\n")


async def test_timeout_kills_what_does_not_listen(supervisor: Supervisor) -> None:
    run = Run(supervisor, "trap '' TERM; while :; do sleep 0.1; done", timeout_s=2, kill_grace_s=0.3)
    ended = await run.ended()
    assert ended.timed_out
    assert ended.signal == "SIGKILL"
    assert run.living() == []


async def test_cancellation_does_not_return_before_the_tree_is_gone(supervisor: Supervisor) -> None:
    run = Run(supervisor, "setsid sleep 60 & echo up; sleep 60")
    await run.line("up")
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    assert run.living() == []
    assert supervisor.running == 0


async def test_a_second_cancellation_does_not_return_early_either(supervisor: Supervisor) -> None:
    run = Run(supervisor, "trap '' TERM; echo up; while :; do sleep 0.1; done", kill_grace_s=0.5)
    await run.line("up")
    for _ in range(3):
        run.task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await run.task
    assert run.living() == []


@pytest.mark.parametrize("at_once", [True, False])
async def test_end_all(supervisor: Supervisor, at_once: bool) -> None:
    runs = [Run(supervisor, "trap 'exit 9' TERM; echo up; sleep 60 & wait") for _ in range(3)]
    for run in runs:
        await run.line("up")
    supervisor.end_all(at_once=at_once)
    for run in runs:
        ended = await run.ended()
        assert ended.ended_early
        assert (ended.signal, ended.exit_code) == (("SIGKILL", None) if at_once else (None, 9))


async def test_one_runs_children_are_not_anothers(supervisor: Supervisor) -> None:
    lasting = Run(supervisor, "setsid sleep 60 & (setsid sleep 61 &); echo up; read < <(sleep 60)")
    await lasting.line("up")
    while len(lasting.living()) < 4:
        await asyncio.sleep(0.01)
    before = set(lasting.living())
    for _ in range(3):
        await Run(supervisor, "setsid sleep 60 & (setsid sleep 61 &); sleep 0.1").ended()
    assert set(lasting.living()) == before
    supervisor.end_all(at_once=True)
    await lasting.ended()
    assert lasting.living() == []


async def test_orphans_are_reaped_and_no_status_is_lost(supervisor: Supervisor) -> None:
    lasting = Run(supervisor, "for i in $(seq 20); do (setsid true &); done; echo up; sleep 0.5; exit 5")
    results = await asyncio.gather(*(Run(supervisor, f"(setsid true &); exit {n}").ended() for n in range(30)))
    assert [ended.exit_code for ended in results] == list(range(30))
    assert (await lasting.ended()).exit_code == 5
    zombies = [p for p in proc.processes() if p.parent == os.getpid() and p.state == "Z"]
    assert zombies == []


async def test_orphans_are_reaped_while_a_long_script_runs(supervisor: Supervisor) -> None:
    run = Run(supervisor, "for i in $(seq 20); do (setsid true &); done; echo up; sleep 60")
    await run.line("up")
    async with asyncio.timeout(RunningServer.patience_s):
        while [p for p in proc.processes() if p.parent == os.getpid() and p.state == "Z"]:
            await asyncio.sleep(0.02)
    supervisor.end_all(at_once=True)
    await run.ended()


REGULAR_STEPS = [
    "_guardian_keeper.look_after",
    "_orphans.reap",
    "_orphans.judge_late",
    "_decoy_keeper.start",
    "_decoy_keeper.aim",
]


@pytest.mark.parametrize("step", REGULAR_STEPS)
async def test_regular_step_that_fails_is_logged_and_all_steps_run_again(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    runs = dict.fromkeys(REGULAR_STEPS, 0)

    def counted(name: str, run: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def count() -> None:
            runs[name] += 1
            if name == step:
                raise KeyError("broken")
            run()

        return count

    for name in runs:
        attribute, method = name.split(".")
        owner = getattr(supervisor, attribute)
        monkeypatch.setattr(owner, method, counted(name, getattr(owner, method)))
    with logged_events() as logged:
        async with asyncio.timeout(RunningServer.patience_s):
            while min(runs.values()) < 2:
                await asyncio.sleep(0.02)
    failed = [each for each in logged if "a regular step of the supervisor failed" in each["event"]]
    assert len(failed) >= 2
    assert {each["level"] for each in failed} == {"error"}


async def test_without_pidfd_a_thread_waits(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int) -> int:
        raise OSError("no such system call")

    monkeypatch.setattr(os, "pidfd_open", missing)
    assert (await Run(supervisor, "exit 4").ended()).exit_code == 4


async def test_a_command_whose_exit_nothing_can_wait_for_is_not_left_running(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has no pidfd, and the limit of processes allows no more threads."""

    def missing(pid: int) -> int:
        raise OSError("no such system call")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    await Run(supervisor, "the guardian starts with the first command").ended()
    mark = f"/mark/{uuid.uuid4()}"
    descriptors = os.listdir("/proc/self/fd")
    with monkeypatch.context() as context:
        context.setattr(os, "pidfd_open", missing)
        context.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OutOfResources, match="sleep 60: no thread can wait for its exit; the container's limit"):
            supervisor.start(
                ["/bin/sleep", "60"], {"M": mark}, mark=mark, stdout=bytearray().extend, stderr=bytearray().extend
            )
    assert not [each for each in proc.processes() if mark.encode() in proc.environment_of(each.pid)]
    until_no_descriptor_is_left(descriptors)
    assert supervisor.running == 0


async def test_without_a_list_of_children_all_of_proc_is_read(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children_module.Children, "pids", lambda _: None)
    run = Run(supervisor, STRAGGLERS["daemon"])
    assert (await run.ended()).survivors == 0
    assert run.living() == []


PIPE_CHANGES = {
    "mode": "os.fchmod(fd, 0)",
    "size": "fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)",
    "no waiting": "os.set_blocking(fd, False)",
    "packets": "fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)",
    "signal": "fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)",
    "owner of signals": "fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid())",
    "signals": "fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)",
    "lock of flock": "fcntl.flock(fd, fcntl.LOCK_EX)",
    "lock of a range": "fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))",
}
if os.geteuid() == 0:  # only root can give a pipe away
    PIPE_CHANGES["owner"] = "os.fchown(fd, 4, 4)"
LOOK_AT_PIPES = """
for fd in 1, 2:
    status = os.fstat(fd)
    seen = [oct(status.st_mode), status.st_uid, status.st_gid]
    seen += [fcntl.fcntl(fd, look) for look in (fcntl.F_GETFL, fcntl.F_GETPIPE_SZ, fcntl.F_GETOWN, fcntl.F_GETSIG)]
    again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.fcntl(again, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    print(seen)
"""


@pytest.mark.parametrize("change", PIPE_CHANGES.values(), ids=PIPE_CHANGES)
async def test_pipe_that_a_command_has_changed_is_not_the_next_ones(
    supervisor: Supervisor, tmp_path: Path, change: str
) -> None:
    """Node.js makes its stdout non-blocking, which holds for all processes that have that pipe."""
    start = "import fcntl, os, signal, struct\n"
    (tmp_path / "look.py").write_text(start + LOOK_AT_PIPES)
    (tmp_path / "change.py").write_text(start + f"for fd in 1, 2:\n    {change}\n")
    seen = []
    for name in ("look", "change", "look"):
        run = Run(supervisor, f"{sys.executable} {tmp_path}/{name}.py")
        assert (await run.ended()).exit_code == 0, run.err
        seen.append(bytes(run.out))
    assert seen[0] == seen[2] != b""


async def test_two_at_a_time_have_pipes_of_their_own(supervisor: Supervisor) -> None:
    for _ in range(3):
        runs = [Run(supervisor, f"echo {n}; echo {n} >&2; sleep 0.05; echo {n}") for n in range(5)]
        for n, run in enumerate(runs):
            assert (await run.ended()).exit_code == 0
            assert bytes(run.out) == b"%d\n%d\n" % (n, n)
            assert bytes(run.err) == b"%d\n" % n


async def test_a_hidden_process_does_not_write_into_the_pipe_of_the_next_command(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process survives SIGKILL, like a process that sleeps in a dead network disk."""
    monkeypatch.setattr(tree_module, "_UNKILLABLE_S", 0.05)
    with monkeypatch.context() as context:
        context.setattr(proc, "signal_each", lambda *_, **__: None)
        hidden = f"setsid sh -c 'echo $$ > {tmp_path}/pid; while :; do echo late; sleep 0.01; done' & "
        ended = await Run(supervisor, hidden + f"until [ -s {tmp_path}/pid ]; do :; done").ended()
    assert ended.survivors
    assert not ended.is_tree_gone
    run = Run(supervisor, "sleep 0.2")
    await run.ended()
    assert run.out == b""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


async def test_no_descriptor_is_left(supervisor: Supervisor) -> None:
    await Run(supervisor, "true").ended()
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        await Run(supervisor, "exit 1").ended()
        with contextlib.suppress(ScriptUnavailable):
            await run_command(supervisor, ["/no/such"], {}, mark="/m", stdout=lambda d: None, stderr=lambda d: None)
    until_no_descriptor_is_left(before)


def until_no_descriptor_is_left(before: list[str]) -> None:
    """Wait until no other descriptor than before is open. A thread may have a file of ``/proc`` open for a moment."""
    until(lambda: set(os.listdir("/proc/self/fd")) <= set(before), "the descriptors to be closed")


@pytest.mark.parametrize("grace_s", [0.0, 60.0])
@pytest.mark.parametrize("leaves", ["in its session", "in another session"])
async def test_what_a_command_left_is_ended_though_no_descriptor_is_free(
    supervisor: Supervisor, tmp_path: Path, leaves: str, grace_s: float
) -> None:
    await Run(supervisor, "true").ended()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    wake_up = os.open(fifo, os.O_RDWR)
    before = os.listdir("/proc/self/fd")
    start = "setsid " if leaves == "in another session" else ""
    run = Run(supervisor, f"{start}sleep 600 & echo left; read < {fifo}; exit 3", kill_grace_s=grace_s)
    await run.line("left")
    with free_descriptors(0):
        os.write(wake_up, b"\n")
        ended = await run.ended()
    assert (ended.exit_code, ended.left) == (3, {"sleep": 1})
    assert run.living() == []
    until_no_descriptor_is_left(before)
    os.close(wake_up)


async def test_cpu_and_memory_of_the_script(supervisor: Supervisor) -> None:
    size = proc.own_peak_rss_bytes() + 100_000_000  # a peak below that of this process cannot be measured
    code = f"x = bytearray({size}); sum(range(3_000_000))"
    ended = await Run(supervisor, f"{sys.executable} -c '{code}'").ended()
    assert ended.cpu_s > 0.01
    assert ended.peak_rss_bytes is not None
    assert size < ended.peak_rss_bytes < size + 100_000_000


async def test_a_peak_that_may_be_that_of_the_server_is_not_reported(supervisor: Supervisor) -> None:
    assert (await Run(supervisor, "true").ended()).peak_rss_bytes is None


async def test_an_environment_that_is_too_large_is_reported(supervisor: Supervisor) -> None:
    environment = {f"V{n}": "x" * 100_000 for n in range(100)}
    with pytest.raises(ScriptUnavailable, match="its environment has 100"):
        await run_command(
            supervisor, ["/bin/true"], environment, mark="/m", stdout=lambda d: None, stderr=lambda d: None
        )


def test_as_pid_1_orphans_are_reaped_and_the_status_is_true(tmp_path: Path) -> None:
    """The program is PID 1 of its own process namespace."""
    code = """
import asyncio, os, sys
from watchdog.process.supervisor import Supervisor
from watchdog.system.proc import processes
async def main():
    supervisor = Supervisor()
    out = bytearray()
    script = "(setsid sleep 60 &); (setsid sleep 0.1 &); sleep 0.3; exit 6"
    child = supervisor.start(["/bin/bash", "-c", script], dict(os.environ), mark="/m",
                             stdout=out.extend, stderr=out.extend)
    ended = await supervisor.until_ended(child)
    print(os.getpid(), ended.exit_code, [p.pid for p in processes()])
asyncio.run(main())
"""
    assert shutil.which("unshare"), "util-linux is needed"
    done = subprocess.run(
        [*AS_PID_1, sys.executable, "-c", code],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1 6 [1]\n", done.stderr


@pytest.mark.parametrize("leave", ["os.setsid()", "pass"])
async def test_a_chain_of_forks_is_caught(supervisor: Supervisor, tmp_path: Path, leave: str) -> None:
    """Each process of the chain forks the next one and exits. None lives long enough to be in a list of processes."""
    chain = f"""
import os, time
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    {leave}
open({str(tmp_path / "survived")!r}, "w").close()
"""
    run = Run(supervisor, f"echo up; {sys.executable} -c '{chain.replace(chr(39), chr(34))}' & sleep 0.3; exit 3")
    ended = await run.ended()
    assert (ended.exit_code, ended.survivors) == (3, 0)
    assert run.living() == []
    assert not (tmp_path / "survived").exists()


@pytest.mark.parametrize(
    ("ends", "longest_exit_s", "is_gone"),
    [
        pytest.param(True, 60.0, True, id="ends"),
        pytest.param(False, 0.2, False, id="hangs"),
        pytest.param(True, 0.0, False, id="not waited for"),
    ],
)
async def test_a_process_that_exits_shows_nothing_but_its_child_does(
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ends: bool,
    longest_exit_s: float,
    is_gone: bool,
) -> None:
    """On a busy machine, a process may stay for a long time between the loss of its environment and its end.

    Until its end, its child is not a child of the server. A test cannot make this moment longer, so it changes what
    /proc shows. A process that hangs in its exit for ever does not delay the answer for ever.
    """
    monkeypatch.setattr(orphans_module, "_EXIT_S", longest_exit_s)
    monkeypatch.setattr(limit_mark_of(supervisor), "read", lambda pid: None)
    (tmp_path / "parent.sh").write_text(f"sleep 60 & until [ -e {tmp_path}/go ]; do sleep 0.01; done")
    other = Run(supervisor, "echo up; sleep 60")
    await other.line("up")
    run = Run(
        supervisor,
        f"setsid sh -c 'echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; . {tmp_path}/parent.sh' "
        f"> /dev/null 2>&1 & until [ -e {tmp_path}/pid ]; do sleep 0.01; done; exit 3",
    )
    looks = 0
    real_process, real_environment = proc.process, proc.environment_of

    def is_parent(pid: int) -> bool:
        path = tmp_path / "pid"
        return path.exists() and pid == int(path.read_text())

    def exiting(pid: int) -> proc.Process | None:
        nonlocal looks
        found = real_process(pid)
        if found is not None and is_parent(pid):
            found.is_exiting = True
            looks += 1
            if ends and looks == 40:
                (tmp_path / "go").touch()
        return found

    monkeypatch.setattr(proc, "process", exiting)
    monkeypatch.setattr(proc, "environment_of", lambda pid: b"" if is_parent(pid) else real_environment(pid))
    ended = await run.ended()
    monkeypatch.undo()
    assert (ended.exit_code, ended.survivors) == (3, 0)
    assert (run.living() == []) is is_gone
    supervisor.end_all(at_once=True)
    await other.ended()
    async with asyncio.timeout(60):  # a killed process is alive until it has run once more
        while run.living():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("leave", ["sleep 60 &", "setsid sleep 60 &", "env -i setsid sleep 60 &"])
@pytest.mark.parametrize("is_spared", [True, False])
async def test_the_search_sends_no_signal_to_an_orphan_of_another_command(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, leave: str, is_spared: bool
) -> None:
    """A process that is stopped and continued has run, so its own command would count it as working."""
    monkeypatch.setattr(orphans_module, "_CHASE_S", 60.0)
    supervisor._reap_handle.cancel()  # on a slow machine, the regular work would find the orphan first
    run, other = (Run(supervisor, f"{leave_it} echo up; read", stdin=endless()) for leave_it in (f"({leave});", ""))
    await run.line("up")
    await other.line("up")
    children = {child.mark.decode(): child for child in supervisor._children.values()}

    until(lambda: sleeping_orphans(supervisor), "the orphan")
    signalled: list[int] = []
    real_kill = os.kill

    def kill(pid: int, number: int) -> None:
        signalled.append(pid)
        real_kill(pid, number)

    with monkeypatch.context() as context:
        context.setattr(os, "kill", kill)
        if not is_spared:
            context.setattr(Ownership, "owner_of", lambda *_: None)
        supervisor._orphans.chase(children[other.mark])
    assert (signalled == []) is is_spared
    supervisor.end_all(at_once=True)
    await asyncio.gather(run.ended(), other.ended())
    assert sleeping_orphans(supervisor) == []


async def test_a_stopped_process_of_nobody_stays_stopped(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is PID 1 of a container, and a user has stopped the process in a shell of `docker exec`."""
    take_no_orphan_for_a_scripts(supervisor, monkeypatch)
    run = Run(supervisor, "(env -i setsid sleep 60 >/dev/null 2>&1 <&1 &); echo up; read", stdin=endless())
    await run.line("up")

    until(lambda: sleeping_orphans(supervisor), "the orphan")
    (orphan,) = sleeping_orphans(supervisor)
    os.kill(orphan.pid, signal.SIGSTOP)
    until(lambda: sleeping_orphans(supervisor)[0].state == "T", "its stop")
    (child,) = supervisor._children.values()
    until(lambda: supervisor._orphans.chase(child), "the search to come to rest")
    assert sleeping_orphans(supervisor)[0].state == "T"
    assert supervisor.unattributed == 1
    assert supervisor._orphans.certainly_nothing_left(child), "it is not looked at again"
    os.kill(orphan.pid, signal.SIGKILL)
    while supervisor.unattributed:
        supervisor._orphans.reap()
        await asyncio.sleep(0.01)
    supervisor.end_all(at_once=True)
    await run.ended()


def sleeping_orphans(supervisor: Supervisor) -> list[proc.Process]:
    from_before = supervisor._orphans._from_before
    return [
        each
        for each in proc.processes()
        if each.parent == os.getpid() and each.name == "sleep" and each.pid not in from_before
    ]


def limit_mark_of(supervisor: Supervisor) -> LimitMark:
    return supervisor._orphans.ownership._limit_mark


def take_no_orphan_for_a_scripts(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose scripts may raise their limits, an orphan may come from `docker exec`."""
    monkeypatch.setattr(supervisor._orphans.ownership, "_all_orphans_are_ours", False)
    monkeypatch.setattr(limit_mark_of(supervisor), "read", lambda pid: None)
    monkeypatch.setattr(limit_mark_of(supervisor), "is_firm", False)


def hiding(directory: Path) -> str:
    """A script that leaves a process without its session, environment and pipes, with its pid in a file."""
    (directory / "hide").write_text(f"echo $$ > {directory}/new; mv {directory}/new {directory}/pid; exec sleep 60")
    return f"env -i setsid /bin/sh {directory}/hide >/dev/null 2>&1 & until [ -e {directory}/pid ]; do :; done"


@pytest.mark.parametrize("are_noticed", [True, False])
async def test_nothing_is_used_again_beside_a_process_of_unknown_origin(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, are_noticed: bool
) -> None:
    take_no_orphan_for_a_scripts(supervisor, monkeypatch)
    if not are_noticed:
        monkeypatch.setattr(Orphans, "unattributed", 0)
    run = Run(supervisor, hiding(tmp_path))
    assert (await run.ended()).is_tree_gone is not are_noticed
    assert (await Run(supervisor, "true").ended()).is_tree_gone is not are_noticed
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    async with asyncio.timeout(RunningServer.patience_s):
        while not (await Run(supervisor, "true").ended()).is_tree_gone:
            supervisor._orphans.reap()


@pytest.mark.parametrize("is_pid_1", [True, False])
@pytest.mark.parametrize("is_quick", [True, False])
async def test_a_hidden_process_ends_with_its_command_while_others_run(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_pid_1: bool, is_quick: bool
) -> None:
    monkeypatch.setattr(supervisor._orphans.ownership, "_all_orphans_are_ours", not is_pid_1)
    if is_quick:  # forked before its command got its hard limit
        monkeypatch.setattr(limit_mark_of(supervisor), "give", lambda pid, value: None)
    other = Run(supervisor, "echo up; read", stdin=endless())
    await other.line("up")
    ended = await Run(supervisor, hiding(tmp_path)).ended()
    assert ended.is_tree_gone
    assert ended.left == {"sleep": 1}
    assert proc.process(int((tmp_path / "pid").read_text())) is None
    supervisor.end_all(at_once=True)
    await other.ended()


@pytest.mark.parametrize("is_pid_1", [True, False])
async def test_a_process_of_an_unknown_command_ends_with_the_last_that_it_may_belong_to(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_pid_1: bool
) -> None:
    """It has lowered its limit below the values of all commands."""
    monkeypatch.setattr(supervisor._orphans.ownership, "_all_orphans_are_ours", not is_pid_1)
    first = Run(supervisor, "echo up; read", stdin=endless())
    await first.line("up")
    assert not (await Run(supervisor, f"ulimit -x 1000; {hiding(tmp_path)}").ended()).is_tree_gone
    pid = int((tmp_path / "pid").read_text())
    assert supervisor.unattributed == 1
    later = Run(supervisor, "echo up; read", stdin=endless())
    await later.line("up")
    os.kill(next(iter(supervisor._children)), signal.SIGKILL)
    await first.ended()
    until(lambda: proc.process(pid) is None, "the end of the process, although a command that came later runs")
    assert supervisor.unattributed == 0
    supervisor.end_all(at_once=True)
    await later.ended()


async def test_a_process_of_a_script_that_comes_late_is_ended(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as context:
        # The search finds nothing, as if the process had become a child only after it.
        context.setattr(Orphans, "_candidates", lambda self, child: [])
        await Run(supervisor, hiding(tmp_path)).ended()
    pid = int((tmp_path / "pid").read_text())
    async with asyncio.timeout(RunningServer.patience_s):
        while proc.process(pid) is not None:
            await asyncio.sleep(0.01)


async def test_a_child_of_others_is_left_alone_where_the_mark_is_firm(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server is PID 1. A process that `docker exec` left has no mark, and gets no signal."""
    monkeypatch.setattr(supervisor._orphans.ownership, "_all_orphans_are_ours", False)
    monkeypatch.setattr(limit_mark_of(supervisor), "is_firm", True)
    real = limit_mark_of(supervisor).read
    elsewhere: set[int] = set()
    monkeypatch.setattr(limit_mark_of(supervisor), "read", lambda pid: None if pid in elsewhere else real(pid))
    # It runs in a subshell, so the end of the subshell makes it an orphan.
    run = Run(supervisor, f"({hiding(tmp_path)}); echo up; read", stdin=endless())
    await run.line("up")
    pid = int((tmp_path / "pid").read_text())
    elsewhere.add(pid)
    supervisor.end_all(at_once=False)
    assert (await run.ended()).is_tree_gone
    assert supervisor.unattributed == 0
    assert (await Run(supervisor, "true").ended()).is_tree_gone
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(RunningServer.patience_s):
        while proc.process(pid) is not None:
            supervisor._orphans.reap()
            await asyncio.sleep(0.01)


async def test_a_process_that_waits_for_the_rest_of_the_body_is_not_idle(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    many_looks = asyncio.Event()
    real = Tree.is_working

    async def counted(self: Tree, *arguments: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks == 12:  # for an idle process, there are at most six checks
            many_looks.set()
        return await real(self, *arguments)

    monkeypatch.setattr(Tree, "is_working", counted)

    async def body() -> AsyncIterator[bytes]:
        yield b"first, "
        await many_looks.wait()
        yield b"last"

    run = Run(supervisor, "exec 3<&0; cat <&3 &", stdin=body(), linger_timeout_s=300)
    assert (await run.ended()).exit_code == 0
    assert run.out == b"first, last"


async def endless() -> AsyncIterator[bytes]:
    """Yield a stdin that never ends and has no bytes."""
    await asyncio.Event().wait()
    yield b""


async def test_a_timeout_needs_neither_thread_nor_descriptor(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([OSError(24, "Too many open files")] * 3)
    real = Ownership.tree_of

    def scarce(self: Ownership, *arguments: Any) -> list[proc.Process]:
        for failure in failures:
            raise failure
        return real(self, *arguments)

    monkeypatch.setattr(Ownership, "tree_of", scarce)
    run = Run(supervisor, "setsid sleep 60 & sleep 60", timeout_s=0.2)
    assert (await run.ended()).timed_out
    assert run.living() == []


@pytest.mark.parametrize("is_spared", [True, False])
async def test_what_a_trap_starts_is_not_asked_to_end(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_spared: bool
) -> None:
    """The tree is listed after the group got SIGTERM. By then, a trap may have started a process."""
    real_living, real_signal = Tree.living, proc.signal_each

    async def tree_after_the_trap(self: Tree) -> list[proc.Process]:
        while not (tmp_path / "began").exists():
            await asyncio.sleep(0.001)
        return await real_living(self)

    def signal(processes: Iterable[proc.Process], number: int, **options: int) -> None:
        real_signal(processes, number, **(options if is_spared else {}))
        (tmp_path / "signalled").touch()

    monkeypatch.setattr(Tree, "living", tree_after_the_trap)
    monkeypatch.setattr(proc, "signal_each", signal)
    tidy = f"touch {tmp_path}/began; until [ -e {tmp_path}/signalled ]; do sleep 0.1; done; touch {tmp_path}/tidied\n"
    (tmp_path / "tidy").write_text(tidy)
    run = Run(supervisor, f"trap 'sh {tmp_path}/tidy; exit 0' TERM; sleep 60 & wait", timeout_s=2, kill_grace_s=60)
    assert (await run.ended()).timed_out
    assert (tmp_path / "tidied").exists() is is_spared


def test_as_pid_1_a_signal_while_it_starts_ends_it() -> None:
    code = """
import os, signal, sys
sys.argv = ["watchdog", "--version"]
import builtins
real = builtins.__import__
def importing(name, *rest):
    if name == "cli" or name.endswith(".cli"):
        os.kill(os.getpid(), signal.SIGTERM)
    return real(name, *rest)
builtins.__import__ = importing
from watchdog.__main__ import main
main()
"""
    done = subprocess.run([*AS_PID_1, sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


@pytest.mark.parametrize("as_pid_1", [False, True])
def test_a_daemon_of_the_entry_point_is_left_alone(as_pid_1: bool) -> None:
    """An entry point may start a daemon and exec this program. The daemon is a child of the server, not of a script."""
    code = """
import asyncio, os
from watchdog.process.supervisor import Supervisor
from watchdog.system.proc import processes
def daemons(guardian=0):
    return [p.pid for p in processes() if p.parent == os.getpid() and p.is_alive and p.pid != guardian]
async def main():
    before = daemons()
    supervisor = Supervisor()
    for _ in range(2):
        script = "setsid sleep 60 & (env -i setsid sleep 60 &); sleep 0.2; exit 6"
        child = supervisor.start(["/bin/bash", "-c", script], dict(os.environ), mark="/m",
                                 stdout=lambda data: None, stderr=lambda data: None)
        ended = await supervisor.until_ended(child)
        print(ended.exit_code, len(before), daemons(supervisor._guardian.pid) == before)
asyncio.run(main())
for pid in daemons():
    os.kill(pid, 9)
"""
    inside = ["/bin/bash", "-c", 'sleep 60 >/dev/null & exec "$0" -c "$1"', sys.executable, code]
    unshared = AS_PID_1 if as_pid_1 else ()
    done = subprocess.run([*unshared, *inside], capture_output=True, text=True)
    assert done.stdout == "6 1 True\n" * 2, done.stderr


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("echo hi\n", ["/bin/sh", "{}"]),
        ("#!/bin/bash\n", ["/bin/bash", "{}"]),
        ("#!/bin/bash -e\r\n", ["/bin/bash", "-e", "{}"]),
        ("#! /usr/bin/env python3\n", ["/usr/bin/env", "python3", "{}"]),
        ("#!/usr/bin/env -S python3 -u\n", ["/usr/bin/env", "-S python3 -u", "{}"]),
        ("#!/opt/elsewhere/sh -x\n", ["{bin}/sh", "-x", "{}"]),
        ("#!/opt/nowhere/env sh -x\n", ["{env}", "sh -x", "{}"]),
        ("", ["/bin/sh", "{}"]),
    ],
)
def test_command_for(tmp_path: Path, text: str, command: list[str]) -> None:
    script = tmp_path / "script.sh"
    script.write_text(text, newline="")
    script.chmod(0o644)
    places = {"{}": str(script), "{bin}/sh": shutil.which("sh"), "{env}": shutil.which("env")}
    expected = [places.get(word, word) for word in command]
    assert command_for(str(script), os.environ["PATH"]) == expected


def test_command_for_without_env_in_the_image(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("#!/no/env -S mysh -u\n")
    (tmp_path / "mysh").symlink_to("/bin/sh")
    assert command_for(str(script), str(tmp_path)) == [str(tmp_path / "mysh"), "-u", str(script)]


def test_command_for_a_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    assert command_for(str(program), "") == [str(program)]
    program.chmod(0o644)
    with pytest.raises(ScriptUnavailable, match="not executable"):
        command_for(str(program), "")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "there is no script at"),
        ("#!/no/such/thing\n", "the interpreter /no/such/thing of"),
        ("#!\n", "empty #!"),
        ("#!/bin/\0sh\n", "the first line of"),
    ],
)
def test_command_for_reports_what_is_missing(tmp_path: Path, text: str | None, part: str) -> None:
    script = tmp_path / "script.sh"
    if text is not None:
        script.write_text(text)
    with pytest.raises(ScriptUnavailable, match=part):
        command_for(str(script), "/bin")


def test_command_for_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ScriptUnavailable, match="is a directory"):
        command_for(str(tmp_path), "/bin")


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_command_for_a_file_that_is_not_regular(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "script.sh")
    with socket.socket(socket.AF_UNIX) as sock:
        if kind == "fifo":
            os.mkfifo(path)
        else:
            sock.bind(path)
        with pytest.raises(ScriptUnavailable, match="cannot be read: it is not a regular file"):
            command_for(path, "/bin")


async def test_a_hundred_at_once(supervisor: Supervisor, tmp_path: Path) -> None:
    """Each of them waits until all have started."""
    os.mkfifo(tmp_path / "go")
    runs = [Run(supervisor, f": > {tmp_path}/up-{n}; read line < {tmp_path}/go; exit {n}") for n in range(100)]
    async with asyncio.timeout(RunningServer.patience_s):
        while len(list(tmp_path.glob("up-*"))) < len(runs):
            await asyncio.sleep(0.01)
    # A reader that is still on its way to the FIFO finds this end open, and the line in it.
    go = os.open(tmp_path / "go", os.O_RDWR)
    try:
        os.write(go, b"\n" * len(runs))
        results = await asyncio.gather(*(run.ended() for run in runs))
    finally:
        os.close(go)
    assert [ended.exit_code for ended in results] == list(range(100))
