"""The files of an input have no name until they are given one, and then each has its own bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from watchdog.errors import NoSpace
from watchdog.system.nameless_file import open_nameless
from watchdog.workspace import held_input
from watchdog.workspace.held_input import HeldFile, HeldInput

KIB = 1024


@pytest.fixture(params=["O_TMPFILE", "no O_TMPFILE", "no /proc"])
def held(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldInput]:
    """Held input on file systems that differ in what they can do."""
    real_open, real_link = os.open, os.link

    def without_tmpfile(path: str, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, *rest, **more)  # type: ignore[arg-type]

    def without_proc(source: str, target: str, **more: object) -> None:
        if source.startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        real_link(source, target, **more)  # type: ignore[arg-type]

    if request.param == "no O_TMPFILE":
        monkeypatch.setattr(os, "open", without_tmpfile)
    elif request.param == "no /proc":
        monkeypatch.setattr(os, "link", without_proc)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "input").mkdir()
    one = HeldInput(str(tmp_path / "tmp"))
    yield one
    one.close()


@pytest.mark.parametrize(
    "sizes",
    [
        [0],
        [10],
        [64 * KIB],
        [64 * KIB + 1],
        [3_000_000],
        [40 * KIB, 40 * KIB, 40 * KIB],
        [10, 2_000_000, 10, 3_000_000, 0, 70 * KIB, 10],
    ],
)
@pytest.mark.parametrize("piece_bytes", [1_000, 64 * KIB, 10_000_000])
def test_files_get_their_names_and_bytes(tmp_path: Path, held: HeldInput, sizes: list[int], piece_bytes: int) -> None:
    contents = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    for number, content in enumerate(contents):
        file = held.create(f"file-{number}")
        for at in range(0, len(content), piece_bytes):
            file.write(content[at : at + piece_bytes])
    assert list((tmp_path / "tmp").iterdir()) == []
    if len(contents) == 1:
        assert held.read() == contents[0]
    assert len(os.listdir("/proc/self/fd")) <= descriptors(held) + 2
    held.give_names(str(tmp_path / "input"))
    held.close()
    found = {path.name: path.read_bytes() for path in (tmp_path / "input").iterdir()}
    assert found == {f"file-{number}": content for number, content in enumerate(contents)}
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "input").iterdir()} == {0o644 & ~umask}


@pytest.mark.parametrize("sizes", [[10, 100_000, 100_000, 10], [1] * 1000], ids=["two large ones", "many"])
def test_names_that_take_long_are_left_for_a_thread(tmp_path: Path, held: HeldInput, sizes: list[int]) -> None:
    for number, size in enumerate(sizes):
        held.create(f"file-{number}").write(bytes(size))
    assert not held.give_names(str(tmp_path / "input"), only_quickly=True)
    assert held.give_names(str(tmp_path / "input"))
    found = {path.name: path.stat().st_size for path in (tmp_path / "input").iterdir()}
    assert found == {f"file-{number}": size for number, size in enumerate(sizes)}


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_one_file_that_needs_no_copy_gets_its_name_at_once(
    tmp_path: Path, held: HeldInput, size: int, request: pytest.FixtureRequest
) -> None:
    held.create("file").write(bytes(size))
    needs_copy = size > 64 * KIB and request.node.callspec.params["held"] != "O_TMPFILE"
    assert held.give_names(str(tmp_path / "input"), only_quickly=True) is not needs_copy
    assert (tmp_path / "input/file").exists() is not needs_copy


def descriptors(held: HeldInput) -> int:
    """Return the number of open descriptors without those of the input."""
    own = {held._own_fd, held._shared_fd} - {-1}
    return len(os.listdir("/proc/self/fd")) - len(own)


@pytest.mark.guard("small-files-of-forms")
@pytest.mark.parametrize("character", ["a", "\N{GRINNING FACE}"])
def test_thousands_of_files_take_little_more_memory_than_their_names(
    tmp_path: Path, removed_guard: str | None, character: str
) -> None:
    """Many callers may have an unfinished form at the same time."""
    kept: list[HeldFile] = []
    keep = kept.append if removed_guard is not None else lambda file: None
    count = 10_000
    with contextlib.closing(HeldInput(str(tmp_path))) as one:
        tracemalloc.start()
        try:
            for number in range(count):
                file = one.create(f"{number}{character}")
                file.write(b"x")
                keep(file)
            kept_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept_bytes < 120 * count


def test_a_file_that_somebody_else_writes(tmp_path: Path, held: HeldInput) -> None:
    file = held.create("object")
    os.write(file.descriptor(), b"fetched")
    file.written(7)
    assert held.read() == b"fetched"
    held.give_names(str(tmp_path / "input"))
    assert (tmp_path / "input/object").read_bytes() == b"fetched"


def test_cleared_input_takes_the_next_one(tmp_path: Path, held: HeldInput) -> None:
    held.create("first").write(bytes(200_000))
    held.clear()
    held.create("second").write(b"second")
    held.give_names(str(tmp_path / "input"))
    assert [path.name for path in (tmp_path / "input").iterdir()] == ["second"]


def test_a_name_that_is_taken_is_not_replaced(tmp_path: Path, held: HeldInput) -> None:
    (tmp_path / "input/small").write_text("planted")
    held.create("small").write(b"mine")
    with pytest.raises(FileExistsError):
        held.give_names(str(tmp_path / "input"))
    held.clear()
    (tmp_path / "input/large").write_text("planted")
    held.create("large").write(bytes(200_000))
    with pytest.raises(FileExistsError):
        held.give_names(str(tmp_path / "input"))
    assert (tmp_path / "input/large").read_text() == "planted"


def test_a_full_disk_is_named(held: HeldInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_input, "open_nameless", lambda directory, mode: os.open("/dev/full", os.O_RDWR))
    with pytest.raises(NoSpace, match="no space is left for the input file photo"):
        held.create("photo").write(bytes(100_000))


def test_a_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_nameless(str(tmp_path / "gone"))
