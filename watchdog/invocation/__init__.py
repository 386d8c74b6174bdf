"""The story of one call."""
