"""Serve calls over HTTP."""
