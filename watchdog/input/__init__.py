"""The body of a request becomes the input file."""
