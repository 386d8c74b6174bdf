"""The WebDAV backend against four real servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from running_server import RunningServer, until

from storage.answering import listening
from storage.certificates import Certificates, make_certificates
from storage.fault_proxy import Seen, fault_proxy
from storage.files import MIB, Moving, changing, fetched, output_of, stored
from storage.webdav_servers import PASSWORD, SERVERS, WebDavServer, missing_program, rclone_webdav
from watchdog.errors import InputTooLarge, ObjectMissing, OutputUnreadable, StorageError
from watchdog.storage import known_directories as known_directories_module
from watchdog.storage.webdav import WebDav


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WebDavServer]]:
    """Start each server when a test first asks for it."""
    with contextlib.ExitStack() as stack:

        class Started(dict[str, WebDavServer]):
            def __missing__(self, name: str) -> WebDavServer:
                self[name] = stack.enter_context(SERVERS[name](tmp_path_factory.mktemp(name)))
                return self[name]

        yield Started()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, servers: dict[str, WebDavServer]) -> WebDavServer:
    if reason := missing_program(request.param):
        pytest.skip(reason)
    return servers[request.param]


@pytest.fixture
def rclone(servers: dict[str, WebDavServer]) -> WebDavServer:
    return servers["rclone"]


@contextlib.asynccontextmanager
async def opened(server: WebDavServer, timeout_s: float = 10.0, ca_file: Path | None = None, **fields: object):  # type: ignore[no-untyped-def]
    storage = WebDav(server.provider(**fields), timeout_s=timeout_s, ca_file=str(ca_file) if ca_file else None)
    try:
        yield storage
    finally:
        await storage.close()


def files_in(root: Path) -> list[str]:
    """Return all files, also those with temporary names."""
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".DAV" not in path.parts
    )


@pytest.mark.parametrize("size_bytes", [0, 1, 3 * MIB + 5])
async def test_a_stored_object_can_be_fetched(server: WebDavServer, tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    async with opened(server) as storage:
        location = f"sizes{size_bytes}/a/b/file"
        assert await stored(storage, tmp_path, location, data) == size_bytes
        assert (server.root / location).read_bytes() == data
        assert await fetched(storage, tmp_path, location) == data
        assert files_in(server.root / f"sizes{size_bytes}") == ["a/b/file"]


ODD_NAMES = [
    "a b.txt",
    "a+b",
    "a%20b",
    "100%",
    "é/ü.txt",
    "日本",
    "a#b",
    "a?b",
    "a&c=d",
    "q\"uo'te",
    ".hidden",
    "x" * 200,
]
ODD_NAMES += ["a;b", "a,b", "[x]", "t~i*"]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names(server: WebDavServer, tmp_path: Path, name: str) -> None:
    if "wsgidav" in str(server.root) and set(name) & set("?;"):
        pytest.skip("wsgidav cuts the Destination of a MOVE off at an encoded ? or ;")
    async with opened(server) as storage:
        await stored(storage, tmp_path, f"odd/{name}", name.encode())
        assert (server.root / "odd" / name).read_bytes() == name.encode()
        assert await fetched(storage, tmp_path, f"odd/{name}") == name.encode()


async def test_what_is_there_is_overwritten(server: WebDavServer, tmp_path: Path) -> None:
    async with opened(server) as storage:
        for data in (b"first, longer", b"second"):
            await stored(storage, tmp_path, "twice", data)
        assert (server.root / "twice").read_bytes() == b"second"


async def test_two_writers_into_one_new_directory(server: WebDavServer, tmp_path: Path) -> None:
    """The writers are like two processes: each has its own backend."""
    async with opened(server) as one, opened(server) as other:
        for number in range(10):
            for name in ("one", "other"):
                (tmp_path / name).mkdir(exist_ok=True)
            await asyncio.gather(
                stored(one, tmp_path / "one", f"new{number}/deep/one", b"1"),
                stored(other, tmp_path / "other", f"new{number}/deep/other", b"2"),
            )
            assert files_in(server.root / f"new{number}") == ["deep/one", "deep/other"]


async def test_many_at_once_into_new_directories(server: WebDavServer, tmp_path: Path) -> None:
    output = output_of(tmp_path, b"data")
    async with opened(server) as storage:
        await asyncio.gather(
            *(storage.store(output, f"many/{number % 4}/x/{number}", moved=Moving()) for number in range(24))
        )
    assert len(files_in(server.root / "many")) == 24


async def test_directories_are_forgotten_when_there_are_many(
    server: WebDavServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_directories_module, "MOST_KNOWN", 5)
    async with opened(server) as storage:
        for number in range(12):
            await stored(storage, tmp_path, f"forgotten/{number}/file", b"1")
            assert len(storage._directories) <= 5
        assert len(storage._making) == 0
    assert len(files_in(server.root / "forgotten")) == 12


async def test_a_directory_that_was_removed_meanwhile(server: WebDavServer, tmp_path: Path) -> None:
    """It is made again at once. The client does not repeat the failed request for ``timeout_s``."""
    async with opened(server, timeout_s=10 * RunningServer.patience_s) as storage:
        await stored(storage, tmp_path, "gone/a", b"1")
        (server.root / "gone" / "a").unlink()
        (server.root / "gone").rmdir()
        async with asyncio.timeout(RunningServer.patience_s):
            await stored(storage, tmp_path, "gone/b", b"2")
        assert files_in(server.root / "gone") == ["b"]


@pytest.mark.parametrize("size_bytes", [0, 5])
async def test_a_move_whose_answer_is_lost(server: WebDavServer, tmp_path: Path, size_bytes: int) -> None:
    async with (
        fault_proxy(server.endpoint, times=1, applies=lambda seen: seen.method == "MOVE", is_unheard=True) as proxy,
        opened(server, 40.0, endpoint=proxy.endpoint) as storage,
    ):
        await stored(storage, tmp_path, "unheard/file", bytes(size_bytes))
        assert (proxy.happened, proxy.count("MOVE")) == (1, 1)
    assert (server.root / "unheard" / "file").read_bytes() == bytes(size_bytes)
    assert files_in(server.root / "unheard") == ["file"]


async def test_a_move_that_failed_is_repeated_although_an_equal_file_exists(
    server: WebDavServer, tmp_path: Path
) -> None:
    """The file was written a moment ago, and has the same size."""
    async with (
        fault_proxy(server.endpoint, times=1, applies=lambda seen: seen.method == "MOVE", status=503) as proxy,
        opened(server) as other,
        opened(server, 40.0, endpoint=proxy.endpoint) as storage,
    ):
        await stored(other, tmp_path, "equal/file", b"old")
        await stored(storage, tmp_path, "equal/file", b"new")
    assert (server.root / "equal" / "file").read_bytes() == b"new"
    assert files_in(server.root / "equal") == ["file"]


async def test_a_move_is_repeated_if_the_file_cannot_be_looked_for(rclone: WebDavServer, tmp_path: Path) -> None:
    """The credentials may allow to write files, but not to read them."""
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.content.read()
        asked.append(request.method)
        return web.Response(status={2: 503, 3: 403}.get(len(asked), 201))

    async with listening(answer) as endpoint, opened(rclone, 40.0, endpoint=endpoint) as storage:
        await stored(storage, tmp_path, "file", b"data")
    assert asked == ["PUT", "MOVE", "HEAD", "MOVE"]


async def test_a_part_that_another_program_removes_is_not_stored(server: WebDavServer, tmp_path: Path) -> None:
    """An earlier file with the same size does not count as the new one."""
    if "rclone" in str(server.root):
        pytest.skip("rclone removes the earlier file before it looks for the part")

    def remove_part(seen: Seen) -> bool:
        if seen.method == "MOVE":
            (server.root / seen.path.removeprefix("/data").lstrip("/")).unlink()
        return False

    async with (
        fault_proxy(server.endpoint, applies=remove_part) as proxy,
        opened(server, 40.0, endpoint=proxy.endpoint) as storage,
    ):
        (server.root / "cleaned").write_bytes(b"old")
        os.utime(server.root / "cleaned", (1_000_000_000, 1_000_000_000))
        with pytest.raises(StorageError, match="MOVE"):
            await stored(storage, tmp_path, "cleaned", b"new")
    assert (server.root / "cleaned").read_bytes() == b"old"


async def test_a_wrong_password(server: WebDavServer, tmp_path: Path) -> None:
    async with opened(server, secret="wrong-password-0") as storage:
        for attempt in (fetched(storage, tmp_path, "twice"), stored(storage, tmp_path, "x", bytes(2 * MIB))):
            with pytest.raises(StorageError, match=r"refuses .*401.*check login, password") as caught:
                await attempt
            assert "wrong-password-0" not in str(caught.value)
            assert PASSWORD not in str(caught.value)


async def test_what_is_missing(server: WebDavServer, tmp_path: Path) -> None:
    async with opened(server) as storage:
        with pytest.raises(ObjectMissing, match="GET of no/such with 404: there is no such file"):
            await fetched(storage, tmp_path, "no/such")


async def test_an_object_over_the_limit(server: WebDavServer, tmp_path: Path) -> None:
    async with opened(server) as storage:
        await stored(storage, tmp_path, "large", bytes(1000))
        with pytest.raises(InputTooLarge, match="over 999 bytes"):
            await fetched(storage, tmp_path, "large", 999)
        assert await fetched(storage, tmp_path, "large", 1000) == bytes(1000)


@pytest.mark.parametrize("change", ["grown", "shortened", "touched"])
@pytest.mark.parametrize("size_bytes", [1000, 5 * MIB])
async def test_a_file_that_changes_while_it_is_sent_is_not_stored(
    server: WebDavServer, tmp_path: Path, change: str, size_bytes: int
) -> None:
    output = output_of(tmp_path, bytes(size_bytes))
    async with opened(server) as storage:
        with pytest.raises(OutputUnreadable, match="changed after the script had ended"):
            await storage.store(output, f"changed/{change}", moved=changing(output, change))
    # Apache removes its own temporary file when it has seen the connection end.
    until(lambda: files_in(server.root / "changed") == [], "nothing to be left")


# Redirects, as dCache sends clients to the pool that has the file


@dataclass
class Redirecting:
    """A server that redirects requests for files, and the server that gets them."""

    seen: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    elsewhere: str = ""
    reads_body: bool = True

    async def door(self, request: web.BaseRequest) -> web.Response:
        assert request.headers["Authorization"].startswith("Basic ")
        if request.method in ("PUT", "GET"):
            if self.reads_body:
                await request.content.read()
            return web.Response(status=307, headers={"Location": f"{self.elsewhere}/pool{request.path}"})
        return web.Response(status=207 if request.method == "PROPFIND" else 201)

    async def pool(self, request: web.BaseRequest) -> web.Response:
        body = await request.content.read()
        self.seen.append((request.method, request.path, body, request.headers.get("Authorization", "")))
        return web.Response(status=201) if request.method == "PUT" else web.Response(body=b"from the pool")


async def test_files_for_one_new_directory_share_its_failure(rclone: WebDavServer, tmp_path: Path) -> None:
    """So a dead server is asked for the directory once, and not once for each file."""
    asked: list[str] = []

    async def refuse(request: web.BaseRequest) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        return web.Response(status=403)

    output = output_of(tmp_path, b"data")
    async with listening(refuse) as endpoint, opened(rclone, endpoint=endpoint) as storage:
        results = await asyncio.gather(
            *(storage.store(output, f"a/b/{number}", moved=Moving()) for number in range(8)), return_exceptions=True
        )
        assert len(storage._making) == 0
    assert asked == ["PROPFIND /a/b/"]
    assert all(isinstance(error, StorageError) and "(403)" in str(error) for error in results)


async def test_a_cancelled_transfer_leaves_its_directory_to_the_others(rclone: WebDavServer, tmp_path: Path) -> None:
    begun, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.content.read()
        begun.set()
        await may_answer.wait()
        return web.Response(status=207 if request.method == "PROPFIND" else 201)

    output = output_of(tmp_path, b"data")
    async with listening(answer) as endpoint, opened(rclone, 60.0, endpoint=endpoint) as storage:
        first, *others = (
            asyncio.create_task(storage.store(output, f"a/{number}", moved=Moving())) for number in range(3)
        )
        await asyncio.wait_for(begun.wait(), RunningServer.patience_s)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        may_answer.set()
        await asyncio.wait_for(asyncio.gather(*others), RunningServer.patience_s)


async def test_a_server_that_is_down_is_not_asked_for_known_directories(rclone: WebDavServer, tmp_path: Path) -> None:
    """That would take the time limit once more, and it would not help."""
    asked: list[str] = []
    is_down = False
    # The client gives up at once, because the server asks for a pause that is longer than the time limit.
    later = {"Retry-After": "99999"}

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.content.read()
        asked.append(request.method)
        if is_down:
            return web.Response(status=503, headers=later)
        return web.Response(status=207 if request.method == "PROPFIND" else 201)

    async with listening(answer) as endpoint, opened(rclone, 60.0, endpoint=endpoint) as storage:
        await stored(storage, tmp_path, "known/a", b"data")
        assert asked == ["PROPFIND", "PUT", "MOVE"]
        is_down = True
        with pytest.raises(StorageError, match=r"answers the PUT of .* with 503"):
            await stored(storage, tmp_path, "known/b", b"data")
    assert asked == ["PROPFIND", "PUT", "MOVE", "PUT", "DELETE"]


@pytest.mark.parametrize("size_bytes", [0, 300_000, 3 * MIB])
async def test_redirects_are_followed_without_credentials(
    rclone: WebDavServer, tmp_path: Path, size_bytes: int
) -> None:
    """The whole body is sent each time."""
    data = os.urandom(size_bytes)
    servers = Redirecting()
    async with (
        listening(servers.pool) as servers.elsewhere,
        listening(servers.door) as door,
        opened(rclone, endpoint=door) as storage,
    ):
        assert await stored(storage, tmp_path, "file", data) == size_bytes
        assert await fetched(storage, tmp_path, "file") == b"from the pool"
    (put, path, body, authorization), (get, *_, authorization_of_get) = servers.seen
    assert (put, get) == ("PUT", "GET")
    assert path.startswith("/pool/.watchdog-")
    assert body == data
    assert (authorization, authorization_of_get) == ("", "")


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("file:///etc/passwd", "redirects a GET to file, which would not be safe"),
        ("", "redirects the GET of file without a valid URL"),
        ("https:///no-host", "redirects a GET without a valid URL"),
        ("http://:80/no-host", "redirects a GET without a valid URL"),
        ("http://host:99999/", "redirects a GET without a valid URL"),
        ("http://[::1/", "redirects a GET without a valid URL"),
        ("SELF", "again and again"),
    ],
)
async def test_redirects_that_are_not_followed(rclone: WebDavServer, tmp_path: Path, target: str, part: str) -> None:
    async def door(request: web.BaseRequest) -> web.Response:
        location = {"Location": target.replace("SELF", str(request.url))} if target else {}
        return web.Response(status=302, headers=location)

    async with listening(door) as endpoint, opened(rclone, endpoint=endpoint) as storage:
        with pytest.raises(StorageError, match=part):
            await fetched(storage, tmp_path, "file")


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[WebDavServer]:
    with rclone_webdav(tmp_path_factory.mktemp("tls"), certificates) as server:
        yield server


async def test_tls_with_a_private_authority(tls: WebDavServer, certificates: Certificates, tmp_path: Path) -> None:
    async with opened(tls, ca_file=certificates.authority) as storage:
        await stored(storage, tmp_path, "x", b"data")
        assert await fetched(storage, tmp_path, "x") == b"data"


async def test_an_untrusted_certificate(tls: WebDavServer, tmp_path: Path) -> None:
    async with opened(tls) as storage:
        with pytest.raises(StorageError, match=r"not trusted \(.+\): give the certificate of its authority as ca_file"):
            await fetched(storage, tmp_path, "x")


async def test_verify_false(tls: WebDavServer, tmp_path: Path) -> None:
    async with opened(tls, verify=False) as storage:
        await stored(storage, tmp_path, "y", b"data")


async def test_nobody_there(rclone: WebDavServer, tmp_path: Path) -> None:
    async with opened(rclone, timeout_s=1.0, endpoint="http://127.0.0.1:9") as storage:
        with pytest.raises(StorageError, match="cannot be reached for the GET of x: Connection refused"):
            await fetched(storage, tmp_path, "x")
