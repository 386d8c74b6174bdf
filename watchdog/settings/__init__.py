"""Declare every setting once, read them, and report all problems with them."""
