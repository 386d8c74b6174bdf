"""Traces for an OpenTelemetry collector, if the environment names one.

Without ``OTEL_EXPORTER_OTLP_ENDPOINT`` nothing of OpenTelemetry is imported. Sampling, batches and sending are the
SDK's, set by its own ``OTEL_*`` variables.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from .tracing import Tracing

_log = logging.getLogger("tracing")


def start(environ: Mapping[str, str], service_name: str) -> Tracing:
    """Get ready to send spans, if the environment says where to; else, or if that cannot be, to send none.

    Never raises: why there are none although an endpoint is set is told in one WARNING.

    Args:
        environ: this process's environment, which the SDK reads too.
        service_name: what spans are told to come from, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says so.
    """
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return Tracing()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol.strip() != "http/protobuf":
        _log.warning(
            "traces are off: OTEL_EXPORTER_OTLP_PROTOCOL is %s, and spans are sent as http/protobuf only; "
            "set it so, and the endpoint to the collector's port for it, which is 4318 as a rule",
            protocol,
        )
        return Tracing()
    try:
        from .otel_spans import Recording

        return Recording(service_name)
    except ImportError as error:
        _log.warning(
            "traces are off: OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed (%s); "
            "install it with pip install 'oscar-watchdog[otel]', or unset the endpoint",
            error,
        )
    except Exception as error:  # a bad value of one of the SDK's own variables, a certificate that is not there
        from .otel_log import without_secrets

        _log.warning("traces are off: the OpenTelemetry SDK does not start: %s", without_secrets(str(error)))
    return Tracing()
