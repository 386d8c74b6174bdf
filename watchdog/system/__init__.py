"""Use Linux and the C library: processes, limits, files, threads. Nothing here knows of calls."""
