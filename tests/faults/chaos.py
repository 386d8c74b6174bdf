"""Call a server while processes are killed and scripts leave processes. No answer may be wrong, and nothing may stay.

::

    python tests/faults/chaos.py kills --calls 20000
    python tests/faults/chaos.py daemons --calls 100000 --place user

``kills``: scripts and the guardian are killed at random, callers leave at random moments, and the server is ended by
SIGTERM or SIGKILL under load and started again. ``daemons``: each script leaves a hidden process, or a pipe that it
changed. Such a process writes the name of its call to all places that it can reach, until it is ended.

Each call has a name. An answer may contain that name and no name of another call, and must have exactly the bytes that
the call asked for. Any other result must have a cause: the log of the kills must name a killed script, and a refused or
broken connection needs an end of the server. The exit code is 0 if everything is explained and nothing is left.

The calls are divided among these places, one place after the other:

- ``root``, ``root-pid-1``: the server runs as root, with several scripts at a time. In the second place it is PID 1 of
  its own namespace.
- ``user``, ``user-pid-1``: the server runs as user 1000 without any capability, with one script at a time. If that user
  cannot read the Python that runs this program, it is user 0 without any capability.

``--weather`` adds faults: the wall clock jumps by a day each time that it is read (``clock``), the file system of
``tmp_dir`` has 400 KiB (``disk``, as root), or one script in ten uses more memory than the group has (``memory``, as
root). Errors that are due to these faults are then expected, too.

If an ordinary user starts this program, the server always runs as that user. The same ``--seed`` makes the same
choices, but their order in time depends on the machine. ``soak.py`` compares memory and threads over a long time; this
program does not.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import enum
import functools
import os
import platform
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from control_groups import joining, made_control_group
from ledger import Ledger, Note
from leftovers import children, described, descriptors, processes_with
from lifeline import Lifeline
from running_server import AS_PID_1, WITHOUT_PRIVILEGES, Answer, free_port
from soak import print_rows
from soaked_server import SoakedServer
from wanted import files_fault
from wire import Lost, hang_up, head, receive, send

from watchdog.process.guardian import NAME as GUARDIAN
from watchdog.workspace.spool import TAIL_BYTES

IS_ROOT = os.geteuid() == 0
USER = 1000
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *WITHOUT_PRIVILEGES[1:])
PLACES = 4
CALLERS = 12
PATIENCE_S = 60.0
FRESH_S = 0.1  # after this time, a server that stops treats a new connection as idle
MOST_PRINTED = 20
PRCTL = {"x86_64": 157, "aarch64": 167}  # the number of the system call, for Perl

# The query says what a script does. A process that a search of the environment can find would live for ten minutes. A
# process that the guardian of a killed server cannot find (docs/explanation/reliability.md) ends itself after 20
# seconds.
SCRIPT = r"""
set -e
cd "$TMP_OUTPUT_DIR"
echo "$CALL_ID says it"
case $Http_Query in
    *do=copy*) ;;
    *do=work*) sleep 0.1; echo "$CALL_ID works"; sleep 0.1 ;;
    *do=background*) sleep 600 & ;;
    *do=session*) setsid sh -c 'sleep 600; sleep 600' & ;;
    *do=many*) for i in 1 2 3 4 5; do (trap '' TERM; sleep 600; sleep 600) & done ;;
    *do=empty-silent*) env -i setsid sh -c "$TICKS" "$CALL_ID" </dev/null >/dev/null 2>&1 & ;;
    *do=empty*) env -i setsid sh -c "$TICKS" "$CALL_ID" & ;;
    *do=undumpable-silent*) setsid perl -e "$HIDES" "$CALL_ID" </dev/null >/dev/null 2>&1 & ;;
    *do=undumpable*) setsid perl -e "$HIDES" "$CALL_ID" & ;;
    *do=pipe*) perl -e "$CHANGES" ;;
    *do=hog*) head -c 400M /dev/zero | tail -c 400M >/dev/null ;;
    *) echo "$CALL_ID: unknown" >&2; exit 99 ;;
esac
cat "$INPUT_FILE_PATH" >out
echo "$CALL_ID ends" >&2
"""
# Writes again and again to each stream, to an open output file, and to a path in the output directory. It ends itself
# after 20 s.
TICKS = """
exec 3>>daemon.log
i=0
while [ $i -lt 1000 ]; do
    i=$((i + 1))
    echo "$0 was here"
    echo "$0 was here" >&2
    echo "$0 was here" >&3
    echo "$0 was here" >>daemon.path
    sleep 0.02
done
"""
HIDES = """
syscall($ENV{PRCTL} + 0, 4, 0, 0, 0, 0); # PR_SET_DUMPABLE, linux/prctl.h
my $line = "$ARGV[0] was here\\n";
open(my $log, ">>", "daemon.log");
for (1 .. 1000) {
    syswrite(STDOUT, $line); syswrite(STDERR, $line); syswrite($log, $line);
    if (open(my $path, ">>", "daemon.path")) { syswrite($path, $line); }
    select(undef, undef, undef, 0.02);
}
"""
CHANGES = """
use Fcntl qw(:flock F_SETFL O_NONBLOCK);
for my $stream (*STDOUT, *STDERR) {
    fcntl($stream, 1031, 4096); # F_SETPIPE_SZ, linux/fcntl.h
    fcntl($stream, F_SETFL, O_NONBLOCK);
    flock($stream, LOCK_EX | LOCK_NB);
    chmod(0, $stream);
}
chmod(0700, "."); chmod(0755, "..");
"""
KILL_KINDS = {"copy": 5, "work": 10, "background": 1, "session": 1, "many": 1, "empty-silent": 1, "pipe": 1}
DAEMON_KINDS = {"empty": 1, "empty-silent": 1, "undumpable": 1, "undumpable-silent": 1, "pipe": 1}
MEMORY_BYTES = 250 << 20
DISK_BYTES = 400 << 10
# The errors of calls, and the outcomes in the log, that are due to the weather.
WEATHERS: dict[str, tuple[int, frozenset[str]]] = {
    "calm": (0, frozenset()),
    "clock": (0, frozenset()),
    "disk": (507, frozenset({"no_space"})),
    "memory": (500, frozenset({"out_of_memory"})),
}
NAME = re.compile(rb"chaos-[0-9a-f]+-\d+-\d+-\d+-end")  # the name of a call: run, server, caller, serial number
SERVED = frozenset({"ok"})
SIGNALLED = frozenset({"failed", "killed"})
FAILED = SIGNALLED.union(*(outcomes for _, outcomes in WEATHERS.values()))
# The outcomes of a call whose answer did not come, or reported that the server is stopping.
CUT = SERVED | FAILED | {"caller_gone", "drained"}


class End(enum.Enum):
    """How the test ended a server."""

    NOT_YET = "it runs"
    TERM = "SIGTERM"
    KILL = "SIGKILL"


@dataclass(frozen=True, slots=True)
class Where:
    """How a server is started. ``user``: the user that it runs as."""

    name: str
    prefix: tuple[str, ...]
    is_pid_1: bool
    user: int
    most_scripts: int


PLACE_NAMES = ("root", "root-pid-1", "user", "user-pid-1") if IS_ROOT else ("user", "user-pid-1")


def places() -> dict[str, Where]:
    if IS_ROOT:
        user = USER if _can_run_the_server(AS_USER) else 0
        as_user = AS_USER if user else WITHOUT_PRIVILEGES
        found = [
            Where("root", (), False, 0, PLACES),
            Where("root-pid-1", AS_PID_1, True, 0, PLACES),
            Where("user", as_user, False, user, 1),
            Where("user-pid-1", (*AS_PID_1, *as_user), True, user, 1),
        ]
    else:
        found = [
            Where("user", WITHOUT_PRIVILEGES, False, os.getuid(), 1),
            Where("user-pid-1", AS_PID_1, True, os.getuid(), 1),
        ]
    return {where.name: where for where in found}


@functools.cache
def _can_run_the_server(prefix: tuple[str, ...]) -> bool:
    """Return whether the server starts. For example, only root can start a Python in the home directory of root."""
    command = [*prefix, sys.executable, "-c", "import watchdog.http.server"]
    return subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True).returncode == 0


@functools.cache
def can_be_deaf(prefix: tuple[str, ...]) -> bool:
    """Return whether the kernel lets a server of this place keep new callers out before it closes its socket.

    Otherwise a caller that connects at the moment of the close is reset, and no server can prevent this.
    """
    code = """if True:
        import socket, sys
        from watchdog.http.listener import ignore_new_connections
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as caller:
            ignore_new_connections(listener)
            caller.settimeout(0.5)
            try:
                caller.connect(listener.getsockname())
            except TimeoutError:
                sys.exit(0)
            sys.exit(1)"""
    return (
        subprocess.run([*prefix, sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0
    )


class ChaosServer(SoakedServer):
    """One server after the other in the same directory.

    ``name``: the beginning of the names of its calls. ``end``: how the test ends this server; set before it does so.
    """

    def __init__(
        self,
        number: int,
        where: Where,
        options: argparse.Namespace,
        ledger: Ledger,
        directory: Path,
        script: str,
        mark: str,
    ) -> None:
        self.number = number
        self.end = End.NOT_YET
        self.can_be_deaf = can_be_deaf(where.prefix)
        self.ended_s = 0.0
        # Another run on this machine uses other names.
        self.name = f"chaos-{mark}-{number}"
        self.mark = f"CHAOS_MARK={self.name}-"
        # An ordinary user cannot look at the descriptors of a server with closed memory.
        removed = [*([] if IS_ROOT else ["hidden-memory"]), *([options.without] if options.without else [])]
        guards = str(Path(__file__).resolve().parents[1] / "guards.py")
        program = (guards, ",".join(removed)) if removed else ("-m", "watchdog")
        if options.weather == "clock":
            clock = str(Path(__file__).resolve().with_name("jumping_clock.py"))
            program = (clock, *(("--without", ",".join(removed)) if removed else ()))
        super().__init__(
            ledger,
            program,
            directory,
            script,
            prefix=(*options.first, *where.prefix),
            CHAOS_MARK=self.mark.partition("=")[2],
            TICKS=TICKS,
            HIDES=HIDES,
            PRCTL=str(PRCTL[platform.machine()]),
            CHANGES=CHANGES,
            PATH="/usr/local/bin:/usr/bin:/bin",
            WATCHDOG_METRICS_PORT=str(free_port()),
            WATCHDOG_MAX_INFLIGHT=str(where.most_scripts),
            WATCHDOG_MAX_QUEUE="1000",
            WATCHDOG_QUEUE_TIMEOUT="300s",
            WATCHDOG_EXEC_TIMEOUT="120s",
            # With every second server, processes that a script left may continue for a while. With the others they are
            # ended at once.
            WATCHDOG_LINGER_TIMEOUT="150ms" if number % 2 else "0",
        )
        self.pid = int(children(self.process.pid)[0].split()[0]) if where.is_pid_1 else self.process.pid
        # All scripts inherit a limit below this one, within the range of one server, and cannot remove it.
        self._limit = lock_limit(self.pid)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def guardians(self) -> list[int]:
        children = [int(child) for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        # Compare the name, because a script also has the arguments of the server until it has executed its first
        # program.
        return [pid for pid in children if name_of(pid) == GUARDIAN]

    def left(self) -> list[int]:
        """Return the living processes of this server and of its scripts, found by environment and limit."""
        found = set(processes_with(self.mark.encode()))
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if self._limit and self._limit - (1 << 32) < lock_limit(pid) <= self._limit:
                found.add(pid)
        return sorted(found)

    def look(self) -> Counter[str]:
        """Return the kinds of its descriptors, which are the same for each server."""
        names = [re.sub(r"watchdog-\w+|\d+", "_", name.partition(":[")[0]) for name in descriptors(self.pid)]
        return Counter(names)


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def lock_limit(pid: int) -> int:
    """Return the hard limit by which a server recognises its processes; 0 if there is none."""
    with contextlib.suppress(OSError, StopIteration):
        if "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            text = Path(f"/proc/{pid}/limits").read_text()
            hard = next(line.split()[4] for line in text.splitlines() if line.startswith("Max file locks"))
            return int(hard) if hard.isdigit() else 0
    return 0


def processes_named(call_id: str) -> list[int]:
    """Return the living processes with the name of a call in their arguments or their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if call_id.encode() in Path(f"/proc/{pid}/{name}").read_bytes():
                    found.append(int(pid))
                    break
    return found


@dataclass
class Books(Ledger):
    """The actions of the test, in addition to the ledger.

    ``killed``: signals to processes of a call, noted before they are sent.
    """

    killed: dict[str, set[int]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def left(self, call_id: str, note: Note, result: str = "none: the caller left") -> None:
        with self.lock:
            self.answers[result] += 1
            self.notes[call_id] = note

    def event(self, event: Mapping[str, Any]) -> None:
        # unshare(1) prints this when the server was killed.
        if not str(event.get("text", "")).startswith("unshare: "):
            super().event(event)

    def did(self, what: str) -> None:
        with self.lock:
            self.done[what] += 1

    def errors(self, by_force: set[int]) -> list[str]:
        """Return what is wrong with the log. A server that was killed has possibly not logged its last calls."""
        for call_id, note in self.notes.items():
            if int(call_id.split("-")[2]) in by_force:
                self.notes[call_id] = Note(note.outcomes, 0, note.most)
        return self.misfits() + [f"{count} x {text}" for text, count in self.bad_events.items()]

    def blame(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)
            if len(self.faults) <= MOST_PRINTED:
                print(f"    FAULT: {text}", flush=True)


def fault_of(
    answer: Answer, call_id: str, form: str, data: bytes, books: Books, end: End, weather: str = "calm"
) -> str | None:
    """Return what is wrong with the answer to a call that sent this data, or None. ``end``: how its server ended."""
    if answer.headers["X-Call-Id"] != call_id:
        return f"it is the answer to {answer.headers['X-Call-Id']}"
    text = str(answer.headers).encode() + answer.body
    if answer.status == 200 and form == "json":
        text += b"".join(base64.b64decode(output["data"]) for output in answer.json["outputs"])
    elif answer.status == 200 and form == "base64":
        text += base64.b64decode(answer.body)
    if strangers := {*NAME.findall(text)} - {call_id.encode()}:
        return f"it has bytes of {strangers}"
    if answer.status == 200:
        return _fault_of_success(call_id, form, data, answer)
    document = answer.json
    if document.get("status") != answer.status or document.get("call_id") != call_id:
        return f"a problem document of another call: {answer.body[:300]!r}"
    if answer.status == 503:
        return None if end is not End.NOT_YET else f"503 by a server that runs: {answer.body[:300]!r}"
    if answer.status == WEATHERS[weather][0] and (weather != "memory" or document.get("out_of_memory")):
        return None
    # When the server checks the disk, another call may already have freed space.
    if weather == "disk" and answer.status == 500 and "No space left on device" in document.get("stderr", ""):
        return None
    killed = books.killed.get(call_id, set())
    ended_by = {signal.Signals[document["signal"]].value} if document.get("signal") else set()
    ended_by |= {document.get("exit_code", 0) - 128}
    if answer.status == 500 and killed & ended_by:
        return None
    return f"status {answer.status} though it was sent the signals {killed}: {answer.body[:600]!r}"


def _fault_of_success(call_id: str, form: str, data: bytes, answer: Answer) -> str | None:
    if form != "json":
        return files_fault(form, {None: data}, answer.body)
    document = answer.json
    outputs = {output["name"]: base64.b64decode(output["data"], validate=True) for output in document["outputs"]}
    if outputs.pop("out", None) != data:
        return f"out is not what was sent: {answer.body[:600]!r}"
    if others := outputs.keys() - {"daemon.log", "daemon.path"}:
        return f"the outputs {sorted(others)} are of nobody"
    written = [*b"".join(outputs.values()).splitlines()]
    printed = [line.encode() for name in ("stdout", "stderr") for line in document[name].splitlines()]
    said = {"says it", "works", "ends", "was here"}
    allowed = {f"{call_id} {what}".encode() for what in said}
    # A shell prints how a child was killed.
    allowed |= {b"Killed", b"Terminated", b"Segmentation fault"}
    # The end of a stream may begin in the middle of a line.
    if odd := [line for line in (*written, *printed) if line not in allowed and not _is_end_of_one(line, allowed)]:
        return f"lines that the call did not write: {odd[:5]}"
    for name, line in (("stdout", f"{call_id} says it"), ("stderr", f"{call_id} ends")):
        # The answer has only the end of a stream. On a slow machine, it may have only lines of a daemon.
        if line not in document[name] and len(document[name].encode()) < TAIL_BYTES:
            return f"{name} lacks the script's line: {document[name]!r}"
    return None


def _is_end_of_one(line: bytes, allowed: Iterable[bytes]) -> bool:
    return any(each.endswith(line) for each in allowed)


class Stage:
    """The server that callers call now."""

    def __init__(self, start: Callable[[int], ChaosServer]) -> None:
        self._start = start
        self._changed = threading.Condition()
        self._server = start(0)

    @property
    def server(self) -> ChaosServer:
        return self._server

    def renew(self) -> None:
        server = self._start(self._server.number + 1)
        with self._changed:
            self._server = server
            self._changed.notify_all()

    def await_other_than(self, server: ChaosServer) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._server is not server, 2 * PATIENCE_S):
                raise TimeoutError("no new server came")


class Caller:
    """Calls again and again, and judges each answer."""

    def __init__(
        self,
        number: int,
        seed: str,
        stage: Stage,
        books: Books,
        kinds: dict[str, int],
        leaves: float,
        weather: str = "calm",
    ) -> None:
        self._number = number
        self._weather = weather
        self._dice = random.Random(f"{seed}/{number}")
        self._stage = stage
        self._books = books
        self._kinds = kinds
        self._looks_for_survivors = not leaves  # nothing is killed
        self._leaves = leaves
        self._serial = 0
        self._kept: tuple[ChaosServer, socket.socket] | None = None

    def call_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            try:
                self._call()
            except Exception as error:
                self._books.blame(f"caller {self._number}: {error!r}")
                time.sleep(0.1)
        self._hang_up()

    def _call(self) -> None:
        dice = self._dice
        server = self._stage.server
        self._serial += 1
        call_id = f"{server.name}-{self._number}-{self._serial}-end"
        kind = dice.choices([*self._kinds], [*self._kinds.values()])[0]
        leaves = dice.random() < self._leaves
        line = f"{call_id}\n".encode()
        size = dice.choices([0, 1, 2_000, 300_000], [1, 4, 4, 1])[0]
        data = line * (dice.randint(0, size) // len(line) + bool(size))
        form = "json" if kind != "copy" and kind != "work" else dice.choice(["json", "raw", "base64"])
        request = head(call_id, f"do={kind}&output={form}&input=raw", {}, len(data)) + data
        self._books.sent(kind)
        began_s = time.monotonic()
        if self._kept is None or self._kept[0] is not server or leaves:
            self._hang_up()
            try:
                self._kept = server, server.connection()
            except OSError as error:
                self._explain(server, call_id, error)
                return
            is_used = False
        else:
            is_used = True
        sock = self._kept[1]
        if leaves:
            self._leave(server, call_id, sock, request)
            return
        send(sock, request)
        sent_s = time.monotonic()
        try:
            answer = receive(sock)
        except Lost as lost:
            lost_s = time.monotonic()
            self._hang_up()
            # A kept connection may be closed between two answers. Its end shows that the call has not begun. This may
            # also happen on a new connection whose request is late, because the machine stalls.
            is_not_begun = lost.how == "none" and (is_used or sent_s - began_s > FRESH_S or not server.can_be_deaf)
            times = ", ".join(f"{each - server.ended_s:.3f}" for each in (began_s, sent_s, lost_s))
            times = f"began, sent, lost {times} s after {server.end.value}, used before: {is_used}"
            self._explain(server, call_id, lost, is_not_begun=is_not_begun, times=times)
            return
        if answer.headers["Connection"] == "close" or dice.random() < 0.3:
            self._hang_up()
        if fault := fault_of(answer, call_id, form, data, self._books, server.end, self._weather):
            self._books.blame(f"{call_id} ({kind}, {form}): {fault}")
        elif self._looks_for_survivors and (pids := processes_named(call_id)):
            self._books.blame(f"{call_id} ({kind}): {', '.join(map(described, pids))} lives after the answer")
        if answer.status == 503:
            self._books.left(call_id, Note(CUT, 0, 1), "503")
            self._stage.await_other_than(server)
        else:
            self._books.answered(call_id, str(answer.status), SERVED if answer.status == 200 else FAILED)

    def _leave(self, server: ChaosServer, call_id: str, sock: socket.socket, request: bytes) -> None:
        """Send a part of a call or all of it, perhaps read a part of the answer, and disconnect at a random moment."""
        dice = self._dice
        sent = dice.choice([len(request), len(request), dice.randint(1, len(request))])
        send(sock, request[:sent])
        if sent == len(request):
            time.sleep(dice.choice([0, dice.uniform(0, 0.5)]))
            if dice.random() < 0.3:
                sock.settimeout(0.5)
                with contextlib.suppress(OSError):
                    sock.recv(dice.randint(1, 100_000))
        hang_up(sock, hard=dice.random() < 0.5)
        self._kept = None
        self._books.left(call_id, Note(CUT, 0, 1))

    def _explain(
        self, server: ChaosServer, call_id: str, error: Exception, *, is_not_begun: bool = False, times: str = ""
    ) -> None:
        """Report a missing answer as a fault, unless the server was killed or its port was already closed."""
        end = server.end
        if end is End.KILL or (end is End.TERM and (isinstance(error, ConnectionRefusedError) or is_not_begun)):
            self._books.left(call_id, Note(CUT, 0, 1), f"none: {end.value} to the server")
            self._stage.await_other_than(server)
        else:
            self._books.left(call_id, Note(CUT, 0, 1), "none")
            self._books.blame(f"{call_id}: no answer, and {end.value}: {error!r} {times}")

    def _hang_up(self) -> None:
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None


class Gremlin:
    """Kills scripts and guardians, and ends servers, one thing after the other."""

    def __init__(self, seed: str, stage: Stage, books: Books, where: Where, lifeline: Lifeline) -> None:
        self._dice = random.Random(f"{seed}/gremlin")
        self._stage = stage
        self._books = books
        self._where = where
        self._lifeline = lifeline

    def act_until(self, part_done: Callable[[], float], terms: int, kills: int, *, harms: bool) -> None:
        """Spread these ends of servers over the calls. If ``harms``, kill scripts and guardians between them."""
        ends = [End.TERM] * terms + [End.KILL] * kills
        self._dice.shuffle(ends)
        ends_at = [(number + 1) / (len(ends) + 1) for number in range(len(ends))]
        while part_done() < 1:
            if ends and part_done() >= ends_at[0]:
                ends_at.pop(0)
                self.end_server(ends.pop(0))
            elif harms and self._dice.random() < 0.1 and not self._where.is_pid_1:
                self._harm_guardian()
            elif harms:
                self._kill_script()
            self._lifeline.was_held()  # each script writes into it, and a full pipe would block them
            time.sleep(self._dice.uniform(0, 0.2))

    def _kill_script(self) -> None:
        mark = self._stage.server.mark.encode()
        victims = processes_with(mark, b"\0CALL_ID=chaos-")
        if not victims:
            return
        pid = self._dice.choice(victims)
        number = self._dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                call_id = re.search(rb"\0CALL_ID=(chaos-[-0-9a-f]+-end)\0", environment)
                if call_id is None or mark not in environment:
                    return
                with self._books.lock:
                    self._books.killed.setdefault(call_id[1].decode(), set()).add(number)
                signal.pidfd_send_signal(pidfd, number)
                self._books.did(f"{number.name} to a process of a script")
            finally:
                os.close(pidfd)

    def _harm_guardian(self) -> None:
        guardians = self._stage.server.guardians()
        if len(guardians) > 1:
            self._books.blame(f"{len(guardians)} guardians")
        for pid in guardians:
            number = self._dice.choice([signal.SIGKILL, signal.SIGSTOP])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                self._books.did(f"{number.name} to a guardian")

    def end_server(self, end: End) -> None:
        """End the server under load, start the next one, and check that nothing of the first is left."""
        old = self._stage.server
        self._books.did(f"{end.value} to a server")
        if end is End.KILL:
            if not self._where.is_pid_1:
                wait_for(lambda: any(map(_is_awake, old.guardians())), "a guardian before SIGKILL")
            old.end, old.ended_s = End.KILL, time.monotonic()
            old.signal(signal.SIGKILL)
            old.process.wait(PATIENCE_S)
            self._stage.renew()
            old.kill()
            self._look_for(old, PATIENCE_S)
            return
        old.end, old.ended_s = End.TERM, time.monotonic()
        old.signal(signal.SIGTERM)
        code = old.wait()
        old.kill()
        if code:
            self._books.blame(f"a server ended with exit code {code} after SIGTERM")
        self._look_for(old, 0)
        self._stage.renew()

    def _look_for(self, old: ChaosServer, patience_s: float) -> None:
        """Report processes of an ended server as a fault: after SIGTERM at once, otherwise after some time."""
        deadline_s = time.monotonic() + patience_s
        while (pids := old.left()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        if pids:
            self._books.blame(f"left after {old.end.value}: {', '.join(map(described, pids))}")


def _is_awake(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ"
    return False


def wait_for(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.02)


# ---------------------------------------------------------------------------- the whole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=["kills", "daemons"])
    parser.add_argument("--calls", type=int, default=1000, help="calls at all places together (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600, help="the most for each place (default: %(default)s)")
    parser.add_argument(
        "--place", choices=PLACE_NAMES, action="append", help="one place; may be repeated (default: all)"
    )
    parser.add_argument(
        "--terms", type=int, help="SIGTERMs to servers at all places together (default: one for 600 calls)"
    )
    parser.add_argument("--kills", type=int, help="SIGKILLs to servers at all places together (default: half as many)")
    parser.add_argument("--callers", type=int, default=CALLERS, help="how many call at once (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for rest (default: %(default)s)")
    parser.add_argument("--weather", choices=[*WEATHERS], default="calm", help="see above (default: %(default)s)")
    parser.add_argument("--without", metavar="GUARD", help="take a guard of guards.py out: this must be noticed")
    parser.add_argument("--seed", type=int, help="of the dice (default: a new one, which is printed)")
    options = parser.parse_args(arguments)
    if platform.machine() not in PRCTL:
        parser.error(f"add the number of the system call prctl on {platform.machine()} to PRCTL in {__file__}")
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    print(f"{options.part}: {options.calls} calls, seed {seed}", flush=True)
    # If this program is ended early, its server must end, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = [where for name, where in places().items() if options.place is None or name in options.place]
    if options.terms is None:
        options.terms = max(len(chosen), options.calls // 600 if options.part == "kills" else 0)
    if options.kills is None:
        options.kills = -(-options.terms // 2) if options.part == "kills" else 0
    faults = calls = 0
    for number, where in enumerate(chosen):

        def share(total: int, number: int = number) -> int:
            return total * (number + 1) // len(chosen) - total * number // len(chosen)

        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            books = Books()
            run(Path(directory), where, options, f"{seed}/{where.name}", books, share)
            faults += len(books.faults)
            calls += books.kinds.total()
    print(f"calls: {calls}")
    print(f"faults: {faults}")
    return 1 if faults or not calls else 0


def run(
    directory: Path,
    where: Where,
    options: argparse.Namespace,
    seed: str,
    books: Books,
    share: Callable[[int], int],
) -> None:
    """Run one part at one place, and print its table."""
    lifeline = Lifeline(directory / "lifeline")
    tmp = directory / "tmp"
    tmp.mkdir()
    if IS_ROOT:
        directory.chmod(0o755)
        for path in (tmp, directory / "lifeline"):
            shutil.chown(path, where.user, where.user)
    mark = secrets.token_hex(8)
    script = lifeline.script_line + SCRIPT
    calls, terms, kills = map(share, (options.calls, options.terms, options.kills))
    has_kills = options.part == "kills"
    started_s = time.monotonic()

    def part_done() -> float:
        part: float = max(books.kinds.total() / calls, (time.monotonic() - started_s) / options.seconds)
        return part

    servers: list[ChaosServer] = []

    def start(number: int) -> ChaosServer:
        servers.append(ChaosServer(number, where, options, books, directory, script, mark))
        return servers[-1]

    stack = contextlib.ExitStack()
    try:
        options.first = stack.enter_context(weather(options.weather, tmp, where.user))
        stage = Stage(start)
        at_first = at_rest(stage.server, lifeline, Counter(), books, options.patience)
        kinds = KILL_KINDS if has_kills else DAEMON_KINDS
        if options.weather == "memory":
            kinds = kinds | {"hog": -(-sum(kinds.values()) // 9)}
        everyone = [
            Caller(number, seed, stage, books, kinds, 0.25 if has_kills else 0, options.weather)
            for number in range(options.callers)
        ]
        crew = [threading.Thread(target=each.call_until, args=(lambda: part_done() >= 1,)) for each in everyone]
        for thread in crew:
            thread.daemon = True
            thread.start()
        Gremlin(seed, stage, books, where, lifeline).act_until(part_done, terms, kills, harms=has_kills)
        for thread in crew:
            thread.join(2 * PATIENCE_S)
            if thread.is_alive():
                books.blame("a caller still waits for its answer")
        at_rest(stage.server, lifeline, at_first, books, options.patience)
        stage.server.end = End.TERM
        if code := stage.server.stop():
            books.blame(f"the last server ended with exit code {code}")
        for pid in {*stage.server.left(), *lifeline.holders()}:
            books.blame(f"left in the end: {described(pid)}")
        for path in stage.server.leftovers():
            books.blame(f"left in the end: {path}")
        by_force = {server.number for server in servers if server.end is End.KILL}
        for text in books.errors(by_force):
            books.blame(text)
    finally:
        for server in servers:
            server.kill()
        lifeline.close()
        stack.close()
    took_s = time.monotonic() - started_s
    rows: list[tuple[str, object]] = [("seconds", f"{took_s:.0f}"), ("calls", books.kinds.total())]
    print_rows(f"{options.part}, {where.name} (user {where.user})", rows)
    for counts in (books.kinds, books.done, books.answers, books.ends_by_outcome):
        print_rows("", sorted(counts.items()))
    print_rows("", [("faults", len(books.faults))])
    sys.stdout.flush()


@contextlib.contextmanager
def weather(name: str, tmp: Path, user: int) -> Iterator[tuple[str, ...]]:
    """Make the faults of the weather. Yield the prefix that the command of the server needs for them."""
    if name == "memory":
        limits = "memory.limit_in_bytes", "memory.max"
        with made_control_group("memory", limits, str(MEMORY_BYTES)) as group:
            yield joining(group)
    elif name == "disk":
        options = f"size={DISK_BYTES},mode=700,uid={user},gid={user}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp)], check=True)
        try:
            yield ()
        finally:
            subprocess.run(["umount", "--lazy", str(tmp)], check=True)
    else:
        yield ()


def at_rest(
    server: ChaosServer, lifeline: Lifeline, at_first: Counter[str], books: Books, patience_s: float
) -> Counter[str]:
    """Make a call, wait until the server has nothing to do, and return the kinds of its descriptors.

    Anything that is still there after a while is a fault.
    """
    call_id = f"{server.name}-{secrets.randbelow(10**6)}-0-end"
    with server.connection() as sock:
        sock.sendall(head(call_id, "do=copy", {}, 0))
        answer = receive(sock)
        if answer.status != 200:
            books.blame(f"{call_id}: {answer.status} {answer.body[:300]!r}")
    books.answered(call_id, "200", SERVED)
    deadline_s = time.monotonic() + patience_s
    while (unrest := _unrest(server, lifeline, at_first)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    for text in unrest:
        books.blame(f"at rest: {text}")
    return server.look()


def _unrest(server: ChaosServer, lifeline: Lifeline, at_first: Counter[str]) -> list[str]:
    found = [f"child {child}" for child in children(server.pid)]
    guardians = [pid for pid in server.left() if pid != server.pid]
    if server.process.pid in guardians:
        guardians.remove(server.process.pid)
    if len(guardians) != (server.pid == server.process.pid):
        found.append(f"beside the server and its guardian: {', '.join(map(described, guardians)) or 'no guardian'}")
    found += [str(path) for path in server.tmp.glob("watchdog-*/[0-9]*")]
    if len(directories := [*server.tmp.glob("watchdog-*")]) != 1:
        found.append(f"the directories {directories}")
    found += [described(pid) for pid in lifeline.holders()] if lifeline.is_held() else []
    pipes = [name for name in descriptors(server.pid) if name.startswith("pipe:")]
    if len(pipes) > len(set(pipes)):
        found.append("pipes for the next script")
    found += [f"descriptor {kind}" for kind in (server.look() - at_first).elements()] if at_first else []
    return found


if __name__ == "__main__":
    sys.exit(main())
