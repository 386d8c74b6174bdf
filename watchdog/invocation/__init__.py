"""Run one call, from its arrival to its end. Nothing here knows of HTTP."""
