"""Describe a call, and record what became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from ..errors import (
    WatchdogError,
)
from ..input.detect import BodyHints
from ..input.receive import Input
from ..storage.locator import Source
from ..storage.stored_object import StoredObject
from ..telemetry.tracing import NO_TRACE, Trace
from ..workspace.held_input import HeldInput
from ..workspace.response_file import ResponseOverrides
from .run import Run


@dataclass(frozen=True, slots=True)
class Call:
    """What one caller asks for.

    ``call_id``: safe to log and to send. ``variables``: for the script's environment, beside the contract's.
    ``timeout_s``: what the caller asks for; 0 is none of its own.
    ``event``: attributes of the CloudEvent that the call is; empty if it is none.
    ``is_job``: the body is an event that the platform sent, and all its kinds are known.
    """

    call_id: str
    body: AsyncIterator[bytes]
    said: BodyHints = field(default_factory=BodyHints)
    variables: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 0.0
    trace: Trace = NO_TRACE
    event: Mapping[str, str] = field(default_factory=dict)
    is_job: bool = False


@dataclass(slots=True)
class Task:
    """One run of the script for a call. Only events of storage ask for more than one.

    ``taken``: the input, once it is there; a classic function has none. ``held``: its files until the script starts.
    ``source``: where it is to be fetched.
    ``stored``: the object that the event tells of. ``failure``: why it could not be fetched before there was a place.
    """

    held: HeldInput | None = None
    taken: Input | None = None
    source: Source | None = None
    stored: StoredObject | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    failure: WatchdogError | None = None


@dataclass(slots=True)
class Record:
    """What became of one call, filled in as it goes: for the answer's headers, the log and the metrics."""

    outcome: str = "ok"
    reason: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    duration_s: float | None = None
    queue_wait_s: float | None = None
    input_bytes: int = 0
    input_encoding: str | None = None  # how the body was read, once it is known
    output_bytes: int = 0
    cpu_s: float = 0.0
    peak_rss_bytes: int | None = None
    chosen: ResponseOverrides = field(default_factory=ResponseOverrides)
    status: int | None = None  # of the answer, once it is being sent
    is_begun: bool = False  # the first byte of a long answer is sent: its status can no longer change
    is_handed_over: bool = False  # the last byte of the answer is with the system: a caller may hang up now
    is_logged: bool = False
    outputs: int = 0  # number of the outputs that all runs so far left
    keeps_place: bool = False  # until it is answered: other scripts could reach its outputs, or they are very many
    is_of_storage: bool = False  # the input is an object that an event told of
    stopped_by: str | None = None  # the name of the signal that ends a job or a local run


def add_run(record: Record, run: Run) -> None:
    """Note one run of the script: of several, the first that failed, the whole time, the highest peak."""
    ended = run.ended
    if not record.exit_code and record.signal is None:
        record.exit_code = ended.exit_code
        record.signal = ended.signal
    record.duration_s = (record.duration_s or 0.0) + ended.duration_s
    record.cpu_s += ended.cpu_s
    if ended.peak_rss_bytes is not None:
        record.peak_rss_bytes = max(record.peak_rss_bytes or 0, ended.peak_rss_bytes)
    if run.chosen is not None:
        record.chosen = run.chosen
