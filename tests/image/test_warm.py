"""Workers of warm functions in containers: any root, any user, as PID 1 or not, and as OSCAR starts the tree."""

from __future__ import annotations

import pytest

from image.conftest import StartContainer
from image.containers import Container
from image.roots import WITH_PYTHON
from image.serving import Way, Ways, write_script

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

_SHELL_LOOP = """
n=0
echo 'ready sh' >&4
while IFS= read -r call <&3; do
    eval "export $call"
    n=$((n + 1))
    echo "call $n of process $$ as $CALL_ID" > "$TMP_OUTPUT_DIR/answer"
    echo done >&4
done
"""
_PYTHON = """
exec python3 -c '
import os, sys
sys.path.append(os.path.dirname(os.environ["WATCHDOG_WARM_PY"]))
from watchdog_warm import serve
calls = []
@serve
def call(input_path, output_dir):
    calls.append(1)
    with open(output_dir + "/answer", "w") as file:
        print("call", len(calls), "of process", os.getpid(), "as", os.environ["CALL_ID"], file=file)
'
"""


def warm(way: Way) -> Way:
    return way.with_flags("--env", "WATCHDOG_WARM=1")


def check_calls(container: Container) -> None:
    """Check that one process answers three calls, each with its own answer."""
    container.event("worker ready")
    answers = []
    for number in range(3):
        answer = container.curl("/?output=raw", "--data", "aGVsbG8=", "--header", f"X-Call-Id: id-{number}")
        assert answer.status == 200, answer.body
        answers.append(answer.body.decode().split())
    assert [(words[1], words[-1]) for words in answers] == [("1", "id-0"), ("2", "id-1"), ("3", "id-2")]
    assert len({words[4] for words in answers}) == 1


def check_stop(container: Container) -> None:
    assert container.stop() == 0
    assert not [event for event in container.logs if event["event"] == "not json"]


@pytest.mark.parametrize("name_of_way", ["plain", "hardened", "hostile", "under_a_shell"])
@pytest.mark.parametrize("root", ["debian-12", "busybox"])
def test_a_loop_in_the_images_shell_serves_calls(
    root: str, name_of_way: str, ways: Ways, start_container: StartContainer
) -> None:
    way: Way = getattr(ways, name_of_way)(root)
    write_script(ways.config, way.shell, _SHELL_LOOP)
    container = start_container(warm(way).serving())
    check_calls(container)
    if name_of_way != "under_a_shell":  # the shell does not pass the signal on
        check_stop(container)


@pytest.mark.parametrize("root", WITH_PYTHON)
def test_the_helper_of_the_tree_serves_calls_in_the_images_python(
    root: str, ways: Ways, start_container: StartContainer
) -> None:
    way = ways.hardened(root)
    write_script(ways.config, way.shell, _PYTHON)
    container = start_container(warm(way).serving())
    check_calls(container)
    check_stop(container)


def test_a_variable_of_the_definition_is_enough_on_oscar(ways: Ways, start_container: StartContainer) -> None:
    way = ways.in_oscar("debian-12")
    (ways.config / "function_config.yaml").write_text(
        "name: plants\nenvironment:\n  variables:\n    WATCHDOG_WARM: '1'\n"
    )
    write_script(ways.config, way.shell, _SHELL_LOOP)
    container = start_container(way.serving())
    check_calls(container)
    check_stop(container)
