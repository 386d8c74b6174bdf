"""Describe a call, and record its outcome."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from ..errors import WatchdogError
from ..input.detect import BodyHints
from ..input.receive import Input
from ..logs.observer import Observer
from ..storage.locator import Source
from ..storage.stored_object import StoredObject
from ..telemetry.tracing import NO_TRACE, Trace
from ..workspace.held_input import HeldInput
from ..workspace.response_file import NO_OVERRIDES, ResponseOverrides


class Call(msgspec.Struct, frozen=True):
    """The request of one caller.

    ``call_id``: safe to log and to send. ``hints``: what the headers say about the body. ``variables``: variables for
    the script's environment, in addition to those that every script gets. ``timeout_s``: the caller's own limit; 0
    means that it has none. ``event``: the attributes of the CloudEvent, if the call is one; otherwise empty.
    ``is_job``: the body is an event that the platform sent. So it may be an event of a kind that is not
    accepted from a caller. ``observer``: watches the call while it runs.
    """

    call_id: str
    body: AsyncIterator[bytes]
    hints: BodyHints = BodyHints()
    variables: Mapping[str, str] = {}
    timeout_s: float = 0.0
    trace: Trace = NO_TRACE
    event: Mapping[str, str] = {}
    is_job: bool = False
    observer: Observer | None = None


class Task(msgspec.Struct):
    """One run of the script for a call. A call has several runs only if it is an event with several objects.

    ``taken``: the input, when it is complete; a classic function has none. ``held``: holds the files of the input until
    the script starts. ``source``: the place in a storage from which the input is fetched.
    ``stored``: the object that the event reports. ``failure``: the error, if this object could not be fetched before
    the call asked for a place.
    """

    held: HeldInput | None = None
    taken: Input | None = None
    source: Source | None = None
    stored: StoredObject | None = None
    variables: Mapping[str, str] = msgspec.field(default_factory=dict)
    failure: WatchdogError | None = None


class Record(msgspec.Struct):
    """The outcome of one call, for the headers of the answer, the log and the metrics.

    Each step of the call sets the values that it knows.
    """

    outcome: str = "ok"
    reason: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    stdout_tail: str = ""
    stderr_tail: str = ""
    served_before: int | None = None  # the number of calls that the worker had served; None: not a warm function
    duration_s: float | None = None
    queue_wait_s: float | None = None  # the wait for a place, and for a worker
    input_bytes: int = 0
    input_encoding: str | None = None  # how the body was read; None as long as this is not known
    output_bytes: int = 0
    cpu_s: float = 0.0
    peak_rss_bytes: int | None = None
    chosen: ResponseOverrides = NO_OVERRIDES
    status: int | None = None  # the status of the answer; None until the answer is sent
    is_begun: bool = False  # the first byte of a long answer is sent, so its status cannot change any more
    is_handed_over: bool = False  # the kernel has the last byte of the answer; the caller may disconnect now
    is_logged: bool = False
    outputs: int = 0  # number of the outputs of all runs so far
    outputs_bytes: int = 0  # their size, if it has a limit
    # The call keeps its place until its answer is sent, because other scripts could reach its outputs, or because it
    # has very many outputs.
    keeps_place: bool = False
    is_of_storage: bool = False  # the input is an object that an event reported
    shown: dict[str, Any] | None = None  # names and sizes of files, which only a log for people shows (narration.py)
    stopped_by: str | None = None  # the name of the signal that stopped a job or a local run
