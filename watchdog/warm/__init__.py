"""Keep a script alive between calls: the lines that the server and a worker exchange."""
