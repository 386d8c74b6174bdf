"""A live call: the events of a stream, read one after the other while the call runs."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
from dataclasses import dataclass
from typing import Any, Self

from running_server import RunningServer, patience_for_s, stalled


@dataclass(frozen=True)
class Event:
    name: str
    data: dict[str, Any]

    @classmethod
    def read(cls, text: bytes) -> Event:
        """Return the event in exactly this text."""
        name, data, end = text.decode().split("\n", 2)
        assert end == "\n"
        return cls(name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))


class LiveCall:
    """A call that asks for a stream of events. The headers of its answer must have come."""

    def __init__(
        self,
        port: int,
        body: bytes = b"",
        path: str = "/?output=events&input=raw",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=RunningServer.patience_s)
        self._connection.request("POST", path, body, headers or {})
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = self._response.headers
        self.comments = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection, like a caller that disconnects."""
        self._response.close()
        self._connection.close()

    def next(self, *names: str) -> Event:
        """Return the next event, or the next one with one of these names."""
        while (event := self._read_event()) is not None:
            if not names or event.name in names:
                return event
        raise AssertionError(f"the stream ended before the event {names}")

    def rest(self) -> list[Event]:
        """Return all events up to the end of the stream."""
        events = []
        while (event := self._read_event()) is not None:
            events.append(event)
        return events

    def problem(self) -> dict[str, Any]:
        """Return the problem document, if the call was refused."""
        assert self.headers["Content-Type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self._response.read())
        return document

    def read_all(self) -> bytes:
        """Read the rest of the stream as bytes."""
        return self._response.read()

    def next_comment(self) -> None:
        """Wait for a comment."""
        while not self._read_line().startswith(b":"):
            pass

    def _read_line(self) -> bytes:
        assert self._response.length is None, "an answer with a length is not a stream"
        stall = "no event came"
        assert self._connection.sock is not None
        self._connection.sock.settimeout(patience_for_s(stall))
        try:
            return self._response.readline()
        except TimeoutError as error:
            raise stalled(stall) from error

    def _read_event(self) -> Event | None:
        name = data = ""
        while True:
            line = self._read_line()
            if not line:
                assert not name, "the stream ended within an event"
                return None
            text = line.decode().removesuffix("\n")
            if text.startswith(":"):
                self.comments += 1
            elif text.startswith("event: "):
                name = text.removeprefix("event: ")
            elif text.startswith("data: "):
                data = text.removeprefix("data: ")
            elif not text and name:
                return Event(name, json.loads(data))


def outputs_of(events: list[Event]) -> dict[str | None, bytes]:
    """Join the parts of the outputs of a stream, by name. Their checksums must be right."""
    outputs: dict[str | None, bytes] = {}
    for event in events:
        if event.name == "output":
            name = event.data["name"]
            assert event.data["offset"] == len(outputs.get(name, b""))
            outputs[name] = outputs.get(name, b"") + base64.b64decode(event.data["data"])
    for about in events[-1].data["outputs"]:
        assert about["size"] == len(outputs[about["name"]])
        assert about["sha256"] == hashlib.sha256(outputs[about["name"]]).hexdigest()
    return outputs
