"""The state of a directory. tests/test_workspace.py has each change that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from watchdog.system.directory_state import state_of


def test_state_is_the_same_after_thousands_of_files_were_made_and_removed(tmp_path: Path) -> None:
    """On ext4, the kernel gives the directory an index and a flag for it."""
    before, _ = state_of(str(tmp_path))
    for number in range(3000):
        (tmp_path / str(number)).touch()
    assert state_of(str(tmp_path))[0] == before
    for number in range(3000):
        (tmp_path / str(number)).unlink()
    assert state_of(str(tmp_path))[0] == before


def test_only_a_directory_has_a_state(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "file").touch()
    for name in ("link", "file", "nothing"):
        with pytest.raises(OSError, match=name):
            state_of(str(tmp_path / name))
