"""Log the server's own events, and the lines of scripts with their levels."""
