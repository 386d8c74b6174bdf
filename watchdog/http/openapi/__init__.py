"""Describe the server as an OpenAPI document, for people and for generators of clients."""
