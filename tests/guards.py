"""The guards of the program, each with a way to take it out: who has no guard must fail the test of that guard.

Run as a program, it is the server without some guards::

    python tests/guards.py NAME[,NAME] serve --port 0

Each entry of :data:`GUARDS` replaces one function or value of the program by what would be there if nobody had thought
of the fault. The tests name them with ``@pytest.mark.guard(NAME)``, see ``conftest.py``.
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
    """Register a guard under its function's name; its docstring tells what the program does without it."""
    GUARDS[remove.__name__.replace("_", "-")] = remove
    return remove


def replace(owner: Any, name: str, new: Any) -> None:
    """Put something in the place of what is there, which must exist: a guard that was renamed is noticed."""
    if not hasattr(owner, name):
        raise SystemExit(f"guards.py: {owner!r} has no {name} any more")
    setattr(owner, name, new)


# ---- process trees


@guard
def straggler_search() -> None:
    """The end of the script is taken for the end of its tree."""
    from watchdog.process.orphans import Orphans

    replace(Orphans, "certainly_nothing_left", lambda self, child: True)


@guard
def linger() -> None:
    """What a script leaves is ended as soon as the script has exited, also if it still works."""
    from watchdog.process import supervisor

    async def not_at_all(child: Any, tree: Any, until_s: float) -> bool:
        return False

    replace(supervisor, "linger", not_at_all)


@guard
def zombie_leader() -> None:
    """A process is dead when its first thread is."""
    from watchdog.system.proc import Process

    replace(Process, "is_alive", property(lambda self: self.state not in "ZX"))


@guard
def schedstat() -> None:
    """Only processor time that /proc/PID/stat can show counts as work."""
    from watchdog.process import activity

    replace(activity, "_schedstat", lambda pid, thread: (thread, b""))


@guard
def subreaper() -> None:
    """Whoever loses its parent goes to PID 1 of the container, and no limit shows where it came from."""
    from watchdog.process import orphans

    limit_mark()
    replace(orphans, "_become_subreaper", lambda: False)


@guard
def exit_not_eof() -> None:
    """The end of a script is the end of its pipes, as with asyncio's own subprocesses."""
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
    """What came of a classic function's body is all there is to come, also if the caller went silent."""
    from watchdog.process.pipes import Feed

    real = Feed.start

    def start(self: Any, *, if_broken: Callable[[], None]) -> None:
        real(self, if_broken=self.close)

    replace(Feed, "start", start)


@guard
def sigterm_first() -> None:
    """A script is killed without a word."""
    from watchdog.process.child import Child

    real = Child.signal_group
    replace(Child, "signal_group", lambda self, number: real(self, signal.SIGKILL))


@guard
def sigkill() -> None:
    """A script that does not listen is asked again and again."""
    from watchdog.process.child import Child
    from watchdog.system import proc

    real_group, real_each = Child.signal_group, proc.signal_each
    replace(Child, "signal_group", lambda self, number: real_group(self, signal.SIGTERM))
    replace(proc, "signal_each", lambda processes, number, **rest: real_each(processes, signal.SIGTERM, **rest))


@guard
def as_made() -> None:
    """A directory that is used again is not looked at: the next call finds what the last one made of it."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "is_as_made", lambda self: True)


@guard
def root_as_made() -> None:
    """The directory in which all calls have theirs is used for as long as it is there."""
    from watchdog.workspace import workspaces

    replace(workspaces._Root, "is_as_made", lambda self: os.path.exists(self.path))


@guard
def fresh_pipes() -> None:
    """A pipe is used again as the last command left it."""
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
    """Every process that loses its parent is taken for the one's who ends first."""
    from watchdog.process.ownership import Ownership

    def belongs_to(self: Any, child: Any, process: Any, commands: Any, owners: Any = None) -> bool:
        return bool(process.session == child.pid or process.parent == os.getpid())

    replace(Ownership, "belongs_to", belongs_to)
    replace(Ownership, "owner_of", lambda self, process, commands: None)


@guard
def limit_mark() -> None:
    """Scripts can take off the limit by which the server knows their processes."""
    from watchdog.process import limit_mark as limit_mark_module

    replace(limit_mark_module, "_lower_own_limit", lambda: (0, False))


@guard
def own_status() -> None:
    """Whoever is dead is reaped, as PID 1 must, the script itself too."""
    from watchdog.process import orphans, supervisor

    def reap(self: Any) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    replace(orphans.Orphans, "reap", reap)
    replace(supervisor, "_REAP_INTERVAL_S", 0.001)


@guard
def reap_timer() -> None:
    """Orphans are reaped when a script ends."""
    from watchdog.process.supervisor import Supervisor

    replace(Supervisor, "_reap_again", lambda self: None)


@guard
def oom_preference() -> None:
    """When memory ends, the kernel takes the largest."""
    from watchdog.process import oom_preference as oom_preference_module

    replace(oom_preference_module, "OOM_SCORE_ADJ_OF_SCRIPTS", 0)


@guard
def decoy() -> None:
    """When memory ends and no script can be preferred, the kernel takes the largest."""
    from watchdog.process.decoy_keeper import DecoyKeeper

    replace(DecoyKeeper, "start", lambda self: None)


@guard
def own_peak() -> None:
    """The server's own peak memory includes that of the program that the process executed before."""
    import resource

    from watchdog.system import proc

    replace(proc, "own_peak_rss_bytes", lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@guard
def guardian() -> None:
    """A server that is killed leaves its scripts."""
    from watchdog.process.guardian_keeper import GuardianKeeper

    replace(GuardianKeeper, "start", lambda self: None)


@guard
def guardian_limit() -> None:
    """The guardian does not look at the limits of processes."""
    from watchdog.process.guardian import Guardian

    real = Guardian.__init__
    replace(Guardian, "__init__", lambda self, has_limit: real(self, lambda pid: False))


@guard
def guardian_restart() -> None:
    """A guardian that died is not missed."""
    from watchdog.process import guardian_keeper

    replace(guardian_keeper, "_PAUSE_S", float("inf"))


@guard
def guardian_resumption() -> None:
    """A guardian that was stopped by a signal does not go on."""
    from watchdog.process.guardian import Guardian

    replace(Guardian, "resume", lambda self: False)


# ---- memory


@guard
def finished_work() -> None:
    """Threads remember each piece of their work for ever."""
    from watchdog.system.threads import Threads

    replace(Threads, "_finished", lambda self, job: None)


# ---- time


@guard
def monotonic_clock() -> None:
    """Timeouts go by the time of day."""
    import time

    replace(asyncio.BaseEventLoop, "time", lambda self: time.time())


# ---- disk


@guard
def no_space() -> None:
    """A full disk is an error like any other."""
    from watchdog.input import form
    from watchdog.invocation import found_outputs, functions, inputs
    from watchdog.workspace import held_input, workspaces

    for module in (form, held_input, found_outputs, functions, inputs, workspaces):
        replace(module, "raise_if_no_space", lambda error, what: None)


@guard
def small_files_of_forms() -> None:
    """Each file of a form has an object until the form is forgotten."""
    from watchdog.workspace.held_input import HeldInput

    create = HeldInput.create
    kept = []

    def create_and_keep(self: Any, name: str) -> Any:
        kept.append(create(self, name))
        return kept[-1]

    replace(HeldInput, "create", create_and_keep)


@guard
def full_disk_look() -> None:
    """Why a script failed is the script's affair."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "is_full", lambda self: False)


def _list_all_that_opens(self: Any, listing: Any) -> Any:
    """List what ``os.walk`` finds; it leaves out what it cannot look at."""
    from watchdog.workspace.outputs import Output

    for directory, _, names in os.walk(self.output_dir, followlinks=True):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                status = os.stat(path)
                name = os.path.relpath(path, self.output_dir)
                listing.outputs.append(Output(path, name, status.st_size, status.st_mtime, status.st_mode))
    yield from ()


@guard
def output_checks() -> None:
    """Whatever lies in the output directory is opened and read, links and devices too."""
    from watchdog.output import answer, encode
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "listing", _list_all_that_opens)
    for module in (answer, encode):
        replace(module, "open_output", lambda output: os.open(output.path, os.O_RDONLY))
    replace(encode, "raise_if_changed", lambda fd, output: None)


@guard
def sparse_look() -> None:
    """A file of a tebibyte is sent."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "_raise_if_impossible", lambda self, name, size_bytes: None)


@guard
def output_dir_look() -> None:
    """What is no directory has no outputs in it."""
    from watchdog.workspace.workspace import Workspace

    real = Workspace.listing

    def listing(self: Any, listing: Any) -> Any:
        return real(self, listing) if os.path.isdir(self.output_dir) else iter(())

    replace(Workspace, "listing", listing)


@guard
def change_look() -> None:
    """A file stays what it was when it was listed."""
    from watchdog.output import encode
    from watchdog.workspace import outputs

    for module in (encode, outputs):
        replace(module, "raise_if_changed", lambda fd, output: None)


@guard
def sweep() -> None:
    """What a crash left stays."""
    from watchdog.workspace.workspaces import Workspaces

    replace(Workspaces, "sweep", lambda self: ([], []))


@guard
def sweep_lock() -> None:
    """Whatever is called like a server's directory is taken for a dead one's."""
    from watchdog.workspace.workspaces import Workspaces

    def abandoned(self: Any) -> list[str]:
        return [entry.path for entry in os.scandir(self.tmp_dir) if entry.name.startswith("watchdog-")]

    replace(Workspaces, "_abandoned", abandoned)


@guard
def lock_file_made_anew() -> None:
    """What is in the place of the lock file is opened and emptied."""
    from watchdog.http.lock_file import LockFile

    def open_it(self: Any) -> None:
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660))

    replace(LockFile, "_replace", open_it)


@guard
def lock_file_kept() -> None:
    """A lock file that is gone stays away, and anything in its place is taken for it."""
    from watchdog.http.lock_file import LockFile

    replace(LockFile, "restore", lambda self: self._is_written and os.path.exists(self.path))


@guard
def regular_files_only() -> None:
    """A file that the server reads may be a FIFO, for which open waits."""
    from watchdog.invocation import functions

    replace(functions, "open_regular", lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC))


# ---- stop


@guard
def drain() -> None:
    """The first signal is the end."""
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
    """A drain takes its time, however often it is asked."""
    from watchdog.http.drain import Drain

    real = Drain.run_at_signal

    async def run(self: Any, signals: Any) -> None:
        only: asyncio.Queue[int] = asyncio.Queue()
        only.put_nowait(await signals.get())
        await real(self, only)

    replace(Drain, "run_at_signal", run)


@guard
def deaf_listener() -> None:
    """Connections can be made until the listening socket is closed."""
    from watchdog.http import listener

    replace(listener, "ignore_new_connections", lambda sock: None)


@guard
def late_accept() -> None:
    """A caller that connects just before the listening socket is closed is not let in."""
    from watchdog.http.listener import Listener

    async def nobody(self: Any, listening: Any) -> list[Any]:
        return []

    replace(Listener, "_accept_late", nobody)


@guard
def half_open() -> None:
    """A stop does not wait for handshakes that have begun."""
    from watchdog.http import listener

    replace(listener, "has_half_open", lambda port: False)


@guard
def last_words() -> None:
    """Who is refused is closed at once."""
    from watchdog.http import body, connection, http_server, problems

    for module in (body, connection, http_server, problems):
        replace(module, "LAST_WORDS_S", 0.0)


@guard
def answers_sent() -> None:
    """A call is over when its script is."""
    from watchdog.http.calls import Calls
    from watchdog.http.http_server import HttpServer

    async def nothing(self: Any, *_: Any) -> None: ...

    replace(Calls, "all_answered", nothing)
    replace(HttpServer, "say_goodbye", nothing)


@guard
def half_close() -> None:
    """An idle connection is closed, with what comes over it just then unread."""
    from watchdog.http.connection import Connection

    replace(Connection, "half_close", lambda self: self.force_close())


@guard
def drain_bound() -> None:
    """A drain waits for as long as scripts run."""
    from watchdog.http import drain, server

    async def wait(limit_s: float, *steps: Any) -> bool:
        await asyncio.gather(*steps)
        return True

    for module in (drain, server):
        replace(module, "within", wait)


@guard
def routed_wait() -> None:
    """Only somebody that has probed over HTTP just before is given time to see that the server is not ready."""
    from watchdog.http.health import Health

    replace(Health, "may_get_calls", Health.is_probed)


@guard
def refuse_senders() -> None:
    """Whoever has begun to send may go on."""
    from watchdog.http.drain import Drain

    replace(Drain, "refuse_all", lambda self: self._admission.close())


# ---- secrets


@guard
def hidden_memory() -> None:
    """The memory of the server and of the guardian is as open to scripts as any process's to its user."""
    from watchdog.system import proc

    replace(proc, "hide_memory", lambda: True)


@guard
def hidden_decoy() -> None:
    """The memory of the decoy is open to scripts."""
    from watchdog.process import decoy as decoy_module

    without = "from watchdog.process import decoy; decoy.hide_memory = bool; from watchdog.process.decoy"
    replace(decoy_module, "_CODE", decoy_module._CODE.replace("from watchdog.process.decoy", without))


@guard
def hidden_guardian() -> None:
    """The guardian's memory is open to scripts, as ``exec`` would leave it."""
    from watchdog.process import guardian as guardian_module
    from watchdog.system import proc

    watch = guardian_module._watch

    def watch_openly(*arguments: Any) -> None:
        proc.prctl(proc._PR_SET_DUMPABLE, 1)
        watch(*arguments)

    replace(guardian_module, "_watch", watch_openly)


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
    """Every value is shown as it is."""
    from watchdog.settings import declarations, reading, report

    shown = {name: each._replace(secret=False) for name, each in declarations.SETTINGS.items()}
    for module in (declarations, reading, report):
        replace(module, "SETTINGS", shown)


# ---- callers


@guard
def disconnect() -> None:
    """Nobody tells a call that its caller has gone, as with aiohttp unless it is asked to."""
    _serve_with(handler_cancellation=False)


@guard
def unread_end() -> None:
    """A caller that hangs up is noticed by reading alone."""
    from watchdog.http.connection import Connection

    replace(Connection, "_look_for_end", lambda self: None)


@guard
def header_timer() -> None:
    """Headers may take for ever."""
    from watchdog.http.connection import Connection

    replace(Connection, "_start_headers_timer", lambda self: None)


@guard
def traced_command() -> None:
    """A wait for the status of a command holds up the server."""
    wait4 = os.wait4
    replace(os, "wait4", lambda pid, options: wait4(pid, 0))


@guard
def own_limits() -> None:
    """Nobody looks at the limits of the server."""
    from watchdog.process.own_limits import OwnLimits

    replace(OwnLimits, "restored", lambda self: [])


@guard
def place_of_slow_callers() -> None:
    """A caller keeps its place, however slow it is."""
    from watchdog.invocation.admission import Admission

    replace(Admission, "_look_for_slow", lambda self, waiter: None)


@guard
def place_of_long_lists() -> None:
    """A call gives its place back before its answer is sent, however many outputs it has."""
    from watchdog.invocation import invocation

    replace(invocation, "_MOST_WITHOUT_PLACE", 1 << 60)


@guard
def outputs_of_all_runs() -> None:
    """Each run of a call may have 100,000 outputs, however many runs there are."""
    from watchdog.invocation import found_outputs

    replace(found_outputs, "MOST_OUTPUTS", 1 << 60)


@guard
def room_of_slow_callers() -> None:
    """A caller that has come in keeps its room, however slow it is."""
    from watchdog.invocation.pace import Paces

    replace(Paces, "slowest", lambda self: None)


@guard
def min_data_rate() -> None:
    """A caller that sends or takes one byte now and then may go on without end."""
    from watchdog.invocation import pace

    replace(pace, "_SHORTEST_WINDOW_S", float("inf"))


@guard
def idle_connections() -> None:
    """A connection without a request may have the last descriptor."""
    from watchdog.http.idle_connections import IdleConnections

    replace(IdleConnections, "close_oldest", lambda self, count=1: None)


@guard
def answer_bytes() -> None:
    """However large the answers are that are being sent, there is room for the next call."""
    from watchdog.invocation import admission

    replace(admission, "_SMALL_ANSWERS_BYTES", float("inf"))


@guard
def answers_counted() -> None:
    """A call whose script has ended counts no more, although its answer is still being sent."""
    from watchdog.invocation.admission import Ticket

    replace(Ticket, "hand_over", lambda self: self._leave())


# ---- HTTP


@guard
def lingering() -> None:
    """What a caller still sends after an early answer is not read: the kernel resets the connection."""
    _serve_with(lingering_time=0.0)


@guard
def request_checks() -> None:
    """What the parser lets pass is a request."""
    from watchdog.http import connection

    replace(connection, "why_refused", lambda message: None)


@guard
def distrust() -> None:
    """What the parser finds after a body is the next request."""
    from watchdog.http.connection import Connection

    replace(Connection, "_distrust", lambda self, new: None)


@guard
def closing_requests() -> None:
    """A connection is kept after a CONNECT or an Upgrade."""
    from aiohttp import web

    from watchdog.http import http_server

    def make(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Any:
        return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())

    replace(http_server, "make_request", make)


@guard
def header_limits() -> None:
    """First lines, headers and trailers are not bounded."""
    from watchdog.http import connection, request_head

    for module in (connection, request_head):
        replace(module, "MOST_HEAD_BYTES", 1 << 40)


@guard
def header_count() -> None:
    """A request may have any number of headers."""
    from watchdog.http import connection, request_head

    for module in (connection, request_head):
        replace(module, "MOST_HEADERS", 1 << 40)


@guard
def head_memory() -> None:
    """The headers of idle connections are not bounded together."""
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
    """A body may take for ever."""
    from watchdog.http.body import Bodies

    async def read(self: Any, request: Any) -> Any:
        while piece := await request.content.readany():
            yield piece

    replace(Bodies, "read", read)


@guard
def write_timer() -> None:
    """An answer may take for ever."""
    from watchdog.http.response import Sender

    async def send(self: Any, request: Any, sending: Any, readers: Any = None) -> None:
        await sending

    replace(Sender, "_patiently", send)
    _serve_with(write_timeout_s=0.0)


@guard
def late_continue() -> None:
    """The body is asked for before it is known whether the call is wanted."""
    from watchdog.http.authorization import Authorization

    check = Authorization.check

    async def ask_first(self: Any, request: Any) -> None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await check(self, request)

    replace(Authorization, "check", ask_first)


@guard
def end_of_malformed_body() -> None:
    """A body has ended well when its reader sees an end."""
    from aiohttp import StreamReader

    replace(StreamReader, "exception", lambda self: None)


@guard
def input_limit() -> None:
    """max_input_size is not looked at."""
    from watchdog.input.files import Limit

    def count(self: Any, count: int) -> None:
        self.taken += count

    replace(Limit, "take", count)


@guard
def inflate_bound() -> None:
    """What a piece of gzip or deflate holds is decoded at once, into memory."""
    from watchdog.input.inflate import _Inflater

    replace(_Inflater, "_inflate", lambda self, data: self._decoder.decompress(data))


@guard
def blanks_inside_base64() -> None:
    """Blanks are removed from base64, wherever they stand."""
    from watchdog.system.base64_reader import Base64Reader

    replace(Base64Reader, "_without_blanks", lambda self, data: self._carry + data.translate(None, b" \t\r\n"))


@guard
def one_alphabet() -> None:
    """The characters of both alphabets of base64 are decoded, side by side."""
    from watchdog.system.base64_reader import Base64Reader

    decoded = Base64Reader._decoded

    def decode(self: Any, data: bytes, alphabet: object) -> object:
        return decoded(self, data.translate(bytes.maketrans(b"-_", b"+/")), None)

    replace(Base64Reader, "_decoded", decode)


@guard
def last_bits() -> None:
    """The bits behind the last byte of base64 are not looked at."""
    from watchdog.system import base64_reader

    replace(base64_reader, "_UNUSED_BITS", {2: 0, 3: 0})


@guard
def types_that_say_what_the_body_is() -> None:
    """Every text/* may be base64."""
    from watchdog.input import detect

    class Types(frozenset[str]):
        def __contains__(self, media_type: object) -> bool:
            return super().__contains__(media_type) or str(media_type).startswith("text/")

    replace(detect, "_BASE64_TYPES", Types(detect._BASE64_TYPES))


@guard
def base64_is_not_a_form() -> None:
    """Any text with a `=` is a form."""
    from watchdog.input import form

    replace(form, "_is_meant_as_base64", lambda text: False)


@guard
def armour_is_not_a_form() -> None:
    """A form may hold the armour of PEM."""
    from watchdog.input import form

    replace(form, "ARMOUR", re.compile(rb"(?!)"))


@guard
def markup_is_not_a_form() -> None:
    """Any text with a `=` in its first line is a form."""
    from watchdog.input import detect

    replace(detect, "_FORM_START", re.compile(rb"[^=]+="))


@guard
def byte_order_mark() -> None:
    """A byte order mark is part of what follows it."""
    from watchdog.input import detect, multipart

    for module in (detect, multipart):
        replace(module, "BOM_UTF8", b"\0 no body begins with this")


@guard
def utf_16() -> None:
    """All text is taken for UTF-8."""
    from watchdog.input import detect

    replace(detect, "_wide_characters", lambda head: None)


@guard
def every_content_encoding() -> None:
    """Only the first Content-Encoding is looked at."""
    from watchdog.input import inflate, receive

    inflater = inflate.inflater_for
    replace(receive, "inflater_for", lambda codings: inflater(codings.partition(",")[0]))


@guard
def file_names() -> None:
    """A file gets the name that the caller gave."""
    from watchdog.input import multipart, receive

    for module in (multipart, receive):
        replace(module, "safe_file_name", lambda name: name)


@guard
def response_file_checks() -> None:
    """What a script writes into $HTTP_RESPONSE_FILE is taken as it is, whatever that file is."""
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


# ---- success that is none


@guard
def binary_data_left_out() -> None:
    """Whatever a script prints is logged as lines."""
    from watchdog.output.printed import Printed

    real = Printed.take

    def take(self: Any, piece: bytes) -> bool:
        real(self, piece)
        return False

    replace(Printed, "take", take)


@guard
def empty_answer() -> None:
    """A script that leaves nothing and prints nothing has done its work."""
    from watchdog.invocation.doubts import Doubts

    async def nothing(self: Any, workspace: Any, since_ns: int) -> list[Any]:
        return []

    replace(Doubts, "_warnings_of_no_output", nothing)


@guard
def oom_count() -> None:
    """The control group is not asked whether the kernel killed a process."""
    from watchdog.system.cgroup import Cgroup

    replace(Cgroup, "oom_kills", lambda self: None)


@guard
def line_ends() -> None:
    """The line ends of a script are not looked at."""
    from watchdog.invocation import functions
    from watchdog.process import command

    for module in (functions, command):
        replace(module, "has_crlf", lambda start: False)


# ---- storage events


@guard
def only_creations() -> None:
    """Each record of an event is taken for a new object, whatever has happened to it."""
    from watchdog.storage.stored_object import StoredObject

    replace(StoredObject, "why_not_new", "")


@guard
def uncovered_is_not_data() -> None:
    """The event of an object that no input covers is the input itself."""
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
    """The latest version of an object is fetched, whichever the event reports."""
    from watchdog.storage.s3 import S3

    real = S3.fetch

    async def fetch(self: Any, location: str, fd: int, *, version: str = "", **rest: Any) -> int:
        return await real(self, location, fd, **rest)

    replace(S3, "fetch", fetch)


@guard
def whole_location() -> None:
    """A bucket's name may be a path, and lead out of the folder of the input."""
    from watchdog.storage import locator

    replace(locator, "_why_leads_elsewhere", lambda stored, *, is_trusted: "")


@guard
def kubernetes_probe() -> None:
    """The kubelet's probe at the path of calls is a call."""
    from watchdog.http import routes

    replace(routes, "is_probe", lambda request: request.method == "HEAD")


@guard
def head_is_a_probe() -> None:
    """HEAD of the path of a call runs the script."""
    from watchdog.http import routes

    replace(routes, "is_probe", lambda request: False)


@guard
def base_path() -> None:
    """The path below which OSCAR exposes the service stays in each request's path."""
    from watchdog.http import request, routes

    for module in (request, routes):
        replace(module, "below", lambda base_path, path: path)


@guard
def script_byte_order_mark() -> None:
    """A byte order mark hides the first line of a script."""
    from watchdog.process import command

    replace(command, "without_mark", lambda start: start)


@guard
def script_utf16() -> None:
    """A script in UTF-16 is given to /bin/sh."""
    from watchdog.process import command

    replace(command, "refuse_utf16", lambda start, name: None)


@guard
def hyphens_before_underscores() -> None:
    """Of two headers with the same variable the first one counts."""
    from watchdog.http import calls

    def variables(request: Any, base_path: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in request.headers.items():
            found.setdefault("Http_" + "_".join(map(str.capitalize, name.split("-"))), value)
        return found

    replace(calls, "cgi_variables", variables)


@guard
def no_sniffing() -> None:
    """A browser may take the content of an answer for another type than its content type."""
    from aiohttp import web

    from watchdog.http.connection import Request

    replace(Request, "_prepare_hook", web.BaseRequest._prepare_hook)


@guard
def wrong_token_rate() -> None:
    """Each wrong token is answered at once."""
    from watchdog.http.wrong_tokens import WrongTokens

    replace(WrongTokens, "wait_s", lambda self, now_s: 0.0)


@guard
def linear_duration() -> None:
    """A search for a duration goes back over each digit."""
    from watchdog.settings import kinds

    number = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
    replace(kinds, "_PLAIN_SECONDS", re.compile(rf"\+?{number}"))
    replace(kinds, "_GO_DURATION", re.compile(rf"\+?(?:({number})(ns|us|ms|s|m|h))+"))


@guard
def form_size() -> None:
    """A form is only measured when it is complete."""
    from watchdog.input.files import Limit

    def take(self: Any, count: int) -> None:
        self.taken += count
        check(self, self.taken)

    check = Limit.check
    replace(Limit, "take", take)
    replace(Limit, "check", lambda self, count: None)


@guard
def kept_warnings() -> None:
    """Libraries warn, and the interpreter keeps each text."""
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
    """A call may log as much as it likes."""
    from watchdog.logs.log_rate import LogRate

    replace(LogRate, "has_room", lambda self: True)


# ---- outputs


@guard
def directories_once() -> None:
    """Links to directories are followed."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "listing", _list_all_that_opens)


@guard
def unreadable_outputs() -> None:
    """What cannot be looked at is left out, as if it were a symbolic link to nothing."""
    from watchdog.workspace.workspace import Workspace

    replace(Workspace, "listing", _list_all_that_opens)


@guard
def safe_output_names() -> None:
    """Outputs keep their names, whatever these mean on other systems."""
    from watchdog.workspace import workspace as workspace_module

    replace(workspace_module, "replacements", lambda names: {})


@guard
def short_look() -> None:
    """A call waits for the look into the working directory, however long it takes."""
    from watchdog.invocation import doubts

    replace(doubts, "_LOOK_ELSEWHERE_S", None)


@guard
def listing_limit() -> None:
    """The list of outputs is waited for, however long it takes."""
    from watchdog.invocation import found_outputs

    async def to_the_end(steps: Any, threads: Any) -> None:
        job = asyncio.get_running_loop().run_in_executor(threads, list, steps)
        while not job.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((job,))

    replace(found_outputs, "in_steps", to_the_end)


@guard
def threads_for_outputs() -> None:
    """All work on files is done by the same few threads."""
    from watchdog.invocation import doubts, found_outputs

    for module in (doubts, found_outputs):
        replace(module, "OUTPUTS", None)


@guard
def daemon_threads() -> None:
    """Work on files is done by threads of concurrent.futures, for which the process waits at its end."""
    from concurrent.futures import ThreadPoolExecutor

    from watchdog.invocation import doubts, found_outputs
    from watchdog.system import threads as threads_module
    from watchdog.workspace import disposal

    replace(threads_module, "Threads", lambda name: ThreadPoolExecutor())
    replace(disposal, "REMOVALS", None)
    for module in (doubts, found_outputs):
        replace(module, "OUTPUTS", None)


# ---- doubtful success


@guard
def nameless_files() -> None:
    """What is held for a call has a name."""
    import tempfile

    from watchdog.input import form
    from watchdog.workspace import held_input, spool

    def with_name(directory: str, mode: int = 0o600) -> int:
        return tempfile.mkstemp(dir=directory)[0]

    for module in (form, held_input, spool):
        replace(module, "open_nameless", with_name)


@guard
def late_workspace() -> None:
    """A call has its directories and its input while it waits for its place."""
    from watchdog.invocation.inputs import Inputs
    from watchdog.workspace.workspaces import Workspaces

    real_tasks = Inputs.tasks

    async def tasks(self: Any, call: Any, record: Any, stack: Any) -> Any:
        found = await real_tasks(self, call, record, stack)
        workspaces = Workspaces(self._settings.tmp_dir)
        stack.callback(workspaces.close)
        workspace = workspaces.make()
        held: Any = found[0].held
        held.give_names(workspace.input_dir)
        return found

    replace(Inputs, "tasks", tasks)


@guard
def held_outputs() -> None:
    """The next script starts while the outputs of the one before have their names."""
    from watchdog.invocation.invocation import Invocations

    replace(Invocations, "_put_out_of_reach", lambda self, outputs, *rest: outputs)


@guard
def clean_place() -> None:
    """The next script starts while the directories of calls that have ended are still there."""
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
    """A call gives up its directories once more at its end, although another call has them."""
    from watchdog.workspace.workspaces import Workspaces

    real = Workspaces.make

    def make(self: Any) -> Any:
        workspace = real(self)
        workspace.loan = 1
        return workspace

    replace(Workspaces, "make", make)


def take_out(names: str) -> None:
    """Take these guards, with commas between them, out of this process."""
    for each in names.split(","):
        GUARDS[each]()


def changed_program(change: str, without: str | None) -> tuple[str, str]:
    """The arguments of a Python that runs the server with code that changes it, and without a guard."""
    code = f"""
import sys
sys.path.insert(0, "tests")
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
