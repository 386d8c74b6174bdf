"""The measures by name. Each is a function, which lets its contenders take turns and returns rows of the table."""

from __future__ import annotations

from collections.abc import Callable

from at_rest import idle
from counts import call_cpu, counts
from endurance import endurance
from growing_work import callers, input_size, log_lines, output_files
from large_files import base64_in, base64_out, peak_memory
from limited_cpu import limited_calls
from live_calls import live_stalled
from loop_stalls import stall
from measuring import Bench, Found
from small_calls import eight_callers, eight_callers_on_tmpfs, one_caller, one_caller_on_tmpfs
from starts import limited_start, start, start_cpu
from warm_calls import warm_callers, warm_deepaas, warm_limited, warm_memory, warm_small

MEASURES: dict[str, Callable[[Bench], Found]] = {
    "one_caller": one_caller,
    "eight_callers": eight_callers,
    "one_caller_on_tmpfs": one_caller_on_tmpfs,
    "eight_callers_on_tmpfs": eight_callers_on_tmpfs,
    "counts": counts,
    "call_cpu": call_cpu,
    "limited_calls": limited_calls,
    "warm_small": warm_small,
    "warm_callers": warm_callers,
    "warm_deepaas": warm_deepaas,
    "warm_memory": warm_memory,
    "warm_limited": warm_limited,
    "live_stalled": live_stalled,
    "base64_in": base64_in,
    "base64_out": base64_out,
    "peak_memory": peak_memory,
    "idle": idle,
    "start": start,
    "limited_start": limited_start,
    "start_cpu": start_cpu,
    "input_size": input_size,
    "output_files": output_files,
    "callers": callers,
    "log_lines": log_lines,
    "endurance": endurance,
    "stall": stall,
}
