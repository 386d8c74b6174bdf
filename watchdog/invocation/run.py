"""Describe how one run of the function went."""

from __future__ import annotations

from dataclasses import dataclass

from ..process.ended import Ended
from ..workspace.response_file import ResponseOverrides


@dataclass(slots=True, frozen=True)
class Run:
    """One run of the function, after its end and that of its process tree.

    ``timeout_s``: how long it was allowed to run; 0 is no limit. ``started_ns``: in nanoseconds since 1970.
    ``chosen``: the status and headers that the script chose; None if the file was not read or is bad.
    ``bad_choice``: what is wrong with that file, which made the run fail.
    ``has_oom_kill``: the kernel ended a process of this container for want of memory meanwhile, and it may have been
    one of this run. ``is_out_of_memory``: that was the script, or a process whose end was the script's end.
    ``has_no_space``: nothing more could be written to ``tmp_dir`` at its end.
    ``has_crlf``, ``has_mark``: the script that ran had line ends of Windows, or a byte order mark.
    ``stdout_tail``, ``stderr_tail``: the ends of both streams, as text. ``printed_type``: the media type of stdout.
    """

    ended: Ended
    timeout_s: float
    started_ns: int
    chosen: ResponseOverrides | None
    bad_choice: str | None
    has_oom_kill: bool
    is_out_of_memory: bool
    has_no_space: bool
    has_crlf: bool
    has_mark: bool
    stdout_tail: str
    stderr_tail: str
    printed_type: str
