"""The choice of the storage for an event's object, and the progress of a long transfer."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from own_events import logged_events
from running_server import RunningServer

from storage import events
from storage.files import output_of
from watchdog.errors import StorageError
from watchdog.settings.storage_providers import Place, Provider, Storages
from watchdog.storage import event as event_module
from watchdog.storage import open_storages, transfer_progress
from watchdog.storage.base import Moved, finished
from watchdog.storage.locator import Source
from watchdog.storage.stored_object import StoredObject
from watchdog.storage.transfer import Transfers
from watchdog.telemetry.metrics import Metrics
from watchdog.workspace.held_input import HeldInput
from watchdog.workspace.outputs import Output


def provider(name: str) -> Provider:
    kind, _, identifier = name.partition(".")
    return Provider(kind=kind, id=identifier, endpoint="http://127.0.0.1:9", user="a", secret="b")


def transfers(*names: str, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()) -> Transfers:
    """``inputs``, ``outputs``: ``minio.default:bucket/in``."""

    def places(texts: tuple[str, ...]) -> list[Place]:
        return [Place(provider=text.partition(":")[0], path=text.partition(":")[2]) for text in texts]

    storages = Storages(
        providers={name: provider(name) for name in names}, inputs=places(inputs), outputs=places(outputs)
    )
    return Transfers(storages, timeout_s=1.0, environ={}, metrics=Metrics(lambda: (0, 0, 0)))


def stored(location: str = "b/in/k", source: str = "minio:s3") -> StoredObject:
    found = event_module.read(events.event(location, source=source))
    assert found is not None
    return found.objects[0]


@pytest.mark.parametrize(
    ("names", "source", "chosen"),
    [
        (("minio.default", "s3.default"), "minio:s3", "minio.default"),
        (("minio.default", "s3.default"), "aws:s3", "s3.default"),
        (("minio.default", "s3.default"), "ceph:s3", "s3.default"),
        (("minio.default",), "aws:s3", "minio.default"),
        (("minio.other", "minio.default"), "minio:s3", "minio.default"),
        (("minio.other",), "ceph:s3", "minio.other"),
    ],
)
def test_the_likeliest_provider_of_a_jobs_event(names: tuple[str, ...], source: str, chosen: str) -> None:
    assert transfers(*names).locator.source_of(stored(source=source), "", is_trusted=True) == Source(chosen, "b/in/k")


def test_an_input_that_covers_the_object_decides() -> None:
    found = transfers("minio.default", "minio.other", inputs=("minio.other:b/in",))
    for is_trusted in (True, False):
        assert found.locator.source_of(stored(), "", is_trusted=is_trusted) == Source("minio.other", "b/in/k")
        assert found.locator.source_of(stored("b/elsewhere/k"), "", is_trusted=is_trusted) is None
        assert found.locator.source_of(stored("b/inner/k"), "", is_trusted=is_trusted) is None, (
            "a folder of another name"
        )


@pytest.mark.parametrize("named", ["minio.other", "other"])
def test_the_provider_that_is_named_counts(named: str) -> None:
    found = transfers("minio.default", "minio.other", inputs=("minio.default:b",))
    assert found.locator.source_of(stored(), named, is_trusted=True) == Source("minio.other", "b/in/k")


def test_a_caller_cannot_name_another_provider_than_that_of_the_input() -> None:
    found = transfers("minio.default", "minio.other", inputs=("minio.default:b",))
    assert found.locator.source_of(stored(), "minio.default", is_trusted=False) == Source("minio.default", "b/in/k")
    assert found.locator.source_of(stored(), "minio.other", is_trusted=False) is None


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_provider_that_is_not_defined_is_an_error(is_trusted: bool) -> None:
    found = transfers("minio.default", inputs=("minio.default:b",))
    with pytest.raises(StorageError, match=r"'minio\.another', which is not in .*: minio\.default"):
        found.locator.source_of(stored(), "minio.another", is_trusted=is_trusted)


def test_a_job_fetches_what_the_platform_names_or_any_object_if_there_is_no_input() -> None:
    elsewhere = stored("b/elsewhere/k")
    named = transfers("minio.default", "minio.other", inputs=("minio.default:b/in",))
    assert named.locator.source_of(elsewhere, "minio.other", is_trusted=True) == Source("minio.other", "b/elsewhere/k")
    assert transfers("minio.default").locator.source_of(elsewhere, "", is_trusted=True) is not None


@pytest.mark.parametrize("source", ["minio:s3", "aws:s3", "ceph:s3"])
@pytest.mark.parametrize("bucket", ["b/in/../../other", "b/in", "..", ".", "../b"])
def test_a_bucket_that_cannot_be_is_refused(source: str, bucket: str) -> None:
    bad = events.record("b/k", source)
    bad["s3"]["bucket"]["name"] = bucket
    found = event_module.read(events.event_of(bad))
    assert found is not None
    covering = transfers("minio.default", inputs=("minio.default:b/in",))
    for is_trusted in (True, False):
        why = covering.locator.why_unusable(found.objects[0], is_trusted=is_trusted)
        assert why == "its bucket has an impossible name"


def test_several_that_could_be_meant() -> None:
    with pytest.raises(StorageError, match=r"several are possible: minio\.a, minio\.b; name the provider in an input"):
        transfers("minio.a", "minio.b").locator.source_of(stored(), "", is_trusted=True)


async def test_a_storage_that_does_not_answer_delays_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waiting: list[str] = []
    all_wait = asyncio.Event()

    class Silent:
        async def store(self, output: Output, location: str, *, moved: Moved) -> None:
            waiting.append(location)
            if len(waiting) == 8:
                all_wait.set()
            await asyncio.Event().wait()

    class Healthy:
        async def fetch(self, location: str, fd: int, *, version: str, most_bytes: int, moved: Moved) -> int:
            return os.write(fd, b"data")

    monkeypatch.setattr(open_storages, "_open", lambda known, *_: Healthy() if known.kind == "minio" else Silent())
    found = transfers("minio.default", "s3.default", outputs=("s3.default:bucket/out",))
    outputs = [output_of(tmp_path, b"x", f"output{number}") for number in range(9)]
    storing = asyncio.create_task(found.store(outputs, call_id="x"))
    async with asyncio.timeout(RunningServer.patience_s):
        await all_wait.wait()
        with contextlib.closing(HeldInput(str(tmp_path))) as held:
            assert await found.fetch(Source("minio.default", "b/k"), held, most_bytes=0, call_id="y") == ("k", 4)
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert len(waiting) == 8


async def test_a_long_transfer_is_reported_in_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = asyncio.Event()

    class Slow:
        """Continue until the progress is in the log."""

        async def fetch(self, location: str, path: str, *, most_bytes: int, moved: Moved) -> int:
            raise NotImplementedError

        async def store(self, output: Output, location: str, *, moved: Moved) -> None:
            moved(3)
            while not told.is_set():
                await asyncio.sleep(0.01)
                if any(entry["event"] == "transfer goes on" for entry in logged):
                    told.set()

        async def close(self) -> None: ...

    monkeypatch.setattr(transfer_progress, "_PROGRESS_INTERVAL_S", 0.02)
    monkeypatch.setattr(open_storages, "_open", lambda *_: Slow())
    found = transfers("minio.default", outputs=("minio.default:b/out",))
    with logged_events() as logged:
        async with asyncio.timeout(RunningServer.patience_s):
            await found.store([output_of(tmp_path, b"12345")], call_id="x")
    (first, *_), last = [each for each in logged if each["event"] == "transfer goes on"], logged[-1]
    assert {name: first[name] for name in ("doing", "files", "files_done", "moved_bytes", "size_bytes")} == {
        "doing": "storing",
        "files": 1,
        "files_done": 0,
        "moved_bytes": 3,
        "size_bytes": 5,
    }
    assert (last["event"], last["call_id"]) == ("outputs stored", "x")


async def test_a_cancellation_during_a_cleanup_is_raised_after_the_cleanup() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    has_ended: list[bool] = []

    async def cleanup() -> None:
        begun.set()
        await may_end.wait()
        has_ended.append(True)

    waiting = asyncio.create_task(finished(cleanup()))
    await begun.wait()
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert has_ended == [True]
