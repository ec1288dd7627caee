"""Readers of foreign weight files: one format a module, NumPy arrays out, nothing executed."""
