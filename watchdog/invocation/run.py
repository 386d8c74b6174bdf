"""The facts about one finished run of the function."""

from __future__ import annotations

import msgspec

from ..errors import BadScriptResponse, OutOfResources
from ..process.ended import Ended
from ..workspace.response_file import ResponseOverrides
from .call import Record


class Run(msgspec.Struct, frozen=True):
    """One run of the function, after the end of all its processes.

    ``timeout_s``: the time limit of the run; 0 means no limit. ``started_ns``: nanoseconds since 1970.
    ``chosen``: the status and headers in the script's response file; None if the file was not read or is malformed.
    ``bad_choice``: the error of the response file, if the run failed because of it.
    ``has_oom_kill``: during the run, the kernel killed a process of this container because memory ran out. It may have
    been a process of this run. ``is_out_of_memory``: ``has_oom_kill`` is true, and SIGKILL ended the script or
    one of its children. ``has_no_space``: ``tmp_dir`` was full at the end of the run.
    ``has_crlf``: the script had Windows line ends. ``has_mark``: the script began with a byte order mark.
    ``stdout_tail``, ``stderr_tail``: the ends of both streams, as text. ``printed_type``: the media type of stdout.
    """

    ended: Ended
    timeout_s: float
    started_ns: int
    chosen: ResponseOverrides | None
    bad_choice: BadScriptResponse | OutOfResources | None
    has_oom_kill: bool
    is_out_of_memory: bool
    has_no_space: bool
    has_crlf: bool
    has_mark: bool
    stdout_tail: str
    stderr_tail: str
    printed_type: str

    def add_to(self, record: Record) -> None:
        """Add this run to the record of its call.

        If a call has several runs, the exit code, the signal, and the ends of stdout and stderr are those of the first
        run that failed. Times are added. ``peak_rss_bytes`` is the largest value of all runs.
        """
        ended = self.ended
        if not record.exit_code and record.signal is None:
            record.exit_code = ended.exit_code
            record.signal = ended.signal
            record.stdout_tail, record.stderr_tail = self.stdout_tail, self.stderr_tail
        if record.served_before is None:
            record.served_before = ended.served_before
        record.duration_s = (record.duration_s or 0.0) + ended.duration_s
        record.cpu_s += ended.cpu_s
        if ended.peak_rss_bytes is not None:
            record.peak_rss_bytes = max(record.peak_rss_bytes or 0, ended.peak_rss_bytes)
        if self.chosen is not None:
            record.chosen = self.chosen
