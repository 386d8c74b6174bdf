"""Use Linux and the C library: processes, limits, files, threads. The modules here know nothing about calls."""
