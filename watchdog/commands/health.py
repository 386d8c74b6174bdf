"""`watchdog health`: ask the local server whether it is ready."""

from __future__ import annotations

import http.client
import sys

from ..settings.declarations import LOCAL_PROBE
from ..settings.load import Configuration


def health(configuration: Configuration) -> int:
    """Return 0 if the server is ready. Otherwise print the reason and return 1."""
    settings = configuration.settings
    host = settings.bind if settings.bind not in (None, "", "0.0.0.0", "::") else "127.0.0.1"
    connection = http.client.HTTPConnection(host, settings.port, timeout=5)
    try:
        connection.request("GET", "/_/ready", headers={"User-Agent": LOCAL_PROBE})
        response = connection.getresponse()
        text = response.read(1000).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        print(f"no server answers at {host}:{settings.port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    # 429 means that all places are taken. The server is healthy, but busy.
    if response.status in (200, 429):
        return 0
    print(f"the server at {host}:{settings.port} is not ready: {text}", file=sys.stderr)
    return 1
