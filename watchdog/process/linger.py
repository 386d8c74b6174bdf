"""Let the processes that a script left finish, as long as they work.

A filter behind ``exec > >(sort)`` sees the end of its input only when the script exits, and its output is part of the
answer.
"""

from __future__ import annotations

import asyncio
import math

from .activity import Activity
from .child import Child
from .tree import Tree

# Processes that have not worked for so many seconds are ended: long enough for a pause between two pieces of work,
# short beside the time that an idle daemon would add to each call.
_IDLE_S = 0.1
# The least pause between two looks, in seconds and in durations of a look: each look reads all of /proc.
_LOOK_PAUSE_S = 0.025
_LOOK_PAUSE_LOOKS = 3
# The first look has no earlier look to compare with.
_FEWEST_IDLE_LOOKS = 2


async def linger(child: Child, tree: Tree, until_s: float) -> bool:
    """Wait as long as processes that the command left work. Return whether they were cut off at work.

    They are cut off at ``until_s``, or when the command is asked to end. Otherwise this returns when nothing is left,
    or when what is left has not worked for a while.
    """
    loop = child.loop
    activity = Activity()
    began_s = now_s = next_look_s = loop.time()
    worked_s = -math.inf
    # Bytes that the script itself printed do not show that other processes work.
    came_bytes = sum(pipe.came_bytes for pipe in child.pipes)
    idle_looks = 0
    pause_s = 0.001
    while not tree.is_certainly_gone():
        is_cut_off = child.asked_to_end.done() or now_s >= until_s
        if is_cut_off or now_s >= next_look_s:
            is_working = await _is_working(child, tree, activity, until_s)
            if is_working is None:
                return True
            came_bytes, before = sum(pipe.came_bytes for pipe in child.pipes), came_bytes
            is_working |= came_bytes != before or any(pipe.is_paused for pipe in child.pipes)
            is_working |= child.feed is not None and child.feed.is_awaited
            look_s, now_s = now_s, loop.time()
            next_look_s = now_s + max(_LOOK_PAUSE_S, _LOOK_PAUSE_LOOKS * (now_s - look_s))
            idle_looks = 0 if is_working else idle_looks + 1
            worked_s = now_s if is_working else worked_s
            if is_cut_off:
                return now_s - worked_s < _IDLE_S
            if idle_looks >= _FEWEST_IDLE_LOOKS and now_s - max(worked_s, began_s) >= _IDLE_S:
                return False
            continue  # the look may have shown that orphans belong to another command
        await asyncio.wait((child.asked_to_end,), timeout=max(0.0, min(pause_s, until_s - now_s)))
        pause_s = min(pause_s * 2, _LOOK_PAUSE_S)
        now_s = loop.time()
    return False


async def _is_working(child: Child, tree: Tree, activity: Activity, until_s: float) -> bool | None:
    """Return whether a process of the command works; None if no thread or descriptor was free in time."""
    look = asyncio.ensure_future(tree.is_working(activity))
    left_s = max(_IDLE_S, until_s - child.loop.time())
    waits_for = (look,) if child.asked_to_end.done() else (look, child.asked_to_end)
    await asyncio.wait(waits_for, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    if not look.done():
        # The time is over: give the look that was begun a last moment.
        await asyncio.wait((look,), timeout=_IDLE_S)
    if not look.done():
        look.cancel()
        return None
    return look.result()
