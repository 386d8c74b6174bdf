"""The commands, except the server."""
