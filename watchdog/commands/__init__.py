"""What the commands do, except for the server."""
