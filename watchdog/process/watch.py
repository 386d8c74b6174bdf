"""Watch the exits and the output of all commands with one descriptor in the event loop."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from contextvars import Context
from typing import Any

from .guardian import Guardian


class Wait(asyncio.Future[None]):
    """A future for which one task waits. The task can go on in the turn of the event loop that ends the future.

    With a plain future, the event loop would first look for other events, which costs one more turn.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._waiting: tuple[Callable[[Any], object], Context] | None = None

    def add_done_callback(self, callback: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        super().add_done_callback(callback, context=context)
        self._waiting = None if context is None else (callback, context)

    def end_now(self) -> None:
        """Let the task go on now. Only a callback of the event loop may call this, because no other task may run."""
        if self.done():
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self.remove_done_callback(waiting[0])
        self.set_result(None)
        if waiting is not None:
            callback, context = waiting
            context.run(callback, self)


class Watch:
    """Calls back when processes end, and when they print.

    The event loop watches one descriptor for all processes and pipes. To add three descriptors to the event loop for
    each command, and to remove them, would take longer than all other steps of starting the command.

    Args:
        guardian: the process that may have copies of the descriptors.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, guardian: Guardian) -> None:
        self._loop = loop
        self._guardian = guardian
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], Wait | None]] = {}
        loop.add_reader(self._epoll.fileno(), self._call_back)

    def watch(self, fd: int, callback: Callable[[], Wait | None], *, once: bool = False) -> None:
        """Call back whenever ``fd`` is readable, or only the first time. End the ``Wait`` that the callback returns."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT if once else select.EPOLLIN)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop calling back."""
        if self._callbacks.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def close_watched(self, fd: int) -> None:
        """Stop calling back, and close ``fd``.

        The kernel forgets a descriptor that is closed, except if a guardian that was just forked has it, too.
        """
        if not self._guardian.is_alone and self._guardian.may_have_copies():
            self.forget(fd)
        self._callbacks.pop(fd, None)
        os.close(fd)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _call_back(self) -> None:
        ended = []
        for fd, _ in self._epoll.poll(0):
            # One of these callbacks may have called `forget` for another descriptor.
            if (callback := self._callbacks.get(fd)) is not None and (wait := callback()) is not None:
                ended.append(wait)
        # End the waits after all callbacks. A task that goes on may close a descriptor and open another file, which
        # gets the same number.
        for wait in ended:
            wait.end_now()
