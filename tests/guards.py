"""The guards of the program, each with a way to take it out: who has no guard must fail the test of that guard.

Run as a program, it is the server without some guards::

    python tests/guards.py NAME[,NAME] serve --port 0

Each entry of :data:`GUARDS` replaces one function or value of the program by what would be there if nobody had thought
of the fault. The tests name them with ``@pytest.mark.guard(NAME)``, see ``conftest.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Guard = Callable[[], None]
GUARDS: dict[str, Guard] = {}


def guard(remove: Guard) -> Guard:
    """Register a guard under its function's name; its docstring tells what the program does without it."""
    GUARDS[remove.__name__.replace("_", "-")] = remove
    return remove


def replace(owner: Any, name: str, new: Any) -> None:
    """Put something in the place of what is there, which must exist: a guard that was renamed is noticed."""
    if not hasattr(owner, name):
        raise SystemExit(f"guards.py: {owner!r} has no {name} any more")
    setattr(owner, name, new)


# ---- process trees


@guard
def straggler_search() -> None:
    """The end of the script is taken for the end of its tree."""
    from watchdog.process import Supervisor

    replace(Supervisor, "_certainly_nothing_left", lambda self: True)


# ---- callers


@guard
def header_timer() -> None:
    """Headers may take for ever."""
    from watchdog.server import _Connection

    replace(_Connection, "_start_headers_timer", lambda self: None)


if __name__ == "__main__":
    for each in sys.argv.pop(1).split(","):
        GUARDS[each]()
    from watchdog.__main__ import main

    sys.exit(main())
