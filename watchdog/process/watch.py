"""Watch the exits and the output of all commands with one descriptor in the event loop."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

from .guardian import Guardian


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
        self._callbacks: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._call_back)

    def watch(self, fd: int, callback: Callable[[], None], *, once: bool = False) -> None:
        """Call back whenever ``fd`` is readable, or only the first time."""
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
        for fd, _ in self._epoll.poll(0):
            # One of these callbacks may have called `forget` for another descriptor.
            if (callback := self._callbacks.get(fd)) is not None:
                callback()
