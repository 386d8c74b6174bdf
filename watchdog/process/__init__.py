"""Run a command as a process tree, and end all of it."""
