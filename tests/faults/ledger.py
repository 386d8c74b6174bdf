"""Compare the answers that callers got with the events that the server logged."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leftovers import described

MOST_PRINTED = 20


@dataclass(frozen=True, slots=True)
class Note:
    """The expected log of a call: the number of its ends (``least`` to ``most``), and their outcomes."""

    outcomes: frozenset[str]
    least: int
    most: int


@dataclass
class Ledger:
    """The answers of callers and the events of the server. All threads may add to it."""

    answers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    lost_lines: list[str] = field(default_factory=list)
    lost_ids: set[str] = field(default_factory=set)
    survivors: list[str] = field(default_factory=list)
    notes: dict[str, Note] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    ends_by_outcome: Counter[str] = field(default_factory=Counter)
    twice: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    script_lines: int = 0
    bad_events: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, kind: str) -> None:
        with self.lock:
            self.kinds[kind] += 1

    def answered(self, call_id: str, result: str, outcomes: frozenset[str]) -> None:
        """Note the end of a call whose caller waited for it."""
        with self.lock:
            self.answers[result] += 1
            self.notes[call_id] = Note(outcomes, 1, 1) if outcomes else Note(outcomes, 0, 0)

    def left(self, call_id: str, note: Note) -> None:
        """Note that a caller has disconnected."""
        with self.lock:
            self.answers["none: the caller left"] += 1
            self.notes[call_id] = note

    def lose(self, call_id: str, how: str, detail: str) -> None:
        """Note that an answer was lost, and report it. The events of this call are not compared any more."""
        with self.lock:
            self.notes.pop(call_id, None)
            self.lost_ids.add(call_id)
            self.lost[how] += 1
            if len(self.lost_lines) < MOST_PRINTED:
                self.lost_lines.append(f"{call_id}: {how}: {detail}")

    def survived(self, call_id: str, pids: Sequence[int]) -> None:
        with self.lock:
            self.survivors.append(f"{call_id}: {', '.join(map(described, pids))} lived when the call was answered")

    def event(self, event: Mapping[str, Any]) -> None:
        """Note one of the server's own events, in the order of the log."""
        name, call_id = event["event"], event.get("call_id", "")
        with self.lock:
            if name == "invocation ended":
                self.ends_by_outcome[event["outcome"]] += 1
                if call_id in self.ends:
                    self.twice.append(call_id)
                self.ends[call_id] = sys.intern(event["outcome"])
            elif name == "call refused":
                self.refused[call_id] += 1
            elif event.get("level") in ("error", "critical") or "logger" not in event:
                what = event.get("reason") or event.get("text") or call_id
                self.bad_events[f"{name}: {what}"[:300]] += 1

    def misfits(self) -> list[str]:
        """Return the calls whose events in the log do not fit the answers of their callers."""
        found = [f"{call_id}: ended twice in the log" for call_id in self.twice]
        for call_id, note in self.notes.items():
            count = int(call_id in self.ends)
            if not note.least <= count <= note.most:
                found.append(f"{call_id}: {count} ends in the log, {note.least} to {note.most} would fit")
            elif count and self.ends[call_id] not in note.outcomes:
                wanted = " or ".join(sorted(note.outcomes))
                found.append(f"{call_id}: ended {self.ends[call_id]!r} in the log, but its caller saw {wanted}")
            elif not note.most and self.refused[call_id] != 1 and not call_id.endswith("-unnamed"):
                found.append(f"{call_id}: {self.refused[call_id]} refusals in the log instead of one")
        unknown = self.ends.keys() - self.notes.keys() - self.lost_ids
        found += [f"{call_id}: ended in the log, but nobody called" for call_id in unknown]
        return found
