"""A stream kept in memory, then in a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from watchdog.errors import OutputUnreadable
from watchdog.workspace.spool import TAIL_BYTES, Spool, Tail


async def fill(spool: Spool, *pieces: bytes) -> None:
    for piece in pieces:
        pause = spool.take(piece)
        if pause is not None:
            await pause


@pytest.mark.parametrize("count", [0, 1, 10, 200])
async def test_what_goes_in_comes_out(tmp_path: Path, count: int) -> None:
    spool = Spool(str(tmp_path))
    pieces = [bytes([n]) * 1000 for n in range(count)]
    await fill(spool, *pieces)
    assert spool.size_bytes == 1000 * count
    out = list(spool.pieces(777))
    assert b"".join(out) == b"".join(pieces)
    assert all(len(piece) <= 777 for piece in out)
    assert (spool._fd >= 0) == (count > 65)
    assert list(tmp_path.iterdir()) == []
    spool.close()


async def test_what_is_over_the_limit_is_not_kept(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), max_bytes=1500)
    await fill(spool, bytes(1000), bytes(1000), bytes(100))
    assert spool.overflowed
    assert spool.size_bytes == 1000


async def test_a_full_disk_is_remembered_and_the_stream_still_taken(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    await fill(spool, bytes(100_000))
    os.dup2(full := os.open("/dev/full", os.O_WRONLY), spool._fd)
    os.close(full)
    await fill(spool, bytes(1000), bytes(1000))
    assert spool.error is not None
    spool.close()


async def test_a_truncated_file_is_reported(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    await fill(spool, bytes(100_000))
    os.ftruncate(spool._fd, 10)
    with pytest.raises(OutputUnreadable, match="truncated"):
        list(spool.pieces(1000))
    spool.close()


async def test_without_threads_it_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", none_left)
    spool = Spool(str(tmp_path))
    assert spool.take(bytes(100_000)) is None
    assert b"".join(spool.pieces(65_536)) == bytes(100_000)
    spool.close()


def test_a_tail_is_the_last_4_kib_as_text() -> None:
    tail = Tail()
    assert tail.text() == ""
    tail.take("é".encode() * 3000)
    assert tail.text() == "é" * (TAIL_BYTES // 2)
    tail.take(b"x")
    assert tail.text() == "é" * (TAIL_BYTES // 2 - 1) + "x"
    tail.take(b"\xff")
    assert tail.text().endswith("x\ufffd")
