"""Fetch inputs from storages, and store outputs there."""
