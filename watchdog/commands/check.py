"""`watchdog check`: show every setting and every problem."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from ..errors import ScriptUnavailable
from ..process.byte_order_mark import MARK_HINT, has_mark, refuse_utf16
from ..process.command import CRLF_HINT, command_for, found_command, has_crlf, read_start
from ..process.decoy import why_needed
from ..settings.load import Configuration
from ..settings.report import report, script_problems
from ..system import standard_output


def check(configuration: Configuration, environ: Mapping[str, str]) -> int:
    """Print the report, and return the exit code: 2 if there are problems, else 0."""
    problems = [*configuration.problems, *script_problems(configuration)]
    fprocess = configuration.settings.fprocess
    path = environ.get("PATH", os.defpath)
    if not problems:
        try:
            if fprocess is not None:
                found_command(shlex.split(fprocess), path)
            elif configuration.script_text is not None:
                refuse_utf16(configuration.script_text, "SCRIPT")
            else:
                command_for(configuration.settings.script_path, path)
        except ScriptUnavailable as error:
            problems.append(str(error))
    if fprocess is None:
        text, script_path = configuration.script_text, configuration.settings.script_path
        name, start = (script_path, read_start(script_path)) if text is None else ("SCRIPT", text)
        if has_crlf(start):
            problems.append(f"{name}: {CRLF_HINT}")
        if has_mark(start):
            configuration.warnings.append(f"{name}: {MARK_HINT}")
    if (why := why_needed()) is not None:
        configuration.warnings.append(why)
    standard_output.write_line(report(configuration, problems))
    return 2 if problems else 0
