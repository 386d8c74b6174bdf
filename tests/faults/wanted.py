"""Compare an answer with the expected one."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from running_server import Answer

Check = Callable[[Answer], str | None]


def _anything(_: Answer) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The expected answer to a call, and the expected outcome of its invocation.

    ``outcomes``: the possible outcomes; empty for a call that is refused before it becomes an invocation. ``check``:
    returns what is wrong with an answer that has the right status, or None. ``is_named``: the answer must have the id
    of the call; an answer to incomplete headers cannot have it.
    """

    status: int
    outcomes: frozenset[str]
    check: Check = _anything
    is_named: bool = True


def fault(wanted: Wanted, call_id: str, answer: Answer) -> str | None:
    """Return what is wrong with the answer, or None."""
    if answer.status != wanted.status:
        return f"status {answer.status} instead of {wanted.status}: {answer.body[:300]!r}"
    if wanted.is_named and answer.headers["X-Call-Id"] != call_id:
        return f"it is the answer to {answer.headers['X-Call-Id']}"
    if wanted.status >= 400:
        try:
            document = answer.json
        except ValueError:
            return f"no problem document: {answer.body[:300]!r}"
        if document.get("status") != wanted.status or (wanted.is_named and document.get("call_id") != call_id):
            return f"a problem document of another call: {answer.body[:300]!r}"
    return wanted.check(answer)


def files_fault(form: str, files: Mapping[str | None, bytes], body: bytes) -> str | None:
    """Return what is wrong with a body that must have these files in this form, or None. The name None is any name."""
    try:
        if form == "stdout":
            return difference(files[None], body)
        if form == "json":
            outputs = json.loads(body)["outputs"]
            found = {output["name"]: base64.b64decode(output["data"], validate=True) for output in outputs}
            return _files_difference(files, found)
        if form == "base64":
            text, body = body, base64.b64decode(body.removesuffix(b"\n"), validate=True)
            if not text.endswith(b"\n") or base64.b64encode(body) + b"\n" != text:
                return "base64 without its line end, or of another shape"
        if form == "zip" or len(files) > 1:
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                return _files_difference(files, {name: archive.read(name) for name in archive.namelist()})
        (data,) = files.values()
        return difference(data, body)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        return f"no {form}: {error!r}: {body[:100]!r}"


def _files_difference(files: Mapping[str | None, bytes], found: Mapping[str, bytes]) -> str | None:
    if None in files and len(found) == 1:
        return difference(files[None], *found.values())
    if set(files) != set(found):
        return f"the files {sorted(found)} instead of {sorted(map(str, files))}"
    differences = (difference(files[name], data) for name, data in found.items())
    return next(filter(None, differences), None)


def difference(wanted: bytes, got: bytes) -> str | None:
    if wanted == got:
        return None
    at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
    return f"{len(got)} bytes instead of {len(wanted)}, from byte {at} on others: {got[at : at + 20]!r}"
