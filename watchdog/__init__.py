"""oscar-watchdog: the function supervisor inside a service container."""

__version__ = "0.2.0"
