"""One worker: a process of the script that stays alive, and serves one call after the other.

::

    loading ──ready──► idle ──call──► busy ──done──► idle …
       │                │               │
       └────────────────┴───────────────┴──► its whole process tree is ended

A worker has two more pipes than other commands: it reads calls from descriptor 3, and writes answers to descriptor 4.
``protocol.py`` and ``shell_line.py`` have the format of the lines.

The server learns in three ways that a call has ended: the worker writes ``done``, its process exits, or the time of the
call is over. The worker flushes its streams before ``done``. So after ``done`` the pipes of stdout and stderr have all
bytes of the call, and the server reads them before the next call.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import Mapping

import msgspec

from ..logs.observer import Observer
from ..logs.progress_line import Progress
from ..logs.setup import get_logger
from ..logs.sink import LogWriter
from ..logs.text import printable
from ..process.child import Child
from ..process.ended import Ended
from ..process.pipes import Consumer, set_done
from ..process.supervisor import Supervisor
from ..process.watch import Wait
from ..system import proc
from ..system.threads import settled
from ..workspace.workspace import Workspace
from .channel import Channel
from .protocol import Answer, Done, Ready, json_line
from .residents import Residents
from .shell_line import ShellLine
from .usage import Usage
from .worker_log import WorkerLog

log = get_logger("worker")
# A process that exits closes its descriptors before the server learns of the exit. A worker breaks the protocol if it
# has closed descriptor 3 or 4, and has not exited after this number of seconds.
_EXIT_S = 1.0
_LOOK_S = 0.02
_MOST_NAMES = 10  # names of processes or variables in one log event


class NotTaken(Exception):
    """The worker ended before it had read the whole line of the call, so another worker can serve the call."""


class Limits(msgspec.Struct, frozen=True):
    """The limits of all workers.

    ``start_timeout_s``: the longest load; 0 means no limit. ``kill_grace_s``: the time between SIGTERM and SIGKILL.
    ``log_bytes_per_s``: the room in the log for lines that belong to no call; 0 means no limit.
    """

    start_timeout_s: float
    kill_grace_s: float
    log_bytes_per_s: int


class WorkerCall(msgspec.Struct, eq=False):
    """A call for a worker. Only ``waited_s`` changes.

    ``variables``: what this call adds to the environment of the worker. ``timeout_s``: the longest time for the call; 0
    means no limit. ``stdout``, ``stderr``: receive what the worker prints during the call. ``observer``: watches the
    call. ``waited_s``: the time for which the call has waited for a worker so far.
    """

    call_id: str
    variables: dict[str, str]
    timeout_s: float
    stdout: Consumer
    stderr: Consumer
    observer: Observer | None = None
    waited_s: float = 0.0


class Worker:
    """A worker, from its start to the end of its process tree.

    Args:
        environment: the environment of its process.
        workspace: its private directory. The path is in the environment of the worker's processes, so the server can
            find them.
        state: the state of the script's file at the start.

    Attributes:
        served: the number of calls that it has served or serves now.
        replaces_served: it replaces a worker that has served calls.
        load_s: how long it took to load; 0 as long as it is loading.
        ready_s: the time of the event loop when it was ready; 0 as long as it is loading.
        end_reason: why it ends, in one word; None as long as it does not end.
        how_it_ended: how its process ended; None as long as its tree lives.
        broken: how it broke the protocol, or None.

    Raises:
        ScriptUnavailable, OutOfResources: the process cannot be started.
        OSError: no descriptor is free for the pipes.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        sink: LogWriter,
        limits: Limits,
        command: list[str],
        environment: Mapping[str, str],
        workspace: Workspace,
        state: object,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._supervisor = supervisor
        self._limits = limits
        self._environment = environment
        self.workspace = workspace
        self.state = state
        self.served = 0
        self.replaces_served = False
        self.load_s = self.ready_s = 0.0
        self.end_reason: str | None = None
        self.how_it_ended: Ended | None = None
        self.broken: str | None = None
        self.log = WorkerLog(sink, limits.log_bytes_per_s)
        self._ready: Ready | None = None
        self._shell_line = ShellLine()
        self._has_reported_left = False
        self._has_closed = False
        self._wake_up = Wait(loop)

        # The call that it serves now. ``_is_taken``: the worker has read the line of the call.
        self._call: WorkerCall | None = None
        self._is_taken = False
        self._exit_code: int | None = None
        self._timed_out = False
        self._ending: asyncio.Future[None] | None = None

        self._started_s = loop.time()
        self._channel = Channel(self._take, self._break, self._note_closed, self._read)
        self._child = self._start(command)
        # Shows with one system call whether one of the three pipes has bytes that the server has not read.
        self._unread = select.poll()
        for fd in (*(pipe.fileno() for pipe in self._child.pipes), self._channel.fileno()):
            self._unread.register(fd, select.POLLIN)
        self._residents = Residents(supervisor, self._child)
        self._usage = Usage(self._child.pid)
        limit_s = limits.start_timeout_s
        self._load_timer = loop.call_later(limit_s, self.end, "start_timeout") if limit_s else None
        self._life = loop.create_task(self._live())

    # Its life.

    @property
    def pid(self) -> int:
        """The id of the worker's process."""
        return self._child.pid

    @property
    def start_timeout_s(self) -> float:
        """The longest time that it may take to load; 0 means no limit."""
        return self._limits.start_timeout_s

    @property
    def is_ready(self) -> bool:
        """Whether the worker has loaded and has not begun to end."""
        return self._ready is not None and not self.is_ending

    @property
    def is_ending(self) -> bool:
        """Whether the worker has exited or has closed descriptor 3 or 4, or something has asked for its end."""
        return self._has_closed or self._has_begun_to_end

    @property
    def _has_begun_to_end(self) -> bool:
        return self.end_reason is not None or self._child.wake_up.done()

    @property
    def is_loading(self) -> bool:
        """Whether the worker is still loading and has not begun to end."""
        return self._ready is None and not self.is_ending

    @property
    def is_busy(self) -> bool:
        """Whether the worker serves a call now."""
        return self._call is not None

    async def loaded(self) -> bool:
        """Wait until the worker has loaded or has ended, and return whether it has loaded."""
        while self._ready is None and self.how_it_ended is None:
            await self._news()
        if self._ready is None:
            return False
        await self._residents.note()
        return self.is_ready

    async def ended(self) -> Ended:
        """Wait until the worker's whole process tree is gone."""
        while self.how_it_ended is None:
            await asyncio.wait([self._life])
        return self.how_it_ended

    def retire(self, reason: str) -> None:
        """Ask the worker to exit: it reads end-of-file from fd 3, and has ``kill_grace_s`` to exit.

        The worker must not be busy. A worker that is loading does not read yet, so it gets a signal.
        """
        if self._ready is None:
            self.end(reason)
        elif self.end_reason is None:
            self.end_reason = reason
            self._channel.end_calls()
            self._loop.call_later(self._limits.kill_grace_s, self.end_now)

    def end(self, reason: str) -> None:
        """End the worker's process tree: SIGTERM, ``kill_grace_s``, SIGKILL."""
        if self.end_reason is None:
            self.end_reason = reason
        self._child.ask_to_end()

    def end_now(self) -> None:
        """Kill the worker's process tree. Do nothing if the worker has ended."""
        if self.how_it_ended is None:
            self._child.grace_s = 0.0
            self._child.ask_to_end()

    async def memory_bytes(self) -> int:
        """Return the resident memory of all processes of the worker. Memory that they share counts several times."""
        processes = await self._supervisor.processes_of(self._child)
        if (own := proc.process(self.pid)) is not None:
            processes.append(own)
        return sum(each.resident_pages for each in processes) * os.sysconf("SC_PAGE_SIZE")

    @property
    def may_have_left(self) -> bool:
        """Whether calls may have left processes that are not in the log yet."""
        return not self._has_reported_left and self._residents.may_be_new()

    async def report_left(self) -> None:
        """Log the processes that calls have left, once in the life of the worker. They live as long as the worker."""
        if self.may_have_left and (left := await self._residents.new()):
            self._has_reported_left = True
            log.warning(
                "a call left processes, which live as long as the worker",
                pid=self.pid,
                count=len(left),
                names=[printable(each.name) for each in left[:_MOST_NAMES]],
            )

    # One call.

    async def serve(self, call: WorkerCall) -> Ended:
        """Let the worker serve a call. Return how the call ended, in the same form as for a script that is not warm.

        If this is cancelled, the worker may continue for as long as its load took, because a new worker would need this
        time. Then the worker is ended. The cancellation is raised when the call has ended.

        Raises:
            NotTaken: the worker ended before it read the call.
        """
        self._end_idle_time()
        if self.is_ending:
            raise NotTaken
        self.served += 1
        self._call, self._is_taken, self._exit_code, self._timed_out = call, False, None, False
        self._usage.begin()
        began_s = self._loop.time()
        timer = self._loop.call_later(call.timeout_s, self._time_is_over) if call.timeout_s else None
        try:
            self._channel.send(self._line_of(call))
            if call.observer is not None:
                call.observer.started(self.served - 1)
            try:
                await self._until_call_ended()
            except asyncio.CancelledError:
                await settled(asyncio.ensure_future(self._finish_for_nobody()))
                raise
            return self._how_call_ended(began_s)
        finally:
            if timer is not None:
                timer.cancel()
            self._call = self._ending = None

    def _line_of(self, call: WorkerCall) -> bytes:
        assert self._ready is not None
        if self._ready.dialect == "json":
            deadline_s = time.time() + call.timeout_s if call.timeout_s else None
            return json_line(call.call_id, deadline_s, call.variables)
        line, left_out = self._shell_line.line(call.variables, self._environment)
        if left_out:
            names = [printable(name) for name in left_out[:_MOST_NAMES]]
            reason = "the shell cannot get their names or values exactly"
            log.warning("variables left out", call_id=call.call_id, count=len(left_out), names=names, reason=reason)
        return line

    async def _until_call_ended(self) -> None:
        """Wait until the worker has written ``done`` or its process tree is gone. Take all that the call printed."""
        while self._exit_code is None and self.how_it_ended is None:
            await self._news()
        if self._ending is not None:
            await asyncio.wait([self._ending])
        # The worker has flushed its streams, so this is the rest of what the call printed.
        if self._has_unread():
            for pipe in self._child.pipes:
                if not pipe.drain():
                    await pipe.finish()

    def _how_call_ended(self, began_s: float) -> Ended:
        """Return how a call ended.

        Raises:
            NotTaken: the worker ended before it read the call.
        """
        ended = self.how_it_ended
        if ended is None:
            cpu_s, peak_rss_bytes = self._usage.of_call()
        else:
            cpu_s, peak_rss_bytes = max(0.0, ended.cpu_s - self._usage.began_cpu_s), ended.peak_rss_bytes
        duration_s = self._loop.time() - began_s
        if self._exit_code is not None:
            return Ended(
                exit_code=self._exit_code,
                signal=None,
                timed_out=self._timed_out,
                ended_early=False,
                duration_s=duration_s,
                cpu_s=cpu_s,
                peak_rss_bytes=peak_rss_bytes,
                survivors=0,
                is_tree_gone=False,
                served_before=self.served - 1,
            )
        assert ended is not None
        if not self._is_taken and not self._timed_out:
            self.served -= 1
            raise NotTaken
        ended_early = ended.ended_early and not self._timed_out and self.broken is None
        broken = self.broken
        if ended.exit_code == 0 and not ended_early and not self._timed_out:
            broken = broken or self._channel.cut_line or "the worker exited with code 0 before it wrote `done`"
        return msgspec.structs.replace(
            ended,
            timed_out=self._timed_out,
            ended_early=ended_early,
            duration_s=duration_s,
            cpu_s=cpu_s,
            is_tree_gone=False,
            left={},
            served_before=self.served - 1,
            broken=broken,
        )

    def _time_is_over(self) -> None:
        if self._exit_code is None and not self._has_begun_to_end:
            self._timed_out = True
            self._end_call("timeout")

    async def _finish_for_nobody(self) -> None:
        """Let the worker finish a call whose caller is gone, if this does not take longer than a new load."""
        assert self._ready is not None
        rest_s = 0.0 if self._ready.forks else self.load_s
        timer = self._loop.call_later(rest_s, self._end_call, "caller_gone")
        try:
            await self._until_call_ended()
        finally:
            timer.cancel()

    def _end_call(self, reason: str) -> None:
        """End the call. If the worker forks for calls, end only the processes of this call, else the whole worker."""
        assert self._ready is not None
        if self._exit_code is not None or self._call is None or self._ending is not None:
            return
        if self._ready.forks:
            self._ending = asyncio.ensure_future(self._end_forked_call(reason))
        else:
            self.end(reason)

    async def _end_forked_call(self, reason: str) -> None:
        """End the processes of the call, and return when they are gone. If this is not possible, end the worker."""
        has_ended = False
        try:
            has_ended = await self._end_processes_of_call()
        except Exception:
            log.exception("the processes of a call could not be ended, so the worker is ended", pid=self.pid)
        if not has_ended:
            self.end(reason)

    async def _end_processes_of_call(self) -> bool:
        """End the processes that the call started: SIGTERM, ``kill_grace_s``, SIGKILL. Return when they are gone.

        Processes that earlier calls left are ended, too. Return False if a process does not end, or if the worker does
        not write ``done`` then.
        """
        grace_s = self._limits.kill_grace_s
        for number, longest_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, max(grace_s, _EXIT_S))):
            until_s = self._loop.time() + longest_s
            is_signalled = False
            while True:
                left = await self._residents.new()
                if self._has_begun_to_end or (self._exit_code is not None and not left):
                    return True
                # Send SIGTERM only once: a process that appears later may clean up for a process that got SIGTERM.
                if not is_signalled or number == signal.SIGKILL:
                    proc.signal_each(left, number)
                    is_signalled = bool(left)
                if self._loop.time() >= until_s:
                    break
                await asyncio.sleep(_LOOK_S)
        return False

    # Its process.

    def _start(self, command: list[str]) -> Child:
        try:
            return self._supervisor.start(
                command,
                self._environment,
                mark=self.workspace.path + "/",
                stdout=self._take_stdout,
                stderr=self._take_stderr,
                kill_grace_s=self._limits.kill_grace_s,
                descriptors=self._channel.descriptors,
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            self._channel.close_descriptors()

    async def _live(self) -> None:
        """Wait until the process tree is gone."""
        # This value is used only if a fault of the server itself ends the wait.
        ended = Ended(
            exit_code=None,
            signal="SIGKILL",
            timed_out=False,
            ended_early=True,
            duration_s=0.0,
            cpu_s=0.0,
            peak_rss_bytes=None,
            survivors=0,
            is_tree_gone=False,
        )
        try:
            ended = await self._supervisor.until_ended(self._child, linger_timeout_s=0.0)
            if ended.ended_early and self.end_reason is None:  # the program stops, and ends all commands
                self.end_reason = "stopped"
        finally:
            self._channel.read()  # the worker may have written `done` just before its end
            self._note_whether_taken()
            self._stop_load_timer()
            self._channel.close()
            self._residents.close()
            self._usage.close()
            self.log.end_lines()
            self.how_it_ended = ended
            if self.end_reason is None:
                self.end_reason = "crashed"
            set_done(self._wake_up)

    async def _news(self) -> None:
        """Wait until the worker has written an answer or has ended."""
        self._wake_up = Wait(self._loop)
        await self._wake_up

    def _read(self) -> None:
        """Go on with the call in the same turn of the event loop in which its answer was read."""
        self._wake_up.end_now()

    def _stop_load_timer(self) -> None:
        if self._load_timer is not None:
            self._load_timer.cancel()
            self._load_timer = None

    # Its output.

    def _take_stdout(self, data: bytes) -> asyncio.Future[None] | None:
        if self._call is not None and self._note_whether_taken():
            return self._call.stdout(data)
        self.log.take_stdout(data)
        return None

    def _take_stderr(self, data: bytes) -> asyncio.Future[None] | None:
        if self._call is not None and self._note_whether_taken():
            return self._call.stderr(data)
        self.log.take_stderr(data)
        return None

    def _note_whether_taken(self) -> bool:
        """Return whether the worker has read the line of the call. Before that, its output belongs to no call.

        A worker can begin the call only after it has read the whole line. The first bytes prove nothing: a worker that
        is killed while it waits for a call may have taken them out of the pipe.
        """
        if not self._is_taken and self._call is not None:
            self._is_taken = not self._channel.untaken_bytes
        return self._is_taken

    def _end_idle_time(self) -> None:
        """Log what the worker printed since the last call, and take an answer that it wrote without a call."""
        if self._has_unread():
            for pipe in self._child.pipes:
                pipe.drain()
            self._channel.read()
        self.log.end_lines()

    def _has_unread(self) -> bool:
        """Return whether the worker has written something that is not read yet, or not passed on yet."""
        stdout, stderr = self._child.pipes
        return bool(self._unread.poll(0)) or stdout.is_paused or stderr.is_paused

    # Its answers.

    def _take(self, answer: Answer) -> None:
        if isinstance(answer, Ready):
            if self._ready is not None:
                self._break("the worker wrote `ready` a second time")
            elif not self.is_ending:
                self._ready = answer
                self.ready_s = self._loop.time()
                self.load_s = self.ready_s - self._started_s
                self._stop_load_timer()
                self._usage.read_stat()
        elif self._call is None or self._exit_code is not None or self._channel.untaken_bytes:
            word = "done" if isinstance(answer, Done) else "progress"
            self._break(f"the worker wrote `{word}` although it had read no call")
        elif isinstance(answer, Done) and not self._child.asked_to_end.done():
            self._exit_code = answer.exit_code
        elif isinstance(answer, Progress) and self._call.observer is not None:
            self._call.observer.progress(answer.fraction, answer.text)

    def _break(self, how: str) -> None:
        """End the worker, because it does not keep to the protocol."""
        if self.broken is None and not self._has_begun_to_end:
            self.broken = how
            log.error("a worker broke the protocol and is ended", pid=self.pid, reason=how)
            self.end("protocol")
            if self._call is not None and not self._note_whether_taken():
                # Kill the worker before it reads the call, so that another worker can serve this call.
                self._child.grace_s = 0.0
                self._child.signal_group(signal.SIGKILL)

    def _note_closed(self, how: str) -> None:
        self._has_closed = True
        self._loop.call_later(_EXIT_S, self._break, how)
