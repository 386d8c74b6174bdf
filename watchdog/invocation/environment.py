"""Make the environment of the function from the variables of the image, of the service and of this call."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..logs.setup import get_logger
from ..settings.load import Configuration
from ..storage.stored_object import StoredObject
from ..workspace.workspace import Workspace
from .call import Call, Task
from .cloud_event import REQUIRED_ATTRIBUTES

log = get_logger("invocation")
# MAX_ARG_STRLEN of the kernel (execve(2)), minus the name, `=` and the NUL at the end.
_LONGEST_EVENT_BYTES = 131_072 - len("EVENT=\0")
# If the call has no input, this variable is removed. So a script never gets the value of the image.
INPUT_FILE_PATH = "INPUT_FILE_PATH"
# The directory of the helper files of warm functions. A script's PYTHONPATH may contain it.
WARM_HELPERS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "warm", "helper")


def environment_of_all_calls(configuration: Configuration, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the image without the server's secrets, and the variables of the service definition.

    ``WATCHDOG_WARM_PY`` is the path of the Python helper of warm functions, unless the image or the service definition
    sets this variable.
    """
    environment = {"WATCHDOG_WARM_PY": os.path.join(WARM_HELPERS, "watchdog_warm.py")}
    environment |= {k: v for k, v in environ.items() if k not in configuration.secret_names}
    if configuration.service is not None:
        environment.update(configuration.service.variables)
    return environment


def environment_of(
    call: Call, task: Task, workspace: Workspace, of_all_calls: Mapping[str, str], *, works_with_files: bool
) -> dict[str, str]:
    """Return the environment of one run.

    Args:
        works_with_files: the function gets the paths of its input and outputs.
    """
    environment = {**of_all_calls, **variables_of(call, task, workspace, of_all_calls, works_with_files)}
    if works_with_files and task.taken is None:
        environment.pop(INPUT_FILE_PATH, None)
    return environment


def variables_of(
    call: Call, task: Task, workspace: Workspace, of_all_calls: Mapping[str, str], works_with_files: bool
) -> dict[str, str]:
    """Return the variables of one run. They are added to the variables of all calls, or replace them."""
    variables = {**call.variables, **task.variables}
    variables |= {"CALL_ID": call.call_id, "HTTP_RESPONSE_FILE": workspace.response_file}
    if works_with_files:
        variables |= {"TMP_INPUT_DIR": workspace.input_dir, "TMP_OUTPUT_DIR": workspace.output_dir}
        variables.pop(INPUT_FILE_PATH, None)
    if task.taken is not None:
        name = task.taken.name
        variables[INPUT_FILE_PATH] = f"{workspace.input_dir}/{name}" if name else workspace.input_dir
    if task.stored is not None:
        variables |= _variables_of(task.stored, call.call_id)
    for name, value in call.event.items():
        variable = "CE_" + name.upper()
        # A caller may invent attributes. Such an attribute must not replace a variable of the image or the service.
        if name in REQUIRED_ATTRIBUTES or variable not in of_all_calls:
            variables[variable] = value
    return variables | call.trace.variables


def _variables_of(stored: StoredObject, call_id: str) -> dict[str, str]:
    """Return the variables that describe the input's object, with the names and values of faas-supervisor."""
    key = f"/{stored.container}/{stored.key}" if stored.kind == "onedata" else stored.key
    variables = {"STORAGE_OBJECT_KEY": key, "EVENT_TIME": stored.time, "EVENT": ""}
    if len(stored.text) <= _LONGEST_EVENT_BYTES:
        variables["EVENT"] = stored.text.decode()
    else:
        log.warning("the event is too long for a variable, so EVENT is empty", call_id=call_id)
    return variables
