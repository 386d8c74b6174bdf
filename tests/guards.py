"""Take guards out of the program. A guard is code that prevents a fault; without it, the guard's test must fail.

Run as a program, this file starts the server without some guards::

    python tests/guards.py NAME[,NAME] serve --port 0

Each entry of :data:`GUARDS` replaces one function or value of the program. The replacement is what the program would
have if nobody had thought of the fault. A test names its guard with ``@pytest.mark.guard(NAME)``, see ``conftest.py``.
The docstring of each entry says what the program does without the guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

Guard = Callable[[], None]
GUARDS: dict[str, Guard] = {}


def guard(remove: Guard) -> Guard:
    """Register the function that takes out a guard. The guard has the name of the function, with hyphens."""
    GUARDS[remove.__name__.replace("_", "-")] = remove
    return remove


def replace(owner: Any, name: str, new: Any) -> None:
    """Replace an attribute. It must exist, so this fails if a guard was renamed."""
    if not hasattr(owner, name):
        raise SystemExit(f"guards.py: {owner!r} has no {name} any more")
    setattr(owner, name, new)


# ---- the try-it page


@guard
def only_for_navigation() -> None:
    """A frame or a picture of another page that asks for ``/`` gets the page, and the function is not called."""
    from watchdog.http import page

    replace(page, "is_navigation", lambda request: True)


@guard
def escaped_facts() -> None:
    """The name of the service is markup of the page."""
    import html

    replace(html, "escape", str)


@guard
def facts_need_the_token() -> None:
    """With ``auth_all``, the page still reveals the limits to everybody."""
    from watchdog.http import page

    facts = page._facts
    replace(page, "_facts", lambda configuration: facts(_without_auth_all(configuration)))


def _without_auth_all(configuration: Any) -> Any:
    return type(
        "Open",
        (),
        {
            "settings": msgspec.structs.replace(configuration.settings, auth_all=False),
            "service_name": configuration.service_name,
        },
    )


# ---- the log


@guard
def terminal_escapes() -> None:
    """The console shows names, ids and texts as they are, with their control characters."""
    from watchdog.logs import console, console_events

    for module in (console, console_events):
        replace(module, "printable", str)
        replace(module, "printable_lines", str)


@guard
def no_narration_for_programs() -> None:
    """A log of JSON also has events for the wait and the start of a call."""
    from watchdog.logs.formats import JsonFormat

    replace(JsonFormat, "is_for_people", True)


# ---- commands


@guard
def init_takes_back() -> None:
    """If `watchdog init` cannot write a file, the files that it wrote before stay."""
    from watchdog.commands import init

    replace(init, "_take_back", lambda written, new_directory: None)


# ---- process trees


@guard
def straggler_search() -> None:
    """When a script ends, the server assumes that its whole process tree has ended."""
    from watchdog.process.orphans import Orphans

    replace(Orphans, "certainly_nothing_left", lambda self, child: True)


@guard
def linger() -> None:
    """Processes that a script left are ended when the script exits, even if they still work."""
    from watchdog.process import supervisor

    async def not_at_all(child: Any, tree: Any, until_s: float) -> bool:
        return False

    replace(supervisor, "linger", not_at_all)


@guard
def zombie_leader() -> None:
    """A process counts as dead when its first thread has ended."""
    from watchdog.system.proc import Process

    replace(Process, "is_alive", property(lambda self: self.state not in "ZX"))


@guard
def schedstat() -> None:
    """Only CPU time that /proc/PID/stat can show counts as work."""
    from watchdog.process import activity

    replace(activity, "_schedstat", lambda pid, thread: (thread, b""))


@guard
def subreaper() -> None:
    """Orphans become children of PID 1 of the container, and no limit shows which script they come from."""
    from watchdog.process import orphans

    limit_mark()
    replace(orphans, "_become_subreaper", lambda: False)


@guard
def exit_not_eof() -> None:
    """A script counts as ended when its pipes are closed, as in asyncio's own subprocesses."""
    from watchdog.process.child import Child
    from watchdog.process.pipes import set_done
    from watchdog.system import proc

    def wait_for_pipes(self: Any) -> None:
        others = [each.pid for each in proc.processes() if each.pid not in (self.pid, os.getpid())]
        if all(self.pipe_names.isdisjoint(proc.open_files_of(pid)) for pid in others):
            if not self.exited.done():
                self.exited.set_result(None)
                set_done(self.wake_up)
        else:
            self.loop.call_later(0.05, wait_for_pipes, self)

    replace(Child, "_set_exited", wait_for_pipes)


@guard
def stdin_left_open() -> None:
    """If the caller of a classic function stops sending, the function reads the incomplete body as complete."""
    from watchdog.process.pipes import Feed

    real = Feed.start

    def start(self: Any, *, if_broken: Callable[[], None]) -> None:
        real(self, if_broken=self.close)

    replace(Feed, "start", start)


@guard
def sigterm_first() -> None:
    """A script gets SIGKILL without a SIGTERM before it."""
    from watchdog.process.child import Child

    real = Child.signal_group
    replace(Child, "signal_group", lambda self, number: real(self, signal.SIGKILL))


@guard
def sigkill() -> None:
    """A script that ignores SIGTERM never gets SIGKILL."""
    from watchdog.process.child import Child
    from watchdog.system import proc

    real_group, real_each = Child.signal_group, proc.signal_each
    replace(Child, "signal_group", lambda self, number: real_group(self, signal.SIGTERM))
    replace(proc, "signal_each", lambda processes, number, **rest: real_each(processes, signal.SIGTERM, **rest))


@guard
def as_made() -> None:
    """A directory is used again without a check, so the next call gets the changes that the last script made to it."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "is_as_made", lambda self, directories: True)


@guard
def same_directories() -> None:
    """While other scripts run, the files in a directory are removed, even if another directory is in its place."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "_are_there", lambda self, directories: True)


@guard
def root_as_made() -> None:
    """The server's directory is used as long as it exists, even if a script has changed it."""
    from watchdog.workspace import workspaces

    replace(workspaces._Root, "is_as_made", lambda self: os.path.exists(self.path))


@guard
def fresh_pipes() -> None:
    """A pipe is used again with the changes that the last command made to it."""
    from unittest import mock

    from watchdog.process import pipes, spawn

    kept: list[tuple[int, int]] = []

    class KeptPipe(pipes.Pipe):
        def __init__(self, *arguments: Any) -> None:
            with mock.patch("os.pipe", return_value=kept.pop(0) if kept else os.pipe()):
                super().__init__(*arguments)

        def close(self) -> None:
            self._watch.forget(self._reading_fd)
            kept.append((self._reading_fd, self.writing_fd))

    replace(spawn, "Pipe", KeptPipe)


@guard
def ownership() -> None:
    """An orphan counts as a process of the script that ends first."""
    from watchdog.process.ownership import Ownership

    def belongs_to(self: Any, child: Any, process: Any, commands: Any, owners: Any = None) -> bool:
        return bool(process.session == child.pid or process.parent == os.getpid())

    replace(Ownership, "belongs_to", belongs_to)
    replace(Ownership, "owner_of", lambda self, process, commands: None)


@guard
def limit_mark() -> None:
    """Scripts can remove the limit that shows the server which processes are theirs."""
    from watchdog.process import limit_mark as limit_mark_module

    replace(limit_mark_module, "_lower_own_limit", lambda: (0, False))


@guard
def own_status() -> None:
    """All dead children are reaped, as PID 1 must do, including the script itself."""
    from watchdog.process import orphans, supervisor

    def reap(self: Any) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    replace(orphans.Orphans, "reap", reap)
    replace(supervisor, "_REAP_INTERVAL_S", 0.001)


@guard
def reap_timer() -> None:
    """Orphans are reaped only when a script ends."""
    from watchdog.process.supervisor import Supervisor

    replace(Supervisor, "_reap_again", lambda self: None)


@guard
def oom_preference() -> None:
    """When memory runs out, the kernel kills the largest process."""
    from watchdog.process import oom_preference as oom_preference_module

    replace(oom_preference_module, "OOM_SCORE_ADJ_OF_SCRIPTS", 0)


@guard
def decoy() -> None:
    """When memory runs out and scripts cannot have a higher oom_score_adj, the kernel kills the largest process."""
    from watchdog.process.decoy_keeper import DecoyKeeper

    replace(DecoyKeeper, "start", lambda self: None)


@guard
def own_peak() -> None:
    """The server's own peak memory includes the peak of the program that the process executed before."""
    import resource

    from watchdog.system import proc

    replace(proc, "own_peak_rss_bytes", lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@guard
def guardian() -> None:
    """When the server is killed, its scripts continue to run."""
    from watchdog.process.guardian_keeper import GuardianKeeper

    replace(GuardianKeeper, "start", lambda self: None)


@guard
def guardian_limit() -> None:
    """The guardian does not check the limits of processes."""
    from watchdog.process.guardian import Guardian

    real = Guardian.__init__
    replace(Guardian, "__init__", lambda self, has_limit: real(self, lambda pid: False))


@guard
def guardian_restart() -> None:
    """A dead guardian is not replaced."""
    from watchdog.process import guardian_keeper

    replace(guardian_keeper, "_PAUSE_S", float("inf"))


@guard
def guardian_resumption() -> None:
    """A guardian that was stopped by a signal stays stopped."""
    from watchdog.process.guardian import Guardian

    replace(Guardian, "resume", lambda self: False)


# ---- memory


@guard
def finished_work() -> None:
    """Threads keep each piece of finished work in memory forever."""
    from watchdog.system.threads import Threads

    replace(Threads, "_finished", lambda self, job: None)


# ---- time


@guard
def monotonic_clock() -> None:
    """Timeouts depend on the time of day, which may be changed."""
    import time

    replace(asyncio.BaseEventLoop, "time", lambda self: time.time())


# ---- disk


@guard
def no_space() -> None:
    """A full disk is reported like any other error."""
    from watchdog.input import form
    from watchdog.invocation import functions, inputs, outputs
    from watchdog.workspace import held_input, workspaces

    for module in (form, held_input, functions, inputs, outputs, workspaces):
        replace(module, "raise_if_no_space", lambda error, what: None)


@guard
def small_files_of_forms() -> None:
    """Each file of a form has a Python object until the end of the call."""
    from watchdog.workspace.held_input import HeldInput

    create = HeldInput.create
    kept = []

    def create_and_keep(self: Any, name: str) -> Any:
        kept.append(create(self, name))
        return kept[-1]

    replace(HeldInput, "create", create_and_keep)


@guard
def full_disk_look() -> None:
    """When a script fails, the server does not check whether the disk is full."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "is_full", lambda self: False)


def _list_all_that_opens(output_dir: str, listing: Any) -> Any:
    """List the files that ``os.walk`` finds. It skips entries that it cannot read."""
    from watchdog.workspace.outputs import Output

    for directory, _, names in os.walk(output_dir, followlinks=True):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                status = os.stat(path)
                name = os.path.relpath(path, output_dir)
                listing.outputs.append(Output(path, name, status.st_size, status.st_mtime, status.st_mode))
    yield from ()


@guard
def output_checks() -> None:
    """Everything in the output directory is opened and read, including links and devices."""
    from watchdog.invocation import outputs
    from watchdog.output import answer, encode

    replace(outputs, "list_outputs", _list_all_that_opens)
    for module in (answer, encode):
        replace(module, "open_output", lambda output: os.open(output.path, os.O_RDONLY))
    replace(encode, "raise_if_changed", lambda fd, output: None)


@guard
def sparse_look() -> None:
    """A sparse file of a tebibyte is sent."""
    from watchdog.workspace import listing

    replace(listing, "_raise_if_impossible", lambda output_dir, name, size_bytes: None)


@guard
def output_dir_look() -> None:
    """If a script replaces the output directory with a file, the call has no outputs and succeeds."""
    from watchdog.invocation import outputs
    from watchdog.workspace.listing import list_outputs as real

    def list_outputs(output_dir: str, listing: Any) -> Any:
        return real(output_dir, listing) if os.path.isdir(output_dir) else iter(())

    replace(outputs, "list_outputs", list_outputs)


@guard
def change_look() -> None:
    """The server does not check whether an output has changed after it was listed."""
    from watchdog.output import encode
    from watchdog.workspace import outputs

    for module in (encode, outputs):
        replace(module, "raise_if_changed", lambda fd, output: None)


@guard
def sweep() -> None:
    """Directories of a killed server are never removed."""
    from watchdog.workspace.workspaces import Workspaces

    replace(Workspaces, "sweep", lambda self: ([], []))


@guard
def sweep_lock() -> None:
    """Every directory with the name of a server's directory counts as the directory of a dead server."""
    from watchdog.workspace.workspaces import Workspaces

    def abandoned(self: Any) -> list[str]:
        return [entry.path for entry in os.scandir(self.tmp_dir) if entry.name.startswith("watchdog-")]

    replace(Workspaces, "_abandoned", abandoned)


@guard
def lock_file_made_anew() -> None:
    """The file in the place of the lock file is opened and truncated."""
    from watchdog.http.lock_file import LockFile

    def open_it(self: Any) -> None:
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660))

    replace(LockFile, "_replace", open_it)


@guard
def lock_file_kept() -> None:
    """A missing lock file is not made again, and any file in its place counts as the lock file."""
    from watchdog.http.lock_file import LockFile

    replace(LockFile, "restore", lambda self: self._is_written and os.path.exists(self.path))


@guard
def regular_files_only() -> None:
    """The server opens a FIFO in the place of a file, and waits."""
    from watchdog.invocation import functions

    replace(functions, "open_regular", lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC))


# ---- stop


@guard
def drain() -> None:
    """The process ends at the first signal."""
    from watchdog.http.drain import Drain

    async def end(self: Any, signal_name: str) -> None:
        os._exit(0)

    replace(Drain, "_run", end)


@guard
def polite_end() -> None:
    """SIGTERM to a job kills its script at once."""
    from watchdog.process.supervisor import Supervisor

    real = Supervisor.end_all
    replace(Supervisor, "end_all", lambda self, at_once: real(self, at_once=True))


@guard
def second_signal() -> None:
    """A second signal does not end the drain."""
    from watchdog.http.drain import Drain

    real = Drain.run_at_signal

    async def run(self: Any, signals: Any) -> None:
        only: asyncio.Queue[int] = asyncio.Queue()
        only.put_nowait(await signals.get())
        await real(self, only)

    replace(Drain, "run_at_signal", run)


@guard
def deaf_listener() -> None:
    """The server accepts connections until the listening socket is closed."""
    from watchdog.http import listener

    replace(listener, "ignore_new_connections", lambda sock: None)


@guard
def late_accept() -> None:
    """A connection that is made just before the listening socket is closed is not accepted."""
    from watchdog.http.listener import Listener

    async def nobody(self: Any, listening: Any) -> list[Any]:
        return []

    replace(Listener, "_accept_late", nobody)


@guard
def half_open() -> None:
    """The stop does not wait for TCP handshakes that have begun."""
    from watchdog.http import listener

    replace(listener, "has_half_open", lambda port: False)


@guard
def last_words() -> None:
    """The connection of a refused call is closed at once."""
    from watchdog.http import body, connection, http_server, problems

    for module in (body, connection, http_server, problems):
        replace(module, "SHORT_LINGER_S", 0.0)
    replace(connection.Connection, "_close_own_side", lambda self, limit_s=0.0: self.close())


@guard
def answers_sent() -> None:
    """A drain waits for the end of scripts, but not for their answers."""
    from watchdog.http.calls import Calls
    from watchdog.http.http_server import HttpServer

    async def nothing(self: Any, *_: Any) -> None: ...

    replace(Calls, "all_answered", nothing)
    replace(HttpServer, "close_gracefully", nothing)


@guard
def half_close() -> None:
    """An idle connection is closed although a request may just be arriving on it."""
    from watchdog.http.connection import Connection

    replace(Connection, "half_close", lambda self: self.close())


@guard
def drain_bound() -> None:
    """A drain waits as long as scripts run, without a limit."""
    from watchdog.http import drain, server

    async def wait(limit_s: float, *steps: Any) -> bool:
        await asyncio.gather(*steps)
        return True

    for module in (drain, server):
        replace(module, "within", wait)


@guard
def routed_wait() -> None:
    """A stopping server accepts calls for a while only if a readiness probe came over HTTP shortly before."""
    from watchdog.http.health import Health

    replace(Health, "may_get_calls", Health.is_probed)


@guard
def refuse_senders() -> None:
    """Callers that have begun to send a body may continue during a drain."""
    from watchdog.http.drain import Drain

    replace(Drain, "refuse_all", lambda self: self._admission.close())


# ---- secrets


@guard
def hidden_memory() -> None:
    """Scripts, which run as the same user, can read the memory of the server and the guardian."""
    from watchdog.system import proc

    replace(proc, "hide_memory", lambda: True)


@guard
def hidden_decoy() -> None:
    """Scripts can read and change the memory of the decoy."""
    from watchdog.process import decoy as decoy_module

    without = "from watchdog.process import decoy; decoy.hide_memory = bool; from watchdog.process.decoy"
    replace(decoy_module, "_CODE", decoy_module._CODE.replace("from watchdog.process.decoy", without))


@guard
def hidden_guardian() -> None:
    """Scripts can read and change the memory of the guardian, as they could after an ``exec``."""
    from watchdog.process import guardian as guardian_module
    from watchdog.system import proc

    fork = guardian_module._fork

    def fork_openly(*arguments: Any) -> Any:
        # Before the fork: a script may look at the guardian before the guardian has done anything.
        proc.prctl(proc._PR_SET_DUMPABLE, 1)
        try:
            return fork(*arguments)
        finally:
            proc.prctl(proc._PR_SET_DUMPABLE, 0)

    replace(guardian_module, "_fork", fork_openly)


@guard
def secret_names() -> None:
    """A script gets the server's whole environment."""
    from watchdog import cli
    from watchdog.settings import load as load_module

    real = load_module.load

    def load(*arguments: Any) -> Any:
        return msgspec.structs.replace(real(*arguments), secret_names=frozenset())

    replace(cli, "load", load)


@guard
def private_headers() -> None:
    """A script gets all headers."""
    from watchdog.http import request as request_module

    replace(request_module, "_NOT_FOR_SCRIPTS", frozenset())


@guard
def masked_values() -> None:
    """The values of secret settings are shown."""
    from watchdog.settings import declarations, reading, report

    shown = {name: each._replace(secret=False) for name, each in declarations.SETTINGS.items()}
    for module in (declarations, reading, report):
        replace(module, "SETTINGS", shown)


# ---- callers


@guard
def disconnect() -> None:
    """A call continues after its caller has disconnected."""
    from watchdog.http.connection import Connection

    real = Connection.connection_lost

    def lost(self: Any, error: Any) -> None:
        self._task = None
        real(self, error)

    replace(Connection, "connection_lost", lost)


@guard
def unread_end() -> None:
    """The end of a connection is noticed only when the server reads from it."""
    from watchdog.http.connection import Connection

    replace(Connection, "_check_for_end", lambda self: None)


@guard
def header_timer() -> None:
    """A caller may send its headers without a time limit."""
    from watchdog.http.connection import Connection

    replace(Connection, "_start_head_timer", lambda self: None)


@guard
def traced_command() -> None:
    """A wait for the status of a command blocks the server."""
    wait4 = os.wait4
    replace(os, "wait4", lambda pid, options: wait4(pid, 0))


@guard
def own_limits() -> None:
    """The server does not check its own limits."""
    from watchdog.process.own_limits import OwnLimits

    replace(OwnLimits, "restored", lambda self: [])


@guard
def place_of_slow_callers() -> None:
    """A slow caller keeps its place in the queue."""
    from watchdog.invocation.admission import Admission

    replace(Admission, "_look_for_slow", lambda self, waiter: None)


@guard
def place_of_long_lists() -> None:
    """A call releases its place before its answer is sent, even if it has very many outputs."""
    from watchdog.invocation import outputs

    replace(outputs, "_MOST_WITHOUT_PLACE", 1 << 60)


@guard
def outputs_of_all_runs() -> None:
    """Each run of a call may have 100,000 outputs, even if the call has many runs."""
    from watchdog.invocation import outputs

    replace(outputs, "MOST_OUTPUTS", 1 << 60)


@guard
def room_of_slow_callers() -> None:
    """A slow caller never has to make room for a new call."""
    from watchdog.invocation.pace import Paces

    replace(Paces, "slowest", lambda self: None)


@guard
def min_data_rate() -> None:
    """A caller that sends or reads one byte from time to time may continue without end."""
    from watchdog.invocation import pace

    replace(pace, "_SHORTEST_WINDOW_S", float("inf"))


@guard
def idle_connections() -> None:
    """Idle connections may use the last descriptor."""
    from watchdog.http.idle_connections import IdleConnections

    replace(IdleConnections, "close_oldest", lambda self, count=1: None)


@guard
def count_of_connections() -> None:
    """Only the number of its descriptor shows whether a new connection is one too many."""
    from watchdog.http.idle_connections import IdleConnections

    note_new = IdleConnections.note_new

    def note_uncounted(self: Any, descriptor: int) -> None:
        self._open = -1_000_000
        note_new(self, descriptor)

    replace(IdleConnections, "note_new", note_uncounted)


@guard
def answer_bytes() -> None:
    """The size of the answers that are being sent does not limit new calls."""
    from watchdog.invocation import admission

    replace(admission, "_SMALL_ANSWERS_BYTES", float("inf"))


@guard
def answers_counted() -> None:
    """A call is not counted after the end of its script, although its answer is still being sent."""
    from watchdog.invocation.admission import Ticket

    replace(Ticket, "hand_over", lambda self: self._leave())


# ---- HTTP


@guard
def lingering() -> None:
    """After an early answer the rest of the body is not read, so the kernel resets the connection."""
    from watchdog.http import connection

    replace(connection, "LINGER_S", 0.0)


@guard
def request_checks() -> None:
    """Every message that the parser accepts counts as a valid request."""
    from watchdog.http import request_head, request_reader

    replace(request_head, "_why_refused", lambda *head: None)
    replace(request_reader, "VERSIONS", ("0.9", "1.0", "1.1", "2.0"))


@guard
def reconnection() -> None:
    """Each request for a stream of events is a new call, also one with a Last-Event-ID."""
    from watchdog.http import calls

    replace(calls, "is_reconnection", lambda request: False)


@guard
def rest_beside_verdict() -> None:
    """A live call discards the rest of its body before it sends its last events."""
    from watchdog.http.calls import Calls

    finish = Calls._finish_live

    async def first(self: Any, request: Any, record: Any, live: Any, pieces: Any) -> None:
        await self._bodies.discard_rest(request)
        await finish(self, request, record, live, pieces)

    replace(Calls, "_finish_live", first)


@guard
def distrust() -> None:
    """Bytes after a body always count as the next request."""
    from watchdog.http import request_reader

    # Without the end of the head, the parser gets all bytes that have arrived.
    replace(request_reader._EndFinder, "find", lambda self, data, begin: len(data))


@guard
def closing_requests() -> None:
    """A connection is kept open after a CONNECT."""
    from watchdog.http.connection import Connection

    real = Connection._begin_request

    def begin(self: Any, head: Any) -> Any:
        body = real(self, head)
        self._keeps_open = head.keep_alive
        return body

    replace(Connection, "_begin_request", begin)


@guard
def header_limits() -> None:
    """The size of request lines, headers and trailers is not limited."""
    from watchdog.http import request_head, request_reader

    for module in (request_head, request_reader):
        for name in ("MOST_HEAD_BYTES", "MOST_HEADERS"):
            replace(module, name, 1 << 40)


@guard
def header_count() -> None:
    """A request may have any number of headers."""
    from watchdog.http import request_head, request_reader

    for module in (request_head, request_reader):
        replace(module, "MOST_HEADERS", 1 << 40)


@guard
def head_memory() -> None:
    """The memory for the headers of all idle connections together is not limited."""
    from watchdog.http import idle_connections as idle_connections_module

    replace(idle_connections_module, "_MOST_HEAD_MEMORY_BYTES", 1 << 40)


def _serve_with(**options: float) -> None:
    from watchdog.http.http_server import HttpServer

    start: Callable[..., None] = HttpServer.__init__

    def start_with(self: Any, handler: Any, **given: Any) -> None:
        start(self, handler, **{**given, **options})

    replace(HttpServer, "__init__", start_with)


@guard
def body_timer() -> None:
    """A caller may send its body without a time limit."""
    from watchdog.http.body import Bodies

    async def read(self: Any, request: Any) -> Any:
        while piece := await request.content.read():
            yield piece

    replace(Bodies, "read", read)


@guard
def write_timer() -> None:
    """A caller may read its answer without a time limit."""
    from watchdog.http.response import Sender

    async def send(self: Any, request: Any, data: Any, readers: Any = None) -> None:
        request.connection.write(data)
        await request.connection.until_written()

    replace(Sender, "send_in_time", send)
    _serve_with(write_timeout_s=0.0)


@guard
def late_continue() -> None:
    """The server asks for the body (100 Continue) before it checks the token."""
    from watchdog.http.authorization import Authorization

    check = Authorization.check

    async def ask_first(self: Any, request: Any) -> None:
        request.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await check(self, request)

    replace(Authorization, "check", ask_first)


@guard
def end_of_malformed_body() -> None:
    """A malformed body counts as complete when its reader sees an end."""
    from watchdog.http.request_body import RequestBody

    real = RequestBody.end
    replace(RequestBody, "end", lambda self, error=None: real(self))


@guard
def input_limit() -> None:
    """max_input_size is ignored."""
    from watchdog.input.files import Limit

    def count(self: Any, count: int) -> None:
        self.taken += count

    replace(Limit, "take", count)


@guard
def inflate_bound() -> None:
    """A piece of gzip or deflate is decoded at once into memory, of any size."""
    from watchdog.input.inflate import _Inflater

    replace(_Inflater, "_inflate", lambda self, data: self._decoder.decompress(data))


@guard
def blanks_inside_base64() -> None:
    """Blanks are removed from base64 at any position."""
    from watchdog.system.base64_reader import Base64Reader

    replace(Base64Reader, "_without_blanks", lambda self, data: self._carry + data.translate(None, b" \t\r\n"))


@guard
def one_alphabet() -> None:
    """A base64 text may contain characters of both alphabets."""
    from watchdog.system.base64_reader import Base64Reader

    decoded = Base64Reader._decoded

    def decode(self: Any, data: bytes, alphabet: object) -> object:
        return decoded(self, data.translate(bytes.maketrans(b"-_", b"+/")), None)

    replace(Base64Reader, "_decoded", decode)


@guard
def last_bits() -> None:
    """The unused bits of the last base64 character are ignored."""
    from watchdog.system import base64_reader

    replace(base64_reader, "_UNUSED_BITS", {2: 0, 3: 0})


@guard
def types_that_say_what_the_body_is() -> None:
    """A body with any content type text/* may be base64."""
    from watchdog.input import detect

    class Types(frozenset[str]):
        def __contains__(self, media_type: object) -> bool:
            return super().__contains__(media_type) or str(media_type).startswith("text/")

    replace(detect, "_BASE64_TYPES", Types(detect._BASE64_TYPES))


@guard
def base64_is_not_a_form() -> None:
    """Any text that contains a `=` is a form."""
    from watchdog.input import form

    replace(form, "_is_meant_as_base64", lambda text: False)


@guard
def armour_is_not_a_form() -> None:
    """A form may contain the armour of PEM."""
    from watchdog.input import form

    replace(form, "ARMOUR", re.compile(rb"(?!)"))


@guard
def markup_is_not_a_form() -> None:
    """Markup and scripts that contain a `=` are forms."""
    from watchdog.input import detect

    replace(detect, "_FORM_START", re.compile(rb"[^=]+="))


@guard
def byte_order_mark() -> None:
    """A byte order mark is not skipped, so it is part of the base64 or the form."""
    from watchdog.input import detect, multipart

    for module in (detect, multipart):
        replace(module, "BOM_UTF8", b"\0 no body begins with this")


@guard
def utf_16() -> None:
    """UTF-16 and UTF-32 are read as UTF-8."""
    from watchdog.input import detect

    replace(detect, "_wide_characters", lambda head: None)


@guard
def every_content_encoding() -> None:
    """Only the first Content-Encoding is checked."""
    from watchdog.input import inflate, receive

    inflater = inflate.inflater_for
    replace(receive, "inflater_for", lambda codings: inflater(codings.partition(",")[0]))


@guard
def file_names() -> None:
    """A file gets the caller's name without any change."""
    from watchdog.input import multipart, receive

    for module in (multipart, receive):
        replace(module, "safe_file_name", lambda name: name)


@guard
def response_file_checks() -> None:
    """The content of $HTTP_RESPONSE_FILE is used without checks, and the file may be of any kind."""
    from watchdog.invocation import runner
    from watchdog.workspace.response_file import ResponseOverrides

    def read(path: str) -> ResponseOverrides:
        try:
            with open(path, "rb") as file:
                # A bound, so that /dev/zero does not take the machine's memory.
                text = file.read(1 << 22).decode("latin-1")
        except FileNotFoundError:
            return ResponseOverrides()
        chosen: dict[str, str] = dict(line.split(":", 1) for line in text.split("\n") if ":" in line)
        status = int(chosen.pop("Status", "200").split()[0])
        return ResponseOverrides(status, [(name, value.strip(" ")) for name, value in chosen.items()])

    replace(runner, "read_response_file", read)


# ---- scripts that seem to succeed


@guard
def binary_data_left_out() -> None:
    """Binary data that a script prints is logged as lines."""
    from watchdog.output.printed import Printed

    real = Printed.take

    def take(self: Any, piece: bytes) -> bool:
        real(self, piece)
        return False

    replace(Printed, "take", take)


@guard
def empty_answer() -> None:
    """A script that leaves no file and prints nothing gets no warning."""
    from watchdog.invocation.doubts import Doubts

    async def nothing(self: Any, workspace: Any, since_ns: int) -> list[Any]:
        return []

    replace(Doubts, "_warnings_of_no_output", nothing)


@guard
def oom_count() -> None:
    """The server does not read from the control group whether the kernel killed a process."""
    from watchdog.system.cgroup import OomKills

    replace(OomKills, "count", lambda self: None)


@guard
def line_ends() -> None:
    """The line ends of a script are not checked."""
    from watchdog.invocation import functions
    from watchdog.process import command

    for module in (functions, command):
        replace(module, "has_crlf", lambda start: False)


# ---- storage events


@guard
def only_creations() -> None:
    """Each record of an event counts as a new object, even if it reports a removal."""
    from watchdog.storage.stored_object import StoredObject

    replace(StoredObject, "why_not_new", "")


@guard
def uncovered_is_not_data() -> None:
    """If no configured input covers the object of an event, the event itself becomes the input."""
    from watchdog.invocation.inputs import Inputs
    from watchdog.storage.transfer import Transfers

    real = Inputs._event

    async def event(self: Any, call: Any, taken: Any, held: Any) -> Any:
        found = await real(self, call, taken, held)
        transfers: Transfers = self._transfers
        is_covered = found is None or all(
            transfers.locator.source_of(stored, found.provider, is_trusted=call.is_job) for stored in found.objects
        )
        return found if is_covered else None

    replace(Inputs, "_event", event)


@guard
def version_of_event() -> None:
    """The latest version of an object is fetched, even if the event names another version."""
    from watchdog.storage.s3 import S3

    real = S3.fetch

    async def fetch(self: Any, location: str, fd: int, *, version: str = "", **rest: Any) -> int:
        return await real(self, location, fd, **rest)

    replace(S3, "fetch", fetch)


@guard
def whole_location() -> None:
    """A bucket's name may be a path that leads out of the folder of the input."""
    from watchdog.storage import locator

    replace(locator, "_why_leads_elsewhere", lambda stored, *, is_trusted: "")


@guard
def cors_of_scripts() -> None:
    """A script allows more pages than the setting cors_origins."""
    from watchdog.http import cors

    replace(cors, "_PREFIX", "no header begins with this")


@guard
def paths_for_browsers() -> None:
    """A browser that opens any page of the server also runs the function, because it wants an icon."""
    from watchdog.http import routes

    replace(routes, "_FOR_BROWSERS", frozenset())


@guard
def own_paths() -> None:
    """A mistyped path of the server calls the function."""
    from watchdog.http import routes

    known = ("/_/health", "/_/ready", "/_/openapi.json", "/_/try")
    replace(routes, "OWN_PATHS", known)


@guard
def kubernetes_probe() -> None:
    """A probe of the kubelet at the path of calls runs the script."""
    from watchdog.http import routes

    replace(routes, "is_probe", lambda request: request.method == "HEAD")


@guard
def head_is_a_probe() -> None:
    """A HEAD request at the path of calls runs the script."""
    from watchdog.http import routes

    replace(routes, "is_probe", lambda request: False)


@guard
def base_path() -> None:
    """The path prefix under which OSCAR exposes the service is not removed from requests."""
    from watchdog.http import request, routes

    for module in (request, routes):
        replace(module, "without_base_path", lambda base_path, path: path)


@guard
def script_byte_order_mark() -> None:
    """A byte order mark hides the first line of a script."""
    from watchdog.process import command

    replace(command, "without_mark", lambda start: start)


@guard
def script_utf16() -> None:
    """/bin/sh runs a script that is UTF-16 text."""
    from watchdog.process import command

    replace(command, "refuse_utf16", lambda start, name: None)


@guard
def hyphens_before_underscores() -> None:
    """If two headers have the same variable, the first one counts."""
    from watchdog.http import calls

    def variables(request: Any, base_path: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in request.headers.items():
            found.setdefault("Http_" + "_".join(map(str.capitalize, name.split("-"))), value)
        return found

    replace(calls, "cgi_variables", variables)


@guard
def no_sniffing() -> None:
    """A browser may guess another type for an answer than its content type."""
    from watchdog.http import http_message

    replace(http_message, "_NO_SNIFFING", "X-Content-Type-Options: none\r\n")


@guard
def wrong_token_rate() -> None:
    """Each wrong token is answered at once."""
    from watchdog.http.wrong_tokens import WrongTokens

    replace(WrongTokens, "wait_s", lambda self, now_s: 0.0)


@guard
def linear_duration() -> None:
    """The time to parse a duration grows with the square of its length."""
    from watchdog.settings import kinds

    number = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
    replace(kinds, "_PLAIN_SECONDS", re.compile(rf"\+?{number}"))
    replace(kinds, "_GO_DURATION", re.compile(rf"\+?(?:({number})(ns|us|ms|s|m|h))+"))


@guard
def form_size() -> None:
    """The size of a form is checked only when the form is complete."""
    from watchdog.input.files import Limit

    def take(self: Any, count: int) -> None:
        self.taken += count
        check(self, self.taken)

    check = Limit.check
    replace(Limit, "take", take)
    replace(Limit, "check", lambda self, count: None)


@guard
def kept_warnings() -> None:
    """Libraries issue Python warnings, and the interpreter keeps each text in memory."""
    import warnings

    from aiohttp.multipart import parse_content_disposition

    from watchdog.http import server
    from watchdog.input import content_disposition

    def file_name(header: str) -> str | None:
        parse_content_disposition(header)
        return None

    replace(content_disposition, "file_name", file_name)
    replace(server, "_ignore_warnings", lambda: warnings.simplefilter("default"))


# ---- logs


@guard
def log_rate() -> None:
    """A call may log any number of lines."""
    from watchdog.logs.log_rate import LogRate

    replace(LogRate, "has_room", lambda self: True)


# ---- outputs


@guard
def directories_once() -> None:
    """Links to directories are followed."""
    from watchdog.invocation import outputs

    replace(outputs, "list_outputs", _list_all_that_opens)


@guard
def unreadable_outputs() -> None:
    """Outputs that cannot be read are skipped, like a symbolic link to nothing."""
    from watchdog.invocation import outputs

    replace(outputs, "list_outputs", _list_all_that_opens)


@guard
def safe_output_names() -> None:
    """Outputs keep names that lead to another directory on other systems."""
    from watchdog.workspace import listing

    replace(listing, "replacements", lambda names: {})


@guard
def short_look() -> None:
    """A call waits without a limit for the search of the working directory."""
    from watchdog.invocation import doubts

    replace(doubts, "_LOOK_ELSEWHERE_S", None)


@guard
def search_of_gone_caller() -> None:
    """If the caller disconnects during the search of the working directory, the server forgets this search."""
    from watchdog.invocation.doubts import Doubts

    real = Doubts._warnings_of_no_output

    async def forgetful(self: Any, workspace: Any, since_ns: int) -> Any:
        try:
            return await real(self, workspace, since_ns)
        except asyncio.CancelledError:
            self._slow_search = None
            raise

    replace(Doubts, "_warnings_of_no_output", forgetful)


@guard
def listing_limit() -> None:
    """A call waits without a limit for the list of its outputs."""
    from watchdog.invocation import outputs

    async def to_the_end(steps: Any, threads: Any) -> None:
        job = asyncio.get_running_loop().run_in_executor(threads, list, steps)
        while not job.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((job,))

    replace(outputs, "in_steps", to_the_end)


@guard
def threads_for_outputs() -> None:
    """The same few threads do all work on files."""
    from watchdog.invocation import outputs

    replace(outputs, "LISTINGS", None)


@guard
def threads_for_listings() -> None:
    """The threads that list outputs also keep what scripts print, and read outputs."""
    from watchdog.invocation import outputs
    from watchdog.system.threads import OUTPUTS

    replace(outputs, "LISTINGS", OUTPUTS)


@guard
def daemon_threads() -> None:
    """Threads of concurrent.futures do the work on files, and the process waits for them at its end."""
    from concurrent.futures import ThreadPoolExecutor

    from watchdog.invocation import doubts, outputs
    from watchdog.system import threads as threads_module
    from watchdog.workspace import disposal

    replace(threads_module, "Threads", lambda name: ThreadPoolExecutor())
    replace(disposal, "REMOVALS", None)
    replace(outputs, "LISTINGS", None)
    replace(doubts, "SEARCHES", None)


# ---- files of waiting calls, and directories that are used again


@guard
def nameless_files() -> None:
    """The files that the server keeps for a call have names."""
    import tempfile

    from watchdog.input import form
    from watchdog.workspace import held_input, spool

    def with_name(directory: str, mode: int = 0o600) -> int:
        return tempfile.mkstemp(dir=directory)[0]

    for module in (form, held_input, spool):
        replace(module, "open_nameless", with_name)


@guard
def late_workspace() -> None:
    """A call that waits for its place already has its directories and its input files."""
    from watchdog.invocation.inputs import Inputs
    from watchdog.workspace.workspaces import Workspaces

    real_tasks = Inputs.tasks

    async def tasks(self: Any, call: Any, record: Any, stack: Any) -> Any:
        found = await real_tasks(self, call, record, stack)
        workspaces = Workspaces(self._settings.tmp_dir)
        stack.add(workspaces.close)
        workspace = workspaces.make()
        held: Any = found[0].held
        held.give_names(workspace.input_dir)
        return found

    replace(Inputs, "tasks", tasks)


@guard
def held_outputs() -> None:
    """The next script starts while the outputs of an earlier call still have their names."""
    from watchdog.invocation.outputs import Outputs

    replace(Outputs, "put_out_of_reach", lambda self, outputs, *rest: outputs)


@guard
def clean_place() -> None:
    """The next script starts while the directories of ended calls still exist."""
    from watchdog.workspace.disposal import Disposal

    async def go_on(self: Any) -> None:
        pass

    tidy_up = Disposal._tidy_up

    def tidy_up_later(self: Any) -> None:
        self._loop.call_later(60.0, tidy_up, self)

    replace(Disposal, "until_no_name_is_left", go_on)
    replace(Disposal, "_tidy_up", tidy_up_later)


@guard
def loans() -> None:
    """At its end, a call gives up its directories a second time, although another call has them now."""
    from watchdog.workspace.workspaces import Workspaces

    real = Workspaces.make

    def make(self: Any) -> Any:
        workspace = real(self)
        workspace.loan = 1
        return workspace

    replace(Workspaces, "make", make)


# ---- workers of warm functions


@guard
def closed_pipes() -> None:
    """When a worker writes ``done`` and exits, the server reads its pipes after it has closed them."""
    import fcntl
    import termios

    from watchdog.process.pipes import Pipe

    def drain(self: Any) -> bool:
        waiting = fcntl.ioctl(self._reading_fd, termios.FIONREAD, bytes(4))
        return self._pause is None if waiting == bytes(4) else self._take(self.taken_bytes + self._waiting_bytes())

    replace(Pipe, "drain", drain)


@guard
def another_worker() -> None:
    """If a worker ends before it has read its call, the call fails."""
    from watchdog.warm.worker import Worker

    def note_whether_taken(self: Any) -> bool:
        self._is_taken = self._call is not None
        return bool(self._is_taken)

    replace(Worker, "_note_whether_taken", note_whether_taken)


@guard
def unread_call() -> None:
    """A worker may write ``done`` for a call that it has not read."""
    from watchdog.warm.channel import Channel
    from watchdog.warm.protocol import Done
    from watchdog.warm.worker import Worker

    real = Worker._take

    def take(self: Any, answer: Any) -> None:
        if isinstance(answer, Done) and self._call is not None and self._exit_code is None:
            replace(Channel, "untaken_bytes", 0)
        real(self, answer)

    replace(Worker, "_take", take)


@guard
def unread_timeout() -> None:
    """If no worker reads a call, it is given to one worker after the other, each for the whole time of the call."""
    from watchdog.warm.worker import NotTaken, Worker

    real = Worker._how_call_ended

    def how_call_ended(self: Any, began_s: float) -> Any:
        if self._exit_code is None and not self._is_taken:
            raise NotTaken
        return real(self, began_s)

    replace(Worker, "_how_call_ended", how_call_ended)


@guard
def end_of_forked_call() -> None:
    """If the server cannot list or signal the processes of a forked call, the call never ends."""
    from watchdog.warm.worker import Worker

    async def end_forked_call(self: Any, reason: str) -> None:
        if not await self._end_processes_of_call():
            self.end(reason)

    replace(Worker, "_end_forked_call", end_forked_call)


@guard
def high_descriptors() -> None:
    """The server's descriptors for a worker may have the numbers 3 and 4 by chance."""
    from watchdog.warm import channel

    replace(channel, "_FIRST_DESCRIPTOR", 0)


@guard
def one_pause() -> None:
    """Each worker that fails doubles the pause before the next load, also if several fail at the same time."""
    from watchdog.warm.load_failures import LoadFailures

    real = LoadFailures.note

    def note(self: Any, failure: Any) -> None:
        self.pause_until_s = 0.0
        real(self, failure)

    replace(LoadFailures, "note", note)


@guard
def idle_crashes() -> None:
    """A worker that is ready ends the pause that the crashes of others have caused."""
    from watchdog.warm.load_failures import LoadFailures

    def note_ready(self: Any) -> None:
        self.last, self._count, self.pause_until_s = None, 0, 0.0

    replace(LoadFailures, "note_ready", note_ready)


@guard
def later_failures() -> None:
    """A served call does not end the pauses of loads that failed after its worker was ready."""
    from watchdog.warm.load_failures import LoadFailures

    def note_served(self: Any, worker: Any) -> None:
        self._count = self._unused = 0

    replace(LoadFailures, "note_served", note_served)


# ---- the client: `watchdog invoke`


@guard
def existing_files() -> None:
    """`watchdog invoke` writes an answer over a file that has its name."""
    from watchdog.client.folder import Folder

    def replaced(self: Any, staged: str, name: str, parent: int) -> bool:
        os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=parent)
        return True

    replace(Folder, "_took", replaced)


@guard
def one_answer() -> None:
    """`watchdog invoke --live` writes the answer to the terminal that has shown all of it as lines of the log."""
    from watchdog.client import live

    replace(live, "have_same_terminal", lambda: False)


@guard
def whole_answer() -> None:
    """`watchdog invoke --live` does not write the answer to the terminal, although the log has not shown all of it."""
    from watchdog.client.shown_text import ShownText

    replace(ShownText, "is_all_of", lambda self, printed: True)


@guard
def room_for_a_zip() -> None:
    """`watchdog invoke` unpacks a ZIP although its files do not fit on the disk."""
    from watchdog.client.folder import Folder

    replace(Folder, "require_room", lambda self, size_bytes: None)


@guard
def names_of_answers() -> None:
    """`watchdog invoke` uses the name of an output as it is."""
    from watchdog.client import folder

    replace(folder, "parts_of", lambda name: name.split("/"))


@guard
def links_in_the_folder() -> None:
    """`watchdog invoke` follows a symbolic link in the directory for answers."""
    from watchdog.client import folder

    def opened(name: str, parent: int) -> int:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)

    replace(folder, "_directory", opened)


@guard
def checksums_of_answers() -> None:
    """`watchdog invoke --live` does not compare the outputs with the verdict."""
    from watchdog.client.live import LiveCall

    replace(LiveCall, "_check", lambda self, completed: None)


@guard
def signals_wake_the_command() -> None:
    """`watchdog invoke` notices a signal only at the next event, if it came just before the wait for events."""
    from watchdog.commands import invoke

    replace(invoke, "_woken_by_signals", lambda loop: contextlib.nullcontext())


@guard
def calls_that_ran() -> None:
    """`watchdog invoke` sends a call again although its script ran, if the answer is 429 or 503."""
    from watchdog.client import refusal

    replace(refusal, "is_refused_for_now", lambda status, retry_after_s, *, has_run: status in (429, 503))


def take_out(names: str) -> None:
    """Take guards out of this process. ``names``: the names, with commas between them."""
    for each in names.split(","):
        GUARDS[each]()


def changed_program(change: str, without: str | None) -> tuple[str, str]:
    """Return the arguments for a Python that runs the server with a change, and without a guard."""
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
from guards import replace, take_out
from watchdog.__main__ import main
{change}
{f"take_out({without!r})" if without else ""}
sys.exit(main())
"""
    return "-c", code


if __name__ == "__main__":
    take_out(sys.argv.pop(1))
    sys.path.append(os.path.join(os.path.dirname(__file__), "faults"))
    from inspected_server import inspect_soon

    from watchdog.__main__ import main

    signal.signal(signal.SIGUSR2, inspect_soon)

    sys.exit(main())
