"""The requests of the Onedata backend to a stub. One further test needs a real Oneprovider."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from running_server import RunningServer

from storage.cdmi_stub import SPACE, TOKEN, CdmiStub, cdmi_stub
from storage.files import MIB, Moving, changing, fetched, output_of, stored
from watchdog.errors import ObjectMissing, StorageError
from watchdog.settings.storage_providers import Place, Provider, Storages
from watchdog.storage import event as event_module
from watchdog.storage import known_directories as known_directories_module
from watchdog.storage.onedata import Onedata
from watchdog.storage.transfer import Transfers
from watchdog.telemetry.metrics import Metrics
from watchdog.workspace.held_input import HeldInput


@pytest.fixture
async def stub() -> AsyncIterator[CdmiStub]:
    async with cdmi_stub() as stub:
        yield stub


@contextlib.asynccontextmanager
async def opened(provider: Provider, timeout_s: float = 40.0) -> AsyncIterator[Onedata]:
    storage = Onedata(provider, timeout_s=timeout_s, ca_file=None)
    try:
        yield storage
    finally:
        await storage.close()


async def test_requests_are_those_of_cdmi(stub: CdmiStub, tmp_path: Path) -> None:
    async with opened(stub.provider()) as storage:
        for _ in range(2):
            await stored(storage, tmp_path, f"{SPACE}/out/deep/a b+é.jpg", b"data")
        assert await fetched(storage, tmp_path, f"{SPACE}/out/deep/a b+é.jpg") == b"data"
    assert stub.requests == [
        "PUT /cdmi/plants/out/",
        "PUT /cdmi/plants/out/deep/",
        "PUT /cdmi/plants/out/deep/a%20b%2B%C3%A9.jpg",
        "PUT /cdmi/plants/out/deep/a%20b%2B%C3%A9.jpg",
        "GET /cdmi/plants/out/deep/a%20b%2B%C3%A9.jpg",
    ]
    assert stub.files == {f"{SPACE}/out/deep/a b+é.jpg": b"data"}


async def test_directories_are_forgotten_when_there_are_many(
    stub: CdmiStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_directories_module, "MOST_KNOWN", 5)
    async with opened(stub.provider()) as storage:
        for number in range(12):
            await stored(storage, tmp_path, f"{SPACE}/{number}/file", b"1")
            assert len(storage._directories) <= 5
    assert len(stub.files) == 12


@pytest.mark.parametrize("size_bytes", [0, 1, 3 * MIB + 1])
async def test_a_stored_object_can_be_fetched(stub: CdmiStub, tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    async with opened(stub.provider()) as storage:
        assert await stored(storage, tmp_path, f"{SPACE}/file", data) == size_bytes
        assert await fetched(storage, tmp_path, f"{SPACE}/file") == data


async def test_a_wrong_token(stub: CdmiStub, tmp_path: Path) -> None:
    async with opened(stub.provider(secret="wrong-token-0")) as storage:
        with pytest.raises(StorageError, match=r"refuses the GET of .*401.*token") as caught:
            await fetched(storage, tmp_path, f"{SPACE}/file")
    assert "wrong-token-0" not in str(caught.value)
    assert TOKEN not in str(caught.value)


async def test_what_is_missing(stub: CdmiStub, tmp_path: Path) -> None:
    async with opened(stub.provider()) as storage:
        with pytest.raises(ObjectMissing):
            await fetched(storage, tmp_path, f"{SPACE}/no/such")


@pytest.mark.parametrize("failure", ["enoent", 404])
async def test_both_answers_for_a_missing_file(stub: CdmiStub, tmp_path: Path, failure: str | int) -> None:
    async with opened(stub.provider()) as storage:
        stub.failures = [failure]
        with pytest.raises(ObjectMissing):
            await fetched(storage, tmp_path, f"{SPACE}/no/such")


async def test_a_directory_that_was_removed_meanwhile_is_made_again(stub: CdmiStub, tmp_path: Path) -> None:
    async with opened(stub.provider()) as storage:
        await stored(storage, tmp_path, f"{SPACE}/out/deep/a", b"1")
        stub.directories = {SPACE}
        stub.files.clear()
        await stored(storage, tmp_path, f"{SPACE}/out/deep/b", b"2")
        stub.directories = {SPACE}
        await stored(storage, tmp_path, f"{SPACE}/out/other/c", b"3")
    assert stub.files == {f"{SPACE}/out/deep/b": b"2", f"{SPACE}/out/other/c": b"3"}
    assert not any(request.startswith("DELETE") for request in stub.requests)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [("enospc", "400, 'enospc': No space left on device"), ("eunknown", "400, 'eunknown'$"), (403, "refuses .*403")],
)
async def test_an_upload_that_is_refused_leaves_the_older_file(
    stub: CdmiStub, tmp_path: Path, failure: str | int, reason: str
) -> None:
    stub.files[f"{SPACE}/file"] = b"older"
    async with opened(stub.provider()) as storage:
        stub.failures = [failure]
        with pytest.raises(StorageError, match=reason):
            await stored(storage, tmp_path, f"{SPACE}/file", bytes(4 * MIB))
    assert stub.requests == ["PUT /cdmi/plants/file"]
    assert stub.files == {f"{SPACE}/file": b"older"}


async def test_overload_is_tried_again(stub: CdmiStub, tmp_path: Path) -> None:
    async with opened(stub.provider()) as storage:
        stub.failures = [503, 503]
        await stored(storage, tmp_path, f"{SPACE}/file", b"data")
        stub.failures = [503]
        assert await fetched(storage, tmp_path, f"{SPACE}/file") == b"data"


async def test_an_upload_that_fails_is_removed(stub: CdmiStub, tmp_path: Path) -> None:
    stub.cut_at = MIB
    # Failed requests are repeated for this time. The stub must also cut the last attempt within it.
    async with opened(stub.provider(), timeout_s=10.0) as storage:
        with pytest.raises(StorageError, match="closed the connection"):
            await stored(storage, tmp_path, f"{SPACE}/file", bytes(4 * MIB))
    assert stub.requests[-1] == "DELETE /cdmi/plants/file"
    assert stub.files == {}


@pytest.mark.parametrize("change", [None, "touched"])
async def test_a_cancelled_upload_is_removed(stub: CdmiStub, tmp_path: Path, change: str | None) -> None:
    """It ends as cancelled, even if the file changes meanwhile."""
    output = output_of(tmp_path, bytes(64 * MIB))
    alter = changing(output, change) if change is not None else Moving()
    async with opened(stub.provider()) as storage:
        begun = asyncio.Event()

        def moved(count: int) -> None:
            if count > 0:  # an attempt without 100 Continue moves 0 bytes
                alter(count)
                begun.set()

        storing = asyncio.create_task(storage.store(output, f"{SPACE}/file", moved=moved))
        await asyncio.wait_for(begun.wait(), RunningServer.patience_s)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
    assert stub.requests[-1] == "DELETE /cdmi/plants/file"
    assert stub.files == {}


async def test_an_event_of_onetrigger(stub: CdmiStub, tmp_path: Path) -> None:
    """The event has a path in the space. The outputs are stored below the path of the definition in the same space."""
    provider = stub.provider()
    place = Place(provider=provider.name, path="files/in")
    storages = Storages(
        providers={provider.name: provider}, inputs=[place], outputs=[Place(provider=provider.name, path="files/out")]
    )
    transfers = Transfers(storages, timeout_s=40.0, environ={}, metrics=Metrics(lambda: (0, 0, 0)))
    stub.files[f"{SPACE}/files/in/a.txt"] = b"object"
    stub.directories.add(f"{SPACE}/files")
    told = {"Key": f"/{SPACE}/files/in/a.txt", "Records": [{"objectKey": "a.txt", "eventSource": "OneTrigger"}]}
    found = event_module.read(json.dumps(told).encode())
    assert found is not None
    source = transfers.locator.source_of(found.objects[0], "", is_trusted=True)
    assert source is not None
    assert source == transfers.locator.source_of(found.objects[0], "", is_trusted=False)
    with contextlib.closing(HeldInput(str(tmp_path))) as held:
        assert await transfers.fetch(source, held, most_bytes=0, call_id="x") == ("a.txt", 6)
        assert held.read() == b"object"
    await transfers.store([output_of(tmp_path, b"result", "result.txt")], call_id="x")
    assert stub.files[f"{SPACE}/files/out/result.txt"] == b"result"
    await transfers.close()
    other = event_module.read(json.dumps(told | {"Key": f"/{SPACE}/elsewhere/a.txt"}).encode())
    assert other is not None
    for is_trusted in (True, False):
        assert transfers.locator.source_of(other.objects[0], "", is_trusted=is_trusted) is None
    above = event_module.read(json.dumps(told | {"Key": "/../elsewhere/a.txt"}).encode())
    assert above is not None
    assert "impossible name" in transfers.locator.why_unusable(above.objects[0], is_trusted=True)


_LIVE = ("ONEDATA_TEST_HOST", "ONEDATA_TEST_TOKEN", "ONEDATA_TEST_SPACE")


@pytest.mark.skipif(not all(os.environ.get(name) for name in _LIVE), reason=f"no Onedata: set {', '.join(_LIVE)}")
async def test_a_real_oneprovider(tmp_path: Path) -> None:
    host, token, space = (os.environ[name] for name in _LIVE)
    provider = Provider(kind="onedata", id="live", endpoint=f"https://{host}", secret=token, space=space)
    storage = Onedata(provider, timeout_s=30.0, ca_file=os.environ.get("SSL_CERT_FILE"))
    location = f"{space}/watchdog-test-{secrets.token_hex(8)}/deep/a b+é.bin"
    data = os.urandom(3 * MIB)
    try:
        await storage.store(output_of(tmp_path, data), location, moved=Moving())
        assert await fetched(storage, tmp_path, location) == data
    finally:
        await storage.close()
