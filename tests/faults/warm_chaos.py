"""Call warm workers that crash, hang, break the protocol, are killed or edited. No answer may be of another call.

::

    python tests/faults/warm_chaos.py --calls 20000
    python tests/faults/warm_chaos.py --calls 20000 --fork

Two workers serve all calls. Each call has a name, which says what its worker does: it serves the call, crashes, hangs,
breaks the protocol, or leaves a process that continues to write. Meanwhile, workers are killed at random, the script is
edited, and callers hang up. With ``--fork``, the workers run each call in a child process of its own. An answer may
have the name of its call and no other name. Each failure must have a cause: the kind of the call, or a kill. One kill
explains the failure of only one call. There must never be more than two workers. In the end no process, descriptor or
directory may be left, and the memory of the server must be as before. The exit code is 0 if all of this is true.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ledger import Ledger, Note
from leftovers import children, described, descriptors, processes_with
from running_server import Answer, free_port
from soak import print_rows
from soaked_server import SoakedServer
from wire import Lost, hang_up, head, receive, send

WORKERS = 2
CALLERS = 6
PATIENCE_S = 60.0
MOST_PRINTED = 20
MOST_GROWTH_MIB = 6.0
TIMEOUT = "300ms"
SCRIPT = r"""#!/bin/bash
# edit {edit}
echo "ready sh" >&4
while IFS= read -r call <&3; do eval "export $call"
  cd "$TMP_OUTPUT_DIR" || exit 99
  echo "$CALL_ID says it" >&2
  case $CALL_ID in
  *-copy-end) cat "$INPUT_FILE_PATH" > out; echo "done $?" >&4 ;;
  *-print-end) cat "$INPUT_FILE_PATH"; echo "done $?" >&4 ;;
  *-exit-end) echo half > out; echo "done 3" >&4 ;;
  *-crash-end) echo half > out; kill -9 $$ ;;
  *-quit-end) echo half > out; exit 0 ;;
  *-last-end) cat "$INPUT_FILE_PATH" > out; echo "done" >&4; kill -9 $$ ;;
  *-twice-end) cat "$INPUT_FILE_PATH" > out; env printf 'done\ndone\n' >&4 ;; # in one write, unlike that of bash
  *-lie-end) echo half > out; printf '\377 no answer\n' >&4; read -r < never ;;
  *-hang-end) echo half > out; sleep 1000 & wait ;;
  *-stray-end)
    cat "$INPUT_FILE_PATH" > out
    exec 8>> held; rm held
    (exec 3<&- 4>&- > /dev/null 2>&1
     while [ -e out ]; do sleep 0.01; done
     for i in $(seq 50); do echo "$CALL_ID was here" >&8; echo "$CALL_ID was here" >> late; sleep 0.02; done) &
    exec 8>&-; echo "done" >&4 ;;
  *) exit 98 ;;
  esac
  cd /
done
"""
# The part of a call that runs in a child of a worker.
CHILD = r"""
cd "$TMP_OUTPUT_DIR" || exit 99
echo "$CALL_ID says it" >&2
case $CALL_ID in
*-copy-end) cat "$INPUT_FILE_PATH" > out ;;
*-print-end) cat "$INPUT_FILE_PATH" ;;
*-exit-end) echo half > out; exit 3 ;;
*-crash-end) echo half > out; kill -9 $$ ;;
*-hang-end) echo half > out; (trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000) & wait ;;
*-stray-end)
    cat "$INPUT_FILE_PATH" > out
    exec 8>> held; rm held
    (exec > /dev/null 2>&1
     while [ -e out ]; do sleep 0.01; done
     for i in $(seq 50); do echo "$CALL_ID was here" >&8; echo "$CALL_ID was here" >> late; sleep 0.02; done) & ;;
*) exit 98 ;;
esac
"""
FORKING_SCRIPT = f"""#!{sys.executable} -S
import json, os
# edit {{edit}}
os.write(4, b"ready fork\\n")
for line in open(3, closefd=False):
    call = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(call["env"])
        os.execv("/bin/bash", ["bash", "-c", {CHILD!r}])
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os.write(4, b"done %d\\n" % (code if code >= 0 else 128 - code))
"""
# The frequency of each kind, and what the caller gets: the status, and the outcomes in the log.
Kinds = dict[str, tuple[int, int, frozenset[str]]]
KINDS: Kinds = {
    "copy": (30, 200, frozenset({"ok"})),
    "print": (10, 200, frozenset({"ok"})),
    "last": (1, 200, frozenset({"ok"})),
    "twice": (1, 200, frozenset({"ok"})),
    "stray": (1, 200, frozenset({"ok"})),
    "exit": (2, 500, frozenset({"failed"})),
    "crash": (2, 500, frozenset({"killed"})),
    "quit": (1, 500, frozenset({"bad_worker"})),
    "lie": (1, 500, frozenset({"bad_worker"})),
    "hang": (1, 504, frozenset({"timeout"})),
}
FORKED_KINDS: Kinds = {
    **{kind: KINDS[kind] for kind in ("copy", "print", "stray", "exit", "hang")},
    "crash": (2, 500, frozenset({"failed"})),
}
ANY = frozenset({"ok", "failed", "killed", "timeout", "caller_gone", "not_loaded", "bad_worker"})
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)
NAME = re.compile(rb"warm-[0-9a-f]+-\d+-\d+-[a-z]+-end")


class Books(Ledger):
    """The results of callers and the kills of the test. ``kills``: the kills that do not explain a failed call yet."""

    def __init__(self) -> None:
        super().__init__()
        self.kills = 0
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []

    def blame(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)
            if len(self.faults) <= MOST_PRINTED:
                print(f"    FAULT: {text}", flush=True)

    def did(self, what: str, *, kills: int = 0) -> None:
        with self.lock:
            self.done[what] += 1
            self.kills += kills

    def take_kill(self) -> bool:
        """Return whether a kill is left that explains a failed call."""
        with self.lock:
            self.kills -= 1
            return self.kills >= 0


def fault_of(answer: Answer, call_id: str, kind: str, data: bytes, was_killed: Callable[[], bool]) -> str | None:
    """Return what is wrong with an answer, or None."""
    if answer.headers["X-Call-Id"] != call_id:
        return f"it is the answer to {answer.headers['X-Call-Id']}"
    text = str(answer.headers).encode() + answer.body
    if strangers := {*NAME.findall(text)} - {call_id.encode()}:
        return f"it has bytes of {strangers}"
    status = KINDS[kind][1]
    if answer.status == 200 == status:
        return None if answer.body == data else f"it is not the call's own data: {answer.body[:300]!r} {answer.headers}"
    if answer.status == status:
        return None
    document = answer.json
    if document.get("call_id") != call_id:
        return f"a problem document of another call: {answer.body[:300]!r}"
    if answer.status == 503 and "; the server tries again in " in document["detail"]:
        return None
    names = {number.name for number in SIGNALS}
    if answer.status == 500 and document.get("signal") in names and was_killed():
        return None
    return f"status {answer.status}, and no kill explains it: {answer.body[:600]!r}"


class Caller:
    """Calls again and again, and judges each answer."""

    def __init__(self, number: int, seed: str, server: SoakedServer, name: str, kinds: Kinds, books: Books) -> None:
        self._kinds = kinds
        self._number = number
        self._dice = random.Random(f"{seed}/{number}")
        self._server = server
        self._name = name
        self._books = books
        self._serial = 0

    def call_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            try:
                self._call()
            except Exception as error:
                self._books.blame(f"caller {self._number}: {error!r}")
                time.sleep(0.1)

    def _call(self) -> None:
        dice = self._dice
        self._serial += 1
        kind = dice.choices([*self._kinds], [weight for weight, *_ in self._kinds.values()])[0]
        call_id = f"{self._name}-{self._number}-{self._serial}-{kind}-end"
        data = f"{call_id}\n".encode() * dice.choice([1, 1, 1, 50, 4000])
        headers = {"X-Timeout": TIMEOUT} if kind == "hang" else {}
        if dice.random() < 0.05:
            headers["X-Long"] = "'" * dice.randint(1, 40_000)
        request = head(call_id, "output=raw&input=raw", headers, len(data)) + data
        self._books.sent(kind)
        with self._server.connection() as sock:
            send(sock, request)
            if dice.random() < 0.1:
                time.sleep(dice.choice([0, dice.uniform(0, 0.1)]))
                hang_up(sock, hard=dice.random() < 0.5)
                self._books.left(call_id, Note(ANY, 0, 1))
                return
            try:
                answer = receive(sock)
            except Lost as lost:
                self._books.lose(call_id, lost.how, str(lost))
                return
        if fault := fault_of(answer, call_id, kind, data, self._books.take_kill):
            self._books.blame(f"{call_id}: {fault}")
        # A call that had to fail may have been killed before.
        is_as_wanted = answer.status == self._kinds[kind][1] != 500
        result = str(answer.status)
        if answer.status == 503:
            result += ": ended while it loaded" if "while it loaded" in answer.json["detail"] else ": ended while idle"
        self._books.answered(call_id, result, self._kinds[kind][2] if is_as_wanted else ANY)
        if answer.status == 503:
            time.sleep(0.2)


class Gremlin:
    """Kills workers, edits the script, and counts the workers."""

    def __init__(self, seed: str, server: SoakedServer, script: str, books: Books) -> None:
        self._script = script
        self._dice = random.Random(f"{seed}/gremlin")
        self._server = server
        self._books = books
        self._edits = 0

    def act_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            workers = workers_of(self._server)
            if len(workers) > WORKERS:
                self._books.blame(f"{len(workers)} workers: {', '.join(map(described, workers))}")
            luck = self._dice.random()
            if luck < 0.1 and workers:
                number = self._dice.choice(SIGNALS)
                self._books.did(f"{number.name} to a worker", kills=1)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._dice.choice(workers), number)
            elif luck < 0.12:
                self._edit()
            time.sleep(self._dice.uniform(0, 0.05))

    def _edit(self) -> None:
        self._edits += 1
        new = self._server.script.with_name("new")
        new.write_text(self._script.replace("{edit}", str(self._edits)))
        os.replace(new, self._server.script)
        self._books.did("edits")


def workers_of(server: SoakedServer) -> list[int]:
    """The living children of the server that run the script."""
    found = []
    for child in children(server.process.pid):
        pid = int(child.split()[0])
        with contextlib.suppress(OSError):
            runs_script = str(server.script).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            if runs_script and os.getsid(pid) == pid:
                found.append(pid)
    return found


def kinds_of_descriptors(server: SoakedServer) -> Counter[str]:
    names = descriptors(server.process.pid)
    return Counter(re.sub(r"watchdog-\w+|\d+", "_", name.partition(":[")[0]) for name in names)


def unrest(server: SoakedServer, mark: str, at_first: Counter[str]) -> list[str]:
    """Return the processes except the server, its guardian and its workers."""
    workers = workers_of(server)
    found = [] if len(workers) == WORKERS else [f"{len(workers)} workers"]
    known = {*workers, server.process.pid}
    others = [pid for pid in processes_with(mark.encode()) if pid not in known and not is_guardian(pid)]
    found += [f"process {described(pid)}" for pid in others]
    directories = [*server.tmp.glob("watchdog-*/[0-9]*")]
    found += [] if len(directories) == WORKERS else [f"the directories {directories}"]
    found += [f"descriptor {kind}" for kind in (kinds_of_descriptors(server) - at_first).elements()] if at_first else []
    return found


def is_guardian(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "watchdog-guard"
    return True


def come_to_rest(server: SoakedServer, name: str, mark: str, at_first: Counter[str], books: Books) -> Counter[str]:
    """Make calls until both workers are ready, wait until nothing else is there, and return the descriptors."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        call_id = f"{name}-{secrets.randbelow(10**6)}-0-copy-end"
        with server.connection() as sock:
            sock.sendall(head(call_id, "output=raw&input=raw", {}, 4) + b"rest")
            answer = receive(sock)
        books.answered(call_id, str(answer.status), ANY)
        left = unrest(server, mark, at_first) if answer.status == 200 else [f"status {answer.status}"]
        if not left or time.monotonic() > deadline_s:
            break
        time.sleep(0.2)
    for text in left:
        books.blame(f"at rest: {text}")
    return kinds_of_descriptors(server)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1000, help="how many calls (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600, help="at most so long (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=CALLERS, help="how many call at once (default: %(default)s)")
    parser.add_argument("--fork", action="store_true", help="workers that run each call in a child process")
    parser.add_argument("--seed", type=int, help="of the dice (default: a new one, which is printed)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    print(f"warm: {options.calls} calls, seed {seed}", flush=True)
    # If this program is ended early, its server must end, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    books = Books()
    with tempfile.TemporaryDirectory(prefix="warm-chaos-") as directory:
        run(Path(directory), options, str(seed), books)
    print(f"calls: {books.kinds.total()}")
    print(f"faults: {len(books.faults)}")
    return 1 if books.faults or not books.kinds.total() else 0


def run(directory: Path, options: argparse.Namespace, seed: str, books: Books) -> None:
    name = f"warm-{secrets.token_hex(4)}"
    script, kinds = (FORKING_SCRIPT, FORKED_KINDS) if options.fork else (SCRIPT, KINDS)
    mark = f"WARM_CHAOS={name}"
    started_s = time.monotonic()
    guards = str(Path(__file__).resolve().parents[1] / "guards.py")
    server = SoakedServer(
        books,
        # An ordinary user cannot look at the descriptors of a server with closed memory.
        ("-m", "watchdog") if os.geteuid() == 0 else (guards, "hidden-memory"),
        directory,
        script.replace("{edit}", "0"),
        WARM_CHAOS=name,
        WATCHDOG_WARM=str(WORKERS),
        WATCHDOG_METRICS_PORT=str(free_port()),
        WATCHDOG_MAX_QUEUE="1000",
        WATCHDOG_QUEUE_TIMEOUT="300s",
        WATCHDOG_EXEC_TIMEOUT="120s",
        WATCHDOG_KILL_GRACE="100ms",
        WATCHDOG_WARM_MAX_CALLS="50",
    )

    def part_done() -> float:
        return float(max(books.kinds.total() / options.calls, (time.monotonic() - started_s) / options.seconds))

    def is_over() -> bool:
        return part_done() >= 1

    memory_mib = 0.0
    try:
        at_first = come_to_rest(server, name, mark, Counter(), books)
        crew = [
            threading.Thread(
                target=Caller(number, seed, server, name, kinds, books).call_until, args=(is_over,), daemon=True
            )
            for number in range(options.callers)
        ]
        crew.append(
            threading.Thread(target=Gremlin(seed, server, script, books).act_until, args=(is_over,), daemon=True)
        )
        for thread in crew:
            thread.start()
        while not is_over():
            time.sleep(0.1)
            if not memory_mib and part_done() > 0.2:
                memory_mib = server.memory_mib("VmRSS")
        for thread in crew:
            thread.join(2 * PATIENCE_S)
            if thread.is_alive():
                books.blame("a caller still waits for its answer")
        come_to_rest(server, name, mark, at_first, books)
        growth_mib = server.memory_mib("VmRSS") - memory_mib
        if growth_mib > MOST_GROWTH_MIB:
            books.blame(f"the server has {growth_mib:.1f} MiB more memory than after a fifth of the calls")
        if code := server.stop():
            books.blame(f"the server ended with exit code {code}")
        for pid in processes_with(mark.encode()):
            books.blame(f"left in the end: {described(pid)}")
        for path in server.leftovers():
            books.blame(f"left in the end: {path}")
        expected = ("worker broke the protocol", "worker not loaded", "a worker broke")
        for text in books.misfits():
            books.blame(text)
        for text, count in books.bad_events.items():
            if not any(each in text for each in expected) and not NAME.search(text.encode()):
                books.blame(f"{count} x {text}")
        for line in books.lost_lines:
            books.blame(line)
    finally:
        server.kill()
    rows: list[tuple[str, object]] = [("seconds", f"{time.monotonic() - started_s:.0f}")]
    print_rows("warm", [*rows, ("calls", books.kinds.total()), ("MiB at a fifth", f"{memory_mib:.1f}")])
    for counts in (books.kinds, books.done, books.answers, books.ends_by_outcome):
        print_rows("", sorted(counts.items()))
    print_rows("", [("faults", len(books.faults))])
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
