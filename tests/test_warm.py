"""Warm functions over HTTP: workers that load once, and serve many calls. Their faults are in `faults/`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from running_server import Answer, RunningServer, StartServer, problem, until

from watchdog.system import proc

# A worker in bash. Its answer has the name of its call, the number of calls so far, and its process.
LOOP = """#!/bin/bash
echo "it loads" >&2
n=0
echo "ready sh" >&4
while IFS= read -r call <&3; do eval "export $call"
  n=$((n + 1))
  {body}
  echo "done $?" >&4
done
echo "it saw the end of its calls" >&2
"""
NAMED = 'echo "$CALL_ID $n $$ $(cat "$INPUT_FILE_PATH")" > "$TMP_OUTPUT_DIR/out.txt"'


def loop(body: str = NAMED) -> str:
    return LOOP.replace("{body}", body)


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.body.decode()


def call(server: RunningServer, text: str = "", **headers: str) -> Answer:
    return server.call(
        text.encode(), "/?input=raw&output=raw", headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


def test_one_worker_serves_many_calls(start_server: StartServer) -> None:
    server = start_server(loop(), WATCHDOG_WARM="1")
    answers = [call(server, f"text {number}", X_Call_Id=f"id-{number}") for number in range(3)]
    texts = [text_of(answer).split(maxsplit=3) for answer in answers]
    assert [(words[0], words[1], words[3]) for words in texts] == [
        ("id-0", "1", "text 0\n"),
        ("id-1", "2", "text 1\n"),
        ("id-2", "3", "text 2\n"),
    ]
    assert len({words[2] for words in texts}) == 1
    assert [answer.headers["X-Warm"] for answer in answers] == ["0", "1", "2"]
    event = server.event("invocation ended", call_id="id-2")
    assert (event["outcome"], event["served_before"], event["exit_code"]) == ("ok", 2, 0)
    assert event["cpu_s"] > 0
    assert event["peak_rss_bytes"] > 0


def test_processor_time_of_a_call_includes_its_children_but_not_those_of_the_load(start_server: StartServer) -> None:
    work = "python3 -S -c 'import time\nwhile time.process_time() < 1: pass'"
    server = start_server(
        f"""#!/bin/sh
{work}
echo "ready sh" >&4
while IFS= read -r call <&3; do
    eval "export $call"
    if [ "$(cat "$INPUT_FILE_PATH")" = work ]; then {work}; fi
    echo "done" >&4
done
""",
        WATCHDOG_WARM="1",
    )
    used_s = []
    for number, text in enumerate(("rest", "work", "rest")):
        assert call(server, text, X_Call_Id=f"id-{number}").status == 200
        used_s.append(server.event("invocation ended", call_id=f"id-{number}")["cpu_s"])
    assert [used > 0.5 for used in used_s] == [False, True, False], used_s


def test_without_the_setting_an_answer_has_no_header_of_workers(start_server: StartServer) -> None:
    server = start_server("cat")
    assert "X-Warm" not in server.call(b"").headers


def test_calls_at_the_same_time_get_workers_of_their_own(start_server: StartServer, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    meet = f'touch {both}/$$; until [ "$(ls {both} | wc -l)" = 2 ]; do sleep 0.01; done; echo $$'
    server = start_server(loop(meet), WATCHDOG_WARM="2")
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(call(server))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({text_of(answer) for answer in answers}) == 2


def test_a_worker_gets_the_variables_of_each_call_and_of_no_other(start_server: StartServer) -> None:
    server = start_server(loop('env > "$TMP_OUTPUT_DIR/env.txt"'), WATCHDOG_WARM="1", OF_THE_IMAGE="yes")
    first = text_of(call(server, X_One="it's $(hostname) `id` \\", X_Call_Id="first")).splitlines()
    second = text_of(call(server, X_Two="2", X_Call_Id="second")).splitlines()
    assert {"Http_X_One=it's $(hostname) `id` \\", "CALL_ID=first", "OF_THE_IMAGE=yes"} <= set(first)
    assert {"Http_X_Two=2", "CALL_ID=second", "OF_THE_IMAGE=yes"} <= set(second)
    assert not [line for line in second if line.startswith("Http_X_One")]


def test_a_worker_that_reads_json_gets_the_same_variables(start_server: StartServer) -> None:
    script = f"""#!{sys.executable}
import json, os
os.write(4, b"ready\\n")
for line in open(3, closefd=False):
    call = json.loads(line)
    with open(call["env"]["TMP_OUTPUT_DIR"] + "/call.json", "w") as file:
        json.dump(call, file)
    os.write(4, b"done\\n")
"""
    server = start_server(script, WATCHDOG_WARM="1")
    got = json.loads(text_of(call(server, "input", X_Call_Id="first", X_Timeout="1000")))
    assert got["call_id"] == got["env"]["CALL_ID"] == "first"
    assert got["env"]["Http_X_Call_Id"] == "first"
    assert got["env"]["INPUT_FILE_PATH"].startswith(got["env"]["TMP_INPUT_DIR"])
    assert got["deadline"] > 0
    assert json.loads(text_of(call(server)))["deadline"] is None


def test_what_the_worker_prints_is_the_answer_if_it_leaves_no_file(start_server: StartServer) -> None:
    server = start_server(loop('echo "printed by $CALL_ID"'), WATCHDOG_WARM="1")
    assert text_of(call(server, X_Call_Id="a")) == "printed by a\n"
    assert text_of(call(server, X_Call_Id="b")) == "printed by b\n"


def test_a_megabyte_of_output_belongs_to_its_call(start_server: StartServer) -> None:
    server = start_server(loop('head -c 1000000 /dev/zero | tr "\\0" "$n"; echo'), WATCHDOG_WARM="1")
    assert text_of(call(server)) == "1" * 1_000_000 + "\n"
    assert text_of(call(server)) == "2" * 1_000_000 + "\n"


@pytest.mark.parametrize("code", [1, 3, 255])
def test_an_exit_code_fails_the_call_and_the_worker_lives_on(start_server: StartServer, code: int) -> None:
    server = start_server(loop(f'echo "why" >&2; (exit $(({code} * (n == 1))))'), WATCHDOG_WARM="1")
    failed = call(server)
    document = problem(failed, 500)
    assert (document["exit_code"], document["stderr"]) == (code, "why\n")
    answer = call(server)
    assert (answer.status, answer.headers["X-Warm"]) == (200, "1")


def test_the_response_file_works_as_in_other_scripts(start_server: StartServer) -> None:
    server = start_server(loop('echo "X-Mine: $n" > "$HTTP_RESPONSE_FILE"'), WATCHDOG_WARM="1")
    assert [call(server).headers["X-Mine"] for _ in range(2)] == ["1", "2"]


def test_lines_of_a_call_have_its_id_and_other_lines_none(start_server: StartServer) -> None:
    server = start_server(loop('echo "ERROR in the call" >&2'), WATCHDOG_WARM="1")
    call(server, X_Call_Id="mine")
    server.stop()
    lines = {event["event"]: event for event in server.logs if "stream" in event}
    assert lines["ERROR in the call"]["call_id"] == "mine"
    assert (lines["ERROR in the call"]["logger"], lines["ERROR in the call"]["level"]) == ("script", "error")
    for text in ("it loads", "it saw the end of its calls"):
        assert lines[text]["logger"] == "worker"
        assert "call_id" not in lines[text]


def test_a_server_is_ready_only_when_a_worker_is(start_server: StartServer, tmp_path: Path) -> None:
    fifo = tmp_path / "model"
    os.mkfifo(fifo)
    server = start_server(f"read -r model < {fifo}\n" + loop(), WATCHDOG_WARM="1")
    assert server.call(None, "/_/health", "GET").status == 200
    ready = server.call(None, "/_/ready", "GET")
    assert (ready.status, ready.body) == (503, b"loading")
    answers: list[Answer] = []
    caller = threading.Thread(target=lambda: answers.append(call(server)))
    caller.start()
    fifo.write_text("weights\n")
    caller.join()
    assert answers[0].status == 200
    assert server.call(None, "/_/ready", "GET").status == 200


def test_the_wait_for_a_worker_is_a_part_of_the_wait_in_the_queue(
    start_server: StartServer, tmp_path: Path, free_port: int
) -> None:
    fifo = tmp_path / "model"
    os.mkfifo(fifo)
    server = start_server(f"read -r model < {fifo}\n" + loop(), WATCHDOG_WARM="1", WATCHDOG_METRICS_PORT=str(free_port))
    caller = threading.Thread(target=call, args=(server,))
    caller.start()
    until(lambda: server.metric("watchdog_places_taken") == 1, "the call to have its place")
    fifo.write_text("weights\n")
    caller.join()
    assert server.event("invocation ended", outcome="ok")["queue_wait_s"] > 0
    assert server.metric("watchdog_queue_wait_seconds_sum") > 0


def test_with_a_queue_timeout_of_0_no_call_waits_for_a_load(start_server: StartServer, tmp_path: Path) -> None:
    fifo = tmp_path / "model"
    os.mkfifo(fifo)
    server = start_server(
        f"read -r model < {fifo}\n" + loop(),
        WATCHDOG_WARM="1",
        WATCHDOG_QUEUE_TIMEOUT="0",
        WATCHDOG_WARM_MAX_MEMORY="1Gi",  # the server looks at the worker after each call
    )
    assert "no worker was ready in 0 s (queue_timeout)" in str(problem(call(server), 429)["detail"])
    fifo.write_text("weights\n")
    server.event("worker ready")
    for _ in range(20):
        text_of(call(server))


def test_on_knative_the_port_opens_only_when_a_worker_is_ready(start_server: StartServer, tmp_path: Path) -> None:
    fifo = tmp_path / "model"
    os.mkfifo(fifo)
    loading = tmp_path / "loading"
    script = f"touch {loading}\nread -r model < {fifo}\n" + loop()
    # The log has the event "listening" only after the load, and the fixture waits for this event.
    writer = threading.Thread(target=lambda: fifo.write_text("weights\n"))
    writer.start()
    server = start_server(script, WATCHDOG_WARM="1", K_SERVICE="plants")
    writer.join()
    names = [event["event"] for event in server.logs]
    assert names.index("worker ready") < names.index("listening")
    assert call(server).status == 200


def test_a_signal_stops_a_server_on_knative_that_is_still_loading(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("echo 'it loads' >&2; exec sleep 1000")
    environ = {
        **os.environ,
        "WATCHDOG_WARM": "1",
        "K_SERVICE": "plants",
        "WATCHDOG_SCRIPT_PATH": str(script),
        "WATCHDOG_BIND": "127.0.0.1",
        "WATCHDOG_METRICS_PORT": "0",
        "WATCHDOG_LOG_FORMAT": "json",
        "WATCHDOG_KILL_GRACE": "0.2",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "watchdog", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if "it loads" in line:
                break
        server.send_signal(signal.SIGTERM)
        rest = server.stderr.read()
        assert server.wait(timeout=RunningServer.patience_s) == 0
    assert '"event":"stopped"' in rest


def test_an_edited_script_serves_the_next_call(start_server: StartServer) -> None:
    server = start_server(loop("echo old"), WATCHDOG_WARM="2")
    assert text_of(call(server)) == "old\n"
    server.script.write_text(loop("echo new"))
    assert text_of(call(server)) == "new\n"


def test_a_call_is_not_warned_of_line_ends_that_an_edit_has_mended(start_server: StartServer) -> None:
    server = start_server("#!/bin/sh\r\nexit 3\r\n", WATCHDOG_WARM="1")
    assert "dos2unix" in str(problem(call(server), 503)["detail"])
    server.script.write_text(loop("echo new"))
    answer = call(server)
    assert text_of(answer) == "new\n"
    assert "X-Warning" not in answer.headers


def test_a_worker_is_replaced_after_its_last_call(start_server: StartServer) -> None:
    server = start_server(loop("echo $$"), WATCHDOG_WARM="1", WATCHDOG_WARM_MAX_CALLS="2")
    answers = [call(server) for _ in range(4)]
    assert [answer.headers["X-Warm"] for answer in answers] == ["0", "1", "0", "1"]
    assert len({text_of(answer) for answer in answers}) == 2


def test_a_worker_is_replaced_if_it_has_too_much_memory(start_server: StartServer) -> None:
    keep = 'if [ $n = 2 ]; then kept=$(head -c 30000000 /dev/zero | tr "\\0" x); fi; echo $$'
    server = start_server(loop(keep), WATCHDOG_WARM="1", WATCHDOG_WARM_MAX_MEMORY="20M")
    pids = [text_of(call(server)) for _ in range(3)]
    assert pids[0] == pids[1] != pids[2]


def test_metrics_count_workers_loads_and_restarts(start_server: StartServer, free_port: int) -> None:
    server = start_server(
        loop('if [ "$n" = 2 ]; then kill -9 $$; fi'), WATCHDOG_WARM="1", WATCHDOG_METRICS_PORT=str(free_port)
    )
    call(server)
    assert server.metric('watchdog_workers{state="idle"}') == 1
    assert server.metric("watchdog_worker_load_seconds_count") == 1
    problem(call(server), 500)
    server.event("worker ready")
    server.event("worker ready")
    assert server.metric('watchdog_worker_restarts_total{reason="crashed"}') == 1
    assert server.metric("watchdog_worker_load_seconds_count") == 2


def test_metrics_count_loads_that_take_too_long(start_server: StartServer, free_port: int) -> None:
    server = start_server(
        "exec sleep 1000",
        WATCHDOG_WARM="1",
        WATCHDOG_WARM_START_TIMEOUT="200ms",
        WATCHDOG_METRICS_PORT=str(free_port),
    )
    server.event("worker not loaded")
    assert server.metric('watchdog_worker_restarts_total{reason="start_timeout"}') >= 1


def test_the_log_says_why_a_worker_ended(start_server: StartServer) -> None:
    server = start_server(loop("echo $$"), WATCHDOG_WARM="1", WATCHDOG_WARM_MAX_CALLS="2")
    idle = int(text_of(call(server)))
    os.kill(idle, signal.SIGKILL)
    server.event("worker ended", level="warning", pid=idle, reason="crashed", signal="SIGKILL", calls=1)
    replaced = int(text_of(call(server)))
    call(server)
    server.event("worker ended", level="info", pid=replaced, reason="max_calls", exit_code=0, calls=2)


def test_a_local_run_uses_a_worker(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(loop())
    (tmp_path / "in.txt").write_text("hello")
    command = [sys.executable, "-m", "watchdog", "run", "--script-path", str(script), str(tmp_path / "in.txt")]
    ran = subprocess.run(
        command, env={**os.environ, "WATCHDOG_WARM": "3", "TMPDIR": str(tmp_path)}, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[1:2] == [b"1"]
    assert ran.stdout.split()[3] == b"hello"
    assert ran.stderr.count(b"it loads") == 1


def test_the_processes_of_a_worker_end_with_the_server(start_server: StartServer) -> None:
    server = start_server("sleep 1000 & echo $!\n" + loop("echo $! $$"), WATCHDOG_WARM="1")
    pids = [int(pid) for pid in text_of(call(server)).split()]
    assert server.stop() == 0
    assert [pid for pid in pids if (found := proc.process(pid)) and found.is_alive] == []
    assert server.leftovers() == []


def test_no_worker_loads_once_the_server_stops(start_server: StartServer, tmp_path: Path) -> None:
    fifo = tmp_path / "wait"
    os.mkfifo(fifo)
    server = start_server(
        loop(f'echo "it began" >&2; read -r line < {fifo}'),
        WATCHDOG_WARM="1",
        WATCHDOG_WRITE_TIMEOUT="0.5",
        WATCHDOG_HEALTHCHECK_INTERVAL="0",
    )
    caller = threading.Thread(target=call, args=(server,))
    caller.start()
    server.event("it began")
    assert server.stop() == 0
    caller.join()
    assert [event["event"] for event in server.logs].count("it loads") == 1
