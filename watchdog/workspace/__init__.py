"""Make the private directory of a call, and keep the files in it."""
