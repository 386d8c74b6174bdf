"""Count calls for Prometheus, and trace them for OpenTelemetry."""
