"""The server with a heartbeat after every tenth of a second without an event, instead of 15 seconds."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from watchdog.__main__ import main
    from watchdog.http import live

    live._HEARTBEAT_S = 0.1
    live._SHORTEST_PAUSE_S = 0.1
    sys.exit(main())
