"""Write a live call as server-sent events (WHATWG HTML, section 9.2).

=============  =====================================================================================================
``queued``     ``position``: 1 for the call that gets the next place
``started``    ``call_id``; ``worker`` if the function is warm
``log``        ``level``, ``stream``, ``text``: a line that the script logged, or a traceback of several lines
``dropped``    ``lines``: the number of lines that are missing here
``progress``   ``fraction`` from 0 to 1, ``text``
``output``     ``name``, ``content_type``, ``size``, ``offset`` in bytes, ``data`` in base64; a large output has several
``completed``  the verdict; if a stream ends without it, the call has failed
=============  =====================================================================================================

Before the events, the stream has the call id in a field ``id``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

import msgspec
import pybase64

from ..logs.text import as_unicode
from .answer import Result, name_in_json, warnings_in_json
from .encode import read_output, read_stdout
from .media_type import guessed_type

EVENT_STREAM_TYPE = "text/event-stream"
# A comment, which clients ignore. It shows proxies that the connection is alive.
HEARTBEAT = b":\n\n"


def id_of_stream(call_id: str) -> bytes:
    """Return the first bytes of a stream. A client sees no event in them.

    The ``EventSource`` of a browser connects again when a stream has ended. It then sends this id as ``Last-Event-ID``,
    so the server sees that this request is not a new call.
    """
    return b"id: %b\n\n" % call_id.encode()


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """Return one event. JSON has no raw line ends, so its data is one line."""
    try:
        text = msgspec.json.encode(data)
    except UnicodeEncodeError:  # a lone surrogate, for a byte of a name or a line that is not UTF-8
        text = msgspec.json.encode({key: as_unicode(it) if isinstance(it, str) else it for key, it in data.items()})
    return b"event: %b\ndata: %b\n\n" % (name.encode(), text)


def result_events(result: Result, verdict: Mapping[str, Any], printed_type: str) -> Generator[bytes, None, None]:
    """Yield the events of a call that succeeded: its outputs in pieces of at most 384 KiB, then ``completed``.

    If the script left no file, its stdout is sent as an output without a name.

    Args:
        verdict: the members of ``completed`` that do not depend on the result.
        printed_type: the media type of stdout.

    Raises:
        OutputUnreadable: an output changed or cannot be read. Then ``completed`` is not among the events.
    """
    import hashlib  # loads OpenSSL

    about_all = []
    for output in result.outputs:
        about = {
            "name": name_in_json(output),
            "content_type": guessed_type(output.name),
            "size": output.size_bytes,
        }
        checksum = hashlib.sha256()
        for offset, piece in _with_offsets(read_output(output)):
            checksum.update(piece)
            yield _output_event(about, offset, piece)
        about_all.append(about | {"sha256": checksum.hexdigest()})
    if not result.outputs and result.stdout.size_bytes:
        about = {"name": None, "content_type": printed_type, "size": result.stdout.size_bytes}
        for offset, piece in _with_offsets(read_stdout(result.stdout)):
            yield _output_event(about, offset, piece)
    yield completed(
        verdict,
        outputs=about_all,
        stdout=result.stdout_tail,
        stderr=result.stderr_tail,
        warnings=warnings_in_json(result.warnings),
    )


def completed(
    verdict: Mapping[str, Any],
    *,
    outputs: list[dict[str, Any]] | None = None,
    stdout: str = "",
    stderr: str = "",
    warnings: list[dict[str, str]] | None = None,
    error: bytes | None = None,
    retry_after_s: int | None = None,
) -> bytes:
    """Return the last event of a stream.

    Args:
        error: the problem document if the call failed.
        retry_after_s: the number of seconds after which the caller may send the call again.
    """
    data = dict(verdict)
    data |= {"outputs": outputs or [], "stdout": stdout, "stderr": stderr, "warnings": warnings or []}
    data["error"] = None if error is None else msgspec.Raw(error.strip())
    if retry_after_s is not None:
        data["retry_after_s"] = retry_after_s
    return event("completed", data)


def _output_event(about: dict[str, Any], offset: int, piece: bytes) -> bytes:
    return event("output", about | {"offset": offset, "data": pybase64.b64encode(piece).decode()})


def _with_offsets(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each piece with its offset in bytes. An empty file has one empty piece."""
    offset = 0
    for piece in pieces:
        yield offset, piece
        offset += len(piece)
    if not offset:
        yield 0, b""
