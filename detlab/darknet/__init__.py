"""Darknet networks: their text format, and the standard ones."""
