"""What Linux and the C library offer: processes, limits, files, threads. Nothing here knows of calls."""
