"""Choose the kind of function of a service."""

from __future__ import annotations

from collections.abc import Mapping

from ..logs.sink import LogWriter
from ..process.supervisor import Supervisor
from ..settings.load import Configuration
from ..telemetry.metrics import Metrics
from ..workspace.disposal import Disposal
from ..workspace.workspaces import Workspaces
from .admission import Admission
from .functions import ClassicFunction, Function, ScriptFunction


def function_of(
    configuration: Configuration,
    environment: Mapping[str, str],
    *,
    admission: Admission,
    sink: LogWriter,
    supervisor: Supervisor,
    workspaces: Workspaces,
    disposal: Disposal,
    metrics: Metrics,
) -> Function:
    """Return the function of a service.

    Args:
        environment: the variables that are the same for all calls.
    """
    settings = configuration.settings
    if settings.fprocess is not None:
        return ClassicFunction(settings, environment, supervisor)
    if settings.warm:
        # Imported only here, because other functions do not need it.
        from .warm_function import WarmFunction

        return WarmFunction(
            settings,
            environment,
            supervisor,
            configuration.script_text,
            count=admission.max_inflight,  # one worker for each place
            sink=sink,
            workspaces=workspaces,
            disposal=disposal,
            metrics=metrics,
            queue_timeout_s=admission.queue_timeout_s,
        )
    return ScriptFunction(settings, environment, supervisor, configuration.script_text)
