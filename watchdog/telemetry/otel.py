"""Start traces for an OpenTelemetry collector, if the environment names one.

Without ``OTEL_EXPORTER_OTLP_ENDPOINT`` nothing of OpenTelemetry is imported. The SDK does the sampling, batching and
sending. Its own ``OTEL_*`` variables configure it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from .tracing import Tracing

_log = logging.getLogger("tracing")


def start(environ: Mapping[str, str], service_name: str) -> Tracing:
    """Return a ``Tracing`` that sends spans to the collector, or one without spans if there is no usable collector.

    Raise nothing. If an endpoint is set but no spans can be sent, log the reason in one WARNING.

    Args:
        environ: the environment of this process, which the SDK reads, too.
        service_name: the name of the service in spans. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it.
    """
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_disabled or environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return Tracing()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol.strip() != "http/protobuf":
        _log.warning(
            "traces are off: OTEL_EXPORTER_OTLP_PROTOCOL is %s, but spans can only be sent as http/protobuf; "
            "set http/protobuf, and an endpoint with the collector's port for it, which is usually 4318",
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
    except Exception as error:  # for example, a variable of the SDK has a bad value, or a certificate is missing
        from .otel_log import without_secrets

        _log.warning("traces are off: the OpenTelemetry SDK does not start: %s", without_secrets(str(error)))
    return Tracing()
