"""Names of outputs that are changed, and their new names."""

from __future__ import annotations

import ntpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.workspace.output_names import replacements


@pytest.mark.parametrize(
    ("names", "new"),
    [
        (["a", "b/c.txt", "12:30.csv", "a:b:c/ü", "..a", "a..b", "\udcff"], {"a:b:c/ü": "a_b:c/ü"}),
        (["..\\x"], {"..\\x": ".._x"}),
        (["C:x", "c:", "C:\\x"], {"C:x": "C_x", "c:": "c_", "C:\\x": "C__x"}),
        (["a\\b.txt", "a_b.txt"], {"a\\b.txt": "a_b-2.txt"}),
        (["a\\b.txt", "a_b.txt", "a_b-2.txt"], {"a\\b.txt": "a_b-3.txt"}),
        (["a\\b", "a_b/c"], {"a\\b": "a_b-2"}),
        (["a\\b/c", "a_b"], {"a\\b/c": "a_b-2/c"}),
        (["a\\b/c", "a\\b/d"], {"a\\b/c": "a_b/c", "a\\b/d": "a_b/d"}),
        (["a\\b/c", "a_b/c"], {"a\\b/c": "a_b-2/c"}),
        ([".\\", "._"], {".\\": "._-2"}),
    ],
)
def test_new_names(names: list[str], new: dict[str, str]) -> None:
    assert replacements(names) == new


PART = st.text(alphabet="a\\:_.C-2", min_size=1, max_size=4).filter(lambda part: part not in (".", ".."))


@given(st.sets(st.lists(PART, min_size=1, max_size=3).map("/".join), max_size=8))
def test_new_names_are_safe_and_distinct(names: set[str]) -> None:
    # A file and a directory cannot have the same name.
    files = [name for name in names if not any(other.startswith(name + "/") for other in names)]
    renamed = replacements(files)
    result = [renamed.get(name, name) for name in files]
    assert len(set(result)) == len(files)
    for name in result:
        assert "\\" not in name
        assert ".." not in name.split("/")
        assert ntpath.splitdrive(name)[0] == ""
        assert not any(other.startswith(name + "/") for other in result)
