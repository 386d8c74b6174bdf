"""Turn the files that a script left into the answer."""
