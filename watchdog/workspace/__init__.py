"""The private directory of a call, and the files in it."""
