"""The files that a script left become the answer."""
