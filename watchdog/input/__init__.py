"""Turn the body of a request into input files."""
