"""Make the private directory of each call, and manage the files in it."""
