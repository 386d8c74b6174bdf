"""Wait for the processes that a script left, as long as they work.

For example, the ``sort`` of ``exec > >(sort)`` sees the end of its input only when the script exits, and its output is
part of the answer.
"""

from __future__ import annotations

import asyncio
import math

from .activity import Activity
from .child import Child
from .tree import Tree

# Processes that have not worked for this number of seconds are ended. A process may pause between two pieces of work
# for less than this. An idle daemon makes each call longer by this time.
_IDLE_S = 0.1
# The shortest pause between two checks, in seconds, and as a multiple of the duration of a check. Pauses save CPU time,
# because each check reads all of /proc.
_CHECK_PAUSE_S = 0.025
_CHECK_PAUSE_CHECKS = 3
# The first check has no earlier check to compare with.
_FEWEST_IDLE_CHECKS = 2


async def linger(child: Child, tree: Tree, until_s: float) -> bool:
    """Wait as long as a process that the command left is working. Return whether one was still working at the end.

    The wait ends when no process is left, or when the processes have not worked for a while. At the latest it ends at
    ``until_s``, or when something asks for the end of the command.
    """
    loop = child.loop
    activity = Activity()
    began_s = now_s = next_check_s = loop.time()
    worked_s = -math.inf
    # Bytes that the script itself printed do not show that other processes work.
    written_bytes = sum(pipe.written_bytes for pipe in child.pipes)
    idle_checks = 0
    pause_s = 0.001
    while not tree.is_certainly_gone():
        is_cut_off = child.asked_to_end.done() or now_s >= until_s
        if is_cut_off or now_s >= next_check_s:
            is_working = await _is_working(child, tree, activity, until_s)
            if is_working is None:
                return True
            written_bytes, before = sum(pipe.written_bytes for pipe in child.pipes), written_bytes
            is_working |= written_bytes != before or any(pipe.is_paused for pipe in child.pipes)
            is_working |= child.feed is not None and child.feed.is_awaited
            check_s, now_s = now_s, loop.time()
            next_check_s = now_s + max(_CHECK_PAUSE_S, _CHECK_PAUSE_CHECKS * (now_s - check_s))
            idle_checks = 0 if is_working else idle_checks + 1
            worked_s = now_s if is_working else worked_s
            if is_cut_off:
                return now_s - worked_s < _IDLE_S
            if idle_checks >= _FEWEST_IDLE_CHECKS and now_s - max(worked_s, began_s) >= _IDLE_S:
                return False
            continue  # the check may have shown that orphans belong to another command
        await asyncio.wait((child.asked_to_end,), timeout=max(0.0, min(pause_s, until_s - now_s)))
        pause_s = min(pause_s * 2, _CHECK_PAUSE_S)
        now_s = loop.time()
    return False


async def _is_working(child: Child, tree: Tree, activity: Activity, until_s: float) -> bool | None:
    """Return whether a process of the command works; None if no thread or descriptor was free in time."""
    check = asyncio.ensure_future(tree.is_working(activity))
    left_s = max(_IDLE_S, until_s - child.loop.time())
    waits_for = (check,) if child.asked_to_end.done() else (check, child.asked_to_end)
    await asyncio.wait(waits_for, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    if not check.done():
        # The time is over: let the running check finish, but wait only for a short time.
        await asyncio.wait((check,), timeout=_IDLE_S)
    if not check.done():
        check.cancel()
        return None
    return check.result()
