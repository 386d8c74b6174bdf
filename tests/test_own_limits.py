"""A script lowers the resource limits of the server, which the next scripts would inherit."""

from __future__ import annotations

import resource

import pytest
from running_server import WITHOUT_PRIVILEGES, StartServer, problem, until

# Leaves a file of 100,000 bytes, and does not notice if that fails.
SCRIPT = """
trap '' XFSZ
if [ "$Http_X_Limits" ]; then prlimit --pid $PPID $Http_X_Limits; fi
head -c 100000 /dev/zero > "$TMP_OUTPUT_DIR/x" 2>/dev/null
exit 0
"""


@pytest.mark.guard("own-limits", never="limits of the server were lowered|the server to look at its limits")
def test_lowered_soft_limit_is_raised_again(start_server: StartServer) -> None:
    server = start_server(SCRIPT, prefix=WITHOUT_PRIVILEGES)
    server.call(b"", headers={"X-Limits": "--fsize=1000:"})
    event = server.event("limits of the server were lowered and are restored")
    assert event["names"] == ["RLIMIT_FSIZE"]
    assert len(server.call(b"", "/?output=raw").body) == 100_000


@pytest.mark.guard("own-limits", never="limits of the server were lowered|the server to look at its limits")
@pytest.mark.parametrize("limit", ["--fsize=1000:1000", "--locks=5:5"])
def test_lowered_hard_limit_makes_health_503_and_no_script_runs_with_it(start_server: StartServer, limit: str) -> None:
    server = start_server(SCRIPT, prefix=WITHOUT_PRIVILEGES)
    server.call(b"", headers={"X-Limits": limit})
    until(lambda: server.call(None, "/_/health", "GET").status == 503, "the server to look at its limits")
    name = "RLIMIT_" + limit[2:].partition("=")[0].upper()
    assert name.encode() in server.call(None, "/_/ready", "GET").body
    assert name in str(problem(server.call(b""), 500)["detail"])
    assert server.stop() == 0


def test_limit_that_an_operator_raises_stays(start_server: StartServer) -> None:
    server = start_server(SCRIPT, prefix=("prlimit", "--nofile=256:512"))
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (512, 512))
    server.call(b"", headers={"X-Limits": "--fsize=1000:"})
    assert server.event("limits of the server were lowered and are restored")["names"] == ["RLIMIT_FSIZE"]
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (512, 512)
