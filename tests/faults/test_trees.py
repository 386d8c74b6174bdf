"""What a script starts is gone before its call is answered, whatever it does to hide."""

from __future__ import annotations

import pytest
from lifeline import Lifeline
from running_server import StartServer

KINDS = {
    "background": "sleep 60 &",
    "setsid": "setsid sleep 60 &",
}


@pytest.mark.guard("straggler-search")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_survives(start_server: StartServer, lifeline: Lifeline, kind: str) -> None:
    server = start_server(lifeline.script_line + KINDS[kind] + "\nexit 0")
    answer = server.call(b"")
    assert answer.status == 200
    assert not lifeline.is_held()
