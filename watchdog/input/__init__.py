"""Decode the body of a request, and write it into input files."""
